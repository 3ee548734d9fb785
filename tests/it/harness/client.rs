//! A subscriber over the generated client that records everything.

use std::{fmt::Debug, pin::Pin, time::Duration};

use tokio::sync::mpsc;
use tokio_stream::{Stream as _, StreamExt as _, wrappers::ReceiverStream};
use tonic::{
    Status,
    metadata::MetadataValue,
    service::interceptor::InterceptedService,
    transport::{Channel, ClientTlsConfig, Endpoint},
};
use walcast::{
    lsn::Lsn,
    wire::pb::{
        self, admin_service_client::AdminServiceClient, change_stream_service_client::ChangeStreamServiceClient,
    },
};

use super::{
    history::{End, Failure, History, StreamLog, order},
    wait::eventually,
};

/// How long anything that should come may take.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A subscription request, built step by step.
#[derive(Clone, Debug, Default)]
pub struct Request(pub pb::SubscribeRequest);

impl Request {
    /// Anonymous, everything, no start.
    pub fn new() -> Self {
        Self::default()
    }

    pub fn named(name: &str) -> Self {
        Request(pb::SubscribeRequest { subscriber: name.into(), ..Default::default() })
    }

    fn at(mut self, at: pb::start::At) -> Self {
        self.0.start = Some(pb::Start { at: Some(at) });
        self
    }

    pub fn earliest(self) -> Self {
        self.at(pb::start::At::Earliest(()))
    }

    pub fn latest(self) -> Self {
        self.at(pb::start::At::Latest(()))
    }

    pub fn checkpoint(self) -> Self {
        self.at(pb::start::At::Checkpoint(()))
    }

    pub fn after(self, position: &pb::Position) -> Self {
        self.at(pb::start::At::After(position.clone()))
    }

    pub fn after_lsn(self, lsn: impl ToString) -> Self {
        self.at(pb::start::At::AfterLsn(lsn.to_string()))
    }

    pub fn snapshot(self, mode: pb::SnapshotMode) -> Self {
        self.at(pb::start::At::Snapshot(pb::SnapshotOptions { mode: mode as i32, max_rows_per_second: 0 }))
    }

    pub fn since(self, time: prost_types::Timestamp) -> Self {
        self.at(pb::start::At::Since(time))
    }

    pub fn filter(mut self, change: impl FnOnce(&mut pb::Filter)) -> Self {
        change(self.0.filter.get_or_insert_default());
        self
    }

    pub fn tables(self, globs: &[&str]) -> Self {
        self.filter(|filter| filter.tables = globs.iter().map(|glob| (*glob).to_owned()).collect())
    }

    pub fn operations(self, operations: &[pb::Operation]) -> Self {
        self.filter(|filter| filter.operations = operations.iter().map(|operation| *operation as i32).collect())
    }

    pub fn structs(mut self) -> Self {
        self.0.row_format = pb::RowFormat::Struct as i32;
        self
    }

    pub fn stop_at_tail(mut self) -> Self {
        self.0.stop_at_tail = true;
        self
    }

    pub fn progress_every(mut self, interval: Duration) -> Self {
        self.0.progress_interval =
            Some(prost_types::Duration { seconds: interval.as_secs() as i64, nanos: interval.subsec_nanos() as i32 });
        self
    }

    pub fn max_message_bytes(mut self, bytes: u32) -> Self {
        self.0.max_message_bytes = bytes;
        self
    }
}

type Events = Pin<Box<dyn tokio_stream::Stream<Item = Result<Vec<pb::Event>, Status>> + Send>>;
type Authorized = InterceptedService<Channel, Bearer>;

/// Adds the bearer token, if there is one.
#[derive(Clone, Default)]
pub struct Bearer(Option<String>);

impl tonic::service::Interceptor for Bearer {
    fn call(&mut self, mut request: tonic::Request<()>) -> Result<tonic::Request<()>, Status> {
        if let Some(token) = &self.0 {
            let value = MetadataValue::try_from(format!("Bearer {token}")).expect("an ASCII token");
            request.metadata_mut().insert("authorization", value);
        }
        Ok(request)
    }
}

