use std::{fs, os::unix::fs::PermissionsExt};

use super::*;

fn parse(dsn: &str, env: &[(&str, &str)]) -> Result<ConnectOptions, Error> {
    ConnectOptions::parse(Some(dsn), &|name| {
        env.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
    })
}

fn ok(dsn: &str, env: &[(&str, &str)]) -> ConnectOptions {
    parse(dsn, env).unwrap()
}

#[test]
fn defaults() {
    let options = ok("user=alice", &[]);
    assert_eq!((options.user.as_str(), options.dbname.as_str()), ("alice", "alice"));
    assert_eq!(options.application_name, "walcast");
    assert_eq!(options.hosts.len(), 1);
    assert!(matches!(&options.hosts[0], HostSpec { host: Host::Unix(_), addr: None, port: 5432 }));
    assert_eq!(options.target_session_attrs, TargetSessionAttrs::ReadWrite);
    assert_eq!(options.connect_timeout, Some(Duration::from_secs(10)));
    assert_eq!(options.tls.mode, SslMode::Prefer);
}

#[test]
fn the_string_wins_over_the_service_and_the_service_over_the_environment() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("services");
    fs::write(&file, "[s]\ndbname=from_service\nuser=from_service\n").unwrap();
    let env = [
        ("PGSERVICE", "s"),
        ("PGSERVICEFILE", file.to_str().unwrap()),
        ("PGUSER", "from_env"),
        ("PGDATABASE", "from_env"),
        ("PGHOST", "from_env"),
        ("PGAPPNAME", "other"),
        ("PGCONNECT_TIMEOUT", "0"),
        ("PGTARGETSESSIONATTRS", "any"),
    ];
    let options = ok("user=from_string", &env);
    assert_eq!(options.user, "from_string");
    assert_eq!(options.dbname, "from_service");
    assert_eq!(options.hosts[0].host, Host::Tcp("from_env".into()));
    assert_eq!(options.application_name, "other");
    assert_eq!(options.connect_timeout, None);
    assert_eq!(options.target_session_attrs, TargetSessionAttrs::Any);
    assert_eq!(parse("service=t", &env).unwrap_err(), Error::ServiceMissing("t".into()));
}

#[test]
fn hosts_ports_and_addresses_go_together() {
    let options = ok("host=a,/run/x,c port=1,,3 hostaddr=10.0.0.1,,::1 user=u", &[]);
    let shown: Vec<_> = options.hosts.iter().map(ToString::to_string).collect();
    assert_eq!(shown, ["a:1", "/run/x/.s.PGSQL.5432", "c:3"]);
    assert_eq!(options.hosts[2].addr, Some("::1".parse().unwrap()));
    assert!(ok("host=a,b port=7 user=u", &[]).hosts.iter().all(|spec| spec.port == 7));
    assert_eq!(ok("host=fe80::1 user=u", &[]).hosts[0].to_string(), "[fe80::1]:5432");
    for bad in ["host=a,b port=1,2,3", "host=a hostaddr=1.1.1.1,2.2.2.2", "port=0", "port=x", "hostaddr=x"] {
        assert!(parse(bad, &[]).is_err(), "{bad}");
    }
}

#[test]
fn passwords_come_from_the_string_or_the_file_and_are_never_shown() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pgpass");
    fs::write(&file, "a:5432:d:u:hunter2\nlocalhost:*:d:u:hunter3\n").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    let env = [("PGPASSFILE", file.to_str().unwrap())];
    let options = ok("host=a,b,/tmp,/other dbname=d user=u", &env);
    let found: Vec<_> = options.hosts.iter().map(|spec| options.password_for(spec)).collect();
    assert_eq!(found, [Some("hunter2".into()), None, Some("hunter3".into()), None]);
    let options = ok("postgres://u:hunter2@a/d", &env);
    assert_eq!(options.password_for(&options.hosts[0]).as_deref(), Some("hunter2"));
    assert!(!format!("{options:?}").contains("hunter2"));
    let options = ok("host=a user=u", &[("PGPASSWORD", "hunter2")]);
    assert_eq!(options.password_for(&options.hosts[0]).as_deref(), Some("hunter2"));
}

#[test]
fn a_password_that_breaks_the_uri_is_not_repeated() {
    for bad in ["postgres://u:hunter2/x@h/db", "postgres://u:12/hunter2@h/db", "postgres://u:a@hunter2@h/db"] {
        let error = parse(bad, &[]).unwrap_err();
        assert!(!format!("{error} {error:?} {:?}", error.hint()).contains("hunter2"), "{error}");
    }
}

#[test]
fn ssl_modes_follow_libpq() {
    let mode = |dsn: &str| ok(dsn, &[("PGUSER", "u")]).tls;
    assert_eq!(mode("sslrootcert=system").mode, SslMode::VerifyFull);
    assert_eq!(mode("sslmode=verify-ca sslrootcert=/x").roots, Roots::File("/x".into()));
    assert_eq!(mode("postgres://h/?ssl=true").mode, SslMode::Require);
    assert_eq!(mode("sslcert=/c sslkey=/k").client, Some(("/c".into(), "/k".into())));
    assert!(mode("ssl_min_protocol_version=TLSv1.3").tls13_only);
    for bad in [
        "sslmode=verify-ca",
        "sslmode=verify-full",
        "sslmode=require sslrootcert=system",
        "sslmode=Require",
        "sslcert=/c",
        "sslnegotiation=direct",
    ] {
        assert!(matches!(parse(bad, &[("PGUSER", "u")]), Err(Error::Value { .. })), "{bad}");
    }
}

#[test]
fn the_users_own_root_certificate_counts() {
    let home = tempfile::tempdir().unwrap();
    let env = [("HOME", home.path().to_str().unwrap()), ("PGUSER", "u")];
    assert_eq!(ok("sslmode=require", &env).tls.roots, Roots::None);
    fs::create_dir(home.path().join(".postgresql")).unwrap();
    let file = home.path().join(".postgresql/root.crt");
    fs::write(&file, "").unwrap();
    assert_eq!(ok("sslmode=require", &env).tls.roots, Roots::File(file));
}

#[test]
fn restrictions_are_not_ignored() {
    for (dsn, option) in [("sslcrl=/x", "sslcrl"), ("require_auth=scram-sha-256", "require_auth")] {
        assert_eq!(parse(dsn, &[]).unwrap_err(), Error::Unsupported(option));
    }
    assert_eq!(parse("", &[("PGREQUIREPEER", "postgres")]).unwrap_err(), Error::Unsupported("requirepeer"));
    assert!(parse("gssencmode=disable krbsrvname=x client_encoding=LATIN1", &[]).is_ok());
}
