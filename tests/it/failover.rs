//! A standby takes over from its primary. With the slot on the new primary nothing is missing and nothing comes twice; what
//! the old primary had shown and the new one never received is taken back in words.

use std::{os::unix::process::ExitStatusExt, time::Duration};

use walcast::wire::pb::{self, event::Kind};

use crate::harness::{
    client::Request,
    command::walcast,
    eventually,
    history::{StreamLog, lsn},
    pair::{self, Pair, Slots, crossed, kept, retracted},
    parsed::{Cell, Parsed},
    stage::held,
    validators, versions,
};

const TABLE: &str = "CREATE TABLE t (id int PRIMARY KEY, v text)";

pub fn changed(log: &StreamLog) -> Vec<&pb::TimelineChanged> {
    log.kinds()
        .filter_map(|kind| match kind {
            Kind::TimelineChanged(changed) => Some(changed),
            _ => None,
        })
        .collect()
}

/// Ids that committed transactions of a stream inserted.
pub fn ids(parsed: &Parsed<'_>) -> Vec<i64> {
    let id = |cell: Option<&Cell>| match cell {
        Some(Cell::Int(id)) => Some(*id),
        _ => None,
    };
    parsed.items().filter_map(|item| id(item.what.get("id"))).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_promoted_standby_never_had_is_taken_back() {
    let mut pair = Pair::start(versions::default_major(), Slots::Copied, TABLE, &[]).await;
    let db = pair.db().await;
    for id in 1..=5 {
        db.run(&format!("INSERT INTO t VALUES ({id}, 'common')")).await;
    }
    let mut live = pair.client().subscribe(&Request::new().earliest()).await;
    live.until("the common part", |log| log.commits() == 5).await;
    let common = live.log.position().expect("a position");
    let mut filtered = pair.client().subscribe(&Request::new().earliest().tables(&["public.none*"])).await;
    filtered.until("opened", |log| log.opened().is_some()).await;
    pair.caught_up().await;
    pair.cut_off().await;
    for id in 6..=8 {
        db.run(&format!("INSERT INTO t VALUES ({id}, 'lost')")).await;
    }
    live.until("what will be lost", |log| log.commits() == 8).await;
    let past = live.log.position().expect("a position");
    let mut named = pair.client().subscribe(&Request::named("mirror").earliest()).await;
    named.until("what will be lost", |log| log.commits() == 8).await;
    let session = named.log.opened().expect("opened").session;
    pair.client().acknowledge("mirror", &past, session).await.expect("acknowledged");
    drop(named);
    drop(db);
    pair.fail_over().await;
    let db = pair.db().await;
    for id in 101..=103 {
        db.run(&format!("INSERT INTO t VALUES ({id}, 'new')")).await;
    }
    assert_eq!(db.number("SELECT count(*) FROM t").await, 8, "five common, three new");
    pair::streaming(&pair.primary).await;

    live.until("the new part", |log| log.commits() == 11).await;
    let [told] = changed(&live.log)[..] else { panic!("{}", live.describe()) };
    assert_eq!(told.retracted.len(), 3, "{told:?}");
    assert!(lsn(&told.switch_lsn) >= lsn(&common.lsn) && lsn(&told.switch_lsn) < lsn(&past.lsn));
    filtered.until("the switch", crossed).await;
    assert_eq!(changed(&filtered.log)[0].retracted, []);
    let goal = pair.truth().await.end();
    live.reaches(goal).await;
    let history = live.close();
    pair.check(&history).await;
    let parsed = held(&history, Parsed::of(&history));
    assert_eq!(retracted(&parsed).len(), 3);
    assert_eq!(ids(&held(&kept(&history), Parsed::of(&kept(&history)))), [1, 2, 3, 4, 5, 101, 102, 103]);

    for restarted in [false, true] {
        if restarted {
            pair.hub.terminate();
            pair.hub.start().await;
            pair::streaming(&pair.primary).await;
        }
        let whole = pair.collect(Request::new().earliest()).await;
        pair.check(&whole).await;
        let parsed = held(&whole, Parsed::of(&whole));
        assert_eq!(ids(&parsed), [1, 2, 3, 4, 5, 101, 102, 103]);
        assert_eq!(retracted(&parsed), [], "this stream was never sent any of it");

        let mut refused = pair.client().subscribe(&Request::new().after(&past)).await;
        let failure = refused.fails_with("POSITION_DIVERGED").await;
        assert!(failure.lsn("common") >= lsn(&common.lsn) && failure.lsn("common") < lsn(&past.lsn));
        let resumed = pb::Position {
            lsn: failure.metadata["common"].clone(),
            lineage: failure.metadata["lineage"].clone(),
            ..past.clone()
        };
        let after = pair.collect(Request::new().after(&resumed)).await;
        let parsed = held(&after, Parsed::of(&after));
        assert_eq!((retracted(&parsed).len(), ids(&parsed)), (3, vec![101, 102, 103]));

        let lost = pair.client().read_retracted(&past.lineage).await.expect("what was lost");
        let inserted = lost.iter().filter(|kind| matches!(kind, Kind::Change(_))).count();
        let commits = lost.iter().filter(|kind| matches!(kind, Kind::Commit(_))).count();
        assert_eq!((inserted, commits), (3, 3), "{lost:?}");
        let url = format!("http://127.0.0.1:{}", pair.hub.grpc_port());
        let shown = walcast(&["status", "--hub", &url], &[]);
        for transaction in &changed(&history.streams[0])[0].retracted {
            let begin = transaction.begin.as_ref().expect("a begin");
            let line = format!("\n  transaction {}  commit {}", begin.xid, begin.commit_lsn);
            assert!(shown.stdout.contains(&line), "{line}: {shown:?}");
        }
        let shown = walcast(&["status", "--hub", &url, "--format", "json"], &[]);
        assert_eq!(shown.stdout.matches("\"xid\":").count(), 3, "{shown:?}");

        // Until something past the switch is acknowledged the subscriber is told again.
        for _ in 0..2 {
            let mut named = pair.client().subscribe(&Request::named("mirror")).await;
            named.until("the new part", |log| log.commits() == 3).await;
            let [told] = changed(&named.log)[..] else { panic!("{}", named.describe()) };
            assert_eq!(told.retracted.len(), 3);
        }
    }
    let mut named = pair.client().subscribe(&Request::named("mirror")).await;
    named.until("the switch", crossed).await;
    let switch = changed(&named.log)[0].position.clone().expect("a position");
    let session = named.log.opened().expect("opened").session;
    pair.client().acknowledge("mirror", &switch, session).await.expect("acknowledged");
    let mut named = pair.client().subscribe(&Request::named("mirror")).await;
    named.until("the new part", |log| log.commits() == 3).await;
    assert!(!crossed(&named.log), "{}", named.describe());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_a_transaction_that_was_lost_ends_in_discard() {
    let mut pair = Pair::start(versions::default_major(), Slots::Copied, TABLE, &[]).await;
    let db = pair.db().await;
    db.run("INSERT INTO t VALUES (0, 'common')").await;
    pair.caught_up().await;
    pair.cut_off().await;
    let mut slow = pair.client().consume(&Request::new().earliest()).await;
    slow.grant(5000, u64::MAX).await;
    db.run("INSERT INTO t SELECT i, repeat('x', 200) FROM generate_series(1, 20000) i").await;
    slow.until("a part", |log| log.changes() == 5000).await;
    pair.fail_over().await;
    let db = pair.db().await;
    db.run("INSERT INTO t VALUES (-1, 'new')").await;
    pair::streaming(&pair.primary).await;
    slow.grant(u64::MAX, u64::MAX).await;
    slow.until("the end of the half", |log| log.kinds().any(|kind| matches!(kind, Kind::Discard(_)))).await;
    slow.until("the new one", |log| log.commits() == 2).await;
    let history = slow.close();
    let parsed = held(&history, validators::formal(&history));
    assert_eq!(ids(&parsed), [0, -1], "{}", outline(&history.streams[0]));
    assert!(crossed(&history.streams[0]));
    pair.check(&history).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_slot_the_gap_is_stated() {
    for policy in ["stop", "continue"] {
        let setting = format!("source.on_slot_lost={policy}");
        let mut pair = Pair::start(versions::default_major(), Slots::Lost, TABLE, &["--set", &setting]).await;
        let db = pair.db().await;
        db.run("INSERT INTO t VALUES (1, 'common')").await;
        let mut live = pair.client().subscribe(&Request::new().earliest()).await;
        live.until("the common part", |log| log.commits() == 1).await;
        pair.caught_up().await;
        pair.cut_off().await;
        db.run("INSERT INTO t VALUES (2, 'lost')").await;
        live.until("what will be lost", |log| log.commits() == 2).await;
        pair.primary.kill9();
        pair.standby.promote().await;
        std::mem::swap(&mut pair.primary, &mut pair.standby);
        if policy == "stop" {
            pair.db().await.run("INSERT INTO t VALUES (3, 'missing')").await;
            let failure = live.fails_with("SLOT_LOST").await;
            assert!(failure.lsn("from") <= failure.lsn("to"), "{failure:?}");
            assert!(crossed(&live.log), "{}", live.describe());
            let mut again = pair.client().subscribe(&Request::new().earliest()).await;
            again.fails_with("SLOT_LOST").await;
            assert_eq!(again.log.commits(), 1, "what the journal has comes first");
            assert!(pair.source_error("SLOT_LOST").await.contains("on_slot_lost"));
            continue;
        }
        live.until("the gap", |log| log.kinds().any(|kind| matches!(kind, Kind::Gap(_)))).await;
        pair.db().await.run("INSERT INTO t VALUES (4, 'new')").await;
        live.until("the new one", |log| log.commits() == 3).await;
        let order: Vec<&str> = live
            .log
            .kinds()
            .filter_map(|kind| match kind {
                Kind::TimelineChanged(_) => Some("timeline"),
                Kind::Gap(_) => Some("gap"),
                Kind::Commit(_) => Some("commit"),
                _ => None,
            })
            .collect();
        assert_eq!(order, ["commit", "commit", "timeline", "gap", "commit"]);
        let gap = live.log.kinds().find_map(|kind| match kind {
            Kind::Gap(gap) => Some(gap.clone()),
            _ => None,
        });
        let gap = gap.expect("a gap");
        let (after, up_to) = (gap.after.expect("after"), gap.up_to.expect("up to"));
        assert!(lsn(&after.lsn) <= lsn(&up_to.lsn) && after.lineage != up_to.lineage, "{after:?} {up_to:?}");
        let again = pair.collect(Request::new().after(&up_to)).await;
        assert_eq!(again.changes(), 1, "a position behind the gap is behind it");
        let inside = pair.collect(Request::new().after_lsn(&after.lsn)).await;
        assert!(inside.last().kinds().any(|kind| matches!(kind, Kind::Gap(_))), "a start inside the gap says so");
        pair.hub.kill9();
        pair.hub.start().await;
        pair::streaming(&pair.primary).await;
        let whole = pair.collect(Request::new().earliest()).await;
        let parsed = held(&whole, validators::formal(&whole));
        assert_eq!(ids(&parsed), [1, 4]);
        assert!(whole.last().kinds().any(|kind| matches!(kind, Kind::Gap(_))));
    }
}

async fn nothing_is_taken_back(major: u32) {
    let gate = ["--set", "source.gate=walreceiver"];
    let mut pair = Pair::start(major, Slots::Copied, TABLE, &gate).await;
    let db = pair.db().await;
    db.run("INSERT INTO t VALUES (1, 'flushed by both')").await;
    let mut live = pair.client().subscribe(&Request::new().earliest()).await;
    live.until("what the standby has", |log| log.commits() == 1).await;
    pair.cut_off().await;
    db.run("INSERT INTO t VALUES (2, 'lost')").await;
    db.run("INSERT INTO t SELECT i, repeat('x', 500) FROM generate_series(10, 2000) i").await;
    let written = pair.flushed().await;
    let mut latest = pair.client().subscribe(&Request::new().latest()).await;
    latest.until("opened", |log| log.opened().is_some()).await;
    status_says(&pair, |status| {
        let tail = status.journal.as_ref().and_then(|journal| journal.tail.as_ref());
        let current = status.source.as_ref().map(|source| source.current_lsn.clone()).unwrap_or_default();
        !current.is_empty() && lsn(&current) >= written && tail.is_some_and(|tail| lsn(&tail.lsn) < written)
    })
    .await;
    pair.fail_over().await;
    // The survivor has no standby: the gate is closed there too, until one is back.
    pair.db().await.run("INSERT INTO t VALUES (3, 'new')").await;
    pair.rebuild().await;
    live.until("the new part", |log| log.commits() >= 2).await;
    let history = live.close();
    assert_eq!(changed(&history.streams[0]).len(), 1);
    let parsed = held(&history, Parsed::of(&history));
    let committed: Vec<i64> = ids(&parsed);
    assert_eq!(committed, [1, 3], "{}", outline(&history.streams[0]));
    assert_eq!(retracted(&parsed), []);
    pair.check(&history).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn behind_the_gate_nothing_is_taken_back() {
    nothing_is_taken_back(versions::default_major()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn behind_the_gate_nothing_is_taken_back_on_every_version_of_the_matrix() {
    for major in versions::matrix() {
        nothing_is_taken_back(major).await;
    }
}

/// The same primary, the slot gone in each of the ways in which that happens; by policy the hub goes on behind the gap.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_was_lost_on_the_same_primary_leaves_a_gap() {
    let mut stage = crate::harness::stage().sql(TABLE).args(&["--set", "source.on_slot_lost=continue"]).start().await;
    stage.db.run("INSERT INTO t VALUES (0, 'kept')").await;
    stage.journaled().await;
    let (mut expected, mut missing) = (vec![0], Vec::new());
    for (round, lose) in ["dropped", "remade", "acknowledged", "invalidated"].into_iter().enumerate() {
        let id = 10 * (round as i64 + 1);
        stage.hub.terminate();
        let had = stage.flushed().await;
        stage.db.run(&format!("INSERT INTO t VALUES ({id}, 'missing')")).await;
        match lose {
            "dropped" | "remade" => stage.db.run("SELECT pg_drop_replication_slot('walcast')").await,
            "acknowledged" => {
                stage.db.run("SELECT pg_replication_slot_advance('walcast', pg_current_wal_insert_lsn())").await
            }
            _ => {
                stage.db.run("ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'; SELECT pg_reload_conf()").await;
                eventually(Duration::from_secs(60), || async {
                    stage
                        .db
                        .run("SELECT pg_switch_wal(); INSERT INTO t VALUES (-1, 'x'); DELETE FROM t WHERE id = -1")
                        .await;
                    stage.db.run("CHECKPOINT").await;
                    match stage.slot("wal_status").await.as_deref() {
                        Some("lost") => Ok(()),
                        other => Err(format!("{other:?}")),
                    }
                })
                .await;
            }
        }
        if lose == "remade" {
            // Killed with the new slot made and the gap not stated, the next hub states it all the same.
            stage.hub.failpoints("slot_remade=abort@1");
            stage.hub.spawn();
            assert_eq!(
                stage.hub.wait_exit(Duration::from_secs(30)).await.signal(),
                Some(6),
                "{}",
                stage.hub.log_tail(5)
            );
            stage.hub.failpoints("");
        }
        let missed = stage.flushed().await;
        stage.hub.start().await;
        // A slot that is being made is active too.
        stage
            .hub
            .metric_becomes("walcast_source_connected", Duration::from_secs(30), |connected| connected == 1.0)
            .await;
        stage.db.run(&format!("INSERT INTO t VALUES ({}, 'behind the gap')", id + 1)).await;
        stage.journaled().await;
        expected.push(id + 1);
        missing.push((had, missed));
    }
    let goal = stage.flushed().await;
    let mut whole = stage.client().subscribe(&Request::new().earliest()).await;
    whole.reaches(goal).await;
    let history = whole.close();
    let parsed = held(&history, validators::formal(&history));
    assert_eq!(ids(&parsed), expected, "{}", outline(&history.streams[0]));
    let gaps = history.streams[0].kinds().filter_map(|kind| match kind {
        Kind::Gap(gap) => Some(gap),
        _ => None,
    });
    let gaps: Vec<&pb::Gap> = gaps.collect();
    assert_eq!(gaps.len(), missing.len(), "{gaps:?}");
    let reasons = ["does not exist", "acknowledged up to", "acknowledged up to", "invalidated"];
    for ((gap, why), (had, missed)) in gaps.iter().zip(reasons).zip(missing) {
        assert!(gap.reason.contains(why), "{gaps:?}");
        let end = |position: &Option<pb::Position>| position.as_ref().map(|position| lsn(&position.lsn));
        assert!(end(&gap.after) <= Some(had) && end(&gap.up_to) >= Some(missed), "{gap:?} for {had} to {missed}");
    }
    assert!(!crossed(&history.streams[0]), "no history forked");
}

/// For scenarios that wait for what the hub's status says.
pub async fn status_says(pair: &Pair, what: impl Fn(&pb::GetStatusResponse) -> bool) {
    let client = pair.client();
    eventually(Duration::from_secs(30), || async {
        let status = client.status().await.map_err(|failure| format!("{failure:?}"))?;
        if what(&status) { Ok(()) } else { Err(format!("{status:?}")) }
    })
    .await;
}

/// One line per event, runs of changes as one.
pub fn outline(log: &StreamLog) -> String {
    let mut text = String::new();
    let mut run: Option<(u64, u64)> = None;
    for kind in log.kinds() {
        if let Kind::Change(change) = kind {
            let first = run.map_or(change.ordinal, |(first, _)| first);
            if run.is_some_and(|(_, last)| last + 1 != change.ordinal) {
                text += &format!("  changes {run:?}\n");
                run = Some((change.ordinal, change.ordinal));
            } else {
                run = Some((first, change.ordinal));
            }
            continue;
        }
        if let Some(run) = run.take() {
            text += &format!("  changes {run:?}\n");
        }
        text += &format!("{}\n", crate::harness::history::Brief(kind));
    }
    text
}
