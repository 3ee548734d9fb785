use std::{
    collections::VecDeque,
    fs,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use futures_util::task::noop_waker;
use http_body::Body;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming, codec::CompressionEncoding};
use tonic_types::StatusExt;

use super::{
    super::{Options, backend::Session, body::StreamBody, observe, tokens::Tokens},
    fake::{FakeError, Script, frame, lsn_of, position, start},
    typed, within,
};
use crate::{
    feed::Frame,
    reason::Reason,
    wire::{
        pb::{self, consume_request::Request as Item},
        position_to_pb,
    },
};

fn named(subscriber: &str) -> pb::SubscribeRequest {
    pb::SubscribeRequest { subscriber: subscriber.to_owned(), ..Default::default() }
}

fn item(request: Item) -> pb::ConsumeRequest {
    pb::ConsumeRequest { request: Some(request) }
}

#[tokio::test]
async fn a_stream_arrives_in_order_and_ends_well() {
    let server = start(Options::default()).await;
    let steps = server.script();
    let mut stream = within(server.changes().await.subscribe(named("mirror"))).await.unwrap().into_inner();
    for lsn in [1, 2, 3] {
        steps.send(Ok(frame(lsn, 100_000))).await.unwrap();
    }
    drop(steps);
    for lsn in ["0/1", "0/2", "0/3"] {
        assert_eq!(lsn_of(&within(stream.message()).await.unwrap().unwrap().events), lsn);
    }
    assert!(within(stream.message()).await.unwrap().is_none());
    within(server.hub.until(|hub| hub.open.load(Ordering::SeqCst) == 0)).await;
    let subscriptions = server.hub.subscriptions.lock();
    let (principal, subscription) = &subscriptions[0];
    assert_eq!(principal.name, "");
    assert_eq!(subscription.subscriber.as_deref(), Some("mirror"));
    assert!(subscription.peer.starts_with("127.0.0.1:"), "{}", subscription.peer);
    assert!(!subscription.credits);
}

#[tokio::test]
async fn a_refusal_comes_before_the_stream_and_is_typed() {
    let server = start(Options::default()).await;
    server.hub.scripts.lock().push(Script::Refuse(Reason::TooManyStreams));
    let status = within(server.changes().await.subscribe(named("mirror"))).await.unwrap_err();
    assert_eq!(typed(&status), (Code::ResourceExhausted, "TOO_MANY_STREAMS".to_owned()));
    let details = status.get_error_details();
    assert_eq!(details.error_info().unwrap().metadata["position"], "0/77");
    assert!(details.retry_info().unwrap().retry_delay.unwrap() > Duration::ZERO);

    let wrong = pb::SubscribeRequest { max_message_bytes: 3, ..named("mirror") };
    let status = within(server.changes().await.subscribe(wrong)).await.unwrap_err();
    assert_eq!(typed(&status), (Code::InvalidArgument, "REQUEST_INVALID".to_owned()));
    let violation = &status.get_error_details().bad_request().unwrap().field_violations.clone()[0];
    assert_eq!(violation.field, "max_message_bytes");
}

#[tokio::test]
async fn an_error_comes_behind_everything_that_was_sent_before() {
    let server = start(Options::default()).await;
    let steps = server.script();
    steps.send(Ok(frame(1, 10))).await.unwrap();
    steps.send(Err(FakeError(Reason::SubscriberFenced))).await.unwrap();
    let mut stream = within(server.changes().await.subscribe(named("mirror"))).await.unwrap().into_inner();
    assert_eq!(lsn_of(&within(stream.message()).await.unwrap().unwrap().events), "0/1");
    let status = within(stream.message()).await.unwrap_err();
    assert_eq!(typed(&status), (Code::Aborted, "SUBSCRIBER_FENCED".to_owned()));
    within(server.hub.until(|hub| hub.open.load(Ordering::SeqCst) == 0)).await;
}

#[tokio::test]
async fn a_client_that_goes_away_closes_its_session() {
    let server = start(Options::default()).await;
    let steps = server.script();
    let stream = within(server.changes().await.subscribe(named("mirror"))).await.unwrap();
    within(server.hub.until(|hub| hub.open.load(Ordering::SeqCst) == 1)).await;
    drop(stream);
    within(server.hub.until(|hub| hub.open.load(Ordering::SeqCst) == 0)).await;
    drop(steps);
}

