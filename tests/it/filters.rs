//! What a subscription selects, and what it does not pay for.

use walcast::wire::pb::{self, Operation};

use crate::harness::{
    Stage,
    client::Request,
    history::History,
    parsed::{Cell, Parsed, What},
    stage, validators,
};

/// A message outside transactions is not flushed by itself before PostgreSQL 17, so `stop_at_tail` may rightly end before
/// it; the transaction after it flushes both.
async fn shop() -> Stage {
    let stage = stage()
        .sql("CREATE SCHEMA shop; CREATE TABLE shop.orders (id int PRIMARY KEY, state text, total numeric, note text)")
        .sql("CREATE TABLE shop.items (id int PRIMARY KEY, order_id int); CREATE TABLE public.audit (id int PRIMARY KEY)")
        .sql("ALTER TABLE shop.orders REPLICA IDENTITY FULL")
        .start()
        .await;
    stage
        .db
        .run(
            "BEGIN; INSERT INTO shop.orders VALUES (1, 'new', 10, 'n1'), (2, 'new', 200, 'n2'); \
             INSERT INTO shop.items VALUES (1, 1); INSERT INTO audit VALUES (1); COMMIT; \
             UPDATE shop.orders SET state = 'paid' WHERE id = 2; UPDATE shop.orders SET total = 5 WHERE id = 2; \
             DELETE FROM shop.orders WHERE id = 1; INSERT INTO audit VALUES (2); TRUNCATE shop.items; \
             SELECT pg_logical_emit_message(false, 'other', 'x'); SELECT pg_logical_emit_message(true, 'app.deploy', 'v1')",
        )
        .await;
    stage
}

