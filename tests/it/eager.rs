//! Eager mode: delivered before fsync. `kill -9` and power failures, under the validators of every other scenario.

use std::{
    fs::{self, File},
    path::Path,
    time::Duration,
};

use walcast::{
    journal::segment::{FileHeader, RECORD_LEN, RECORDS, RecordHeader},
    lsn::Lsn,
    wire::pb,
};

use crate::{
    crash::finish,
    harness::{
        Stage,
        client::Request,
        eventually,
        follower::{Follower, Resume},
        history::{lsn, order},
        stage,
        stage::held,
        validators,
        workload::{self, Plan, Workload},
    },
};

/// Leaves of the journal what was known to be durable when its last record was written, as a power failure may. No hub
/// runs. Says where the journal ends then.
fn power_failure(data_dir: &Path) -> Lsn {
    let dir = data_dir.join("segments");
    let paths = fs::read_dir(dir).expect("segments").map(|entry| entry.expect("an entry").path());
    let last = paths.filter(|path| path.extension().is_some_and(|extension| extension == "seg")).max();
    let last = last.expect("a segment");
    let bytes = fs::read(&last).expect("a segment");
    let header = FileHeader::decode(&bytes).expect("a header");
    let (mut at, mut durable, mut ends) = (RECORDS, header.preamble, Vec::new());
    while let Some(head) = bytes.get(at as usize..at as usize + RECORD_LEN)
        && let Some(record) = RecordHeader::decode(header.salt, at, head)
    {
        at += record.size();
        durable = durable.max(record.synced);
        ends.push((at, record.last.lsn));
    }
    File::options().write(true).open(&last).expect("a segment").set_len(durable).expect("cut");
    ends.into_iter().rfind(|(end, _)| *end <= durable).map_or(header.after.lsn, |(_, lsn)| lsn)
}

/// Where the hub delivers and where it is durable.
async fn marks(stage: &Stage) -> Result<(pb::Position, pb::Position), String> {
    let status = stage.client().status().await.map_err(|failure| format!("{failure:?}"))?;
    let journal = status.journal.ok_or("no journal")?;
    assert!(journal.eager);
    Ok((journal.tail.ok_or("no tail")?, journal.durable.ok_or("no durable position")?))
}