#[tokio::test]
async fn a_client_that_does_not_read_costs_a_bounded_number_of_messages() {
    let server = start(Options::default()).await;
    server.hub.scripts.lock().push(Script::Flood(frame(1, 64 * 1024)));
    let _stalled = within(server.changes().await.subscribe(named("stalled"))).await.unwrap();
    within(server.hub.until(|hub| hub.sent.load(Ordering::SeqCst) > 1)).await;

    // What another connection reads in the meantime is far more than what the stalled one may be given.
    let steps = server.script();
    let mut reading = within(server.changes().await.subscribe(named("reading"))).await.unwrap().into_inner();
    const READ: usize = 500;
    for _ in 0..READ {
        steps.send(Ok(frame(2, 64 * 1024))).await.unwrap();
        within(reading.message()).await.unwrap().unwrap();
    }
    let stalled = server.hub.sent.load(Ordering::SeqCst) - READ;
    assert!(stalled < 60, "{stalled} messages of 64 KiB for a window of 2 MiB");
}

/// A session of frames that are ready.
struct Ready(VecDeque<Frame>);

impl Session for Ready {
    type Error = FakeError;
    type Control = super::fake::FakeControl;

    async fn next(&mut self) -> Option<Result<Frame, FakeError>> {
        self.0.pop_front().map(Ok)
    }

    fn control(&self) -> Self::Control {
        unreachable!("Subscribe has no other direction")
    }
}

#[test]
fn the_body_hands_on_the_very_bytes_of_the_hub() {
    let frame = frame(1, 50_000);
    let mut body = StreamBody::new(Ready([frame.clone()].into()), None, None, tracing::Span::none());
    let waker = noop_waker();
    let mut poll = || match Pin::new(&mut body).poll_frame(&mut Context::from_waker(&waker)) {
        Poll::Ready(Some(Ok(frame))) => frame,
        other => panic!("{other:?}"),
    };
    let data = poll().into_data().unwrap();
    assert_eq!((data.as_ptr(), data.len()), (frame.as_ptr(), frame.len()));
    drop(data);
    assert_eq!(poll().into_trailers().unwrap()["grpc-status"], "0");
    assert!(body.is_end_stream());
}

#[test]
fn small_messages_that_are_ready_are_joined_and_a_large_one_is_not_copied() {
    let large = frame(7, 50_000);
    let small: Vec<Frame> = (0..4).map(|n| frame(n, 100)).collect();
    let ready = small.iter().cloned().chain([large.clone(), small[0].clone()]).collect();
    let mut body = StreamBody::new(Ready(ready), None, None, tracing::Span::none());
    let waker = noop_waker();
    let mut poll = || match Pin::new(&mut body).poll_frame(&mut Context::from_waker(&waker)) {
        Poll::Ready(Some(Ok(frame))) => frame,
        other => panic!("{other:?}"),
    };
    assert_eq!(poll().into_data().unwrap(), small.concat());
    assert_eq!(poll().into_data().unwrap().as_ptr(), large.as_ptr());
    assert_eq!(poll().into_data().unwrap().as_ptr(), small[0].as_ptr(), "alone, it is not copied either");
    assert_eq!(poll().into_trailers().unwrap()["grpc-status"], "0");
}

async fn consume(
    server: &super::fake::Running,
    items: Vec<Item>,
) -> Result<(mpsc::Sender<pb::ConsumeRequest>, Streaming<pb::ConsumeResponse>), tonic::Status> {
    let (requests, receiver) = mpsc::channel(8);
    for request in items {
        requests.send(item(request)).await.unwrap();
    }
    let stream = within(server.changes().await.consume(ReceiverStream::new(receiver))).await?;
    Ok((requests, stream.into_inner()))
}

#[tokio::test]
async fn consume_carries_credit_and_acknowledgements_and_survives_a_half_close() {
    let server = start(Options::default()).await;
    let steps = server.script();
    let (requests, mut stream) = consume(&server, vec![Item::Open(named("mirror"))]).await.unwrap();
    assert!(server.hub.subscriptions.lock()[0].1.credits);
    requests.send(item(Item::Credit(pb::Credit { events: 10, bytes: 1000 }))).await.unwrap();
    requests.send(item(Item::Credit(pb::Credit { events: 5, bytes: 500 }))).await.unwrap();
    within(
        server
            .hub
            .until(|hub| (hub.granted.0.load(Ordering::SeqCst), hub.granted.1.load(Ordering::SeqCst)) == (15, 1500)),
    )
    .await;
    requests.send(item(Item::Acknowledge(position_to_pb(position(0x42))))).await.unwrap();
    within(server.hub.until(|hub| *hub.acknowledged.lock() == [position(0x42)])).await;

    drop(requests);
    steps.send(Ok(frame(7, 10))).await.unwrap();
    assert_eq!(lsn_of(&within(stream.message()).await.unwrap().unwrap().events), "0/7");
    drop(steps);
    assert!(within(stream.message()).await.unwrap().is_none());
}

