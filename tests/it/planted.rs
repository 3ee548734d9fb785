//! Mistakes that are easily made in following a failover, planted in the hub one by one (`failpoint::planted`): what the
//! validators of the chaos scenarios hold must break, each time.

use walcast::journal::inspect;

use crate::{
    chaos::{Course, Doubt, Family},
    chaos_seeds::outcome,
    harness::{stage, versions, workload::SCHEMA},
    logtables::{PATIENCE, drop_slot, everything, horizon, install, recoveries, walcast},
};

/// A failover that loses much, and a new primary that has gone on further than the old one when the hub comes back.
fn course(family: Family, planted: &'static str) -> Course {
    let mut course = Course::random(7, versions::default_major(), family);
    course.before = 20;
    course.lost = Some(40);
    course.away = true;
    course.doubt = Doubt::None;
    course.head_start = 120;
    course.places.clear();
    course.large_rows = 0;
    course.walinspect = false;
    course.planted = planted;
    course
}

/// Where the mistake is planted the course fails, with the name of a guarantee.
fn is_caught(family: Family, planted: &'static str) {
    let why = outcome(&course(family, planted)).expect_err("nobody noticed");
    println!("{planted} is caught: {}", why.lines().next().unwrap_or_default());
    let guarantees = ["Complete", "Ordered", "Atomic", "Unique", "Resumable", "Progress-safe", "Lineage"];
    assert!(guarantees.iter().any(|guarantee| why.contains(&format!(": {guarantee}"))), "another failure: {why}");
}

#[test]
fn the_course_is_good_without_a_mistake() {
    for family in [Family::Copied, Family::LogTables] {
        outcome(&course(family, "none=plant")).unwrap_or_else(|why| panic!("{family:?}: {why}"));
    }
}

#[test]
fn dedupe_by_bare_xid_is_caught() {
    is_caught(Family::LogTables, "bare_xid=plant");
}

#[test]
fn a_start_past_the_switch_is_caught() {
    is_caught(Family::Copied, "start_past_switch=plant");
}

#[test]
fn a_journal_that_is_not_cut_is_caught() {
    is_caught(Family::LogTables, "skip_cut=plant");
}

#[test]
fn a_replay_with_another_snapshot_than_the_slots_is_caught() {
    is_caught(Family::LogTables, "ignore_snapshot=plant");
}

/// Changes that the journal lacks, in two leaves; `walcast logtables prune` runs while the hub is away.
async fn pruned_while_the_hub_is_away(planted: &str) {
    let mut stage = stage().sql(SCHEMA).start().await;
    install(&stage);
    stage.db.run("UPDATE walcast.settings SET leaf_bytes = 8192").await;
    let write = async |n: u32| {
        let row = format!("INSERT INTO load.ledger (client, n) SELECT {n}, i FROM generate_series(1, 200) i");
        stage.db.run(&row).await;
    };
    write(1).await;
    horizon(&stage).await;
    stage.hub.kill9();
    let dir = stage.hub.data_dir().display().to_string();
    assert!(inspect::horizon(stage.hub.data_dir()).expect("readable").is_some());
    for n in 2..5 {
        write(n).await;
        let env = [("WALCAST_FAILPOINTS", planted), ("WALCAST_DSN", &stage.cluster.dsn())];
        crate::harness::command::walcast(&["logtables", "prune", "--data-dir", &dir], &env).good();
    }
    assert!(walcast(&stage, &["logtables", "status"]).status.success());
    drop_slot(&stage).await;
    stage.hub.start().await;
    recoveries(&stage, 1).await;
    let counts = everything(&stage, false).await;
    println!("{counts:?} within {PATIENCE:?}");
}

fn on_a_thread(planted: &'static str) -> Result<(), String> {
    let ended = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        runtime.expect("a runtime").block_on(pruned_while_the_hub_is_away(planted));
    });
    ended.join().map_err(|panic| panic.downcast_ref::<String>().cloned().unwrap_or_default())
}

#[test]
fn pruning_one_leaf_too_many_is_caught() {
    on_a_thread("none=plant").expect("good without the mistake");
    let why = on_a_thread("prune_too_many=plant").expect_err("nobody noticed");
    println!("prune_too_many is caught: {}", why.lines().next().unwrap_or_default());
    assert!(why.contains(": Complete"), "another failure: {why}");
}
