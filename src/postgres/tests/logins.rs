//! Every way in: authentication methods, encryption, choice of the server.

use std::fs;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::cluster::{Cluster, parse};
use crate::{
    postgres::{Address, Error, conninfo::ConnectOptions, replication::Replication, sql::Sql, sql::get},
    reason::{Classified, Reason},
};

const ROLES: &str = "
    SET password_encryption = 'scram-sha-256';
    CREATE ROLE scram LOGIN REPLICATION PASSWORD 'pw-scram';
    CREATE ROLE clear LOGIN REPLICATION PASSWORD 'pw-clear';
    CREATE ROLE few LOGIN REPLICATION PASSWORD 'pw-few' CONNECTION LIMIT 0;
    SET password_encryption = 'md5';
    CREATE ROLE md LOGIN REPLICATION PASSWORD 'pw-md';";

/// Logs in for SQL and for replication and says whether the connections were encrypted.
async fn both(options: &ConnectOptions) -> Result<bool, Error> {
    let sql = Sql::connect(options).await?;
    let row = sql.one("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()", &[]).await?;
    let mut replication = Replication::connect(options, sql.server()).await?;
    let identity = replication.identify_system().await?;
    assert_eq!(identity.dbname.as_deref(), Some("postgres"));
    assert_eq!((identity.timeline, replication.version()), (1, sql.version()));
    let encrypted = get(&row, 0)?;
    assert_eq!(sql.server().encrypted, encrypted);
    assert_eq!(replication.server().encrypted, encrypted);
    replication.close().await?;
    Ok(encrypted)
}

#[tokio::test]
async fn passwords() {
    let hba = "local all md md5\nhost all scram 127.0.0.1/32 scram-sha-256\nhost all md 127.0.0.1/32 md5
               host all clear 127.0.0.1/32 password\nhost all few 127.0.0.1/32 password";
    let cluster = Cluster::start("", hba).await;
    cluster.sql().await.batch(ROLES).await.unwrap();
    for role in ["scram", "md", "clear"] {
        let good = cluster.tcp(&format!("user={role} password=pw-{role}"));
        assert!(!both(&good).await.unwrap(), "{role}");
        let wrong = cluster.tcp(&format!("user={role} password=guess"));
        let error = both(&wrong).await.unwrap_err();
        assert_eq!(error.sqlstate(), Some("28P01"), "{role}: {error}");
        assert!(!error.retryable() && error.reason() == Reason::PreflightFailed && error.hint().is_some());
        let sql = Sql::connect(&good).await.unwrap();
        let Err(error) = Replication::connect(&wrong, sql.server()).await else { panic!("{role} got in") };
        assert_eq!(error.sqlstate(), Some("28P01"), "{role}: {error}");
        let none = cluster.tcp(&format!("user={role}"));
        let error = both(&none).await.unwrap_err();
        assert!(matches!(error, Error::Authentication { .. }), "{role}: {error}");
        let Err(error) = Replication::connect(&none, sql.server()).await else { panic!("{role} got in") };
        assert!(matches!(error, Error::Authentication { .. }), "{role}: {error}");
    }
    assert!(!both(&cluster.options("user=md password=pw-md")).await.unwrap(), "md5 on the socket");

    let error = both(&cluster.tcp("user=nobody_here")).await.unwrap_err();
    assert_eq!(error.sqlstate(), Some("28000"), "{error}");
    let error = both(&cluster.options("dbname=absent")).await.unwrap_err();
    assert_eq!(error.sqlstate(), Some("3D000"), "{error}");
    assert!(!error.retryable());
    let error = both(&cluster.tcp("user=few password=pw-few")).await.unwrap_err();
    assert_eq!(error.sqlstate(), Some("53300"), "{error}");
    assert!(error.retryable() && error.hint().is_some());
}