#[tokio::test]
async fn consume_must_begin_with_open() {
    let server = start(Options::default()).await;
    let credit = Item::Credit(pb::Credit { events: 1, bytes: 1 });
    let status = consume(&server, vec![credit]).await.err().unwrap();
    assert_eq!(typed(&status), (Code::InvalidArgument, "REQUEST_INVALID".to_owned()));

    let wrong = pb::SubscribeRequest { source: "x".to_owned(), ..named("mirror") };
    let status = consume(&server, vec![Item::Open(wrong)]).await.err().unwrap();
    assert_eq!(status.get_error_details().bad_request().unwrap().field_violations[0].field, "open.source");
    assert!(server.hub.subscriptions.lock().is_empty());
}

#[tokio::test]
async fn a_broken_protocol_ends_the_stream() {
    let bad_position = pb::Position { lsn: "zebra".to_owned(), ..Default::default() };
    for (violation, reason) in [
        (Some(Item::Open(named("mirror"))), "REQUEST_INVALID"),
        (Some(Item::Acknowledge(bad_position)), "REQUEST_INVALID"),
        (None, "REQUEST_INVALID"),
        (Some(Item::Acknowledge(position_to_pb(position(0x2000)))), "ACK_AHEAD"),
    ] {
        let server = start(Options::default()).await;
        let steps = server.script();
        let (requests, mut stream) = consume(&server, vec![Item::Open(named("mirror"))]).await.unwrap();
        requests.send(pb::ConsumeRequest { request: violation }).await.unwrap();
        let status = within(stream.message()).await.unwrap_err();
        assert_eq!(typed(&status).1, reason);
        within(server.hub.until(|hub| hub.open.load(Ordering::SeqCst) == 0)).await;
        drop(steps);
    }
}

#[tokio::test]
async fn consume_reads_acknowledgements_while_its_window_is_full() {
    let server = start(Options::default()).await;
    server.hub.scripts.lock().push(Script::Flood(frame(1, 64 * 1024)));
    let (requests, _unread) = consume(&server, vec![Item::Open(named("mirror"))]).await.unwrap();
    requests.send(item(Item::Acknowledge(position_to_pb(position(0x42))))).await.unwrap();
    within(server.hub.until(|hub| *hub.acknowledged.lock() == [position(0x42)])).await;
}

#[tokio::test]
async fn a_compressed_request_opens_an_uncompressed_stream() {
    let server = start(Options::default()).await;
    for encoding in [CompressionEncoding::Gzip, CompressionEncoding::Zstd] {
        let steps = server.script();
        let mut client = server.changes().await.send_compressed(encoding).accept_compressed(encoding);
        let response = within(client.subscribe(named("mirror"))).await.unwrap();
        assert!(response.metadata().get("grpc-encoding").is_none());
        let mut stream = response.into_inner();
        steps.send(Ok(frame(9, 1000))).await.unwrap();
        assert_eq!(lsn_of(&within(stream.message()).await.unwrap().unwrap().events), "0/9");
    }
    assert_eq!(server.hub.subscriptions.lock().len(), 2);
}

