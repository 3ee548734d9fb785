use std::time::{Duration, Instant};

use tokio::net::TcpStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

use super::{
    super::Options,
    fake::{Script, frame, start},
    typed, within,
};
use crate::wire::pb;

fn patient() -> Options {
    Options { drain_limit: Duration::from_secs(3600), ..Options::default() }
}

#[tokio::test]
async fn streams_end_with_draining_and_the_server_with_them() {
    let server = start(patient()).await;
    let steps = server.script();
    steps.send(Ok(frame(1, 10))).await.unwrap();
    let mut stream = within(server.changes().await.subscribe(pb::SubscribeRequest::default())).await.unwrap();
    within(stream.get_mut().message()).await.unwrap().unwrap();
    server.drain.start();
    let status = within(stream.get_mut().message()).await.unwrap_err();
    assert_eq!(typed(&status), (Code::Unavailable, "DRAINING".to_owned()));
    within(server.task).await.unwrap().unwrap();
    assert!(TcpStream::connect(server.address).await.is_err(), "the port must be free");
}

#[tokio::test]
async fn watchers_of_health_see_the_end_and_do_not_delay_it() {
    let server = start(patient()).await;
    server.health.serving(true).await;
    let request = HealthCheckRequest { service: "walcast.v1.ChangeStreamService".to_owned() };
    let mut watch = within(HealthClient::new(server.channel().await).watch(request)).await.unwrap().into_inner();
    assert_eq!(within(watch.message()).await.unwrap().unwrap().status(), ServingStatus::Serving);
    server.drain.start();
    assert_eq!(within(watch.message()).await.unwrap().unwrap().status(), ServingStatus::NotServing);
    let status = within(watch.message()).await.unwrap_err();
    assert_eq!(typed(&status), (Code::Unavailable, "DRAINING".to_owned()));
    within(server.task).await.unwrap().unwrap();
}

#[tokio::test]
async fn silent_and_half_open_peers_do_not_delay_the_end() {
    let server = start(patient()).await;
    let _silent = TcpStream::connect(server.address).await.unwrap();
    let _idle = server.channel().await;
    let (_requests, receiver) = tokio::sync::mpsc::channel::<pb::ConsumeRequest>(1);
    let mut client = server.changes().await;
    let unopened = tokio::spawn(async move { client.consume(ReceiverStream::new(receiver)).await });
    // A call on a connection of its own has been answered, so the server has seen the others before it.
    within(server.changes().await.list_relations(pb::ListRelationsRequest::default())).await.unwrap();
    server.drain.start();
    within(server.task).await.unwrap().unwrap();
    let status = within(unopened).await.unwrap().unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
}

#[tokio::test]
async fn a_stream_that_does_not_end_is_cut_at_the_limit() {
    let limit = Duration::from_millis(300);
    let server = start(Options { drain_limit: limit, ..Options::default() }).await;
    server.hub.scripts.lock().push(Script::Stuck);
    let mut stream = within(server.changes().await.subscribe(pb::SubscribeRequest::default())).await.unwrap();
    let begun = Instant::now();
    server.drain.start();
    within(server.task).await.unwrap().unwrap();
    assert!((limit..limit + Duration::from_secs(5)).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    within(stream.get_mut().message()).await.unwrap_err();
    within(server.hub.until(|hub| hub.open.load(std::sync::atomic::Ordering::SeqCst) == 0)).await;
}

#[tokio::test]
async fn a_client_that_does_not_read_is_cut_at_the_limit() {
    let server = start(Options { drain_limit: Duration::from_millis(300), ..Options::default() }).await;
    server.hub.scripts.lock().push(Script::Flood(frame(1, 64 * 1024)));
    let _unread = within(server.changes().await.subscribe(pb::SubscribeRequest::default())).await.unwrap();
    server.drain.start();
    within(server.task).await.unwrap().unwrap();
    within(server.hub.until(|hub| hub.open.load(std::sync::atomic::Ordering::SeqCst) == 0)).await;
}

#[tokio::test]
async fn a_server_that_is_told_before_it_begins_ends_at_once() {
    let server = start(patient()).await;
    server.drain.start();
    within(server.task).await.unwrap().unwrap();
}