/// Table and operation of every item.
fn seen(history: &History) -> Vec<String> {
    let parsed = Parsed::of(history).expect("a valid history");
    let mut all = Vec::new();
    for unit in parsed.streams.iter().flatten() {
        let Some((_, items)) = unit.content() else { continue };
        for item in items {
            all.push(match &item.what {
                What::Row { operation, shape, .. } => {
                    format!("{} {}", operation.as_str_name().trim_start_matches("OPERATION_"), shape.table)
                }
                What::Truncate { tables, .. } => format!("TRUNCATE {}", tables.join(" ")),
                What::Message { prefix, .. } => format!("MESSAGE {prefix}"),
            });
        }
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_operations_and_messages_select() {
    let stage = shop().await;
    let strings = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
    let requests: Vec<(Request, &[&str])> = vec![
        (
            Request::new().tables(&["shop.orders"]),
            &[
                "INSERT shop.orders",
                "INSERT shop.orders",
                "UPDATE shop.orders",
                "UPDATE shop.orders",
                "DELETE shop.orders",
            ],
        ),
        (
            Request::new().tables(&["shop.*"]).filter(|f| f.exclude_tables = strings(&["*.orders"])),
            &["INSERT shop.items", "TRUNCATE shop.items"],
        ),
        (Request::new().tables(&["*.audit"]), &["INSERT public.audit", "INSERT public.audit"]),
        (Request::new().tables(&["no.such*"]), &[]),
        (Request::new().operations(&[Operation::Delete]), &["DELETE shop.orders"]),
        (Request::new().operations(&[Operation::Truncate]), &["TRUNCATE shop.items"]),
        (
            Request::new().tables(&["public.audit"]).filter(|f| f.message_prefixes = strings(&["app.*"])),
            &["INSERT public.audit", "INSERT public.audit", "MESSAGE app.deploy"],
        ),
        (
            Request::new().tables(&["nothing.*"]).filter(|f| f.message_prefixes = strings(&["*"])),
            &["MESSAGE other", "MESSAGE app.deploy"],
        ),
    ];
    for (request, expected) in requests {
        let history = stage.collect(request.clone().earliest()).await;
        assert_eq!(seen(&history), expected, "{:?}", request.0.filter);
        stage.check(&history).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn columns_narrow_rows_but_keep_the_identity() {
    let stage = shop().await;
    let request = Request::new().tables(&["shop.items"]).filter(|f| f.columns = vec!["shop.items.order_id".into()]);
    let history = stage.collect(request.earliest()).await;
    let parsed = stage.check(&history).await;
    let What::Row { shape, after, .. } = &parsed.items().next().expect("a row").what else { panic!() };
    assert_eq!(shape.columns.iter().map(|(name, _, _)| name.as_str()).collect::<Vec<_>>(), ["id", "order_id"]);
    assert_eq!(after.as_deref(), Some(&[Cell::Int(1), Cell::Int(1)][..]));

    let request = Request::new().tables(&["shop.items"]).filter(|f| f.columns = vec!["shop.items.id".into()]);
    let history = stage.collect(request.earliest()).await;
    let parsed = stage.check(&history).await;
    let What::Row { after, .. } = &parsed.items().next().expect("a row").what else { panic!() };
    assert_eq!(after.as_deref(), Some(&[Cell::Int(1)][..]));
}

/// PostgreSQL calls every column of such a table part of its identity; then only the named ones come.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn columns_narrow_rows_of_a_table_whose_identity_is_the_whole_row() {
    let stage = stage()
        .sql("CREATE TABLE t (id int PRIMARY KEY, v text, w text); ALTER TABLE t REPLICA IDENTITY FULL")
        .start()
        .await;
    stage.db.run("INSERT INTO t VALUES (1, 'a', 'b'); UPDATE t SET w = 'c'; DELETE FROM t").await;
    for format in [Request::new(), Request::new().structs()] {
        let is_compact = format.0.row_format != pb::RowFormat::Struct as i32;
        let request = format.tables(&["public.t"]).filter(|f| f.columns = vec!["public.t.id".into(), "*.v".into()]);
        let history = stage.collect(request.earliest()).await;
        assert_eq!(history.changes(), 3);
        assert!(!format!("{:?}", history.last().events).contains("\"w\""), "w was not asked for");
        if is_compact {
            let parsed = stage.check(&history).await;
            let row = || Some(vec![Cell::Int(1), Cell::Text("a".into())]);
            let rows: Vec<_> = parsed
                .items()
                .map(|item| match &item.what {
                    What::Row { before, after, .. } => (before.clone(), after.clone()),
                    other => panic!("{other:?}"),
                })
                .collect();
            assert_eq!(rows, [(None, row()), (row(), row()), (row(), None)]);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_predicate_sees_rows_enter_stay_and_leave() {
    let stage = shop().await;
    let request = Request::new().tables(&["shop.orders"]).filter(|f| f.r#where = "total > 100".into());
    let history = stage.collect(request.earliest()).await;
    let parsed = validators::formal(&history).expect("a valid history");
    let transitions: Vec<(Option<Cell>, i32)> = parsed
        .items()
        .map(|item| match &item.what {
            What::Row { transition, .. } => (item.what.get("id").cloned(), *transition),
            other => panic!("{other:?}"),
        })
        .collect();
    let id = Some(Cell::Int(2));
    let expected = [pb::Transition::Enter, pb::Transition::Stay, pb::Transition::Leave];
    assert_eq!(transitions, expected.map(|transition| (id.clone(), transition as i32)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_rule_that_matches_holds() {
    let stage = shop().await;
    let rules = vec![
        pb::TableRule { tables: "shop.orders".into(), r#where: "state = 'paid'".into(), ..Default::default() },
        pb::TableRule { tables: "shop.*".into(), operations: vec![Operation::Truncate as i32], ..Default::default() },
    ];
    let history = stage.collect(Request::new().tables(&["shop.*"]).filter(|f| f.rules = rules).earliest()).await;
    assert_eq!(seen(&history), ["UPDATE shop.orders", "UPDATE shop.orders", "TRUNCATE shop.items"]);
    validators::formal(&history).expect("a valid history");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn origins_select() {
    let stage = shop().await;
    stage
        .db
        .run(
            "SELECT pg_replication_origin_create('elsewhere'); SELECT pg_replication_origin_session_setup('elsewhere'); \
             INSERT INTO audit VALUES (100); SELECT pg_replication_origin_session_reset(); INSERT INTO audit VALUES (101)",
        )
        .await;
    let with = |origins: &[&str]| {
        let origins = origins.iter().map(|origin| (*origin).to_owned()).collect();
        Request::new().tables(&["public.audit"]).filter(|f| f.origins = origins).earliest()
    };
    let ids = |history: &History| {
        let parsed = validators::formal(history).expect("a valid history");
        parsed.items().filter_map(|item| item.what.get("id").cloned()).collect::<Vec<_>>()
    };
    let all = [1, 2, 100, 101].map(Cell::Int);
    assert_eq!(ids(&stage.collect(with(&[])).await), all);
    assert_eq!(ids(&stage.collect(with(&["elsewhere"])).await), [Cell::Int(100)]);
    assert_eq!(ids(&stage.collect(with(&[""])).await), [1, 2, 101].map(Cell::Int));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_subscribers_with_one_filter_cost_one_encoding_and_one_projection() {
    const TABLES: &str = "CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY)";
    let work = async |stage: &Stage| {
        for round in 0..20 {
            let (from, to) = (round * 50 + 1, round * 50 + 50);
            let sql = format!(
                "BEGIN; INSERT INTO a SELECT generate_series({from}, {to}); INSERT INTO b VALUES ({from}); COMMIT"
            );
            stage.db.run(&sql).await;
        }
    };
    let live = async |subscribers: usize| {
        let stage = stage().sql(TABLES).start().await;
        let mut streams = Vec::new();
        for _ in 0..subscribers {
            let mut stream = stage.client().subscribe(&Request::new().tables(&["public.a"])).await;
            stream.until("opened", |log| log.opened().is_some()).await;
            streams.push(stream);
        }
        work(&stage).await;
        let goal = stage.goal().await;
        for stream in &mut streams {
            stream.reaches(goal).await;
            assert_eq!(stream.log.changes(), 1000);
        }
        let truth = stage.truth().await;
        for stream in streams {
            let history = stream.close();
            validators::all(&history, &truth).unwrap_or_else(|violation| panic!("{violation}"));
        }
        let of = async |name: &str| stage.hub.metric(name).await;
        (of("walcast_events_encoded_total").await, of("walcast_events_delivered_total").await)
    };
    let (one, fifty) = (live(1).await, live(50).await);
    assert_eq!(one.0, fifty.0, "events are encoded once, whatever the number of subscribers");
    assert!(fifty.1 >= one.1 * 40.0, "{one:?} {fifty:?}");

    // How a run falls into blocks varies; so everybody reads the same journal.
    let stage = stage().sql(TABLES).start().await;
    work(&stage).await;
    stage.journaled().await;
    let projections = async |subscribers: usize| {
        let before = stage.hub.metric("walcast_projections_total").await;
        let mut streams = Vec::new();
        for _ in 0..subscribers {
            streams.push(stage.client().subscribe(&Request::new().tables(&["public.a"]).earliest()).await);
        }
        let goal = stage.goal().await;
        for stream in &mut streams {
            stream.reaches(goal).await;
            assert_eq!(stream.log.changes(), 1000);
        }
        stage.hub.metric("walcast_projections_total").await - before
    };
    let (one, fifty) = (projections(1).await, projections(50).await);
    assert!(one >= 1.0, "{one} projections");
    assert_eq!(one, fifty, "a block is projected once, whatever the number of subscribers");
}