/// A connection to one hub; made when first used, so that a hub may come later.
#[derive(Clone)]
pub struct Client {
    channel: Channel,
    bearer: Bearer,
    receive_limit: usize,
}

impl Client {
    pub fn new(port: u16) -> Client {
        Self::at(Endpoint::from_shared(format!("http://127.0.0.1:{port}")).expect("address"))
    }

    pub fn with_tls(port: u16, tls: ClientTlsConfig) -> Client {
        let endpoint = Endpoint::from_shared(format!("https://localhost:{port}")).expect("address");
        Self::at(endpoint.tls_config(tls).expect("TLS configuration"))
    }

    fn at(endpoint: Endpoint) -> Client {
        let channel = endpoint.connect_timeout(Duration::from_secs(5)).connect_lazy();
        Client { channel, bearer: Bearer::default(), receive_limit: 64 << 20 }
    }

    pub fn token(mut self, token: &str) -> Client {
        self.bearer = Bearer(Some(token.into()));
        self
    }

    fn service(&self) -> ChangeStreamServiceClient<Authorized> {
        ChangeStreamServiceClient::with_interceptor(self.channel.clone(), self.bearer.clone())
            .max_decoding_message_size(self.receive_limit)
    }

    fn admin(&self) -> AdminServiceClient<Authorized> {
        AdminServiceClient::with_interceptor(self.channel.clone(), self.bearer.clone())
    }

    /// Opens a stream. A refusal is the end of the returned stream.
    pub async fn subscribe(&self, request: &Request) -> Stream {
        let opened = self.service().subscribe(request.0.clone()).await;
        let events = opened.map(|response| -> Events {
            Box::pin(response.into_inner().map(|message| message.map(|response| response.events)))
        });
        Stream::new(request, events, None)
    }

    /// Everything that a request selects up to now. A hub whose source is away cannot tell where that is, says so, and is
    /// asked again.
    pub async fn collect(&self, request: Request) -> History {
        let request = request.stop_at_tail();
        eventually(PATIENCE, || async {
            let mut stream = self.subscribe(&request).await;
            match stream.ended().await.clone() {
                End::Completed => Ok(stream.close()),
                End::Failed(failure) if failure.reason == "SOURCE_UNAVAILABLE" => Err(format!("{failure:?}")),
                end => panic!("{end:?}"),
            }
        })
        .await
    }

    /// Opens a stream with credits; nothing is granted yet.
    pub async fn consume(&self, request: &Request) -> Stream {
        let (requests, inbox) = mpsc::channel(64);
        let open = pb::consume_request::Request::Open(request.0.clone());
        requests.send(pb::ConsumeRequest { request: Some(open) }).await.expect("room");
        let opened = self.service().consume(ReceiverStream::new(inbox)).await;
        let events = opened.map(|response| -> Events {
            Box::pin(response.into_inner().map(|message| message.map(|response| response.events)))
        });
        Stream::new(request, events, Some(requests))
    }

    /// Sends whatever requests on a Consume stream, for those that break the protocol.
    pub async fn consume_raw(&self, requests: Vec<pb::consume_request::Request>) -> End {
        let requests = requests.into_iter().map(|request| pb::ConsumeRequest { request: Some(request) });
        match self.service().consume(tokio_stream::iter(requests.collect::<Vec<_>>())).await {
            Err(status) => End::of(&status),
            Ok(response) => {
                let mut stream = response.into_inner();
                loop {
                    match within(stream.message()).await {
                        Ok(Some(_)) => {}
                        Ok(None) => return End::Completed,
                        Err(status) => return End::of(&status),
                    }
                }
            }
        }
    }