fn furthest(followers: &[Follower]) -> Lsn {
    followers.iter().filter_map(Follower::position).map(|position| order(&position).0).max().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_delivered_and_lost_comes_again_the_same() {
    let mut stage = stage().sql(workload::SCHEMA).args(&["--eager"]).start().await;
    let plan = Plan { large_rows: 1000, clients: 2, ..Plan::random() };
    let mut random = fastrand::Rng::with_seed(plan.seed);
    let by_checkpoint = Resume::Checkpoint { one_in: 4, seed: plan.seed };
    let followers = vec![
        Follower::start(stage.client(), Request::new().earliest(), Resume::Position, true),
        Follower::start(stage.client(), Request::named("one").earliest(), by_checkpoint, true),
    ];
    let workload = Workload::start(stage.cluster.config("postgres"), plan);
    workload.commits(20, Duration::from_secs(30)).await;
    stage.hub.kill9();

    let mut ahead = 0;
    let held = stage.hub.hold("").with_extension("held");
    for life in 0..9 {
        let point = match life % 3 {
            0 => format!("shown_before_fsync=hold@{}", random.u32(1..20)),
            1 => format!("shown_before_fsync=abort@{}", random.u32(1..40)),
            _ => String::new(),
        };
        stage.hub.failpoints(&point);
        stage.hub.spawn();
        match life % 3 {
            0 => {
                // Nothing becomes durable any more, which the records that follow know, and delivery goes on.
                eventually(Duration::from_secs(30), || async {
                    held.exists().then_some(()).ok_or("the sync is not held yet".to_owned())
                })
                .await;
                fs::remove_file(&held).expect("the sign that it holds");
                eventually(Duration::from_secs(30), || async {
                    let (tail, durable) = marks(&stage).await?;
                    let delivered = furthest(&followers);
                    match delivered > lsn(&durable.lsn) && lsn(&tail.lsn) > lsn(&durable.lsn) {
                        true => Ok(()),
                        false => Err(format!("delivered {delivered}, durable {durable:?}")),
                    }
                })
                .await;
                let before = workload.report().committed;
                workload.commits(before + 20, Duration::from_secs(30)).await;
                stage.hub.kill9();
                let told = lsn(&stage.slot("confirmed_flush_lsn").await.expect("an LSN"));
                let tail = power_failure(stage.hub.data_dir());
                held_back(told, tail);
                ahead += usize::from(furthest(&followers) > tail);
            }
            1 => drop(stage.hub.wait_exit(Duration::from_secs(30)).await),
            _ => {
                let before: usize = followers.iter().map(Follower::changes).sum();
                eventually(Duration::from_secs(30), || async {
                    let now: usize = followers.iter().map(Follower::changes).sum();
                    if now > before + 300 { Ok(()) } else { Err(format!("{} new changes", now - before)) }
                })
                .await;
                stage.hub.kill9();
            }
        }
    }
    assert!(ahead >= 2, "{ahead} times a follower was ahead of what a power failure left");
    println!("{:?}, {ahead} times a follower was ahead of the journal", workload.stop().await);
    stage.hub.failpoints("");
    stage.hub.start().await;
    stage.streaming().await;
    let goal = stage.goal().await;
    finish(&stage, followers, goal, plan.seed).await;
}

fn held_back(told: Lsn, tail: Lsn) {
    validators::server_was_told_less_than_journaled(&[told], tail).unwrap_or_else(|violation| panic!("{violation}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_position_that_the_journal_has_lost_is_waited_for() {
    let mut stage = stage().sql("CREATE TABLE t (id int PRIMARY KEY)").env("WALCAST_EAGER", "true").start().await;
    stage.db.run("INSERT INTO t VALUES (1)").await;
    stage.journaled().await;
    stage.hub.terminate();
    stage.hub.failpoints("shown_before_fsync=stall@1");
    stage.hub.start().await;
    stage.streaming().await;
    assert_eq!(stage.hub.metric("walcast_journal_eager").await, 1.0);

    let mut first = stage.client().subscribe(&Request::named("worker").earliest()).await;
    stage.db.run("INSERT INTO t VALUES (2)").await;
    stage.db.run("INSERT INTO t VALUES (3)").await;
    first.until("what is not durable", |log| log.commits() == 3).await;
    let last = first.log.position().expect("a position");
    let (tail, durable) = marks(&stage).await.expect("status");
    assert!(order(&tail) >= order(&last) && order(&durable) < order(&last), "{durable:?} {last:?} {tail:?}");
    // The acknowledgement is not answered, and the checkpoint stays, before it is durable.
    let client = stage.client();
    let session = first.opened().session;
    let asked = tokio::time::timeout(Duration::from_millis(300), client.acknowledge("worker", &last, session)).await;
    assert!(asked.is_err(), "{asked:?}");
    assert_eq!(client.subscriber("worker").await.expect("listed").checkpoint, None);
    let first = first.close();

    stage.hub.kill9();
    stage.cluster.kill9();
    let end = power_failure(stage.hub.data_dir());
    assert!(end < order(&last).0, "the journal ends at {end}");
    stage.hub.failpoints("");
    stage.hub.spawn();
    // The source is away, the journal ends before the position: the stream waits, and so does the acknowledgement.
    let client = stage.client();
    let mut again = eventually(Duration::from_secs(30), || async {
        let mut stream = client.subscribe(&Request::named("worker").after(&last)).await;
        match stream.pull().await {
            true => Ok(stream),
            false => Err(stream.describe()),
        }
    })
    .await;
    assert_eq!(order(again.opened().after.as_ref().expect("a position")), order(&last));
    let (tail, _) = marks(&stage).await.expect("status");
    assert!(order(&tail) < order(&last), "{tail:?}");
    let session = again.opened().session;
    let acknowledging = {
        let (client, last) = (client.clone(), last.clone());
        tokio::spawn(async move { client.acknowledge("worker", &last, session).await })
    };
    stage.cluster.resume();
    stage.reconnect().await;
    stage.hub.ready().await;
    stage.streaming().await;
    stage.db.run("INSERT INTO t VALUES (4)").await;
    let goal = stage.goal().await;
    again.reaches(goal).await;
    again.log.resumes_after = Some(last.clone());
    let answered = acknowledging.await.expect("asked").expect("acknowledged");
    assert_eq!(order(&answered), order(&last));
    assert_eq!(again.log.commits(), 1, "exactly what follows\n{}", again.describe());
    let again = again.close();
    stage.check(&again).await;
    let whole = stage.everything().await;
    let truth = stage.truth().await;
    let journal = held(&whole, validators::all(&whole, &truth));
    assert_eq!(whole.last().commits(), 4);
    let first = held(&first, validators::formal(&first));
    held(&whole, validators::durable(&first, &journal));
    held(&whole, validators::repeats_are_identical(&[&first, &journal]));
}
