//! Where and how to connect, in libpq's words: a
//! [connection string](https://www.postgresql.org/docs/current/libpq-connect.html), completed by a service file, the
//! [`PG*` variables](https://www.postgresql.org/docs/current/libpq-envars.html) and libpq's defaults, in that order.
//!
//! tokio-postgres' own parser is not used: it reads no environment and refuses `sslrootcert`, `sslcert`, `passfile`
//! and `sslmode=verify-full`. Three defaults differ from libpq's, because a hub is not an interactive program:
//! `target_session_attrs` is read-write, `connect_timeout` 10 seconds for each address, and dead peers are noticed
//! within a minute (`keepalives_idle` 30, `keepalives_interval` 10, `keepalives_count` 3, `tcp_user_timeout` 30000).
//!
//! An option that walcast cannot honour is refused if leaving it out would weaken the connection (`sslcrl`,
//! `require_auth` ...) and ignored where it does not matter (`gssencmode`, `client_encoding`, which is always UTF8 ...).

mod build;
mod files;
mod syntax;
#[cfg(test)]
mod tests;

use std::{fmt, net::IpAddr, path::PathBuf, time::Duration};

use crate::reason::{Classified, Reason};

/// Looks up an environment variable; injected so that tests do not touch the process's.
pub type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The process's environment. Variables that are not UTF-8 count as absent.
pub fn process_env(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Everything needed to connect. `Debug` shows no password.
#[derive(Clone, Debug)]
pub struct ConnectOptions {
    /// Servers in the order in which they are tried; never empty.
    pub hosts: Vec<HostSpec>,
    /// Role name.
    pub user: String,
    /// Database name.
    pub dbname: String,
    /// What `pg_stat_activity` shows; `walcast` unless set.
    pub application_name: String,
    /// Command-line options for the server process (`-c name=value`).
    pub options: Option<String>,
    /// For each address; `None` waits as long as the kernel does.
    pub connect_timeout: Option<Duration>,
    /// Which kind of server is wanted.
    pub target_session_attrs: TargetSessionAttrs,
    /// Try the hosts in random order (`load_balance_hosts=random`).
    pub load_balance: bool,
    /// Encryption.
    pub tls: TlsOptions,
    /// Whether SCRAM must be bound to the TLS session.
    pub channel_binding: ChannelBinding,
    /// Detection of dead peers.
    pub tcp: TcpOptions,
    password: Option<Secret>,
    passfile: Option<PathBuf>,
}

/// One server of the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostSpec {
    /// Name, address or socket directory.
    pub host: Host,
    /// Connect here instead of resolving the name (`hostaddr`).
    pub addr: Option<IpAddr>,
    /// TCP port, also the suffix of the socket's file name.
    pub port: u16,
}

/// How a server is named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// A name or an IP address; what `verify-full` compares the certificate with.
    Tcp(String),
    /// The directory of a Unix-domain socket.
    Unix(PathBuf),
}

impl HostSpec {
    /// The socket's path, for a socket directory.
    pub fn socket_path(&self) -> Option<PathBuf> {
        match &self.host {
            Host::Unix(directory) => Some(directory.join(format!(".s.PGSQL.{}", self.port))),
            Host::Tcp(_) => None,
        }
    }
}

impl fmt::Display for HostSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.host, self.socket_path()) {
            (_, Some(path)) => write!(f, "{}", path.display()),
            (Host::Tcp(name), None) if name.contains(':') => write!(f, "[{name}]:{}", self.port),
            (Host::Tcp(name), None) => write!(f, "{name}:{}", self.port),
            (Host::Unix(directory), None) => write!(f, "{}", directory.display()),
        }
    }
}

/// A password: never shown, not compared.
#[derive(Clone)]
struct Secret(String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(hidden)")
    }
}

/// [`target_session_attrs`](https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNECT-TARGET-SESSION-ATTRS).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetSessionAttrs {
    /// The first that answers.
    Any,
    /// Not in recovery and not read-only by default; walcast's default.
    ReadWrite,
    /// In recovery, or read-only by default.
    ReadOnly,
    /// Not in recovery.
    Primary,
    /// In recovery.
    Standby,
    /// In recovery if there is such a server, otherwise any.
    PreferStandby,
}

