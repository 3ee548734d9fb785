//! How the hub finds its source, and what it says when the source is not as it must be. Every fix is run as it is printed.

use std::{fs, path::Path, time::Duration};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

use crate::harness::{
    Cluster, Db, Stage,
    client::{Client, Request},
    command::walcast,
    eventually,
    hub::Hub,
    process, stage,
};

const PATIENCE: Duration = Duration::from_secs(30);
const TABLE: &str = "CREATE TABLE t (id int PRIMARY KEY)";

/// The hub carries a row from its source to a subscriber.
async fn works(stage: &Stage) {
    stage.db.run("INSERT INTO t VALUES (1)").await;
    stage.journaled().await;
    assert_eq!(stage.everything().await.changes(), 1);
}

/// What the hub says about its source, once it contains all of this.
async fn says(hub: &Hub, parts: &[&str]) -> String {
    let client = Client::new(hub.grpc_port());
    eventually(PATIENCE, || async {
        let status = client.status().await.map_err(|failure| format!("{failure:?}"))?;
        let told = status.source.map(|source| source.last_error).unwrap_or_default();
        if parts.iter().all(|part| told.contains(part)) { Ok(told) } else { Err(told) }
    })
    .await
}

async fn streams(hub: &Hub) {
    hub.metric_becomes("walcast_source_connected", PATIENCE, |connected| connected == 1.0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn libpqs_variables_alone_are_enough_and_a_socket_will_do() {
    let stage = stage()
        .sql(TABLE)
        .dsn("")
        .env("PGHOST", "{socket}")
        .env("PGPORT", "{port}")
        .env("PGUSER", "postgres")
        .env("PGDATABASE", "postgres")
        .env("PGAPPNAME", "hub of the test")
        .start()
        .await;
    let local =
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'hub of the test' AND client_addr IS NULL";
    assert!(stage.db.number(local).await >= 2, "SQL and replication came over the socket");
    works(&stage).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_file_says_the_rest() {
    let file = process::fresh_dir("service").join("services");
    let stage = stage().sql(TABLE).dsn("").env("PGSERVICE", "shop").prepare().await;
    let entry = format!("[shop]\nhost=127.0.0.1\nport={}\nuser=postgres\ndbname=postgres\n", stage.cluster.port());
    fs::write(&file, entry).expect("service file");
    let mut stage = stage;
    stage.hub.env("PGSERVICEFILE", &file.display().to_string());
    stage.hub.start().await;
    stage.streaming().await;
    works(&stage).await;
}

/// Log lines of every level, from the hub and its libraries, with a password from each place where one can be given,
/// and a bearer token.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_are_in_no_log_whatever_its_level() {
    const PASSWORD: &str = "pw-that-nobody-may-read";
    const TOKEN: &str = "token-that-nobody-may-read";
    let dir = process::fresh_dir("secrets");
    let tokens = dir.join("tokens");
    fs::write(&tokens, format!("{TOKEN} operator * admin\n")).expect("tokens");
    let passfile = dir.join("pgpass");
    fs::write(&passfile, format!("*:*:*:hub:{PASSWORD}\n")).expect("password file");
    std::os::unix::fs::chown(&passfile, None, None).expect("own file");
    fs::set_permissions(&passfile, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("chmod");
    let stage = stage()
        .sql(TABLE)
        .sql(&format!("CREATE ROLE hub LOGIN REPLICATION PASSWORD '{PASSWORD}'"))
        .env("WALCAST_LOG", "trace")
        .env("WALCAST_LOG_FORMAT", "json")
        .env("WALCAST_TOKENS_FILE", &tokens.display().to_string())
        .prepare()
        .await;
    let mut stage = stage;
    let port = stage.cluster.port();
    for (dsn, variable, value) in [
        (format!("host=127.0.0.1 port={port} user=hub dbname=postgres"), "PGPASSFILE", passfile.display().to_string()),
        (format!("host=127.0.0.1 port={port} user=hub dbname=postgres"), "PGPASSWORD", PASSWORD.to_owned()),
        (format!("postgres://hub:{PASSWORD}@127.0.0.1:{port}/postgres"), "UNUSED", String::new()),
        (format!("host=127.0.0.1 port={port} user=hub dbname=postgres password='{PASSWORD}'"), "UNUSED", String::new()),
        (format!("postgres://hub:wrong-{PASSWORD}@127.0.0.1:{port}/postgres"), "UNUSED", String::new()),
    ] {
        let mut hub = Hub::new("");
        let tokens = tokens.display().to_string();
        for (name, value) in [
            ("WALCAST_DSN", dsn.as_str()),
            ("WALCAST_LOG", "trace"),
            ("WALCAST_LOG_FORMAT", "json"),
            ("WALCAST_TOKENS_FILE", &tokens),
            (variable, &value),
        ] {
            hub.env(name, value);
        }
        let client = Client::new(hub.grpc_port()).token(TOKEN);
        if dsn.contains("wrong") {
            hub.spawn();
            eventually(PATIENCE, || async {
                let told = client.status().await.map_err(|failure| format!("{failure:?}"))?;
                let told = told.source.map(|source| source.last_error).unwrap_or_default();
                if told.contains("28P01") { Ok(()) } else { Err(told) }
            })
            .await;
        } else {
            hub.start().await;
            streams(&hub).await;
            let mut stream = client.subscribe(&Request::new().earliest()).await;
            stream.until("opened", |log| log.opened().is_some()).await;
            assert!(!stream.pull().await || stream.log.opened().is_some());
        }
        hub.terminate();
        let log = hub.log();
        assert!(log.len() > 10_000, "the log is as talkative as it can be: {} bytes", log.len());
        for line in log.lines() {
            serde_json::from_str::<serde_json::Value>(line).unwrap_or_else(|error| panic!("{error}: {line}"));
            for secret in [PASSWORD, TOKEN] {
                assert!(!line.contains(secret), "{line}");
            }
        }
        stage
            .db
            .run("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = 'walcast'")
            .await;
    }
    stage.hub.env("WALCAST_LOG", "info");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_hosts_are_tried_and_the_one_that_takes_writes_is_used() {
    let mut stage = stage().sql(TABLE).prepare().await;
    let standby = stage.cluster.standby(&[]).await;
    let (nobody, primary) = (process::free_port(), stage.cluster.port());
    let ports = format!("{nobody},{},{primary}", standby.port());
    stage.hub = Hub::new(&format!("host=127.0.0.1,127.0.0.1,127.0.0.1 port={ports} user=postgres dbname=postgres"));
    stage.hub.start().await;
    stage.streaming().await;
    works(&stage).await;

    // Only the standby: refused, with what is wrong, until there is a primary.
    let mut lost = Hub::new(&standby.dsn());
    lost.spawn();
    let told = says(&lost, &["SOURCE_UNAVAILABLE", "standby"]).await;
    assert!(told.contains("target_session_attrs"), "{told}");
}

fn authority() -> (String, Issuer<'static, KeyPair>) {
    let key = KeyPair::generate().expect("key");
    let mut params = CertificateParams::new(Vec::<String>::new()).expect("parameters");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    (params.self_signed(&key).expect("authority").pem(), Issuer::new(params, key))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_servers_certificate_is_checked_as_sslmode_says() {
    let mut stage = stage().sql(TABLE).prepare().await;
    if stage.db.text("SHOW ssl_library").await.is_none_or(|library| library.is_empty()) {
        eprintln!("SKIPPED: this server was built without TLS");
        return;
    }
    let ((root, issuer), (stranger, _)) = (authority(), authority());
    let key = KeyPair::generate().expect("key");
    let params = CertificateParams::new(vec!["localhost".to_owned()]).expect("parameters");
    let certificate = params.signed_by(&key, &issuer).expect("certificate").pem();
    let write = |path: &Path, text: &str| {
        fs::write(path, text).expect("file");
        fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("chmod");
    };
    for (name, text) in [("server.crt", &certificate), ("server.key", &key.serialize_pem())] {
        let path = stage.cluster.data_dir().join(name);
        write(&path, text);
        process::give_to_server(&path);
    }
    let dir = process::fresh_dir("roots");
    for (name, text) in [("root.crt", &root), ("stranger.crt", &stranger)] {
        write(&dir.join(name), text);
    }
    stage.db.run("ALTER SYSTEM SET ssl = on").await;
    stage.db.run("SELECT pg_reload_conf()").await;
    eventually(PATIENCE, || async {
        let on = stage.db.text("SHOW ssl").await;
        if on.as_deref() == Some("on") { Ok(()) } else { Err(on) }
    })
    .await;
    let port = stage.cluster.port();
    let dsn = |host: &str, root: &str| {
        let root = dir.join(root).display().to_string();
        format!(
            "host={host} hostaddr=127.0.0.1 port={port} user=postgres dbname=postgres sslmode=verify-full sslrootcert={root}"
        )
    };
    for (host, root) in [("localhost", "stranger.crt"), ("elsewhere.example", "root.crt")] {
        let mut refused = Hub::new(&dsn(host, root));
        refused.spawn();
        let told = says(&refused, &["PREFLIGHT_FAILED", "TLS with"]).await;
        assert!(told.contains("Check sslrootcert"), "{told}");
    }
    stage.hub = Hub::new(&dsn("localhost", "root.crt"));
    stage.hub.start().await;
    stage.streaming().await;
    let encrypted = "SELECT count(*) FROM pg_replication_slots JOIN pg_stat_ssl ON pid = active_pid WHERE ssl AND slot_name = 'walcast'";
    assert_eq!(stage.db.number(encrypted).await, 1);
    works(&stage).await;
}

/// The statements of `walcast doctor`, as printed.
fn fixes(report: &str) -> Vec<String> {
    report.lines().filter_map(|line| line.trim_start().strip_prefix("fix: ")).map(str::to_owned).collect()
}

/// Runs a fix as a person would paste it: statements up to a comment.
async fn paste(db: &Db, fix: &str) {
    for statement in fix.split("--").next().unwrap_or_default().split_inclusive(';') {
        if !statement.trim().is_empty() {
            db.run(statement).await;
        }
    }
}

/// Everything wrong at once: each fix of the doctor is run literally, and the waiting hub begins to stream by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_missing_is_told_with_what_to_run_and_that_helps() {
    let mut cluster = Cluster::with_settings(&[("wal_level", "replica"), ("max_replication_slots", "1")]);
    let db = cluster.connect().await;
    db.run("CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE \"no Key\" (id int)").await;
    db.run("SELECT pg_create_physical_replication_slot('taken')").await;
    db.run("CREATE ROLE hub LOGIN PASSWORD 'pw'").await;
    let dsn = format!("postgres://hub:pw@127.0.0.1:{}/postgres", cluster.port());
    let mut hub = Hub::new(&dsn);
    hub.spawn();
    says(&hub, &["PREFLIGHT_FAILED", "ALTER ROLE \"hub\" REPLICATION;"]).await;
    let doctor = || walcast(&["doctor", "--dsn", &dsn], &[]);
    let report = doctor();
    assert_eq!(report.code, 1, "{report:?}");
    assert!(!report.stdout.contains('\x1b'), "no colours in a pipe");
    assert!(report.stderr.contains("preconditions not met"), "{report:?}");
    for part in [
        "ALTER ROLE \"hub\" REPLICATION;",
        "ALTER SYSTEM SET wal_level = logical;",
        "ALTER SYSTEM SET max_replication_slots = 11;",
        "CREATE PUBLICATION \"walcast\" FOR ALL TABLES;",
        "ALTER TABLE public.\"no Key\" REPLICA IDENTITY FULL;",
    ] {
        assert!(report.stdout.contains(part), "{part} is missing:\n{}", report.stdout);
    }
    for fix in fixes(&report.stdout) {
        paste(&db, &fix).await;
    }
    cluster.restart(crate::harness::Shutdown::Fast);
    // With the publication there are tables of which rows are to be read.
    let db = cluster.connect().await;
    let report = doctor();
    assert!(report.stdout.contains("needed for snapshots"), "{}", report.stdout);
    let grants = fixes(&report.stdout);
    assert!(grants.iter().all(|fix| fix.starts_with("GRANT SELECT ON ")), "{grants:?}");
    for fix in grants {
        paste(&db, &fix).await;
    }
    let report = doctor();
    assert_eq!(report.code, 0, "{report:?}");
    assert!(!report.stdout.contains("fix:"), "{}", report.stdout);
    streams(&hub).await;
}

/// A server without a free walsender: told, and the fix helps.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lack_of_walsenders_is_told_with_what_to_run() {
    let mut cluster = Cluster::with_settings(&[("max_wal_senders", "0")]);
    let db = cluster.connect().await;
    db.run("CREATE PUBLICATION walcast FOR ALL TABLES").await;
    let mut hub = Hub::new(&cluster.dsn());
    hub.spawn();
    let told = says(&hub, &["PREFLIGHT_FAILED", "walsenders", "ALTER SYSTEM SET max_wal_senders = 10;"]).await;
    let report = walcast(&["doctor", "--dsn", &cluster.dsn()], &[]);
    assert_eq!(report.code, 1, "{told}: {report:?}");
    for fix in fixes(&report.stdout) {
        if fix.starts_with("ALTER SYSTEM") {
            paste(&db, &fix).await;
        }
    }
    cluster.restart(crate::harness::Shutdown::Fast);
    streams(&hub).await;
}

/// What does not keep the slot from streaming is said once, with what to run.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_without_a_replica_identity_is_warned_of_at_the_start() {
    let stage = stage().sql("CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE keyless (id int)").start().await;
    let fix = "ALTER TABLE public.keyless REPLICA IDENTITY FULL;";
    eventually(PATIENCE, || async {
        let log = stage.hub.log();
        if log.contains(fix) { Ok(()) } else { Err(log) }
    })
    .await;
    works(&stage).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_that_is_no_superuser_creates_the_publication_for_its_own_tables() {
    let cluster = Cluster::start();
    let db = cluster.connect().await;
    db.run("CREATE ROLE app LOGIN REPLICATION PASSWORD 'pw'; GRANT CREATE ON DATABASE postgres TO app").await;
    db.run("CREATE SCHEMA shop AUTHORIZATION app; CREATE TABLE not_its_own (id int PRIMARY KEY)").await;
    db.run("SET ROLE app; CREATE TABLE shop.orders (id int PRIMARY KEY); RESET ROLE").await;
    let dsn = format!("postgres://app:pw@127.0.0.1:{}/postgres", cluster.port());
    let mut hub = Hub::new(&dsn).args(&["--create-publication", "--schema", "shop"]);
    hub.start().await;
    streams(&hub).await;
    let log = hub.log();
    assert!(log.contains("created publication \"walcast\" for the 1 tables that the role owns"), "{log}");
    db.run("INSERT INTO shop.orders VALUES (1); INSERT INTO not_its_own VALUES (1)").await;
    let mut stream = Client::new(hub.grpc_port()).subscribe(&Request::new().earliest().stop_at_tail()).await;
    stream.ended().await;
    assert_eq!(stream.log.changes(), 1);
}
