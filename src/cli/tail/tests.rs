use std::{collections::HashMap, sync::Arc};

use futures_util::stream::{self, BoxStream, StreamExt};
use parking_lot::Mutex;
use tonic::{Request, Response, transport::server::TcpIncoming};
use tonic_types::ErrorDetails;

use super::*;
use crate::{
    cli::{
        args::HubArgs,
        error::explain,
        testing::{begin, change, commit, event, position, relation, row, text},
    },
    reason::{DOMAIN, Reason},
    wire::pb::change_stream_service_server::{ChangeStreamService, ChangeStreamServiceServer},
};

fn typed(reason: Reason, retry: Option<Duration>) -> Status {
    let mut details = ErrorDetails::with_error_info(reason.as_str(), DOMAIN, HashMap::new());
    if let Some(delay) = retry {
        details.set_retry_info(Some(delay));
    }
    Status::with_error_details(Code::from(reason.code() as i32), "because", details)
}

#[test]
fn the_hub_says_when_to_try_again() {
    let wait = retry_after(&typed(Reason::Draining, Some(Duration::from_secs(3))), FIRST_BACKOFF);
    assert_eq!(wait, Some(Duration::from_secs(3)));
    let wait = retry_after(&typed(Reason::Draining, None), FIRST_BACKOFF);
    assert_eq!(wait, Some(Duration::from_secs(1)));
    let wait = retry_after(&typed(Reason::Draining, Some(Duration::ZERO)), LONGEST_BACKOFF).expect("a retry");
    assert!(wait >= LONGEST_BACKOFF / 2, "an impatient hub is not hammered: {wait:?}");
}

#[test]
fn what_a_retry_cannot_mend_is_not_retried() {
    for reason in [Reason::PositionExpired, Reason::SubscriberFenced, Reason::FilterInvalid] {
        assert_eq!(retry_after(&typed(reason, None), FIRST_BACKOFF), None, "{reason:?}");
    }
    assert_eq!(retry_after(&Status::unimplemented("what?"), FIRST_BACKOFF), None);
}

#[test]
fn a_lost_connection_is_retried_with_jitter() {
    for code in [Code::Unavailable, Code::Unknown, Code::Cancelled] {
        let wait = || retry_after(&Status::new(code, "h2 protocol error"), LONGEST_BACKOFF).expect("a retry");
        let waits: Vec<_> = std::iter::repeat_with(wait).take(200).collect();
        assert!(waits.iter().all(|wait| *wait <= LONGEST_BACKOFF), "{waits:?}");
        assert!(waits.iter().any(|wait| *wait < LONGEST_BACKOFF / 4), "full jitter: {waits:?}");
        assert!(waits.iter().any(|wait| *wait > LONGEST_BACKOFF * 3 / 4), "full jitter: {waits:?}");
    }
}

type Endless = BoxStream<'static, Result<pb::SubscribeResponse, Status>>;
type Script = Vec<Result<pb::SubscribeResponse, Status>>;

/// A hub that answers each `Subscribe` with the next script, and remembers what it was asked.
#[derive(Clone, Default)]
struct Scripted {
    scripts: Arc<Mutex<Vec<Script>>>,
    requests: Arc<Mutex<Vec<pb::SubscribeRequest>>>,
    acknowledged: Arc<Mutex<Vec<pb::AcknowledgeRequest>>>,
    /// What the next stream is instead.
    endless: Arc<Mutex<Option<Endless>>>,
    /// Told when somebody asks for relations, which is never answered then.
    asked: Option<Drain>,
}

#[tonic::async_trait]
impl ChangeStreamService for Scripted {
    type SubscribeStream = BoxStream<'static, Result<pb::SubscribeResponse, Status>>;
    type ConsumeStream = BoxStream<'static, Result<pb::ConsumeResponse, Status>>;
    type ReadRetractedStream = BoxStream<'static, Result<pb::ReadRetractedResponse, Status>>;

    async fn subscribe(
        &self,
        request: Request<pb::SubscribeRequest>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        self.requests.lock().push(request.into_inner());
        if let Some(endless) = self.endless.lock().take() {
            return Ok(Response::new(endless));
        }
        let mut scripts = self.scripts.lock();
        if scripts.is_empty() {
            return Err(Status::unimplemented("the script is over"));
        }
        Ok(Response::new(stream::iter(scripts.remove(0)).boxed()))
    }

    async fn acknowledge(
        &self,
        request: Request<pb::AcknowledgeRequest>,
    ) -> Result<Response<pb::AcknowledgeResponse>, Status> {
        self.acknowledged.lock().push(request.into_inner());
        Ok(Response::new(pb::AcknowledgeResponse::default()))
    }

    async fn consume(
        &self,
        _: Request<Streaming<pb::ConsumeRequest>>,
    ) -> Result<Response<Self::ConsumeStream>, Status> {
        Err(Status::unimplemented("not asked for"))
    }

    async fn backfill(&self, _: Request<pb::BackfillRequest>) -> Result<Response<pb::BackfillResponse>, Status> {
        Err(Status::unimplemented("not asked for"))
    }