/// [`sslmode`](https://www.postgresql.org/docs/current/libpq-ssl.html#LIBPQ-SSL-SSLMODE-STATEMENTS).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SslMode {
    /// Never TLS.
    Disable,
    /// TLS only where the server refuses to do without.
    Allow,
    /// TLS where the server offers it; the default.
    Prefer,
    /// TLS always, the certificate checked only if a root certificate is there.
    Require,
    /// TLS with a certificate that chains to a root certificate.
    VerifyCa,
    /// As before, and the certificate names the host.
    VerifyFull,
}

/// Which authorities are trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Roots {
    /// None known: certificates cannot be checked.
    None,
    /// The operating system's (`sslrootcert=system`).
    System,
    /// A PEM file.
    File(PathBuf),
}

/// Encryption of TCP connections. Unix-domain sockets never use TLS, whatever the mode, as in libpq.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsOptions {
    /// Whether, and how strictly.
    pub mode: SslMode,
    /// Start with the handshake instead of asking first (`sslnegotiation=direct`, PostgreSQL 17).
    pub direct: bool,
    /// Trusted authorities.
    pub roots: Roots,
    /// PEM files of the client's certificate chain and key.
    pub client: Option<(PathBuf, PathBuf)>,
    /// Send the host name in the clear (`sslsni`).
    pub sni: bool,
    /// Refuse TLS 1.2 (`ssl_min_protocol_version=TLSv1.3`).
    pub tls13_only: bool,
}

/// [`channel_binding`](https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNECT-CHANNEL-BINDING).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChannelBinding {
    /// Never.
    Disable,
    /// Where server and certificate allow it.
    Prefer,
    /// Refuse to authenticate without.
    Require,
}

/// How soon a dead peer is noticed. Durations of zero leave the system's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpOptions {
    /// Whether keepalives are sent.
    pub keepalives: bool,
    /// Silence before the first.
    pub idle: Duration,
    /// Time between two.
    pub interval: Duration,
    /// How many may remain unanswered; 0 leaves the system's value.
    pub count: u32,
    /// How long sent data may remain unacknowledged.
    pub user_timeout: Duration,
}

/// The connection string or what it refers to is wrong. Never a matter for a retry; never repeats a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The string cannot be parsed.
    #[error("invalid connection string: {0}")]
    Syntax(String),
    /// An option has a value that it cannot have.
    #[error("invalid connection option {option}: {problem}")]
    Value {
        /// libpq's name of the option.
        option: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// An option of libpq that walcast cannot honour.
    #[error("connection option {0} is not supported by walcast, and ignoring it would be less secure than asked for")]
    Unsupported(&'static str),
    /// The named service is in no service file.
    #[error("definition of service {0:?} not found")]
    ServiceMissing(String),
    /// A line of a service file is no option.
    #[error("{}, line {line}: not a connection option", file.display())]
    ServiceFile {
        /// The file.
        file: PathBuf,
        /// The line, counted from 1.
        line: usize,
    },
    /// No user name was given and the system knows none.
    #[error("no user name: set user in the connection string, or PGUSER")]
    NoUser,
}

impl Error {
    /// Always false: only another configuration helps.
    pub fn retryable(&self) -> bool {
        false
    }

    /// What to change.
    pub fn hint(&self) -> Option<String> {
        match self {
            Error::Syntax(_) => Some(
                "Write postgresql://user:password@host:5432/database?sslmode=require, or host=... dbname=... user=..."
                    .into(),
            ),
            Error::ServiceMissing(_) => Some("Check PGSERVICEFILE and ~/.pg_service.conf.".into()),
            Error::Unsupported(option) => Some(format!("Remove {option}.")),
            Error::Value { .. } | Error::ServiceFile { .. } | Error::NoUser => None,
        }
    }
}

impl Classified for Error {
    fn reason(&self) -> Reason {
        Reason::PreflightFailed
    }
}
