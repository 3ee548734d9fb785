//! Slots, publications and preflight.

use super::cluster::Cluster;
use crate::lsn::Lsn;
use crate::postgres::{
    Error,
    preflight::{self, Check, Outcome},
    publication::{self, Scope},
    replication::Replication,
    slot,
    sql::Sql,
};

fn named<'a>(checks: &'a [Check], name: &str) -> &'a Check {
    checks.iter().find(|check| check.name == name).unwrap()
}

#[tokio::test]
async fn preflight_names_what_to_run() {
    let cluster = Cluster::start("max_replication_slots = 1", "").await;
    let sql = cluster.sql().await;
    let options = cluster.options("");
    sql.batch("CREATE TABLE good (id int PRIMARY KEY); CREATE TABLE \"Bad One\" (id int)").await.unwrap();
    let checks = preflight::checks(&sql, &options, "s", "p").await.unwrap();
    for name in ["server version", "wal_level", "replication connection", "replication slots", "walsenders", "slot"] {
        assert_eq!(named(&checks, name).outcome, Outcome::Ok, "{name}: {checks:?}");
    }
    let missing = named(&checks, "publication");
    assert_eq!(missing.outcome, Outcome::Failed);
    assert!(missing.fix.as_ref().unwrap().starts_with("CREATE PUBLICATION \"p\" FOR ALL TABLES;"));
    let identity = named(&checks, "replica identity");
    assert_eq!(identity.outcome, Outcome::Warning, "looked at before it is created");
    let fix = identity.fix.clone().unwrap();
    assert!(fix.starts_with("ALTER TABLE public.\"Bad One\" REPLICA IDENTITY FULL;"), "{fix}");

    sql.batch(&fix).await.unwrap();
    let (sentence, gaps) = publication::create(&sql, "p", &["ignored".into()]).await.unwrap();
    assert_eq!((&*sentence, gaps.len()), ("created publication \"p\" for all tables", 0));
    let mut session = Replication::connect(&options, sql.server()).await.unwrap();
    session.create_slot("s", false).await.unwrap();
    let checks = preflight::checks(&sql, &options, "s", "p").await.unwrap();
    assert_eq!(named(&checks, "log tables").outcome, Outcome::Skipped, "not installed");
    assert!(checks.iter().all(|check| check.name == "log tables" || check.outcome == Outcome::Ok), "{checks:?}");

    let other = preflight::checks(&sql, &options, "s2", "p").await.unwrap();
    let slots = named(&other, "replication slots");
    assert_eq!(slots.outcome, Outcome::Failed, "{slots:?}");
    assert!(slots.fix.as_ref().unwrap().contains("max_replication_slots = 11"));

    sql.batch("CREATE DATABASE elsewhere").await.unwrap();
    let elsewhere = cluster.options("dbname=elsewhere");
    let there = Sql::connect(&elsewhere).await.unwrap();
    let checks = preflight::checks(&there, &elsewhere, "s", "p").await.unwrap();
    assert_eq!(named(&checks, "slot").outcome, Outcome::Failed);
    assert_eq!(named(&checks, "publication").outcome, Outcome::Failed);

    sql.batch("ALTER PUBLICATION p SET (publish = 'insert')").await.unwrap();
    let checks = preflight::checks(&sql, &options, "s", "p").await.unwrap();
    let narrow = named(&checks, "publication");
    assert!(narrow.detail.ends_with("but not update, delete, truncate"), "{narrow:?}");
    sql.batch(narrow.fix.as_ref().unwrap()).await.unwrap();
    assert_eq!(named(&preflight::checks(&sql, &options, "s", "p").await.unwrap(), "publication").outcome, Outcome::Ok);

    let foreign = Replication::connect(&cluster.options("application_name=other"), sql.server()).await.unwrap();
    let stream = foreign.start("s", Lsn::ZERO, "p").await.unwrap();
    let checks = preflight::checks(&sql, &options, "s", "p").await.unwrap();
    let busy = named(&checks, "slot");
    assert!(busy.outcome == Outcome::Warning && busy.detail.contains("other from this machine"), "{busy:?}");
    stream.stop().await.unwrap();
}