    async fn list_relations(
        &self,
        _: Request<pb::ListRelationsRequest>,
    ) -> Result<Response<pb::ListRelationsResponse>, Status> {
        let Some(asked) = &self.asked else { return Err(Status::unimplemented("not asked for")) };
        asked.start();
        std::future::pending().await
    }

    async fn read_retracted(
        &self,
        _: Request<pb::ReadRetractedRequest>,
    ) -> Result<Response<Self::ReadRetractedStream>, Status> {
        Err(Status::unimplemented("not asked for"))
    }
}

/// What a tail printed against a scripted hub, and how it ended.
struct Tailed {
    lines: Vec<String>,
    outcome: Result<u64, Error>,
    hub: Scripted,
}

async fn tail(scripts: Vec<Script>, options: Options) -> Tailed {
    let hub = Scripted { scripts: Arc::new(Mutex::new(scripts)), ..Scripted::default() };
    let incoming = TcpIncoming::bind("127.0.0.1:0".parse().expect("an address")).expect("a port");
    let address = incoming.local_addr().expect("an address");
    let service = ChangeStreamServiceServer::new(hub.clone());
    let server = tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
    let printed = Arc::new(Mutex::new(String::new()));
    let sink = printed.clone();
    let output = Output::to(move |text| {
        sink.lock().push_str(&String::from_utf8_lossy(text));
        Ok(())
    });
    let outcome = run(&connect(&format!("http://{address}")), &options, &output, &Drain::new()).await;
    server.abort();
    let lines = printed.lock().lines().map(str::to_owned).collect();
    Tailed { lines, outcome, hub }
}

fn connect(url: &str) -> Hub {
    let hub = url.to_owned();
    let args = HubArgs { hub, token: None, token_file: None, ca: None, cert: None, key: None, tls_name: None };
    Hub::new(&args).expect("a hub")
}

fn json() -> Options {
    Options { format: Format::Json, ..Options::default() }
}

fn events(events: &[pb::Event]) -> Result<pb::SubscribeResponse, Status> {
    Ok(pb::SubscribeResponse { events: events.to_vec() })
}

fn opened() -> pb::Event {
    event(Kind::Opened(pb::Opened { after: Some(position("0/10")), session: 7, ..Default::default() }))
}

fn described() -> pb::Event {
    event(Kind::Relation(relation(1, &[("id", true)])))
}

fn insert(ordinal: u64) -> pb::Event {
    change(pb::Operation::Insert, ordinal, None, Some(row(&[text(&ordinal.to_string())])))
}

fn identities(lines: &[String]) -> Vec<String> {
    lines
        .iter()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON"))
        .map(|line| format!("{} {}", line["commit_lsn"].as_str().unwrap_or_default(), line["ordinal"]))
        .collect()
}

#[tokio::test]
async fn a_stream_that_breaks_inside_a_transaction_is_resumed_without_repeats() {
    let first = vec![
        events(&[opened(), described(), begin("0/20", 1), insert(1), commit("0/30")]),
        events(&[begin("0/40", 2), insert(1), insert(2)]),
        Err(typed(Reason::Draining, Some(Duration::from_millis(1)))),
    ];
    let second = vec![
        events(&[opened(), described(), begin("0/40", 2), insert(1), insert(2), insert(3), commit("0/50")]),
        Err(typed(Reason::PositionExpired, None)),
    ];
    let tailed = tail(vec![first, second], json()).await;
    assert_eq!(identities(&tailed.lines), ["0/20 1", "0/40 1", "0/40 2", "0/40 3"]);
    let resumed = pb::Start { at: Some(pb::start::At::After(position("0/30"))) };
    assert_eq!(tailed.hub.requests.lock()[1].start, Some(resumed));
    let error = tailed.outcome.expect_err("the position expired");
    assert!(explain(&error).contains("POSITION_EXPIRED"), "{error}");
}

#[tokio::test]
async fn what_was_printed_whole_is_acknowledged_with_the_session() {
    let script = vec![
        events(&[opened(), described(), begin("0/20", 1), insert(1), commit("0/30")]),
        events(&[begin("0/40", 2), insert(1), insert(2)]),
    ];
    let options = Options { subscriber: "s".into(), ack: true, count: Some(3), ..json() };
    let tailed = tail(vec![script], options).await;
    assert_eq!(tailed.outcome.expect("done"), 3);
    let last = tailed.hub.acknowledged.lock().last().cloned().expect("an acknowledgement");
    assert_eq!((last.subscriber.as_str(), last.session, last.position), ("s", 7, Some(position("0/30"))));
}

#[tokio::test]
async fn a_count_ends_inside_a_message() {
    let script = vec![events(&[opened(), described(), begin("0/20", 1), insert(1), insert(2), insert(3)])];
    let tailed = tail(vec![script], Options { count: Some(2), ..json() }).await;
    assert_eq!(identities(&tailed.lines), ["0/20 1", "0/20 2"]);
    assert_eq!(tailed.outcome.expect("done"), 2);
}

/// Tells `stop` when a tail has printed a line; how it ended.
async fn interrupted(options: Options) -> Result<u64, Error> {
    let stop = Drain::new();
    let told = stop.clone();
    let output = Output::to(move |_| {
        told.start();
        Ok(())
    });
    followed(Scripted::default(), &options, &output, &stop).await
}

