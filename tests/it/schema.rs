//! Shapes: DDL in mid-stream, replica identities, partitions.

use walcast::wire::pb::{self, event::Kind};

use crate::harness::{
    Stage,
    client::Request,
    history::History,
    parsed::{Cell, What},
    stage,
    stage::held,
    validators::Replica,
};

fn int(value: i64) -> Option<Cell> {
    Some(Cell::Int(value))
}

fn text(value: &str) -> Option<Cell> {
    Some(Cell::Text(value.into()))
}

/// Table and columns of every relation event, in order.
fn shapes(history: &History) -> Vec<Vec<String>> {
    let names = |relation: &pb::Relation| {
        let columns = relation.columns.iter().map(|column| format!("{} {}", column.name, column.type_name));
        [relation.table.clone()].into_iter().chain(columns).collect()
    };
    let shape = |kind: &Kind| match kind {
        Kind::Relation(relation) => Some(names(relation)),
        _ => None,
    };
    history.last().kinds().filter_map(shape).collect()
}

async fn replica_equals(stage: &Stage, history: &History, tables: &[&str]) {
    let parsed = stage.check(history).await;
    let mut replica = Replica::default();
    held(history, replica.apply(&parsed));
    let tables: Vec<String> = tables.iter().map(|table| (*table).to_owned()).collect();
    held(history, replica.equals_source(&stage.db, &tables).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_row_decodes_by_the_shape_it_was_written_with() {
    let stage = stage().sql("CREATE TABLE t (id int PRIMARY KEY, a int, b text)").start().await;
    stage
        .db
        .run(
            "INSERT INTO t VALUES (1, 1, 'one'); \
             ALTER TABLE t ADD COLUMN c int DEFAULT 7; INSERT INTO t VALUES (2, 2, 'two', 2); \
             ALTER TABLE t DROP COLUMN b; INSERT INTO t VALUES (3, 3, 3); \
             ALTER TABLE t RENAME COLUMN a TO renamed; INSERT INTO t VALUES (4, 4, 4); \
             ALTER TABLE t ALTER COLUMN renamed TYPE text; INSERT INTO t VALUES (5, 'five', 5); \
             BEGIN; INSERT INTO t VALUES (6, 'six', 6); ALTER TABLE t ADD COLUMN d bool; \
             INSERT INTO t VALUES (7, 'seven', 7, true); COMMIT; \
             ALTER TABLE t RENAME TO u; INSERT INTO u VALUES (8, 'eight', 8, false)",
        )
        .await;
    let live = stage.everything().await;
    let parsed = stage.check(&live).await;
    let rows: Vec<&What> = parsed.items().map(|item| &item.what).collect();
    assert_eq!(rows[0].get("b"), text("one").as_ref());
    assert_eq!(rows[0].get("c"), None, "the row was written before the column was there");
    assert_eq!(rows[1].get("c"), int(2).as_ref());
    assert_eq!(rows[2].get("b"), None);
    assert_eq!(rows[3].get("renamed"), int(4).as_ref());
    assert_eq!(rows[4].get("renamed"), text("five").as_ref());
    assert_eq!(rows[5].get("d"), None, "DDL inside the transaction");
    assert_eq!(rows[6].get("d"), Some(&Cell::Bool(true)));
    assert_eq!(rows[7].tables(), ["public.u"]);
    let shapes = shapes(&live);
    assert_eq!(shapes.len(), 7, "each version once: {shapes:?}");
    assert!(shapes.windows(2).all(|pair| pair[0] != pair[1]), "{shapes:?}");
    let versions = stage.client().list_relations(&[], true).await.expect("ListRelations");
    assert!(versions.len() >= 7, "{} versions", versions.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_dropped_and_made_again_is_another_one() {
    let stage = stage().sql("CREATE TABLE t (id int PRIMARY KEY, a int)").start().await;
    stage
        .db
        .run("INSERT INTO t VALUES (1, 1); DROP TABLE t; CREATE TABLE t (id text PRIMARY KEY); INSERT INTO t VALUES ('x')")
        .await;
    let history = stage.everything().await;
    let parsed = stage.check(&history).await;
    let rows: Vec<&What> = parsed.items().map(|item| &item.what).collect();
    assert_eq!((rows[0].get("id"), rows[1].get("id")), (int(1).as_ref(), text("x").as_ref()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_images_follow_the_replica_identity() {
    let stage = stage()
        .sql("CREATE TABLE by_key (id int PRIMARY KEY, u int NOT NULL UNIQUE, v text)")
        .sql("CREATE TABLE by_index (id int PRIMARY KEY, u int NOT NULL UNIQUE, v text)")
        .sql("ALTER TABLE by_index REPLICA IDENTITY USING INDEX by_index_u_key")
        .sql("CREATE TABLE by_all (id int, u int, v text); ALTER TABLE by_all REPLICA IDENTITY FULL")
        .sql("CREATE TABLE by_none (id int PRIMARY KEY, v text); ALTER TABLE by_none REPLICA IDENTITY NOTHING")
        .start()
        .await;
    for table in ["by_key", "by_index", "by_all"] {
        stage
            .db
            .run(&format!(
                "INSERT INTO {table} VALUES (1, 10, 'a'); UPDATE {table} SET v = 'b'; \
                 UPDATE {table} SET id = 2, u = 20; DELETE FROM {table}"
            ))
            .await;
    }
    stage.db.run("INSERT INTO by_none VALUES (1, 'a')").await;
    assert!(stage.db.batch_execute("UPDATE by_none SET v = 'b'").await.is_err(), "the source refuses it");
    let history = stage.everything().await;
    let parsed = stage.check(&history).await;
    let before: Vec<Option<Vec<Cell>>> = parsed
        .items()
        .map(|item| match &item.what {
            What::Row { before, .. } => before.clone(),
            other => panic!("{other:?}"),
        })
        .collect();
    let (one, two, ten, twenty) = (Cell::Int(1), Cell::Int(2), Cell::Int(10), Cell::Int(20));
    let (a, b, absent) = (Cell::Text("a".into()), Cell::Text("b".into()), Cell::Absent);
    let expected = [
        None,
        None,
        Some(vec![one.clone(), absent.clone(), absent.clone()]),
        Some(vec![two.clone(), absent.clone(), absent.clone()]),
        None,
        None,
        Some(vec![absent.clone(), ten.clone(), absent.clone()]),
        Some(vec![absent.clone(), twenty.clone(), absent]),
        None,
        Some(vec![one.clone(), ten.clone(), a]),
        Some(vec![one, ten, b.clone()]),
        Some(vec![two, twenty, b]),
        None,
    ];
    for (index, (got, expected)) in before.iter().zip(&expected).enumerate() {
        assert_eq!(got, expected, "change {index}");
    }
    assert_eq!(before.len(), expected.len());
    let identities: Vec<i32> = history
        .last()
        .kinds()
        .filter_map(|kind| match kind {
            Kind::Relation(relation) => Some(relation.replica_identity),
            _ => None,
        })
        .collect();
    let names = [
        pb::ReplicaIdentity::Default,
        pb::ReplicaIdentity::Index,
        pb::ReplicaIdentity::Full,
        pb::ReplicaIdentity::Nothing,
    ];
    assert_eq!(identities, names.map(|identity| identity as i32));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn null_and_absent_are_not_the_same() {
    let stage = stage().sql("CREATE TABLE t (id int PRIMARY KEY, v text)").start().await;
    stage
        .db
        .run(
            "INSERT INTO t VALUES (1, NULL); DELETE FROM t; ALTER TABLE t REPLICA IDENTITY FULL; \
                  INSERT INTO t VALUES (2, NULL); DELETE FROM t",
        )
        .await;
    let history = stage.everything().await;
    let parsed = stage.check(&history).await;
    let values: Vec<Option<&Cell>> = parsed.items().map(|item| item.what.get("v")).collect();
    assert_eq!(values, [Some(&Cell::Null), Some(&Cell::Absent), Some(&Cell::Null), Some(&Cell::Null)]);
}

const PARTITIONED: &str = "CREATE TABLE m (id int, part int, PRIMARY KEY (id, part)) PARTITION BY LIST (part); \
     CREATE TABLE m1 PARTITION OF m FOR VALUES IN (1); CREATE TABLE m2 PARTITION OF m FOR VALUES IN (2)";
const MOVES: &str = "INSERT INTO m VALUES (1, 1), (2, 2); UPDATE m SET part = 2 WHERE id = 1; \
     CREATE TABLE m3 PARTITION OF m FOR VALUES IN (3); INSERT INTO m VALUES (3, 3); DELETE FROM m WHERE id = 2";

fn tables(history: &History) -> Vec<String> {
    let parsed = crate::harness::parsed::Parsed::of(history).expect("a valid history");
    parsed.items().flat_map(|item| item.what.tables().into_iter().map(str::to_owned).collect::<Vec<_>>()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_arrive_under_their_own_names() {
    let stage = stage().sql(PARTITIONED).start().await;
    stage.db.run(MOVES).await;
    let history = stage.everything().await;
    let expected = ["public.m1", "public.m2", "public.m1", "public.m2", "public.m3", "public.m2"];
    assert_eq!(tables(&history), expected);
    replica_equals(&stage, &history, &["public.m1", "public.m2", "public.m3"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_arrive_as_their_root_when_published_so() {
    let stage = stage()
        .sql(PARTITIONED)
        .publication("CREATE PUBLICATION walcast FOR ALL TABLES WITH (publish_via_partition_root = true)")
        .start()
        .await;
    stage.db.run(MOVES).await;
    let history = stage.everything().await;
    assert!(tables(&history).iter().all(|table| table == "public.m"), "{:?}", tables(&history));
    assert_eq!(tables(&stage.collect(Request::new().earliest().tables(&["public.m"])).await).len(), 6);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn truncate_of_several_tables_is_one_event() {
    let stage = stage()
        .sql("CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY REFERENCES a); CREATE TABLE c (id serial)")
        .start()
        .await;
    stage
        .db
        .run("INSERT INTO a VALUES (1); INSERT INTO b VALUES (1); TRUNCATE a CASCADE; TRUNCATE c RESTART IDENTITY")
        .await;
    let history = stage.everything().await;
    let parsed = stage.check(&history).await;
    let truncates: Vec<_> = parsed
        .items()
        .filter_map(|item| match &item.what {
            What::Truncate { tables, cascade, restart_identity } => {
                let mut tables = tables.clone();
                tables.sort();
                Some((tables.join(" "), *cascade, *restart_identity))
            }
            _ => None,
        })
        .collect();
    assert_eq!(truncates.len(), 2);
    assert_eq!((truncates[0].0.as_str(), truncates[0].1), ("public.a public.b", true));
    assert_eq!((truncates[1].0.as_str(), truncates[1].2), ("public.c", true));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_hubs_own_schema_never_reaches_a_subscriber() {
    let stage = stage()
        .sql("CREATE SCHEMA walcast; CREATE TABLE walcast.secret (id int PRIMARY KEY)")
        .sql("CREATE TABLE t (id int PRIMARY KEY)")
        .start()
        .await;
    stage.db.run("INSERT INTO walcast.secret VALUES (1); INSERT INTO t VALUES (1)").await;
    let history = stage.everything().await;
    assert_eq!(tables(&history), ["public.t"]);
}