#[tokio::test]
async fn calls_are_counted_by_method_and_code() {
    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
    let handle = recorder.handle();
    let _guard = metrics::set_default_local_recorder(&recorder);
    let server = start(Options::default()).await;
    drop(server.script());
    let mut stream = within(server.changes().await.subscribe(named("a"))).await.unwrap().into_inner();
    assert!(within(stream.message()).await.unwrap().is_none());
    server.hub.scripts.lock().push(Script::Refuse(Reason::CheckpointMissing));
    within(server.changes().await.subscribe(named("b"))).await.unwrap_err();
    drop(within(server.changes().await.subscribe(named("c"))).await.unwrap());
    within(server.hub.until(|hub| hub.open.load(Ordering::SeqCst) == 0)).await;
    within(async {
        let line = |code| {
            format!(
                "walcast_grpc_requests_total{{method=\"walcast.v1.ChangeStreamService/Subscribe\",code=\"{code}\"}} 1"
            )
        };
        while !["OK", "NOT_FOUND", "CANCELLED"].iter().all(|code| handle.render().contains(&line(code))) {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[test]
fn every_method_has_a_label() {
    use prost::Message;
    let set = prost_types::FileDescriptorSet::decode(pb::FILE_DESCRIPTOR_SET).unwrap();
    let mut methods = 0;
    for file in &set.file {
        for service in &file.service {
            for method in &service.method {
                let name = format!("{}.{}/{}", file.package(), service.name(), method.name());
                assert!(observe::METHODS.contains(&name.as_str()), "{name}");
                methods += 1;
            }
        }
    }
    assert_eq!(methods, 10);
}

#[test]
fn the_next_message_is_made_when_the_last_one_is_written() {
    struct Ringing(AtomicUsize);
    impl Wake for Ringing {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    let bell = Arc::new(Ringing(AtomicUsize::new(0)));
    let waker = Waker::from(bell.clone());
    let mut body = StreamBody::new(Ready([1, 2].map(|n| frame(n, 50_000)).into()), None, None, tracing::Span::none());
    let mut poll = || Pin::new(&mut body).poll_frame(&mut Context::from_waker(&waker));
    for n in [1, 2] {
        let Poll::Ready(Some(Ok(data))) = poll() else { panic!("no message") };
        let mut unwritten = data.into_data().unwrap();
        let written = unwritten.split_to(40_000);
        assert_eq!([&written[..], &unwritten[..]].concat(), frame(n, 50_000));
        drop(written);
        assert!(poll().is_pending(), "a part of it waits");
        let rung = bell.0.load(Ordering::SeqCst);
        drop(unwritten);
        assert_eq!(bell.0.load(Ordering::SeqCst), rung + 1);
    }
    let Poll::Ready(Some(Ok(end))) = poll() else { panic!("no end") };
    assert!(end.is_trailers());
}

/// A session that has more than anybody takes, and tells when it is dropped.
struct Endless(#[expect(dead_code, reason = "dropped")] oneshot::Sender<()>);

impl Session for Endless {
    type Error = FakeError;
    type Control = super::fake::FakeControl;

    async fn next(&mut self) -> Option<Result<Frame, FakeError>> {
        Some(Ok(frame(1, 50_000)))
    }

    fn control(&self) -> Self::Control {
        unreachable!("Subscribe has no other direction")
    }
}

#[tokio::test]
async fn a_stalled_stream_lets_go_of_its_session_when_its_token_is_withdrawn() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tokens");
    fs::write(&path, "aaaaaaaaaaaaaaaaaaaaaaaa a *").unwrap();
    let tokens = Arc::new(Tokens::load(path.clone()).unwrap());
    let grant = tokens.grant("aaaaaaaaaaaaaaaaaaaaaaaa");
    let (held, dropped) = oneshot::channel();
    let mut body = StreamBody::new(Endless(held), None, grant, tracing::Span::none());
    let waker = noop_waker();
    let mut context = Context::from_waker(&waker);
    assert!(matches!(Pin::new(&mut body).poll_frame(&mut context), Poll::Ready(Some(Ok(frame))) if frame.is_data()));
    fs::write(&path, "bbbbbbbbbbbbbbbbbbbbbbbb b *").unwrap();
    assert!(tokens.reload().unwrap());
    within(dropped).await.expect_err("nothing was sent, and it is gone");
    assert!(!body.is_end_stream(), "its end is still to be told");
    let Poll::Ready(Some(Ok(end))) = Pin::new(&mut body).poll_frame(&mut context) else { panic!("no end") };
    assert_eq!(end.into_trailers().unwrap()["grpc-status"], "16");
    assert!(body.is_end_stream());
}

#[tokio::test]
async fn a_session_goes_with_its_stream_whoever_watches_the_token() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tokens");
    fs::write(&path, "aaaaaaaaaaaaaaaaaaaaaaaa a *").unwrap();
    let grant = Arc::new(Tokens::load(path).unwrap()).grant("aaaaaaaaaaaaaaaaaaaaaaaa");
    assert!(grant.is_some());
    let (held, mut dropped) = oneshot::channel();
    drop(StreamBody::new(Endless(held), None, grant, tracing::Span::none()));
    assert_eq!(dropped.try_recv(), Err(oneshot::error::TryRecvError::Closed));
}
