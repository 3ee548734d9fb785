//! Named subscribers: acknowledgements, resumption, fencing, reset, delete.

use walcast::wire::pb::{self, event::Kind};

use crate::harness::{
    Stage,
    client::{Request, refused},
    history::{End, order},
    stage,
};

async fn ten_rows() -> Stage {
    let stage = stage().sql("CREATE TABLE t (id int PRIMARY KEY)").start().await;
    for id in 1..=10 {
        stage.db.run(&format!("INSERT INTO t VALUES ({id})")).await;
    }
    stage
}

/// Commit positions of everything.
async fn positions(stage: &Stage) -> Vec<pb::Position> {
    let history = stage.everything().await;
    let commit = |kind: &Kind| match kind {
        Kind::Commit(commit) => commit.position.clone(),
        _ => None,
    };
    history.last().kinds().filter_map(commit).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_named_subscriber_goes_on_at_its_checkpoint_also_after_kill_9() {
    let mut stage = ten_rows().await;
    let mut stream = stage.client().subscribe(&Request::named("worker").earliest()).await;
    stream.until("five transactions", |log| log.commits() >= 5).await;
    assert!(stream.opened().created && stream.opened().session > 0);
    let session = stream.opened().session;
    let commits = positions(&stage).await;
    let answered = stage.client().acknowledge("worker", &commits[4], session).await.expect("acknowledged");
    assert_eq!(order(&answered), order(&commits[4]));
    drop(stream.close());

    stage.hub.kill9();
    stage.hub.start().await;
    stage.streaming().await;
    for request in [Request::named("worker"), Request::named("worker").checkpoint()] {
        let mut history = stage.collect(request).await;
        assert!(!history.last().opened().expect("opened").created);
        history.streams[0].resumes_after = Some(commits[4].clone());
        assert_eq!(history.changes(), 5);
        stage.check(&history).await;
    }
    let listed = stage.client().subscriber("worker").await.expect("listed");
    assert!(!listed.connected && listed.lag_bytes > 0, "{listed:?}");
    stage.hub.metric_becomes("walcast_subscriber_lag_bytes", std::time::Duration::from_secs(20), |lag| lag > 0.0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_data_directory_does_not_look_like_success() {
    let mut stage = ten_rows().await;
    refused_start(&stage, Request::named("fresh"), "CHECKPOINT_MISSING").await;
    refused_start(&stage, Request::named("fresh").checkpoint(), "CHECKPOINT_MISSING").await;
    assert!(stage.client().subscriber("fresh").await.is_none(), "a refused stream leaves no subscriber behind");
    stage.hub.kill9();
}

async fn refused_start(stage: &Stage, request: Request, reason: &str) {
    stage.client().subscribe(&request).await.fails_with(reason).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledgements_never_go_back_and_never_ahead() {
    let stage = ten_rows().await;
    let commits = positions(&stage).await;
    let mut stream = stage.client().consume(&Request::named("worker").earliest()).await;
    stream.grant(5, u64::MAX).await;
    stream.until("five changes", |log| log.commits() == 5).await;
    let (client, session) = (stage.client(), stream.opened().session);
    let at = |answer: pb::Position| order(&answer);
    assert_eq!(client.acknowledge("worker", &commits[3], session).await.map(at).unwrap(), order(&commits[3]));
    assert_eq!(client.acknowledge("worker", &commits[1], session).await.map(at).unwrap(), order(&commits[3]));
    refused(client.acknowledge("worker", &commits[8], session).await, "ACK_AHEAD");
    assert_eq!(client.acknowledge("worker", &commits[4], 0).await.map(at).unwrap(), order(&commits[4]), "not fenced");
    let listed = client.subscriber("worker").await.expect("listed");
    assert_eq!(listed.checkpoint.as_ref().map(order), Some(order(&commits[4])));
    assert!(listed.connected);
    refused(client.acknowledge("nobody", &commits[0], 0).await, "SUBSCRIBER_UNKNOWN");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn progress_may_be_acknowledged() {
    let stage = ten_rows().await;
    let request = Request::named("worker").earliest().tables(&["none.*"]);
    let mut stream = stage.client().subscribe(&request).await;
    stream.reaches(stage.goal().await).await;
    let position = stream.log.position().expect("a position");
    let session = stream.opened().session;
    stage.client().acknowledge("worker", &position, session).await.expect("acknowledged");
    let history = stage.collect(Request::named("worker").tables(&["none.*"])).await;
    assert_eq!(history.last().opened().and_then(|o| o.after.as_ref()).map(order), Some(order(&position)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_newer_stream_fences_the_older() {
    let stage = ten_rows().await;
    let commits = positions(&stage).await;
    let mut first = stage.client().subscribe(&Request::named("worker").earliest()).await;
    first.until("everything", |log| log.commits() == 10).await;
    let mut second = stage.client().subscribe(&Request::named("worker").earliest()).await;
    second.until("opened", |log| log.opened().is_some()).await;
    first.fails_with("SUBSCRIBER_FENCED").await;
    assert!(second.opened().session > first.opened().session);
    let client = stage.client();
    refused(client.acknowledge("worker", &commits[0], first.opened().session).await, "SUBSCRIBER_FENCED");
    second.until("everything", |log| log.commits() == 10).await;
    client.acknowledge("worker", &commits[0], second.opened().session).await.expect("acknowledged");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reset_is_the_only_way_back_and_delete_forgets() {
    let stage = ten_rows().await;
    let commits = positions(&stage).await;
    let client = stage.client();
    let mut stream = client.subscribe(&Request::named("worker").earliest()).await;
    stream.until("everything", |log| log.commits() == 10).await;
    client.acknowledge("worker", &commits[9], stream.opened().session).await.expect("acknowledged");
    let moved = client.reset("worker", Request::new().after(&commits[2])).await.expect("reset");
    assert_eq!(order(&moved), order(&commits[2]));
    stream.fails_with("SUBSCRIBER_FENCED").await;
    assert_eq!(stage.collect(Request::named("worker")).await.changes(), 7);
    client.reset("worker", Request::new().earliest()).await.expect("reset");
    assert_eq!(stage.collect(Request::named("worker")).await.changes(), 10);

    let mut stream = client.subscribe(&Request::named("worker").earliest()).await;
    stream.until("opened", |log| log.opened().is_some()).await;
    client.delete("worker").await.expect("deleted");
    stream.fails_with("SUBSCRIBER_FENCED").await;
    assert!(client.subscriber("worker").await.is_none());
    refused_start(&stage, Request::named("worker"), "CHECKPOINT_MISSING").await;
    refused(client.delete("worker").await, "SUBSCRIBER_UNKNOWN");
    refused(client.reset("worker", Request::new().earliest()).await, "SUBSCRIBER_UNKNOWN");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_filter_than_the_checkpoints_is_said() {
    let stage = ten_rows().await;
    let client = stage.client();
    let mut stream = client.subscribe(&Request::named("worker").earliest()).await;
    stream.until("everything", |log| log.commits() == 10).await;
    assert!(!stream.opened().filter_changed);
    let position = stream.log.position().expect("a position");
    client.acknowledge("worker", &position, stream.opened().session).await.expect("acknowledged");
    drop(stream);
    let same = stage.collect(Request::named("worker")).await;
    assert!(!same.last().opened().expect("opened").filter_changed);
    let other = stage.collect(Request::named("worker").tables(&["public.t"])).await;
    assert!(other.last().opened().expect("opened").filter_changed);
    assert!(matches!(other.last().end, End::Completed));
}
