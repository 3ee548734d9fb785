//! A grpc server that plays one script per connection, in order.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::sync::{mpsc, watch};
use tokio_stream::{Stream, StreamExt, wrappers::ReceiverStream, wrappers::TcpListenerStream};
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_types::{ErrorDetails, StatusExt};
use walcast_client::pb::{
    self, ConsumeRequest, ConsumeResponse, Event,
    change_stream_service_server::{ChangeStreamService, ChangeStreamServiceServer},
    consume_request,
    event::Kind,
};

pub const LINEAGE: &str = "00000000000000aa";

type Outcome = Pin<Box<dyn Future<Output = Result<(), Status>> + Send>>;
pub type Script = Box<dyn Fn(Connection) -> Outcome + Send + Sync>;

/// A script from an async closure.
pub fn script<F, O>(play: F) -> Script
where
    F: Fn(Connection) -> O + Send + Sync + 'static,
    O: Future<Output = Result<(), Status>> + Send + 'static,
{
    Box::new(move |connection| Box::pin(play(connection)))
}

/// What one stream asked for so far.
#[derive(Clone, Default, Debug)]
pub struct Asked {
    pub open: Option<pb::SubscribeRequest>,
    pub authorization: Option<String>,
    pub events: u64,
    pub acks: Vec<String>,
    pub ended: bool,
}

/// One stream.
#[derive(Clone)]
pub struct Connection {
    pub asked: watch::Receiver<Asked>,
    responses: mpsc::Sender<Result<ConsumeResponse, Status>>,
}

impl Connection {
    pub async fn send(&self, events: Vec<Event>) {
        let _ = self.responses.send(Ok(ConsumeResponse { events })).await;
    }

    pub async fn until(&self, what: impl FnMut(&Asked) -> bool) {
        let mut asked = self.asked.clone();
        let waited = tokio::time::timeout(Duration::from_secs(30), asked.wait_for(what)).await;
        waited.expect("the client did not do it").expect("the stream is there");
    }

    pub async fn until_acked(&self, number: u64) {
        self.until(|asked| asked.acks.contains(&lsn(number))).await;
    }

    pub async fn until_ended(&self) {
        self.until(|asked| asked.ended).await;
    }

    pub fn acks(&self) -> Vec<String> {
        self.asked.borrow().acks.clone()
    }
}

#[derive(Default)]
struct Shared {
    scripts: Vec<Script>,
    next: AtomicUsize,
    connections: Mutex<Vec<Connection>>,
    unary_acks: Mutex<Vec<pb::AcknowledgeRequest>>,
    fenced_below: AtomicU64,
}