#[tokio::test]
async fn encryption() {
    let hba = "hostssl all scram 127.0.0.1/32 scram-sha-256\nhostnossl all md 127.0.0.1/32 md5
               hostssl all clear 127.0.0.1/32 cert\nhost all postgres 127.0.0.1/32 trust";
    let cluster = Cluster::start("", hba).await;
    let sql = cluster.sql().await;
    sql.batch(ROLES).await.unwrap();

    let login = "user=postgres sslmode";
    assert!(!both(&cluster.tcp(&format!("{login}=prefer"))).await.unwrap(), "the server has no TLS yet");
    let error = both(&cluster.tcp(&format!("{login}=require"))).await.unwrap_err();
    assert!(matches!(error, Error::Tls { .. }) && error.hint().unwrap().contains("ssl = on"), "{error}");

    let mut params = CertificateParams::new(vec![]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params.clone(), KeyPair::generate().unwrap()).unwrap();
    let other = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let issue = |name: &str, common_name: &str| {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, common_name);
        (params.signed_by(&key, &ca).unwrap().pem(), key.serialize_pem())
    };
    let (cert, key) = issue("db.example", "db.example");
    cluster.write("server.crt", &cert);
    cluster.write("server.key", &key);
    cluster.write("root.crt", &ca.as_ref().pem());
    let (cert, key) = issue("client", "clear");
    let file = |name: &str, content: &str| {
        let path = cluster.path(name);
        fs::write(&path, content).unwrap();
        path.display().to_string()
    };
    let root = file("root.crt", &ca.as_ref().pem());
    let stranger = file("stranger.crt", &other.as_ref().pem());
    let (cert, key) = (file("client.crt", &cert), file("client.key", &key));
    for statement in ["SET ssl = on", "SET ssl_ca_file = 'root.crt'"] {
        sql.batch(&format!("ALTER SYSTEM {statement}")).await.unwrap();
    }
    sql.batch("SELECT pg_reload_conf()").await.unwrap();
    let deadline = std::time::Instant::now() + super::cluster::PATIENCE;
    while let Err(error) = both(&cluster.tcp("user=postgres sslmode=require")).await {
        assert!(std::time::Instant::now() < deadline, "{error}");
    }

    for (more, encrypted) in [
        ("user=postgres sslmode=disable".to_owned(), Some(false)),
        ("user=postgres sslmode=allow".into(), Some(false)),
        ("user=postgres sslmode=prefer".into(), Some(true)),
        ("user=postgres sslmode=require".into(), Some(true)),
        (format!("user=postgres sslmode=verify-ca sslrootcert={root}"), Some(true)),
        (format!("user=postgres sslmode=verify-full sslrootcert={root}"), Some(true)),
        (format!("user=postgres host=other.example sslmode=verify-ca sslrootcert={root}"), Some(true)),
        (format!("user=postgres host=other.example sslmode=verify-full sslrootcert={root}"), None),
        (format!("user=postgres sslmode=verify-ca sslrootcert={stranger}"), None),
        (format!("user=postgres sslmode=verify-full sslrootcert={stranger}"), None),
        (format!("user=postgres sslmode=require sslrootcert={stranger}"), None),
        (format!("user=postgres sslmode=prefer sslrootcert={stranger}"), Some(false)),
        ("user=postgres sslmode=require ssl_min_protocol_version=TLSv1.3".into(), Some(true)),
        ("user=scram password=pw-scram sslmode=disable".into(), None),
        ("user=scram password=pw-scram sslmode=allow".into(), Some(true)),
        ("user=scram password=pw-scram channel_binding=require".into(), Some(true)),
        ("user=scram password=pw-scram channel_binding=disable".into(), Some(true)),
        ("user=scram password=guess sslmode=prefer".into(), None),
        ("user=md password=pw-md sslmode=prefer".into(), Some(false)),
        ("user=md password=pw-md sslmode=require".into(), None),
        ("user=md password=pw-md channel_binding=require".into(), None),
        (format!("user=clear sslmode=verify-full sslrootcert={root} sslcert={cert} sslkey={key}"), Some(true)),
        (format!("user=clear sslmode=verify-full sslrootcert={root}"), None),
        (format!("user=clear sslmode=require sslcert={cert} sslkey={root}"), None),
    ] {
        let outcome = both(&cluster.tcp(&more)).await;
        assert_eq!(outcome.as_ref().ok().copied(), encrypted, "{more}: {outcome:?}");
        if let Err(error) = outcome {
            assert!(!error.retryable() && error.hint().is_some(), "{more}: {error}");
        }
    }

    // Replication checks the certificate too, not only SQL.
    let good = Sql::connect(&cluster.tcp("user=postgres sslmode=require")).await.unwrap();
    let strict = cluster.tcp(&format!("user=postgres sslmode=verify-full sslrootcert={stranger}"));
    assert!(matches!(Replication::connect(&strict, good.server()).await, Err(Error::Tls { .. })));
    let bound = cluster.tcp("user=md password=pw-md channel_binding=require");
    assert!(matches!(Replication::connect(&bound, good.server()).await, Err(Error::Authentication { .. })));
}