#[tokio::test]
async fn preflight_sees_missing_rights_and_levels() {
    let cluster = Cluster::start("wal_level = replica", "").await;
    let sql = cluster.sql().await;
    sql.batch("CREATE ROLE plain LOGIN").await.unwrap();
    let options = cluster.options("user=plain");
    let plain = Sql::connect(&options).await.unwrap();
    let checks = preflight::checks(&plain, &options, "s", "p").await.unwrap();
    let right = named(&checks, "replication connection");
    assert_eq!((right.outcome, right.fix.as_deref()), (Outcome::Failed, Some("ALTER ROLE \"plain\" REPLICATION;")));
    let level = named(&checks, "wal_level");
    assert_eq!(level.outcome, Outcome::Failed);
    assert!(level.fix.as_ref().unwrap().starts_with("ALTER SYSTEM SET wal_level = logical;"));
    sql.batch(right.fix.as_ref().unwrap()).await.unwrap();
    let checks = preflight::checks(&plain, &options, "s", "p").await.unwrap();
    assert_eq!(named(&checks, "replication connection").outcome, Outcome::Ok);
}

#[tokio::test]
async fn slots_are_listed_and_only_idle_ones_dropped() {
    let cluster = Cluster::start("max_slot_wal_keep_size = '64MB'", "").await;
    let sql = cluster.sql().await;
    assert_eq!(slot::list(&sql).await.unwrap(), []);
    let mut session = Replication::connect(&cluster.options(""), sql.server()).await.unwrap();
    let created = session.create_slot("s", false).await.unwrap();
    sql.batch("SELECT pg_create_physical_replication_slot('a_physical_one')").await.unwrap();
    sql.batch("CREATE PUBLICATION p FOR ALL TABLES").await.unwrap();
    let listed = slot::list(&sql).await.unwrap();
    assert_eq!(listed.iter().map(|slot| slot.name.as_str()).collect::<Vec<_>>(), ["a_physical_one", "s"]);
    assert_eq!((&listed[0].plugin, &listed[0].confirmed_flush), (&None, &None));
    let own = &listed[1];
    assert_eq!((own.plugin.as_deref(), own.database.as_deref()), (Some("pgoutput"), Some("postgres")));
    assert_eq!(own.confirmed_flush, Some(created.consistent_point));
    assert_eq!((own.wal_status.as_deref(), own.is_lost()), (Some("reserved"), false));
    assert!(own.safe_wal_size.unwrap() > 0 && own.restart_lsn.is_some());
    let since_17 = |value: bool| (sql.version() >= 170_000).then_some(value);
    assert_eq!(own.failover, since_17(false));
    let mut second = Replication::connect(&cluster.options(""), sql.server()).await.unwrap();
    second.create_slot("f", true).await.unwrap();
    assert_eq!(slot::state(&sql, "f").await.unwrap().unwrap().failover, since_17(true));
    assert!(slot::drop(&sql, "f").await.unwrap());

    let stream = session.start("s", Lsn::ZERO, "p").await.unwrap();
    let error = slot::drop(&sql, "s").await.unwrap_err();
    let Error::SlotActive { pid, client, .. } = &error else { panic!("{error}") };
    assert_eq!(Some(*pid), slot::state(&sql, "s").await.unwrap().unwrap().active_pid);
    assert_eq!(client, "walcast from this machine");
    assert!(error.hint().unwrap().contains(&format!("pg_terminate_backend({pid})")));
    stream.stop().await.unwrap();

    sql.batch("CREATE TABLE w (v text); INSERT INTO w SELECT repeat(md5(i::text), 30) FROM generate_series(1, 1000) i")
        .await
        .unwrap();
    let held = slot::state(&sql, "s").await.unwrap().unwrap();
    assert!(held.retained_bytes > 900_000, "{held:?}");
    // Beyond max_slot_wal_keep_size a checkpoint takes the slot away.
    for _ in 0..6 {
        sql.batch("SELECT pg_switch_wal(); CREATE TABLE x (); DROP TABLE x").await.unwrap();
    }
    sql.batch("SELECT pg_switch_wal(); CHECKPOINT").await.unwrap();
    let lost = slot::state(&sql, "s").await.unwrap().unwrap();
    assert!(lost.is_lost(), "{lost:?}");
    let checks = preflight::checks(&sql, &cluster.options(""), "s", "p").await.unwrap();
    let check = named(&checks, "slot");
    assert!(
        check.outcome == Outcome::Failed && check.fix.as_ref().unwrap().starts_with("walcast slot drop s"),
        "{check:?}"
    );

    assert!(slot::drop(&sql, "s").await.unwrap());
    assert!(!slot::drop(&sql, "s").await.unwrap());
    assert_eq!(slot::state(&sql, "s").await.unwrap(), None);
}