    /// Acknowledges; the durable checkpoint comes back. `session` 0 is not fenced.
    pub async fn acknowledge(
        &self,
        subscriber: &str,
        position: &pb::Position,
        session: u64,
    ) -> Result<pb::Position, Failure> {
        let request =
            pb::AcknowledgeRequest { subscriber: subscriber.into(), position: Some(position.clone()), session };
        let answer = self.service().acknowledge(request).await.map_err(|status| Failure::of(&status))?;
        Ok(answer.into_inner().checkpoint.expect("the answer names the checkpoint"))
    }

    pub async fn list_relations(&self, tables: &[&str], all_versions: bool) -> Result<Vec<pb::Relation>, Failure> {
        let tables = tables.iter().map(|glob| (*glob).to_owned()).collect();
        let request = pb::ListRelationsRequest { tables, all_versions };
        let answer = self.service().list_relations(request).await.map_err(|status| Failure::of(&status))?;
        Ok(answer.into_inner().relations)
    }

    /// Every event of what a lineage left behind.
    pub async fn read_retracted(&self, old_lineage: &str) -> Result<Vec<pb::event::Kind>, Failure> {
        let request = pb::ReadRetractedRequest { old_lineage: old_lineage.into(), ..Default::default() };
        let answer = self.service().read_retracted(request).await.map_err(|status| Failure::of(&status))?;
        let mut stream = answer.into_inner();
        let mut events = Vec::new();
        while let Some(message) = within(stream.message()).await.map_err(|status| Failure::of(&status))? {
            events.extend(message.events.into_iter().filter_map(|event| event.kind));
        }
        Ok(events)
    }

    pub async fn status(&self) -> Result<pb::GetStatusResponse, Failure> {
        let answer = self.admin().get_status(pb::GetStatusRequest {}).await;
        answer.map(tonic::Response::into_inner).map_err(|status| Failure::of(&status))
    }

    pub async fn subscribers(&self) -> Result<Vec<pb::Subscriber>, Failure> {
        let answer = self.admin().list_subscribers(pb::ListSubscribersRequest {}).await;
        answer.map(|answer| answer.into_inner().subscribers).map_err(|status| Failure::of(&status))
    }

    /// One subscriber of the list.
    pub async fn subscriber(&self, name: &str) -> Option<pb::Subscriber> {
        self.subscribers().await.expect("ListSubscribers").into_iter().find(|subscriber| subscriber.name == name)
    }

    pub async fn reset(&self, subscriber: &str, to: Request) -> Result<pb::Position, Failure> {
        let request = pb::ResetSubscriberRequest { subscriber: subscriber.into(), start: to.0.start };
        let answer = self.admin().reset_subscriber(request).await.map_err(|status| Failure::of(&status))?;
        Ok(answer.into_inner().checkpoint.expect("the answer names the checkpoint"))
    }

    pub async fn delete(&self, subscriber: &str) -> Result<(), Failure> {
        let request = pb::DeleteSubscriberRequest { subscriber: subscriber.into() };
        self.admin().delete_subscriber(request).await.map(drop).map_err(|status| Failure::of(&status))
    }
}

/// One open stream. What it received is in `log`.
pub struct Stream {
    pub log: StreamLog,
    request: Request,
    events: Option<Events>,
    requests: Option<mpsc::Sender<pb::ConsumeRequest>>,
}

impl Stream {
    fn new(
        request: &Request,
        events: Result<Events, Status>,
        requests: Option<mpsc::Sender<pb::ConsumeRequest>>,
    ) -> Self {
        let mut log = StreamLog::new(0, request.0.start.clone(), None);
        let events = match events {
            Ok(events) => Some(events),
            Err(status) => {
                log.end = End::of(&status);
                None
            }
        };
        Stream { log, request: request.clone(), events, requests }
    }

    /// Takes one message, however long that takes. False at the end of the stream. Cancel-safe.
    pub async fn pull(&mut self) -> bool {
        let Some(events) = &mut self.events else { return false };
        match events.next().await {
            Some(Ok(batch)) => {
                assert!(!batch.is_empty(), "a message without events");
                for event in batch {
                    self.log.push(event);
                }
                true
            }
            end => {
                self.log.end = match end {
                    Some(Err(status)) => End::of(&status),
                    _ => End::Completed,
                };
                self.events = None;
                false
            }
        }
    }