/// Follows an endless stream of one change.
async fn followed(hub: Scripted, options: &Options, output: &Output, stop: &Drain) -> Result<u64, Error> {
    let endless = stream::iter([events(&[opened(), described(), begin("0/20", 1), insert(1)])]);
    hub.endless.lock().replace(endless.chain(stream::pending()).boxed());
    let incoming = TcpIncoming::bind("127.0.0.1:0".parse().expect("an address")).expect("a port");
    let url = format!("http://{}", incoming.local_addr().expect("an address"));
    let service = ChangeStreamServiceServer::new(hub);
    tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
    run(&connect(&url), options, output, stop).await
}

#[tokio::test]
async fn a_signal_is_heard_while_the_hub_is_asked_for_what_is_told_beside_the_stream() {
    let stop = Drain::new();
    let hub = Scripted { asked: Some(stop.clone()), ..Scripted::default() };
    let filter = pb::Filter { tables: vec!["public.*".into()], ..Default::default() };
    let begun = Instant::now();
    let printed = followed(hub, &Options { filter: Some(filter), ..json() }, &Output::plain(), &stop).await;
    assert_eq!(printed.expect("how it ends"), 0);
    assert!(begun.elapsed() < PATIENCE, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn interrupted_before_what_was_asked_for_is_a_failure() {
    let error = interrupted(Options { count: Some(3), ..json() }).await.expect_err("two are missing");
    assert!(error.to_string() == "interrupted: 1 of 3 changes came" && error.exit_code() == 1, "{error}");
    let error = interrupted(Options { stop_at_tail: true, ..json() }).await.expect_err("not at the end");
    assert!(error.to_string().starts_with("interrupted"), "{error}");
    assert_eq!(interrupted(json()).await.expect("how it ends"), 1);
}

#[tokio::test]
async fn a_listener_that_never_answers_is_given_up_and_told_from_others() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", silent.local_addr().expect("an address"));
    let error = run(&connect(&url), &json(), &Output::plain(), &Drain::new()).await.expect_err("silence");
    let text = explain(&error);
    assert!(text.contains("no answer within 10 s") && text.contains("says nothing"), "{text}");
    for (answer, hint) in
        [(&b"HTTP/1.1 404 Not Found\r\n\r\n"[..], "HTTP port"), (b"\x15\x03\x03\0\x02\x02\x46", "https://")]
    {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = stream.read(&mut [0; 1024]).await;
                let _ = stream.write_all(answer).await;
            }
        });
        let error = run(&connect(&url), &json(), &Output::plain(), &Drain::new()).await.expect_err("no hub");
        assert!(explain(&error).contains(hint), "{}", explain(&error));
    }
}

#[test]
fn no_room_for_subscribers_is_not_waited_for() {
    let full = |key: &str| {
        let metadata = HashMap::from([("limit".to_owned(), key.to_owned())]);
        let mut details = ErrorDetails::with_error_info("TOO_MANY_STREAMS", DOMAIN, metadata);
        details.set_retry_info(Some(Duration::from_secs(5)));
        Status::with_error_details(Code::ResourceExhausted, "full", details)
    };
    assert_eq!(retry_after(&full("limits.subscribers"), FIRST_BACKOFF), None);
    assert!(retry_after(&full("limits.streams"), FIRST_BACKOFF).is_some());
}

#[tokio::test]
async fn an_end_without_error_is_the_end_only_when_asked_for() {
    let script = || vec![events(&[opened()])];
    let tailed = tail(vec![script()], Options { stop_at_tail: true, ..json() }).await;
    assert_eq!(tailed.outcome.expect("done"), 0);
    let tailed = tail(vec![script(), script()], json()).await;
    assert!(matches!(tailed.outcome, Err(Error::Status(status)) if status.code() == Code::Unimplemented));
    assert_eq!(tailed.hub.requests.lock().len(), 3, "two streams that ended, and one that was refused");
}

#[tokio::test]
async fn a_hub_that_is_not_there_is_an_error_at_once() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port");
    let hub = connect(&format!("http://{port}"));
    let error = run(&hub, &json(), &Output::plain(), &Drain::new()).await.expect_err("nobody there");
    assert!(matches!(error, Error::Unreachable { .. }), "{error}");
}

#[tokio::test]
async fn a_reader_that_went_away_ends_the_tail() {
    let hub = Scripted::default();
    hub.scripts.lock().push(vec![events(&[opened(), described(), begin("0/20", 1), insert(1)])]);
    let incoming = TcpIncoming::bind("127.0.0.1:0".parse().expect("an address")).expect("a port");
    let url = format!("http://{}", incoming.local_addr().expect("an address"));
    let service = ChangeStreamServiceServer::new(hub);
    tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
    let output = Output::to(|_| Err(std::io::ErrorKind::BrokenPipe.into()));
    let error = run(&connect(&url), &json(), &output, &Drain::new()).await.expect_err("nobody reads");
    assert!(matches!(error, Error::OutputClosed) && error.exit_code() == 0, "{error}");
}
