//! Who may install log tables, what the hub's role may do with them, and the script that does the same.

use std::process::Command;

use crate::{
    harness::{
        Db, Stage, client::Request, command::walcast, eventually, parsed::Parsed, process, stage, stage::held, versions,
    },
    logtables::{PATIENCE, drop_slot, everything, horizon, recoveries},
};

const ROLES: &str = "
    CREATE ROLE owner LOGIN;
    CREATE ROLE hub LOGIN REPLICATION;
    CREATE TABLE t (id int PRIMARY KEY, v text);
    ALTER TABLE t OWNER TO owner;
    GRANT SELECT ON t TO hub";

/// The owner of the table, over the socket.
fn as_owner(stage: &Stage) -> String {
    let socket = stage.cluster.socket_dir().display();
    format!("host={socket} port={} user=owner dbname=postgres", stage.cluster.port())
}

fn install_as_owner(stage: &Stage, args: &[&str]) -> crate::harness::command::Outcome {
    walcast(&[&["logtables", "install"], args].concat(), &[("WALCAST_DSN", &as_owner(stage))])
}

/// Prints the script without a server at hand, as a DBA would to read it, and runs it with psql; what that said.
fn run_script(dsn: &str, args: &[&str]) -> String {
    let printed = walcast(&[&["logtables", "install", "--print-sql"], args].concat(), &[]).good();
    let file = process::fresh_dir("script").join("install.sql");
    std::fs::write(&file, printed).expect("a file");
    let mut psql = Command::new("psql");
    psql.args(["-X", "-d", dsn, "-f"]).arg(&file);
    process::run(psql)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn neither_the_installer_nor_the_hub_need_be_superusers() {
    let setup = stage().sql(ROLES).publication("CREATE PUBLICATION walcast FOR TABLE t");
    let mut stage = setup.dsn("host={socket} port={port} user=hub dbname=postgres").prepare().await;
    // Without a right the role and the GRANT are named, and nothing is installed.
    let refused = install_as_owner(&stage, &["--hub-role", "hub"]);
    assert_eq!(refused.code, 1);
    assert!(refused.stderr.contains("GRANT CREATE ON DATABASE postgres TO owner"), "{refused:?}");
    assert_eq!(stage.db.number("SELECT count(*) FROM pg_namespace WHERE nspname = 'walcast'").await, 0);
    stage.db.run("GRANT CREATE ON DATABASE postgres TO owner").await;
    let done = install_as_owner(&stage, &["--hub-role", "hub"]);
    assert!(done.stderr.contains("Later DDL is not followed"), "{done:?}");
    done.good();
    stage.hub.start().await;
    stage.streaming().await;
    stage.db.run("INSERT INTO t VALUES (1, 'logged')").await;
    horizon(&stage).await;
    let status = stage.client().status().await.expect("status").source.unwrap_or_default();
    assert!(status.alarms.is_empty(), "{:?}", status.alarms);
    stage.hub.kill9();
    drop_slot(&stage).await;
    stage.db.run("INSERT INTO t VALUES (2, 'replayed')").await;
    stage.hub.start().await;
    recoveries(&stage, 1).await;
    stage.db.run("INSERT INTO t VALUES (3, 'streamed')").await;
    assert_eq!(everything(&stage, false).await.replayed, 1);
    // The hub's role reads and prunes the log, and nothing else.
    let hub = Db::open(stage.cluster.config("postgres").user("hub")).await.expect("a connection");
    hub.run("SELECT walcast.prune(pg_current_snapshot()); SELECT count(*) FROM walcast.log").await;
    for forbidden in
        ["DELETE FROM walcast.log", "SELECT walcast.protect('t'::regclass)", "UPDATE walcast.settings SET leaf = 1"]
    {
        let error = hub.batch_execute(forbidden).await.expect_err(forbidden);
        assert_eq!(error.code().map(|code| code.code()), Some("42501"), "{forbidden}: {error}");
    }
    // Without its rights it says so.
    stage.db.run("REVOKE ALL ON ALL TABLES IN SCHEMA walcast FROM hub; REVOKE ALL ON SCHEMA walcast FROM hub").await;
    eventually(PATIENCE, || async {
        let status = stage.client().status().await.map_err(|failure| format!("{failure:?}"))?;
        let alarms = status.source.unwrap_or_default().alarms;
        let told = |alarm: &String| alarm.starts_with("FAILOVER_NOT_PROTECTED") && alarm.contains("permission denied");
        if alarms.iter().any(told) { Ok(()) } else { Err(format!("{alarms:?}")) }
    })
    .await;
    // A change that no event trigger saw: nobody knows the columns of the rows logged before the installation that notes it.
    stage.hub.terminate();
    stage.db.run("ALTER TABLE t DROP v; ALTER TABLE t ADD w int; INSERT INTO t VALUES (4, 4)").await;
    let said = run_script(&as_owner(&stage), &["--hub-role", "hub"]);
    assert!(said.contains("Later DDL is not followed"), "{said}");
    drop_slot(&stage).await;
    stage.hub.spawn();
    eventually(PATIENCE, || async {
        let status = stage.client().status().await.map_err(|failure| format!("{failure:?}"))?;
        let error = status.source.unwrap_or_default().last_error;
        let told =
            error.starts_with("SLOT_LOST") && error.contains("public.t: ") && error.contains("changed unnoticed");
        if told { Ok(()) } else { Err(error) }
    })
    .await;
}

/// Everything that an installation leaves, as text.
async fn objects(db: &Db) -> Vec<Vec<Option<String>>> {
    db.rows(
        "SELECT pg_get_functiondef(p.oid), p.proacl::text FROM pg_proc p
         WHERE p.pronamespace = 'walcast'::regnamespace
         UNION ALL SELECT c.relname::text || c.relkind::text || coalesce(pg_get_partition_constraintdef(c.oid), ''), c.relacl::text
         FROM pg_class c WHERE c.relnamespace = 'walcast'::regnamespace
         UNION ALL SELECT t.tgrelid::regclass::text || ' ' || pg_get_triggerdef(t.oid), t.tgenabled::text FROM pg_trigger t
         WHERE NOT t.tgisinternal
         UNION ALL SELECT e.evtname::text || e.evtevent::text || e.evttags::text, e.evtenabled::text FROM pg_event_trigger e
         UNION ALL SELECT s::text, '' FROM walcast.settings s
         UNION ALL SELECT h.relid::regclass::text || ' ' || h.captured::text, '' FROM walcast.shapes h
         UNION ALL SELECT n.nspname::text, n.nspacl::text FROM pg_namespace n WHERE n.nspname = 'walcast'
         ORDER BY 1",
    )
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_printed_script_installs_the_same() {
    let stage = stage().sql("CREATE ROLE hub LOGIN REPLICATION").publication("").no_oracle().prepare().await;
    let mut found = Vec::new();
    for (database, by_script) in [("by_command", false), ("by_script", true)] {
        stage.db.run(&format!("CREATE DATABASE {database}")).await;
        let db = stage.cluster.connect_to(database).await;
        db.run(
            "CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE \"Größe \"\"x\" (a int);
             CREATE TABLE parts (id int, k int) PARTITION BY LIST (k); CREATE TABLE part PARTITION OF parts DEFAULT;
             CREATE PUBLICATION \"o'pub\" FOR TABLE t, \"Größe \"\"x\", parts WITH (publish_via_partition_root)",
        )
        .await;
        let dsn = stage.cluster.dsn_of(database);
        let args = ["--publication", "o'pub", "--hub-role", "hub"];
        // Each may be run again.
        for _ in 0..2 {
            match by_script {
                true => drop(run_script(&dsn, &args)),
                false => {
                    walcast(&[&["logtables", "install"], &args[..]].concat(), &[("WALCAST_DSN", &dsn)]).good();
                }
            }
        }
        let status = walcast(&["logtables", "status"], &[("WALCAST_DSN", &dsn)]).good();
        assert!(status.starts_with("publication   o'pub\ntables        4\nfollows DDL   yes\n"), "{status}");
        found.push(objects(&db).await);
    }
    let (by_command, by_script) = (&found[0], &found[1]);
    assert!(by_command.len() > 25, "{by_command:?}");
    for (command, script) in by_command.iter().zip(by_script) {
        assert_eq!(command, script);
    }
    assert_eq!(by_command.len(), by_script.len());
}

/// FOR ALL TABLES publishes the log, too: the installer says so, and what it offers instead works.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publication_of_all_tables_is_converted() {
    let tables = "CREATE SCHEMA \"other, s\"; CREATE TABLE \"other, s\".u (id int PRIMARY KEY); CREATE TABLE t (id int PRIMARY KEY)";
    let publication = "CREATE PUBLICATION walcast FOR ALL TABLES WITH (publish = 'insert, delete', publish_via_partition_root = true)";
    let mut stage = stage().sql(tables).publication(publication).start().await;
    let dsn = stage.cluster.dsn();
    let done = walcast(&["logtables", "install"], &[("WALCAST_DSN", &dsn)]);
    assert!(done.stderr.contains("about twice the volume on the slot"), "{done:?}");
    let statement =
        done.stderr.split("To convert: ").nth(1).and_then(|text| text.split(';').next()).expect("a statement");
    assert!(statement.contains("'insert, delete'") && statement.contains("root = true"), "{statement}");
    let said = run_script(&dsn, &[]);
    assert!(said.contains("about twice the volume on the slot") && said.contains(statement), "{statement} in {said}");
    stage.db.run(statement).await;
    stage.db.run("INSERT INTO t VALUES (1)").await;
    horizon(&stage).await;
    stage.hub.terminate();
    stage.hub = stage.hub.copy(&["--publication", "walcast_tables"]);
    stage.publication = "walcast_tables".to_owned();
    stage.hub.start().await;
    stage.streaming().await;
    walcast(&["logtables", "install", "--publication", "walcast_tables"], &[("WALCAST_DSN", &dsn)]).good();
    stage.db.run("INSERT INTO \"other, s\".u VALUES (1); CREATE TABLE later (id int PRIMARY KEY)").await;
    stage.db.run("INSERT INTO later VALUES (1)").await;
    horizon(&stage).await;
    stage.hub.terminate();
    drop_slot(&stage).await;
    stage.db.run("INSERT INTO later VALUES (2)").await;
    stage.hub.start().await;
    recoveries(&stage, 1).await;
    let whole = stage.collect(Request::new().earliest()).await;
    let parsed = held(&whole, Parsed::of(&whole));
    // Before 15 there are no publications of schemas: a table that is made later is not in the new one.
    let later = if versions::default_major() < 15 { 0 } else { 2 };
    assert_eq!(parsed.transactions().count(), 2 + later);
    let other =
        "SELECT count(*) FROM pg_publication_tables WHERE pubname = 'walcast_tables' AND schemaname = 'walcast'";
    assert_eq!(stage.db.number(other).await, 0);
}
