//! From pairs of keyword and value to [`ConnectOptions`]: precedence, defaults, and what each value may be.

use std::{
    collections::HashMap,
    net::IpAddr,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use super::{
    ChannelBinding, ConnectOptions, Env, Error, Host, HostSpec, Roots, Secret, SslMode, TargetSessionAttrs, TcpOptions,
    TlsOptions, files, syntax,
};

/// Where servers built by distributions, and by hand, put their sockets.
const SOCKET_DIRECTORIES: [&str; 2] = ["/var/run/postgresql", "/tmp"];

const VARIABLES: &[(&str, &str)] = &[
    ("PGHOST", "host"),
    ("PGHOSTADDR", "hostaddr"),
    ("PGPORT", "port"),
    ("PGDATABASE", "dbname"),
    ("PGUSER", "user"),
    ("PGPASSWORD", "password"),
    ("PGPASSFILE", "passfile"),
    ("PGREQUIREAUTH", "require_auth"),
    ("PGCHANNELBINDING", "channel_binding"),
    ("PGOPTIONS", "options"),
    ("PGAPPNAME", "application_name"),
    ("PGSSLMODE", "sslmode"),
    ("PGREQUIRESSL", "requiressl"),
    ("PGSSLNEGOTIATION", "sslnegotiation"),
    ("PGSSLCERT", "sslcert"),
    ("PGSSLKEY", "sslkey"),
    ("PGSSLCERTMODE", "sslcertmode"),
    ("PGSSLROOTCERT", "sslrootcert"),
    ("PGSSLCRL", "sslcrl"),
    ("PGSSLCRLDIR", "sslcrldir"),
    ("PGSSLSNI", "sslsni"),
    ("PGREQUIREPEER", "requirepeer"),
    ("PGSSLMINPROTOCOLVERSION", "ssl_min_protocol_version"),
    ("PGSSLMAXPROTOCOLVERSION", "ssl_max_protocol_version"),
    ("PGCONNECT_TIMEOUT", "connect_timeout"),
    ("PGTARGETSESSIONATTRS", "target_session_attrs"),
    ("PGLOADBALANCEHOSTS", "load_balance_hosts"),
];

/// Options that restrict what is accepted: to ignore them would be to connect where the operator forbade it.
const RESTRICTING: &[&str] =
    &["require_auth", "sslcrl", "sslcrldir", "requirepeer", "ssl_max_protocol_version", "sslpassword", "requiressl"];

impl ConnectOptions {
    /// The same with one server only.
    pub fn only(&self, host: &HostSpec) -> ConnectOptions {
        ConnectOptions { hosts: vec![host.clone()], ..self.clone() }
    }

    /// Reads a connection string in either form; `None` takes everything from the environment and the defaults.
    /// Files are read here (service file) or at each connection (password file, certificates), so rotated secrets
    /// are picked up.
    pub fn parse(dsn: Option<&str>, env: Env<'_>) -> Result<ConnectOptions, Error> {
        let given = Given::collect(dsn.unwrap_or_default(), env)?;
        let entry = files::passwd_entry();
        let home = env("HOME")
            .filter(|home| !home.is_empty())
            .or_else(|| entry.as_ref().map(|(_, home)| home.clone()))
            .map(PathBuf::from);
        let user =
            given.text("user").or_else(|| entry.map(|(name, _)| name)).or_else(|| env("USER")).ok_or(Error::NoUser)?;
        Ok(ConnectOptions {
            hosts: given.hosts()?,
            dbname: given.text("dbname").unwrap_or_else(|| user.clone()),
            user,
            application_name: given
                .text("application_name")
                .or_else(|| given.text("fallback_application_name"))
                .unwrap_or_else(|| "walcast".into()),
            options: given.text("options"),
            connect_timeout: match given.number::<i64>("connect_timeout")? {
                None => Some(Duration::from_secs(10)),
                Some(seconds) => u64::try_from(seconds).ok().filter(|s| *s > 0).map(Duration::from_secs),
            },
            target_session_attrs: given.target_session_attrs()?,
            load_balance: given.choice("load_balance_hosts", &[("disable", false), ("random", true)], false)?,
            tls: given.tls(home.as_deref())?,
            channel_binding: given.channel_binding()?,
            tcp: given.tcp()?,
            password: given.text("password").map(Secret),
            passfile: given
                .text("passfile")
                .map(PathBuf::from)
                .or_else(|| home.map(|home| home.join(".pgpass")))
                .filter(|file| file.as_os_str() != "/dev/null"),
        })
    }

    /// The password for one server of the list: the one given, otherwise the password file's.
    pub(in crate::postgres) fn password_for(&self, spec: &HostSpec) -> Option<String> {
        if let Some(Secret(password)) = &self.password {
            return Some(password.clone());
        }
        let host = match (&spec.host, spec.addr) {
            (Host::Tcp(name), None) => name.clone(),
            (Host::Tcp(name), Some(addr)) => {
                if name.is_empty() {
                    addr.to_string()
                } else {
                    name.clone()
                }
            }
            (Host::Unix(path), _) if SOCKET_DIRECTORIES.iter().any(|known| path == Path::new(known)) => {
                "localhost".into()
            }
            (Host::Unix(path), _) => path.display().to_string(),
        };
        files::password(self.passfile.as_deref()?, &host, spec.port, &self.dbname, &self.user)
    }
}

/// The value of every option that anybody gave.
struct Given(HashMap<&'static str, String>);

impl Given {
    fn collect(dsn: &str, env: Env<'_>) -> Result<Given, Error> {
        let mut given: HashMap<&'static str, String> = syntax::parse(dsn)?.into_iter().collect();
        let service = given.get("service").cloned().or_else(|| env("PGSERVICE")).filter(|name| !name.is_empty());
        if let Some(service) = service {
            let own = given.get("servicefile").cloned().or_else(|| env("PGSERVICEFILE"));
            let home = env("HOME").map(|home| format!("{home}/.pg_service.conf"));
            let system = format!("{}/pg_service.conf", env("PGSYSCONFDIR").unwrap_or("/etc/postgresql-common".into()));
            let mut found = None;
            for file in [own.or(home), Some(system)].into_iter().flatten() {
                found = files::service(Path::new(&file), &service)?;
                if found.is_some() {
                    break;
                }
            }
            for (keyword, value) in found.ok_or(Error::ServiceMissing(service))? {
                given.entry(keyword).or_insert(value);
            }
        }
        for (variable, keyword) in VARIABLES {
            if !given.contains_key(keyword) {
                given.extend(env(variable).map(|value| (*keyword, value)));
            }
        }
        given.retain(|_, value| !value.is_empty());
        match RESTRICTING.iter().find(|option| given.contains_key(**option)) {
            Some(option) => Err(Error::Unsupported(option)),
            None => Ok(Given(given)),
        }
    }

    fn text(&self, keyword: &'static str) -> Option<String> {
        self.0.get(keyword).cloned()
    }

    fn number<T: FromStr>(&self, option: &'static str) -> Result<Option<T>, Error> {
        let wrong = |_| Error::Value { option, problem: "expected a number in range".into() };
        self.0.get(option).map(|text| text.trim().parse().map_err(wrong)).transpose()
    }

    fn choice<T: Copy>(&self, option: &'static str, choices: &[(&str, T)], default: T) -> Result<T, Error> {
        let Some(text) = self.0.get(option) else { return Ok(default) };
        let names = || choices.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
        choices
            .iter()
            .find(|(name, _)| name == text)
            .map(|(_, value)| *value)
            .ok_or_else(|| Error::Value { option, problem: format!("expected one of {}", names()) })
    }

    fn hosts(&self) -> Result<Vec<HostSpec>, Error> {
        let list = |keyword| -> Vec<&str> {
            self.0.get(keyword).map(|text| text.split(',').map(str::trim).collect()).unwrap_or_default()
        };
        let (names, addrs, ports) = (list("host"), list("hostaddr"), list("port"));
        let count = names.len().max(addrs.len()).max(1);
        if !names.is_empty() && !addrs.is_empty() && names.len() != addrs.len() {
            let problem = format!("{} addresses for {} hosts", addrs.len(), names.len());
            return Err(Error::Value { option: "hostaddr", problem });
        }
        if ports.len() > 1 && ports.len() != count {
            return Err(Error::Value { option: "port", problem: format!("{} ports for {count} hosts", ports.len()) });
        }
        (0..count)
            .map(|i| {
                let port = match *ports.get(i).or(ports.first()).unwrap_or(&"") {
                    "" => 5432,
                    text => text.parse::<u16>().ok().filter(|port| *port > 0).ok_or_else(|| Error::Value {
                        option: "port",
                        problem:
                            "expected numbers from 1 to 65535 (a \"/\", \":\" or \"@\" in a URI's password must be \
                                  percent-encoded)"
                                .into(),
                    })?,
                };
                let addr =
                    match *addrs.get(i).unwrap_or(&"") {
                        "" => None,
                        text => Some(text.parse::<IpAddr>().map_err(|_| Error::Value {
                            option: "hostaddr",
                            problem: "expected IP addresses".into(),
                        })?),
                    };
                let host = match (*names.get(i).unwrap_or(&""), addr) {
                    ("", None) => default_host(port),
                    ("", Some(addr)) => Host::Tcp(addr.to_string()),
                    (name, _) if name.starts_with('/') => Host::Unix(name.into()),
                    (name, _) if name.starts_with('@') => {
                        let problem = "abstract sockets are not supported".into();
                        return Err(Error::Value { option: "host", problem });
                    }
                    (name, _) => Host::Tcp(name.to_owned()),
                };
                Ok(HostSpec { host, addr, port })
            })
            .collect()
    }

    fn target_session_attrs(&self) -> Result<TargetSessionAttrs, Error> {
        use TargetSessionAttrs::*;
        let choices = [
            ("any", Any),
            ("read-write", ReadWrite),
            ("read-only", ReadOnly),
            ("primary", Primary),
            ("standby", Standby),
            ("prefer-standby", PreferStandby),
        ];
        self.choice("target_session_attrs", &choices, ReadWrite)
    }

    fn channel_binding(&self) -> Result<ChannelBinding, Error> {
        use ChannelBinding::*;
        self.choice("channel_binding", &[("disable", Disable), ("prefer", Prefer), ("require", Require)], Prefer)
    }

    fn tls(&self, home: Option<&Path>) -> Result<TlsOptions, Error> {
        use SslMode::*;
        let in_home = |name: &str| home.map(|home| home.join(".postgresql").join(name)).filter(|file| file.exists());
        let roots = match self.text("sslrootcert") {
            Some(name) if name == "system" => Roots::System,
            Some(name) => Roots::File(name.into()),
            None => in_home("root.crt").map_or(Roots::None, Roots::File),
        };
        let modes = [
            ("disable", Disable),
            ("allow", Allow),
            ("prefer", Prefer),
            ("require", Require),
            ("verify-ca", VerifyCa),
            ("verify-full", VerifyFull),
        ];
        let mode = self.choice("sslmode", &modes, if roots == Roots::System { VerifyFull } else { Prefer })?;
        let wrong = |option, problem: &str| Err(Error::Value { option, problem: problem.into() });
        if roots == Roots::System && mode != VerifyFull {
            return wrong("sslmode", "with sslrootcert=system it must be verify-full");
        }
        if roots == Roots::None && mode >= VerifyCa {
            return wrong("sslrootcert", "verify-ca and verify-full need a root certificate (a PEM file, or system)");
        }
        let direct = self.choice("sslnegotiation", &[("postgres", false), ("direct", true)], false)?;
        if direct && mode < Require {
            return wrong("sslnegotiation", "direct needs sslmode require or stronger");
        }
        let client =
            match self.choice("sslcertmode", &[("disable", false), ("allow", true), ("require", true)], true)? {
                false => None,
                true => {
                    let key = |text: Option<String>| text.map(PathBuf::from).or_else(|| in_home("postgresql.key"));
                    match (self.text("sslcert").map(PathBuf::from), key(self.text("sslkey"))) {
                        (Some(cert), Some(key)) => Some((cert, key)),
                        (Some(_), None) => return wrong("sslkey", "sslcert needs its key"),
                        (None, key) => in_home("postgresql.crt").zip(key),
                    }
                }
            };
        let versions = [("TLSv1", false), ("TLSv1.1", false), ("TLSv1.2", false), ("TLSv1.3", true)];
        Ok(TlsOptions {
            mode,
            direct,
            roots,
            client,
            sni: self.choice("sslsni", &[("1", true), ("0", false)], true)?,
            tls13_only: self.choice("ssl_min_protocol_version", &versions, false)?,
        })
    }

    fn tcp(&self) -> Result<TcpOptions, Error> {
        let seconds = |option, default| -> Result<Duration, Error> {
            Ok(Duration::from_secs(self.number::<u32>(option)?.unwrap_or(default).into()))
        };
        Ok(TcpOptions {
            keepalives: self.number::<i32>("keepalives")?.unwrap_or(1) != 0,
            idle: seconds("keepalives_idle", 30)?,
            interval: seconds("keepalives_interval", 10)?,
            count: self.number("keepalives_count")?.unwrap_or(3),
            user_timeout: Duration::from_millis(self.number::<u32>("tcp_user_timeout")?.unwrap_or(30_000).into()),
        })
    }
}

/// libpq's default is fixed when it is built, to one of these; the first that has a server is taken.
fn default_host(port: u16) -> Host {
    let socket = |directory: &&&str| Path::new(directory).join(format!(".s.PGSQL.{port}")).exists();
    Host::Unix(SOCKET_DIRECTORIES.iter().find(socket).unwrap_or(&SOCKET_DIRECTORIES[0]).into())
}