#[tokio::test]
async fn a_self_signed_server_certificate_is_its_own_root() {
    let cluster = Cluster::start("", "host all postgres 127.0.0.1/32 trust").await;
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["db.example".to_owned()]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let cert = params.self_signed(&key).unwrap().pem();
    cluster.write("server.crt", &cert);
    cluster.write("server.key", &key.serialize_pem());
    let root = cluster.path("root.crt");
    fs::write(&root, &cert).unwrap();
    let sql = cluster.sql().await;
    sql.batch("ALTER SYSTEM SET ssl = on").await.unwrap();
    sql.batch("SELECT pg_reload_conf()").await.unwrap();
    let deadline = std::time::Instant::now() + super::cluster::PATIENCE;
    while let Err(error) = both(&cluster.tcp("user=postgres sslmode=require")).await {
        assert!(std::time::Instant::now() < deadline, "{error}");
    }
    let full = format!("user=postgres sslmode=verify-full sslrootcert={}", root.display());
    assert!(both(&cluster.tcp(&full)).await.unwrap());
    assert!(matches!(both(&cluster.tcp(&format!("{full} host=other.example"))).await, Err(Error::Tls { .. })));
}

#[tokio::test]
async fn the_primary_is_found_and_kept() {
    let primary = Cluster::start("", "local replication all trust").await;
    let standby = primary.standby().await;
    let ports = primary.port;
    let (up, down) = (primary.socket_dir(), standby.socket_dir());
    let hosts = |more: &str| {
        let hosts = format!("host={},{} port={},{}", down.display(), up.display(), standby.port, ports);
        parse(&format!("{hosts} user=postgres dbname=postgres {more}"))
    };
    let sql = Sql::connect(&hosts("")).await.unwrap();
    assert!(!crate::postgres::server::in_recovery(&sql).await.unwrap());
    let Address::Unix(path) = &sql.server().address else { panic!("not a socket") };
    assert!(path.starts_with(&up));
    let mut replication = Replication::connect(&hosts(""), sql.server()).await.unwrap();
    assert_eq!(replication.server(), sql.server());
    assert_eq!(replication.timeline_history(1).await.unwrap(), "");
    let error = replication.timeline_history(7).await.unwrap_err();
    assert_eq!(error.sqlstate(), Some("58P01"), "{error}");
    assert_eq!(replication.identify_system().await.unwrap().timeline, 1, "the session survives an error");

    for wanted in ["standby", "prefer-standby", "any", "read-only"] {
        let sql = Sql::connect(&hosts(&format!("target_session_attrs={wanted}"))).await.unwrap();
        assert!(crate::postgres::server::in_recovery(&sql).await.unwrap(), "{wanted}");
    }
    let error = Sql::connect(&standby.options("")).await.err().unwrap();
    assert!(matches!(&error, Error::WrongKind { problem, .. } if problem.contains("standby")), "{error}");
    assert!(error.retryable(), "a failover may be under way");
    drop(primary);
    let error = Sql::connect(&hosts("")).await.err().unwrap();
    assert!(matches!(&error, Error::NoServer(errors) if errors.len() == 2), "{error}");
    assert!(error.retryable() && error.reason() == Reason::SourceUnavailable);
}

#[tokio::test]
async fn a_peer_that_says_nothing_is_given_up() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let silent = |mode: &str| {
        let dsn = format!("host=127.0.0.1 port={port} user=u connect_timeout=1 sslmode={mode}");
        ConnectOptions::parse(Some(&dsn), &|_| None).unwrap()
    };
    for mode in ["disable", "require"] {
        let error = Sql::connect(&silent(mode)).await.err().unwrap();
        assert!(matches!(error, Error::Unreachable { .. }) && error.retryable(), "{mode}: {error}");
    }
}

#[tokio::test]
async fn a_port_without_a_listener_is_unreachable() {
    // Bound and never listening. A listener that was dropped may live on in a process that another test is just
    // starting, between fork and exec, and accept.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let port = socket.local_addr().unwrap().port();
    let options = ConnectOptions::parse(Some(&format!("host=127.0.0.1 port={port} user=u")), &|_| None).unwrap();
    let error = Sql::connect(&options).await.err().unwrap();
    assert!(matches!(error, Error::Unreachable { .. }) && error.retryable(), "{error}");
}

/// A server that ends while it is asked for TLS will be back, whatever `sslmode` says.
#[tokio::test]
async fn a_server_that_goes_away_while_it_is_asked_for_encryption() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    // Every second one gets as far as the handshake.
    let server = tokio::spawn(async move {
        for number in 0.. {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 8];
            stream.read_exact(&mut request).await.unwrap();
            if number % 2 == 1 {
                stream.write_all(b"S").await.unwrap();
            }
        }
    });
    for mode in ["prefer", "prefer", "require", "require"] {
        let dsn = format!("host=127.0.0.1 port={port} user=u sslmode={mode}");
        let Err(error) = Sql::connect(&parse(&dsn)).await else { panic!("there is no server") };
        assert!(error.retryable() && error.reason() == Reason::SourceUnavailable, "{mode}: {error}");
    }
    server.abort();
}