#[tokio::test]
async fn publications_as_far_as_the_rights_go() {
    let cluster = Cluster::start("", "").await;
    let sql = cluster.sql().await;
    sql.batch(
        "CREATE ROLE app LOGIN; GRANT CREATE ON DATABASE postgres TO app; CREATE SCHEMA walcast; CREATE TABLE walcast.log ();
         CREATE SCHEMA a AUTHORIZATION app; CREATE SCHEMA b AUTHORIZATION app; CREATE TABLE b.not_owned (id int)",
    )
    .await
    .unwrap();
    let app = Sql::connect(&cluster.options("user=app")).await.unwrap();
    let error = publication::create(&app, "p", &[]).await.unwrap_err();
    assert!(matches!(error, Error::NothingToPublish { .. }) && error.hint().is_some(), "{error}");
    app.batch(
        "CREATE TABLE a.\"T\" (id int PRIMARY KEY); CREATE TABLE b.t (id int PRIMARY KEY);
         CREATE TABLE a.parts (id int) PARTITION BY RANGE (id);
         CREATE TABLE a.part1 PARTITION OF a.parts FOR VALUES FROM (0) TO (10);
         CREATE UNLOGGED TABLE a.unlogged ()",
    )
    .await
    .unwrap();
    let (sentence, gaps) = publication::create(&app, "p", &["a".into()]).await.unwrap();
    assert!(
        sentence.starts_with("created publication \"p\" for the 2 tables that the role owns in schema a"),
        "{sentence}"
    );
    let gap = gaps.iter().find(|gap| gap.table == "a.part1").unwrap();
    assert!(gap.fix.starts_with("ALTER TABLE a.part1 REPLICA IDENTITY FULL;"), "{gap:?}");
    let pairs =
        |list: &[(&str, &str)]| list.iter().map(|(s, t)| ((*s).into(), (*t).into())).collect::<Vec<(String, String)>>();
    assert_eq!(publication::published_tables(&app, "p").await.unwrap(), pairs(&[("a", "T"), ("a", "part1")]));
    assert_eq!(publication::create(&app, "p", &["a".into()]).await.unwrap_err().sqlstate(), Some("42710"));
    let (sentence, _) = publication::create(&app, "q", &[]).await.unwrap();
    assert!(sentence.contains("the 3 tables that the role owns (all"), "{sentence}");

    let found = publication::find(&sql, "p").await.unwrap().unwrap();
    assert!(!found.all_tables && found.insert && found.update && found.delete && found.truncate);
    assert!(!found.via_partition_root && !found.generated_columns);
    sql.batch("DROP PUBLICATION p").await.unwrap();
    assert_eq!(publication::find(&sql, "p").await.unwrap(), None);
    publication::create(&sql, "p", &[]).await.unwrap();
    let again = publication::find(&sql, "p").await.unwrap().unwrap();
    assert!(again.all_tables && again.oid != found.oid);
    let tables = publication::published_tables(&sql, "p").await.unwrap();
    assert_eq!(tables, pairs(&[("a", "T"), ("a", "part1"), ("b", "not_owned"), ("b", "t")]), "not walcast.log");

    sql.batch("ALTER PUBLICATION p SET (publish_via_partition_root)").await.unwrap();
    let tables = publication::published_tables(&sql, "p").await.unwrap();
    assert!(tables.contains(&("a".into(), "parts".into())) && !tables.contains(&("a".into(), "part1".into())));
    let gaps = publication::identity_gaps(&sql, Scope::Publication("p")).await.unwrap();
    let gaps: Vec<_> = gaps.iter().map(|gap| gap.table.as_str()).collect();
    assert_eq!(gaps, ["a.part1", "b.not_owned"], "partitions are looked at under their root too, walcast.log is not");
    let checks = preflight::checks(&app, &cluster.options("user=app"), "s", "p").await.unwrap();
    let rights = named(&checks, "read access");
    assert_eq!(rights.fix.as_deref(), Some("GRANT SELECT ON b.not_owned TO app;"), "{rights:?}");
    sql.batch("GRANT SELECT (id) ON b.not_owned TO app").await.unwrap();
    let checks = preflight::checks(&app, &cluster.options("user=app"), "s", "p").await.unwrap();
    assert_eq!(named(&checks, "read access").outcome, Outcome::Ok, "every published column");
    let checks = preflight::checks(&sql, &cluster.options(""), "s", "q").await.unwrap();
    assert_eq!(named(&checks, "other publications").outcome, Outcome::Warning, "p publishes the log tables");
}