    /// Reads until `done`; panics with the last events when the stream ends before or nothing of it comes in time.
    pub async fn until(&mut self, what: &str, mut done: impl FnMut(&StreamLog) -> bool) -> &StreamLog {
        let waiting = async {
            while !done(&self.log) {
                if !self.pull().await {
                    return Err("the stream ended");
                }
            }
            Ok(())
        };
        let answer = tokio::time::timeout(PATIENCE, waiting).await.unwrap_or(Err("nothing more came"));
        if let Err(why) = answer {
            panic!("waiting for {what}: {why}\n{}", self.describe());
        }
        &self.log
    }

    /// Reads until everything up to `lsn` has come.
    pub async fn reaches(&mut self, lsn: Lsn) -> &StreamLog {
        let reached = |log: &StreamLog| log.position().is_some_and(|position| order(&position).0 >= lsn);
        let what = format!("position {lsn}");
        let mut seen = 0;
        // `position` looks at the whole log: ask again only when something came.
        self.until(&what, |log| {
            let new = log.events.len() > seen;
            seen = log.events.len();
            new && reached(log)
        })
        .await
    }

    /// Reads to the end.
    pub async fn ended(&mut self) -> &End {
        let reading = async { while self.pull().await {} };
        if tokio::time::timeout(PATIENCE, reading).await.is_err() {
            panic!("the stream does not end\n{}", self.describe());
        }
        &self.log.end
    }

    /// Reads to the end, which must be this typed error.
    pub async fn fails_with(&mut self, reason: &str) -> Failure {
        self.ended().await;
        match &self.log.end {
            End::Failed(failure) if failure.reason == reason => {
                super::validators::typed(failure).expect("a typed error of the table");
                failure.clone()
            }
            other => panic!("expected {reason}, the stream ended with {other:?}\n{}", self.describe()),
        }
    }

    pub fn opened(&self) -> &pb::Opened {
        self.log.opened().unwrap_or_else(|| panic!("not opened\n{}", self.describe()))
    }

    /// Grants credit on a Consume stream.
    pub async fn grant(&self, events: u64, bytes: u64) {
        self.send(pb::consume_request::Request::Credit(pb::Credit { events, bytes })).await;
    }

    /// Acknowledges on a Consume stream.
    pub async fn acknowledge(&self, position: &pb::Position) {
        self.send(pb::consume_request::Request::Acknowledge(position.clone())).await;
    }

    pub async fn send(&self, request: pb::consume_request::Request) {
        let requests = self.requests.as_ref().expect("a Consume stream");
        let _ = requests.send(pb::ConsumeRequest { request: Some(request) }).await;
    }

    /// Closes the stream; what it saw as a history of its own.
    pub fn close(mut self) -> History {
        if matches!(self.log.end, End::Open) {
            self.log.end = End::Closed;
        }
        History {
            subscriber: self.request.0.subscriber.clone(),
            filter: self.request.0.filter.clone(),
            streams: vec![self.log],
            ..History::default()
        }
    }

    pub fn describe(&self) -> String {
        format!("end: {:?}; last of {} events:\n{}", self.log.end, self.log.events.len(), self.log.last_lines(12))
    }
}

/// Waits for something that should come soon.
pub async fn within<T>(future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(answer) => answer,
        Err(_) => panic!("nothing within {PATIENCE:?}"),
    }
}

/// A refused call.
pub fn refused<T: Debug>(answer: Result<T, Failure>, reason: &str) -> Failure {
    match answer {
        Err(failure) if failure.reason == reason => {
            super::validators::typed(&failure).expect("a typed error of the table");
            failure
        }
        other => panic!("expected {reason}, got {other:?}"),
    }
}