/// The server.
pub struct Hub {
    pub address: String,
    shared: Arc<Shared>,
    server: tokio::task::JoinHandle<()>,
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Hub {
    pub async fn new(scripts: Vec<Script>) -> Hub {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        let shared = Arc::new(Shared { scripts, ..Shared::default() });
        let service = ChangeStreamServiceServer::new(Service(shared.clone()));
        let serving = tonic::transport::Server::builder()
            .add_service(service)
            .serve_with_incoming(TcpListenerStream::new(listener));
        let server = tokio::spawn(async move { serving.await.expect("the scripted hub serves") });
        Hub { address, shared, server }
    }

    pub fn connections(&self) -> Vec<Connection> {
        self.shared.connections.lock().expect("no panic").clone()
    }

    pub fn unary_acks(&self) -> Vec<pb::AcknowledgeRequest> {
        self.shared.unary_acks.lock().expect("no panic").clone()
    }

    pub fn fence_below(&self, session: u64) {
        self.shared.fenced_below.store(session, Ordering::Relaxed);
    }
}

struct Service(Arc<Shared>);

type Responses<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl ChangeStreamService for Service {
    type SubscribeStream = Responses<pb::SubscribeResponse>;
    type ConsumeStream = Responses<ConsumeResponse>;
    type ReadRetractedStream = Responses<pb::ReadRetractedResponse>;

    async fn consume(
        &self,
        request: Request<Streaming<ConsumeRequest>>,
    ) -> Result<Response<Self::ConsumeStream>, Status> {
        let authorization =
            request.metadata().get("authorization").and_then(|value| value.to_str().ok()).map(Into::into);
        let (sender, asked) = watch::channel(Asked { authorization, ..Asked::default() });
        let (responses, receiver) = mpsc::channel(1);
        let connection = Connection { asked, responses };
        let number = self.0.next.fetch_add(1, Ordering::Relaxed).min(self.0.scripts.len() - 1);
        self.0.connections.lock().expect("no panic").push(connection.clone());
        let mut requests = request.into_inner();
        tokio::spawn(async move {
            while let Some(Ok(request)) = requests.next().await {
                sender.send_modify(|asked| match request.request {
                    Some(consume_request::Request::Open(open)) => asked.open = Some(open),
                    Some(consume_request::Request::Credit(credit)) => asked.events += credit.events,
                    Some(consume_request::Request::Acknowledge(position)) => asked.acks.push(position.lsn),
                    None => {}
                });
            }
            sender.send_modify(|asked| asked.ended = true);
        });
        let shared = self.0.clone();
        tokio::spawn(async move {
            connection.until(|asked| asked.open.is_some()).await;
            let responses = connection.responses.clone();
            if let Err(status) = (shared.scripts[number])(connection).await {
                let _ = responses.send(Err(status)).await;
            }
        });
        Ok(Response::new(Box::pin(Ended(ReceiverStream::new(receiver)))))
    }

    async fn acknowledge(
        &self,
        request: Request<pb::AcknowledgeRequest>,
    ) -> Result<Response<pb::AcknowledgeResponse>, Status> {
        let request = request.into_inner();
        self.0.unary_acks.lock().expect("no panic").push(request.clone());
        if request.session < self.0.fenced_below.load(Ordering::Relaxed) {
            return Err(refusal(Code::Aborted, "SUBSCRIBER_FENCED", None));
        }
        Ok(Response::new(pb::AcknowledgeResponse { checkpoint: request.position }))
    }

    async fn subscribe(&self, _: Request<pb::SubscribeRequest>) -> Result<Response<Self::SubscribeStream>, Status> {
        Err(Status::unimplemented("not in scripts"))
    }

    async fn backfill(&self, _: Request<pb::BackfillRequest>) -> Result<Response<pb::BackfillResponse>, Status> {
        Err(Status::unimplemented("not in scripts"))
    }

    async fn list_relations(
        &self,
        _: Request<pb::ListRelationsRequest>,
    ) -> Result<Response<pb::ListRelationsResponse>, Status> {
        Err(Status::unimplemented("not in scripts"))
    }

    async fn read_retracted(
        &self,
        _: Request<pb::ReadRetractedRequest>,
    ) -> Result<Response<Self::ReadRetractedStream>, Status> {
        Err(Status::unimplemented("not in scripts"))
    }
}

/// Ends at a status OK, which a script cannot send otherwise.
struct Ended(ReceiverStream<Result<ConsumeResponse, Status>>);

impl Stream for Ended {
    type Item = Result<ConsumeResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> std::task::Poll<Option<Self::Item>> {
        match Pin::new(&mut self.0).poll_next(cx) {
            std::task::Poll::Ready(Some(Err(status))) if status.code() == Code::Ok => std::task::Poll::Ready(None),
            other => other,
        }
    }
}

/// The end of a stream with OK.
pub fn over() -> Result<(), Status> {
    Err(Status::ok("over"))
}

pub fn refusal(code: Code, reason: &str, retry: Option<Duration>) -> Status {
    let mut details = ErrorDetails::new();
    if !reason.is_empty() {
        details.set_error_info(reason, "walcast", HashMap::from([("earliest".to_owned(), "0/5".to_owned())]));
    }
    if retry.is_some() {
        details.set_retry_info(retry);
    }
    Status::with_error_details(code, format!("because of {reason}"), details)
}

pub fn lost() -> Status {
    refusal(Code::Unavailable, "", None)
}

// -- events

pub fn lsn(number: u64) -> String {
    format!("0/{number:X}")
}

pub fn position_on(number: u64, lineage: &str) -> pb::Position {
    pb::Position { lsn: lsn(number), lineage: lineage.into(), ..Default::default() }
}

pub fn position(number: u64) -> pb::Position {
    position_on(number, LINEAGE)
}

pub fn event(kind: Kind) -> Event {
    Event { kind: Some(kind) }
}

pub fn opened_on(after: u64, session: u64, lineage: &str) -> Event {
    let (earliest, tail) = (Some(position(0)), Some(position(0xffff)));
    let after = Some(position_on(after, lineage));
    event(Kind::Opened(pb::Opened { after, earliest, tail, session, ..Default::default() }))
}

pub fn opened(after: u64, session: u64) -> Event {
    opened_on(after, session, LINEAGE)
}

pub fn relation() -> Event {
    let column = |name: &str, type_name: &str, in_identity| pb::Column {
        name: name.into(),
        type_name: type_name.into(),
        in_identity,
        ..Default::default()
    };
    event(Kind::Relation(pb::Relation {
        relation_id: 7,
        schema: "public".into(),
        table: "t".into(),
        replica_identity: 1,
        columns: vec![column("id", "int4", true), column("v", "text", false)],
        ..Default::default()
    }))
}

pub fn insert(ordinal: u64, number: i64) -> Event {
    let value = |kind| pb::Value { kind: Some(kind) };
    let values = vec![value(pb::value::Kind::IntValue(number)), value(pb::value::Kind::Text(format!("v{number}")))];
    event(Kind::Change(pb::Change {
        operation: pb::Operation::Insert.into(),
        relation_id: 7,
        ordinal,
        after_row: Some(pb::Row { values }),
        ..Default::default()
    }))
}

pub fn begin(number: u64) -> Event {
    let (commit_lsn, lineage) = (lsn(number - 1), LINEAGE.into());
    event(Kind::Begin(pb::Begin { commit_lsn, lineage, xid: number, ..Default::default() }))
}

pub fn commit(number: u64, changes: u64) -> Event {
    event(Kind::Commit(pb::Commit { position: Some(position(number)), changes, total_changes: changes }))
}

pub fn progress(number: u64) -> Event {
    let (position, tail) = (Some(position(number)), Some(position(0xffff)));
    event(Kind::Progress(pb::Progress { position, tail, source_connected: true, ..Default::default() }))
}

pub fn transaction(number: u64, changes: u64) -> Vec<Event> {
    let rows = (0..changes).map(|at| insert(at + 1, (number * 100 + at) as i64));
    [begin(number)].into_iter().chain(rows).chain([commit(number, changes)]).collect()
}

/// Events from single ones and lists.
macro_rules! all {
    ($($part:expr),* $(,)?) => {{
        let mut events = Vec::new();
        $(events.extend($part);)*
        events
    }};
}

pub(crate) use all;
