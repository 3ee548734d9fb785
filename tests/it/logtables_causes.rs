//! The ways in which a slot stops being able to give what the journal lacks, and what the log tables cannot make good.

use std::collections::BTreeMap;

use walcast::lsn::Lsn;

use crate::{
    harness::{
        Stage,
        client::{Client, Request},
        eventually,
        history::{End, History},
        hub::Hub,
        parsed::{Cell, Span, What},
        stage,
        stage::held,
        validators, versions,
        workload::{self, Plan, Workload},
    },
    logtables::{PATIENCE, drop_slot, horizon, install, recoveries, walcast},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_invalidated_slot_is_made_good() {
    let setup = stage().sql(workload::SCHEMA).setting("max_slot_wal_keep_size", "2MB");
    let setup = setup.setting("max_wal_size", "32MB").setting("min_wal_size", "32MB");
    let mut stage = setup.no_oracle().start().await;
    install(&stage);
    let plan = Plan { large_rows: 500, ddl: false, ..Plan::random() };
    let workload = Workload::start(stage.cluster.config("postgres"), plan);
    workload.commits(60, PATIENCE).await;
    horizon(&stage).await;
    stage.hub.kill9();
    eventually(PATIENCE, || async {
        stage.db.run("SELECT pg_switch_wal(); CHECKPOINT").await;
        let status = stage.slot("wal_status").await;
        if status.as_deref() == Some("lost") { Ok(()) } else { Err(format!("{status:?}")) }
    })
    .await;
    workload.stop().await;
    stage.hub.start().await;
    recoveries(&stage, 1).await;
    stage.db.run("INSERT INTO load.ledger (client, n) VALUES (-1, -1)").await;
    let history = stage.collect(Request::new().earliest()).await;
    crate::logtables::replica_agrees(&stage, &history).await;
}

async fn recreated_publication(major: u32) {
    let mut stage = stage().version(major).sql(workload::SCHEMA).start().await;
    install(&stage);
    let plan = Plan { ddl: false, ..Plan::random() };
    let workload = Workload::start(stage.cluster.config("postgres"), plan);
    workload.commits(60, PATIENCE).await;
    horizon(&stage).await;
    stage.db.run("DROP PUBLICATION walcast").await;
    workload.commits(workload.report().committed + 60, PATIENCE).await;
    stage.db.run("CREATE PUBLICATION walcast FOR ALL TABLES").await;
    recoveries(&stage, 1).await;
    workload.commits(workload.report().committed + 60, PATIENCE).await;
    workload.stop().await;
    stage.hub.terminate();
    stage.hub.start().await;
    stage.streaming().await;
    let history = stage.collect(Request::new().earliest()).await;
    crate::logtables::replica_agrees(&stage, &history).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recreated_publication_is_made_good() {
    recreated_publication(versions::default_major()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recreated_publication_is_made_good_on_every_version_of_the_matrix() {
    for major in versions::matrix() {
        recreated_publication(major).await;
    }
}

/// A table joins the publication while the hub looks whether the log tables cover the gap.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_joins_while_it_is_looked_does_not_stop_a_recovery() {
    let setup = stage().sql("CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE late (id int PRIMARY KEY)");
    let mut stage = setup.publication("CREATE PUBLICATION walcast FOR TABLE t").no_oracle().start().await;
    install(&stage);
    stage.db.run("INSERT INTO t VALUES (1); INSERT INTO late VALUES (1)").await;
    horizon(&stage).await;
    stage.hub.kill9();
    drop_slot(&stage).await;
    let joins = stage.cluster.connect().await;
    joins.run("BEGIN; LOCK TABLE walcast.settings IN ACCESS EXCLUSIVE MODE").await;
    stage.hub.spawn();
    let waiting = "SELECT count(*) FROM pg_locks WHERE relation = 'walcast.settings'::regclass AND NOT granted";
    eventually(PATIENCE, || async {
        if stage.db.number(waiting).await == 1 { Ok(()) } else { Err("the hub does not look") }
    })
    .await;
    joins.run("ALTER PUBLICATION walcast ADD TABLE late; COMMIT; INSERT INTO late VALUES (2)").await;
    stage.hub.ready().await;
    recoveries(&stage, 1).await;
    stage.db.run("INSERT INTO late VALUES (3)").await;
    assert!(!stage.hub.log().contains("SLOT_LOST"), "{}", stage.hub.log_tail(40));
    stage.journaled().await;
    let history = stage.collect(Request::new().earliest()).await;
    let rows = |table: &str| {
        held(&history, validators::formal(&history))
            .transactions()
            .filter(|span| format!("{span:?}").contains(table))
            .count()
    };
    assert_eq!((rows("public.late"), rows("public.t\"")), (2, 1));
}

/// Tables of every awkward kind.
const AWKWARD: &str = r#"
    CREATE TABLE "Größe ""x"" y" (id int PRIMARY KEY, "wért, ß" text, g int GENERATED ALWAYS AS (id * 2) STORED);
    CREATE TABLE nokey (a int, b text); ALTER TABLE nokey REPLICA IDENTITY FULL;
    CREATE TABLE toasted (id int PRIMARY KEY, big text, n int); ALTER TABLE toasted ALTER big SET STORAGE EXTERNAL;
    CREATE TABLE other (id int PRIMARY KEY, u text NOT NULL, v text); CREATE UNIQUE INDEX other_u ON other (u);
    ALTER TABLE other REPLICA IDENTITY USING INDEX other_u;
    CREATE TYPE mood AS ENUM ('sad', 'it''s "ok", \ and ()');
    CREATE TYPE pair AS (a int, b text);
    CREATE DOMAIN positive AS int CHECK (VALUE > 0);
    CREATE TABLE typed (id int PRIMARY KEY, b bool, i2 int2, i8 int8, f4 float4, f8 float8, n numeric, d date, t time,
        ts timestamp, tz timestamptz, iv interval, by bytea, j jsonb, u uuid, arr text[], m mood, p pair, r int4range,
        dm positive, c char(5), mo money, reg regclass, x xml, inf timestamptz, bits bit(3), ip inet);
    CREATE TABLE parts (id int, k int, v text, PRIMARY KEY (id, k)) PARTITION BY RANGE (k);
    CREATE TABLE parts_a PARTITION OF parts FOR VALUES FROM (0) TO (10);
    CREATE TABLE "parts B" PARTITION OF parts FOR VALUES FROM (10) TO (20);
    CREATE TABLE parts_m PARTITION OF parts FOR VALUES FROM (30) TO (40) PARTITION BY LIST (k);
    CREATE TABLE parts_m1 PARTITION OF parts_m FOR VALUES IN (31, 33);
    CREATE TABLE parts_m2 PARTITION OF parts_m FOR VALUES IN (32, 34);
    CREATE TABLE parent (id int PRIMARY KEY);
    CREATE TABLE child (id int PRIMARY KEY, parent int REFERENCES parent ON DELETE CASCADE ON UPDATE CASCADE);
    CREATE TABLE base (id int PRIMARY KEY, a text);
    CREATE TABLE derived (b text, PRIMARY KEY (id)) INHERITS (base);
    CREATE TABLE whole (id int PRIMARY KEY, big text, n int); ALTER TABLE whole ALTER big SET STORAGE EXTERNAL;
    ALTER TABLE whole REPLICA IDENTITY FULL;
    CREATE TABLE nothing ();
    CREATE TABLE nest (id int PRIMARY KEY, v int, n int NOT NULL DEFAULT 0);
    CREATE FUNCTION nested() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        IF TG_WHEN = 'BEFORE' THEN NEW.v := NEW.v + 1; RETURN NEW; END IF;
        IF TG_NAME = 'late' THEN UPDATE nest SET n = 1 WHERE id = NEW.id; RETURN NULL; END IF;
        IF pg_trigger_depth() > 1 THEN RETURN NULL; END IF;
        IF TG_OP = 'INSERT' THEN UPDATE nest SET v = v * 2 WHERE id = NEW.id; INSERT INTO nest VALUES (NEW.id + 100, NEW.v);
        ELSIF TG_OP = 'UPDATE' THEN UPDATE nest SET v = v + 100 WHERE id = NEW.id + 1;
        ELSE DELETE FROM nest WHERE id = OLD.id + 100; END IF;
        RETURN NULL; END $$;
    CREATE TRIGGER "a before" BEFORE INSERT OR UPDATE ON nest FOR EACH ROW EXECUTE FUNCTION nested();
    CREATE TRIGGER " first" AFTER INSERT ON nest FOR EACH ROW EXECUTE FUNCTION nested();
    CREATE TRIGGER "z last" AFTER UPDATE OR DELETE ON nest FOR EACH ROW EXECUTE FUNCTION nested();
    CREATE CONSTRAINT TRIGGER late AFTER UPDATE ON nest DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
        WHEN (NEW.v > 500 AND NEW.n = 0) EXECUTE FUNCTION nested()"#;

const AWKWARD_CHANGES: &str = r#"
    INSERT INTO "Größe ""x"" y" VALUES (1, 'ü"\,('), (2, ''), (3, NULL);
    UPDATE "Größe ""x"" y" SET id = 4 WHERE id = 2; DELETE FROM "Größe ""x"" y" WHERE id = 3;
    INSERT INTO nokey VALUES (1, 'x'), (1, 'x'), (NULL, NULL); UPDATE nokey SET b = NULL WHERE ctid = '(0,1)';
    DELETE FROM nokey WHERE a IS NULL;
    INSERT INTO toasted VALUES (1, repeat('äö', 9000), 1); UPDATE toasted SET n = 2;
    INSERT INTO other VALUES (1, 'one', 'v'), (2, 'two', 'v'); UPDATE other SET u = 'eins' WHERE id = 1;
    UPDATE other SET v = 'w'; DELETE FROM other WHERE id = 2;
    SET datestyle = 'SQL, DMY'; SET timezone = 'Asia/Kolkata'; SET intervalstyle = 'iso_8601'; SET bytea_output = 'escape';
    SET extra_float_digits = -10; SET search_path = public, pg_catalog; ALTER TABLE typed ADD extra int;
    INSERT INTO typed VALUES (1, true, -3, 9007199254740993, 0.1, 1e-300, 'NaN', '0044-03-15 BC', '12:34:56.789',
        '2024-02-29 12:00:00.000001', '2024-02-29 12:00:00+05:30', '1 year -2 days 03:04:05.6', '\x00ff41', '{"a": [1, "é"]}',
        'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '{a,NULL,"NULL","x,y \" \\"}', 'it''s "ok", \ and ()', '(1,"a ""b"", c")',
        '[1,5)', 7, 'ab', '-12.34', 'typed', '<a>&amp;</a>', 'infinity', B'101', '10.0.0.1/8');
    INSERT INTO typed (id, f8, f4) VALUES (2, '-Infinity', 'NaN'), (3, 0.1::float8 + 0.2, 3.4e38);
    RESET ALL;
    INSERT INTO parts VALUES (1, 1, 'a'), (2, 12, 'b'); UPDATE parts SET k = 15 WHERE id = 1; UPDATE parts SET v = 'c';
    TRUNCATE "parts B"; INSERT INTO parts VALUES (5, 13, 'e'); TRUNCATE parts; INSERT INTO parts VALUES (6, 6, 'f'), (7, 17, 'g');
    TRUNCATE "Größe ""x"" y"; INSERT INTO "Größe ""x"" y" VALUES (7, 'after');
    CREATE TABLE parts_new PARTITION OF parts FOR VALUES FROM (20) TO (30); INSERT INTO parts VALUES (3, 25, 'new');
    INSERT INTO parts VALUES (8, 31, 'm'), (9, 32, 'n'); UPDATE parts SET k = k + 1, v = 'o' WHERE k > 30; TRUNCATE parts_m1;
    INSERT INTO parts VALUES (10, 34, 'p');
    CREATE TABLE born AS SELECT i AS id, 'row ' || i AS v FROM generate_series(1, 3) i; ALTER TABLE born ADD PRIMARY KEY (id);
    INSERT INTO born VALUES (4, 'later');
    ALTER TABLE other ADD COLUMN added int DEFAULT 5; UPDATE other SET added = 6; ALTER TABLE other DROP COLUMN v;
    INSERT INTO other VALUES (9, 'nine', 1); ALTER TABLE nokey RENAME TO renamed; INSERT INTO renamed VALUES (8, 'r');
    ALTER TABLE renamed RENAME a TO "ä, ""1"""; INSERT INTO renamed VALUES (9, 'x'), (10, 'y'), (11, NULL);
    UPDATE renamed SET b = 'x' WHERE b = 'y'; UPDATE renamed SET b = NULL WHERE "ä, ""1""" = 10;
    ALTER TABLE renamed RENAME "ä, ""1""" TO a;
    CREATE TABLE gone (id int PRIMARY KEY); INSERT INTO gone VALUES (1), (2); DROP TABLE gone;
    CREATE TABLE parts_c (LIKE parts INCLUDING ALL); INSERT INTO parts_c VALUES (12, 45, 'q');
    ALTER TABLE parts ATTACH PARTITION parts_c FOR VALUES FROM (40) TO (50); INSERT INTO parts VALUES (11, 46, 'r');
    UPDATE parts SET v = 's' WHERE k > 40; ALTER TABLE parts DETACH PARTITION parts_c; UPDATE parts_c SET v = 't';
    INSERT INTO parent VALUES (1), (2), (3); INSERT INTO child SELECT i, i % 3 + 1 FROM generate_series(1, 6) i;
    UPDATE parent SET id = 4 WHERE id = 1; DELETE FROM parent WHERE id = 2; TRUNCATE parent CASCADE;
    INSERT INTO base VALUES (1, 'a'); INSERT INTO derived VALUES (2, 'b', 'c'); UPDATE base SET a = 'd'; DELETE FROM base WHERE id = 2;
    INSERT INTO derived VALUES (3, 'e', NULL); TRUNCATE base;
    INSERT INTO whole VALUES (1, repeat('ß', 9000), 1), (2, NULL, 1); UPDATE whole SET n = 2; UPDATE whole SET big = 'small';
    DELETE FROM whole; INSERT INTO nothing DEFAULT VALUES;
    SET session_replication_role = replica; INSERT INTO whole VALUES (3, 'as a replica', 1); UPDATE whole SET n = 3;
    INSERT INTO child VALUES (70, 71); TRUNCATE child; RESET session_replication_role;
    BEGIN; INSERT INTO whole VALUES (4, 'x', 1); TRUNCATE whole; INSERT INTO whole VALUES (5, 'y', 1); COMMIT;
    INSERT INTO nest VALUES (1, 1), (2, 2), (3, 3), (4, 400); UPDATE nest SET v = v + 1; UPDATE nest SET v = 0 WHERE id < 4;
    BEGIN; UPDATE nest SET v = v + 1 WHERE id = 2; UPDATE nest SET v = v + 1 WHERE id < 3; DELETE FROM nest WHERE id = 3;
    INSERT INTO nest VALUES (3, 500); UPDATE nest SET v = v + 1 WHERE id = 3; COMMIT; DELETE FROM nest WHERE id < 3;
    BEGIN; UPDATE renamed SET a = a + 1; SAVEPOINT s; DELETE FROM renamed; ROLLBACK TO s; TRUNCATE parts; INSERT INTO parts VALUES (4, 4, 'd'); COMMIT;
    BEGIN; INSERT INTO renamed VALUES (77, 'prepared'); PREPARE TRANSACTION 'p'; COMMIT PREPARED 'p'"#;

/// Everything up to now, from any hub.
async fn collect(hub: &Hub, request: Request) -> History {
    let client = Client::new(hub.grpc_port());
    eventually(PATIENCE, || async {
        let status = client.status().await.map_err(|failure| format!("{failure:?}"))?;
        let source = status.source.unwrap_or_default();
        if source.connected { Ok(()) } else { Err(source.last_error) }
    })
    .await;
    let mut stream = client.subscribe(&request.stop_at_tail()).await;
    assert!(matches!(stream.ended().await, End::Completed), "{:?}", stream.log.end);
    stream.close()
}

/// Transactions by id: table, images, and shape of each row; truncates table by table.
fn changes(history: &History) -> BTreeMap<u64, Vec<What>> {
    let parsed = held(history, validators::formal(history));
    let single = |what: &What| match what {
        What::Truncate { tables, .. } => {
            let of = |table: &String| What::Truncate {
                tables: vec![table.clone()],
                cascade: false,
                restart_identity: false,
            };
            tables.iter().map(of).collect()
        }
        other => vec![other.clone()],
    };
    let items = |span: &Span| span.items.iter().flat_map(|item| single(&item.what)).collect();
    parsed.transactions().map(|span| (span.xid, items(span))).collect()
}

/// The same, but for values that the slot does not send because they have not changed: the log has them.
fn same_changes(streamed: &History, replayed: &History) {
    let (streamed, replayed) = (changes(streamed), changes(replayed));
    assert_eq!(streamed.keys().collect::<Vec<_>>(), replayed.keys().collect::<Vec<_>>());
    for (xid, mut expected) in streamed {
        let mut got = replayed[&xid].clone();
        for (expected, got) in expected.iter_mut().zip(&got) {
            if let (What::Row { after: Some(after), .. }, What::Row { after: Some(full), .. }) = (expected, got) {
                for (cell, full) in after.iter_mut().zip(full).filter(|(cell, _)| **cell == Cell::Unchanged) {
                    *cell = full.clone();
                }
            }
        }
        for items in [&mut expected, &mut got] {
            // A TRUNCATE of several tables is one event for the slot, and one for each of them in the log.
            let is_truncate = |what: &What| matches!(what, What::Truncate { .. });
            for run in items.chunk_by_mut(|one, next| is_truncate(one) && is_truncate(next)) {
                run.sort_by_key(|what| format!("{:?}", what.tables()));
            }
            // Rows that a trigger changes in the middle of a statement are logged before the rest of the statement's.
            if items.iter().any(|what| what.tables() == ["public.nest"] || what.tables() == ["public.child"]) {
                items.sort_by_key(|what| format!("{:?} {:?}", what.tables(), what.get("id")));
            }
        }
        assert_eq!(expected, got, "xid {xid}");
    }
}

/// What the slot would have sent, and what the log tables give, for the same changes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn awkward_tables_come_as_the_slot_would_have_sent_them() {
    as_streamed("CREATE PUBLICATION walcast FOR ALL TABLES", "").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_publication_leaves_out_is_left_out_of_a_replay() {
    if versions::default_major() < 15 {
        return; // PostgreSQL 14 has neither column lists nor row filters
    }
    as_streamed(
        "CREATE PUBLICATION walcast FOR TABLE nokey, other, typed (id, tz, arr), toasted (id, n), parts (id, k), \
         \"Größe \"\"x\"\" y\" (id) WITH (publish_via_partition_root = true)",
        "",
    )
    .await;
    // Filters on columns outside of the identity, which only a publication of inserts may have; a partition that is itself
    // partitioned and published as what it is.
    as_streamed(
        "SET datestyle = 'German'; SET timezone = 'Asia/Kolkata'; SET extra_float_digits = -5;
         CREATE PUBLICATION walcast FOR TABLE nokey, toasted WHERE (length(big) > 10), parts_m WHERE (v <> 'p'),
             typed WHERE (tz = '2024-02-29 06:30:00+00' AND ts < '01.03.2024' AND d < '01.01.2024' AND f8 > 0.3e-300::float8
                          AND iv > '1 year -3 days' AND c = 'ab' AND c::text = 'ab' AND NOT arr @> '{z}'
                          AND by = '\\x00ff41' AND bits = B'101' AND ip <<= '10.0.0.0/8' AND n = 'NaN')
         WITH (publish = 'insert, truncate', publish_via_partition_root = true)",
        "",
    )
    .await;
}

/// An update that crosses a filter becomes an insert or a delete; filters and columns change while nobody reads.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_filters_are_applied_to_a_replay() {
    if versions::default_major() < 15 {
        return; // PostgreSQL 14 has neither column lists nor row filters
    }
    let tables = |nokey, big| {
        format!(
            r#"TABLE {nokey}, other WHERE (u >= 'one' COLLATE "C"), parts WHERE (k < 14 OR k > 31), toasted WHERE (id > {big}),
               typed WHERE (id % 2 = 1), "Größe ""x"" y" WHERE ((id BETWEEN 1 AND 3) OR (id >= 7))"#
        )
    };
    let before = tables("nokey WHERE (a IS NOT NULL AND b = 'x')", 0);
    let after = tables("renamed WHERE (b IS NULL OR a < 10)", 5);
    as_streamed(
        &format!("CREATE PUBLICATION walcast FOR {before} WITH (publish_via_partition_root = true)"),
        &format!(
            "ALTER PUBLICATION walcast SET {after};
             INSERT INTO child VALUES (80, NULL); ALTER PUBLICATION walcast ADD TABLE child; INSERT INTO child VALUES (81, NULL);
             ALTER PUBLICATION walcast DROP TABLE child; INSERT INTO child VALUES (82, NULL); DELETE FROM child;
             INSERT INTO renamed VALUES (1, 'after'), (20, 'after'), (21, NULL); UPDATE renamed SET a = a + 5, b = 'changed';
             INSERT INTO toasted VALUES (2, 'small', 1), (6, repeat('x', 9000), 1); UPDATE toasted SET n = 7;
             UPDATE toasted SET id = 11 - id; DELETE FROM toasted; DELETE FROM renamed WHERE a > 15"
        ),
    )
    .await;
}

/// The hub, which does not run, loses its slot and replays what came after `tail`; a second one, with a copy of its journal and slot,
/// streams it. Both must tell the same changes.
pub async fn replays_what_is_streamed(stage: &mut Stage, tail: Lsn) {
    stage.db.run("SELECT pg_copy_logical_replication_slot('walcast', 'copy')").await;
    let mut other = stage.hub.copy(&["--slot", "copy"]);
    other.start().await;
    let streamed = collect(&other, Request::new().after_lsn(tail)).await;
    other.terminate();
    drop_slot(stage).await;
    stage.hub.start().await;
    recoveries(stage, 1).await;
    let replayed = stage.collect(Request::new().after_lsn(tail)).await;
    same_changes(&streamed, &replayed);
}

async fn as_streamed(publication: &str, more: &str) {
    let mut stage = stage().sql(AWKWARD).publication(publication).start().await;
    install(&stage);
    stage.db.run("INSERT INTO nokey VALUES (0, 'before'); DELETE FROM nokey").await;
    horizon(&stage).await;
    stage.hub.terminate();
    let tail = stage.flushed().await;
    stage.db.run(&format!("{AWKWARD_CHANGES}; {more}")).await;
    replays_what_is_streamed(&mut stage, tail).await;
    let whole = stage.collect(Request::new().earliest()).await;
    let parsed = held(&whole, validators::formal(&whole));
    held(&whole, validators::recovered(&parsed, &stage.truth().await, true));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disabled_trigger_is_an_alarm_and_not_a_silent_gap() {
    let mut stage =
        stage().sql("CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE fine (id int PRIMARY KEY)").start().await;
    install(&stage);
    stage.db.run("INSERT INTO t VALUES (1)").await;
    horizon(&stage).await;
    assert!(walcast(&stage, &["logtables", "status"]).status.success());
    stage.db.run("ALTER TABLE t DISABLE TRIGGER ALL").await;
    alarm(&stage, "FAILOVER_NOT_PROTECTED: public.t: ").await;
    let status = walcast(&stage, &["logtables", "status"]);
    assert_eq!(status.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&status.stdout).contains("NOT PROTECTED public.t: "), "{status:?}");
    let doctor = || String::from_utf8_lossy(&walcast(&stage, &["doctor"]).stdout).into_owned();
    assert!(
        doctor().contains("log tables              public.t: its triggers are missing or disabled"),
        "{}",
        doctor()
    );
    install(&stage);
    assert!(doctor().contains("every published table is logged"), "{}", doctor());
    eventually(PATIENCE, || async {
        let status = stage.client().status().await.map_err(|failure| format!("{failure:?}"))?;
        let alarms = status.source.unwrap_or_default().alarms;
        if alarms.is_empty() { Ok(()) } else { Err(alarms.join("; ")) }
    })
    .await;
    horizon(&stage).await;
    // Disabled for a while within the gap: what it missed cannot be found any more, and that is said.
    stage.hub.terminate();
    stage.db.run("ALTER TABLE t DISABLE TRIGGER ALL; INSERT INTO t VALUES (2); ALTER TABLE t ENABLE TRIGGER ALL").await;
    install(&stage);
    // That a table has triggers now says nothing of before, where it was published while nobody followed DDL.
    stage.db.run("ALTER EVENT TRIGGER walcast_ddl DISABLE; CREATE TABLE late (id int PRIMARY KEY)").await;
    stage.db.run("INSERT INTO late VALUES (1); ALTER EVENT TRIGGER walcast_ddl ENABLE ALWAYS").await;
    stage.db.run("ALTER TABLE late ADD v int").await;
    drop_slot(&stage).await;
    stage.hub.spawn();
    last_error(&stage, "SLOT_LOST", "public.t: its triggers were disabled for a while within the gap").await;
    last_error(&stage, "SLOT_LOST", "public.late: its changes were not logged from the beginning of the gap").await;
    assert_eq!(stage.slot("slot_name").await, None, "nothing was changed");
}

/// Waits for an alarm.
async fn alarm(stage: &Stage, beginning: &str) {
    eventually(PATIENCE, || async {
        let status = stage.client().status().await.map_err(|failure| format!("{failure:?}"))?;
        let alarms = status.source.unwrap_or_default().alarms;
        if alarms.iter().any(|alarm| alarm.starts_with(beginning)) { Ok(()) } else { Err(alarms.join("; ")) }
    })
    .await;
}

pub async fn last_error(stage: &Stage, reason: &str, part: &str) {
    eventually(PATIENCE, || async {
        let status = stage.client().status().await.map_err(|failure| format!("{failure:?}"))?;
        let error = status.source.unwrap_or_default().last_error;
        if error.starts_with(reason) && error.contains(part) { Ok(()) } else { Err(error) }
    })
    .await;
}