#[tokio::test]
async fn generated_columns_under_full_identity_are_a_trap_from_18_on() {
    let cluster = Cluster::start("", "").await;
    let sql = cluster.sql().await;
    sql.batch(
        "CREATE TABLE g (id int, twice int GENERATED ALWAYS AS (id * 2) STORED);
         ALTER TABLE g REPLICA IDENTITY FULL; INSERT INTO g VALUES (1)",
    )
    .await
    .unwrap();
    let trap = sql.version() >= 180_000;
    for scope in [Scope::AllTables, Scope::Publication("p")] {
        if let Scope::Publication(name) = scope {
            let (_, gaps) = publication::create(&sql, name, &[]).await.unwrap();
            assert_eq!(gaps.iter().any(|gap| gap.table == "public.g"), trap, "{gaps:?}");
        }
        let gaps = publication::identity_gaps(&sql, scope).await.unwrap();
        assert_eq!(gaps.iter().any(|gap| gap.table == "public.g"), trap, "{gaps:?}");
    }
    assert_eq!(sql.batch("UPDATE g SET id = 2").await.is_err(), trap, "the check says what PostgreSQL does");
    if trap {
        sql.batch("ALTER PUBLICATION p SET (publish_generated_columns = stored)").await.unwrap();
        assert_eq!(publication::identity_gaps(&sql, Scope::Publication("p")).await.unwrap(), []);
        sql.batch("UPDATE g SET id = 2").await.unwrap();
        assert!(publication::find(&sql, "p").await.unwrap().unwrap().generated_columns);
    }
}

#[tokio::test]
async fn tables_are_described_as_the_stream_would() {
    let cluster = Cluster::start("", "").await;
    let sql = cluster.sql().await;
    sql.batch(
        "CREATE SCHEMA \"S 1\"; CREATE TYPE \"S 1\".mood AS ENUM ('ok');
         CREATE DOMAIN price AS numeric(10, 2); CREATE DOMAIN \"S 1\".fair AS price; CREATE DOMAIN felt AS \"S 1\".mood;
         CREATE TABLE \"S 1\".by_key (a int, gone text, b varchar(20) NOT NULL, m \"S 1\".mood, l int[], PRIMARY KEY (b, a));
         ALTER TABLE \"S 1\".by_key DROP COLUMN gone;
         CREATE TABLE by_index (a int NOT NULL, b int, c int, g int GENERATED ALWAYS AS (a + 1) STORED);
         CREATE UNIQUE INDEX i ON by_index (a) INCLUDE (b); ALTER TABLE by_index REPLICA IDENTITY USING INDEX i;
         CREATE TABLE whole (a int, b numeric(10, 2), p \"S 1\".fair, f felt); ALTER TABLE whole REPLICA IDENTITY FULL;
         CREATE TABLE nothing (a int PRIMARY KEY); ALTER TABLE nothing REPLICA IDENTITY NOTHING;
         CREATE TABLE narrow (a int PRIMARY KEY, b int, c int); CREATE TABLE unpublished (a int);
         CREATE PUBLICATION p FOR TABLE \"S 1\".by_key, by_index, whole, nothing, narrow (a, c)",
    )
    .await
    .unwrap();
    let tables = ["by_key", "by_index", "whole", "nothing", "narrow", "unpublished"]
        .map(|table| (if table == "by_key" { "S 1" } else { "public" }.to_owned(), table.to_owned()));
    let described: Vec<String> = publication::relations(&sql, "p", &tables)
        .await
        .unwrap()
        .iter()
        .map(|relation| {
            let columns = relation.columns.iter().map(|column| {
                let key = if column.in_identity { "*" } else { "" };
                format!("{}{key} {} {}", column.name, column.type_name, column.type_modifier)
            });
            let columns: Vec<_> = columns.collect();
            format!("{} {:?}: {}", relation.qualified_name(), relation.replica_identity, columns.join(", "))
        })
        .collect();
    let expected = [
        "S 1.by_key Default: a* int4 -1, b* varchar 24, m S 1.mood -1, l _int4 -1",
        "public.by_index Index: a* int4 -1, b int4 -1, c int4 -1",
        "public.whole Full: a* int4 -1, b* numeric 655366, p* pg_catalog.numeric -1, f* S 1.mood -1",
        "public.nothing Nothing: a int4 -1",
        "public.narrow Default: a* int4 -1, c int4 -1",
    ];
    assert_eq!(described, expected);
    assert_eq!(publication::relations(&sql, "p", &[]).await.unwrap(), []);
}
