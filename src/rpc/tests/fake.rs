//! A hub, a feed and a source that do what the test says, and a server in front of them.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use bytes::{BufMut, Bytes, BytesMut};
use parking_lot::Mutex;
use prost::Message;
use tokio::{
    sync::{Notify, mpsc, watch},
    task::JoinHandle,
};
use tonic::transport::Channel;

use super::super::{
    Health, Options, Services,
    backend::{Backend, Control, Session},
    server,
};
use crate::{
    feed::{
        BoxFuture, Checkpoint, Cursor, Error, Feed, Fetched, Frame, Marks, Resume, Source, SourceAway, SourceStatus,
        Start, SubscriberKey, WalPositions, Window,
    },
    hub::{Principal, Retracted, StartAt, SubscriberInfo, Subscription},
    lsn::Lsn,
    model::{Lineage, Position, Relation, RelationId},
    reason::{Classified, Reason},
    shutdown::Drain,
    wire::pb::{
        self, admin_service_client::AdminServiceClient, change_stream_service_client::ChangeStreamServiceClient,
    },
};

#[derive(Clone, Debug, thiserror::Error)]
#[error("fake: {0:?}")]
pub struct FakeError(pub Reason);

impl Classified for FakeError {
    fn reason(&self) -> Reason {
        self.0
    }

    fn metadata(&self) -> Vec<(&'static str, String)> {
        vec![("position", "0/77".to_owned())]
    }
}

/// What the next stream does.
pub enum Script {
    /// Sends what the test sends, ends when it hangs up, and ends with DRAINING when told to.
    Scripted(mpsc::Receiver<Result<Frame, FakeError>>),
    /// Sends one frame again and again.
    Flood(Frame),
    /// Ends with OK at once.
    Nothing,
    /// Sends nothing and does not hear the drain token.
    Stuck,
    /// Is refused.
    Refuse(Reason),
}

#[derive(Clone)]
pub struct FakeHub(Arc<State>);

pub struct State {
    pub drain: Drain,
    pub scripts: Mutex<Vec<Script>>,
    pub subscriptions: Mutex<Vec<(Principal, Subscription)>>,
    /// Frames that sessions gave out.
    pub sent: AtomicUsize,
    /// Sessions that are open.
    pub open: AtomicUsize,
    pub granted: (AtomicU64, AtomicU64),
    pub acknowledged: Mutex<Vec<Position>>,
    pub failed: Mutex<Option<FakeError>>,
    pub changed: Notify,
    /// Calls of the other methods.
    pub calls: Mutex<Vec<String>>,
}

impl State {
    /// Waits until the condition holds.
    pub async fn until(&self, condition: impl Fn(&State) -> bool) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if condition(self) {
                return;
            }
            changed.await;
        }
    }

    fn note(&self, call: String) {
        self.calls.lock().push(call);
    }
}

pub struct FakeSession(Arc<State>, Script);

impl Drop for FakeSession {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
        self.0.changed.notify_waiters();
    }
}

impl Session for FakeSession {
    type Error = FakeError;
    type Control = FakeControl;

    async fn next(&mut self) -> Option<Result<Frame, FakeError>> {
        let state = &self.0;
        let next = match &mut self.1 {
            Script::Scripted(steps) => {
                let failed = async {
                    state.until(|state| state.failed.lock().is_some()).await;
                    state.failed.lock().clone()
                };
                tokio::select! {
                    biased;
                    step = steps.recv() => step,
                    error = failed => error.map(Err),
                    () = state.drain.wait() => Some(Err(FakeError(Reason::Draining))),
                }
            }
            Script::Flood(frame) => Some(Ok(frame.clone())),
            Script::Nothing => None,
            Script::Stuck | Script::Refuse(_) => std::future::pending().await,
        };
        state.sent.fetch_add(1, Ordering::SeqCst);
        state.changed.notify_waiters();
        next
    }

    fn control(&self) -> FakeControl {
        FakeControl(Arc::clone(&self.0))
    }
}

pub struct FakeControl(Arc<State>);

impl Control for FakeControl {
    type Error = FakeError;

    fn grant(&self, events: u64, bytes: u64) {
        self.0.granted.0.fetch_add(events, Ordering::SeqCst);
        self.0.granted.1.fetch_add(bytes, Ordering::SeqCst);
        self.0.changed.notify_waiters();
    }

    /// Beyond LSN 0/1000 nothing has been sent.
    fn acknowledge(&self, resume: Resume) -> Result<(), FakeError> {
        let position = resume.position;
        if position.lsn > Lsn(0x1000) {
            return Err(FakeError(Reason::AckAhead));
        }
        self.0.acknowledged.lock().push(position);
        self.0.changed.notify_waiters();
        Ok(())
    }

    fn fail(&self, error: FakeError) {
        *self.0.failed.lock() = Some(error);
        self.0.changed.notify_waiters();
    }
}

impl Backend for FakeHub {
    type Error = FakeError;
    type Session = FakeSession;

    async fn subscribe(&self, principal: &Principal, request: Subscription) -> Result<FakeSession, FakeError> {
        self.0.subscriptions.lock().push((principal.clone(), request));
        match self.0.scripts.lock().pop() {
            Some(Script::Refuse(reason)) => Err(FakeError(reason)),
            script => {
                self.0.open.fetch_add(1, Ordering::SeqCst);
                Ok(FakeSession(Arc::clone(&self.0), script.unwrap_or(Script::Stuck)))
            }
        }
    }

    async fn acknowledge(
        &self,
        principal: &Principal,
        subscriber: &str,
        resume: Resume,
        session: u64,
    ) -> Result<Resume, FakeError> {
        self.0.note(format!("acknowledge {}/{subscriber} {} {session}", principal.name, resume.position));
        if subscriber == "unknown" { Err(FakeError(Reason::SubscriberUnknown)) } else { Ok(resume) }
    }

    async fn backfill(
        &self,
        principal: &Principal,
        subscriber: &str,
        id: &str,
        backfill: crate::hub::Backfill,
    ) -> Result<String, FakeError> {
        self.0.note(format!("backfill {}/{subscriber} {id:?} {backfill:?}", principal.name));
        if subscriber == "unknown" { Err(FakeError(Reason::SubscriberUnknown)) } else { Ok("77".to_owned()) }
    }

    async fn read_retracted(&self, _: &Principal, request: Retracted) -> Result<FakeSession, FakeError> {
        self.0.note(format!("retracted of {}", request.old_lineage));
        match request.old_lineage == lineage().id() {
            true => Ok(FakeSession(Arc::clone(&self.0), Script::Nothing)),
            false => Err(FakeError(Reason::LineageUnknown)),
        }
    }

    fn subscribers(&self, principal: &Principal) -> Vec<SubscriberInfo> {
        self.0.note(format!("subscribers of {:?}", principal.name));
        let filter = pb::Filter { tables: vec!["public.orders".to_owned()], ..Default::default() };
        ["", "billing"]
            .map(|principal| SubscriberInfo {
                key: SubscriberKey { principal: principal.to_owned(), name: "mirror".to_owned() },
                checkpoint: Checkpoint {
                    position: Some(position(0x77)),
                    filter: filter.encode_to_vec().into(),
                    ..Default::default()
                },
                connected: true,
                lag_bytes: 123,
                lag: Some(std::time::Duration::from_millis(1500)),
                expired: false,
                peer: "198.51.100.7:4711".to_owned(),
            })
            .into()
    }

    async fn reset_subscriber(
        &self,
        principal: &Principal,
        subscriber: &str,
        start: StartAt,
    ) -> Result<Position, FakeError> {
        self.0.note(format!("reset {}/{subscriber} {start:?}", principal.name));
        Ok(position(0x55))
    }

    async fn delete_subscriber(&self, principal: &Principal, subscriber: &str) -> Result<(), FakeError> {
        self.0.note(format!("delete {}/{subscriber}", principal.name));
        if subscriber == "unknown" { Err(FakeError(Reason::SubscriberUnknown)) } else { Ok(()) }
    }

    fn streams(&self) -> usize {
        self.0.open.load(Ordering::SeqCst)
    }
}

pub fn lineage() -> Lineage {
    Lineage {
        system_identifier: 7_000_000_000_000_000_001,
        timeline: 1,
        history: String::new(),
        epoch: 0,
        switch_lsn: Lsn::ZERO,
    }
}

pub fn position(lsn: u64) -> Position {
    Position::new(lineage().id(), Lsn(lsn))
}

struct FakeFeed(Vec<Arc<Relation>>);

impl Feed for FakeFeed {
    fn marks(&self) -> watch::Receiver<Marks> {
        watch::channel(Marks::default()).1
    }

    fn window(&self) -> Window {
        Window {
            earliest: position(0x10),
            tail: position(0x99),
            bytes: 4096,
            earliest_commit_time: Some(0),
            ..Default::default()
        }
    }

    fn locate(&self, _: Start) -> BoxFuture<'_, Result<Cursor, Error>> {
        Box::pin(async { Ok(Cursor { block: 0, after: position(0) }) })
    }

    fn hot(&self, _: &mut Cursor) -> Option<Fetched> {
        None
    }

    fn fetch<'a>(&'a self, _: &'a mut Cursor) -> BoxFuture<'a, Result<Fetched, Error>> {
        Box::pin(async { Ok(Fetched::AtTail) })
    }

    fn relation(&self, id: RelationId) -> Option<Arc<Relation>> {
        self.0.iter().find(|relation| relation.id == id).cloned()
    }

    fn relations(&self) -> Vec<Arc<Relation>> {
        self.0.clone()
    }

    fn lineage(&self) -> Option<Arc<Lineage>> {
        Some(Arc::new(lineage()))
    }
}

struct FakeSource;

impl Source for FakeSource {
    fn connected(&self) -> bool {
        true
    }

    fn wal(&self) -> BoxFuture<'_, Result<WalPositions, SourceAway>> {
        Box::pin(async { Err(SourceAway("fake".to_owned())) })
    }

    fn published(&self) -> Option<Arc<Vec<(String, String)>>> {
        None
    }

    fn nudge(&self) {}

    fn status(&self) -> SourceStatus {
        SourceStatus {
            connected: true,
            system_identifier: 7_000_000_000_000_000_001,
            timeline: 1,
            slot: "walcast".to_owned(),
            wal_status: "reserved".to_owned(),
            current: Lsn(0x99),
            ..Default::default()
        }
    }
}

/// A running server.
pub struct Running {
    pub address: SocketAddr,
    pub hub: Arc<State>,
    pub health: Health,
    pub drain: Drain,
    pub task: JoinHandle<Result<(), server::Error>>,
}

pub async fn start(options: Options) -> Running {
    start_with(options, Vec::new()).await
}

pub async fn start_with(options: Options, relations: Vec<Arc<Relation>>) -> Running {
    let drain = Drain::new();
    let hub = Arc::new(State {
        drain: drain.clone(),
        scripts: Mutex::default(),
        subscriptions: Mutex::default(),
        sent: AtomicUsize::new(0),
        open: AtomicUsize::new(0),
        granted: Default::default(),
        acknowledged: Mutex::default(),
        failed: Mutex::default(),
        changed: Notify::new(),
        calls: Mutex::default(),
    });
    let health = Health::new().await;
    let listener = server::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = listener.local_addr().unwrap();
    let services = Services {
        backend: FakeHub(Arc::clone(&hub)),
        feed: Arc::new(FakeFeed(relations)),
        source: Arc::new(FakeSource),
        health: health.clone(),
    };
    let task = tokio::spawn(server::serve(listener, services, options, drain.clone()));
    Running { address, hub, health, drain, task }
}

impl Running {
    pub async fn channel(&self) -> Channel {
        Channel::from_shared(format!("http://{}", self.address)).unwrap().connect().await.unwrap()
    }

    pub async fn changes(&self) -> ChangeStreamServiceClient<Channel> {
        ChangeStreamServiceClient::new(self.channel().await)
    }

    pub async fn admin(&self) -> AdminServiceClient<Channel> {
        AdminServiceClient::new(self.channel().await)
    }

    /// The next stream sends what comes out of this channel.
    pub fn script(&self) -> mpsc::Sender<Result<Frame, FakeError>> {
        let (steps, receiver) = mpsc::channel(64);
        self.hub.scripts.lock().push(Script::Scripted(receiver));
        steps
    }
}

/// A framed message with one progress event, padded to about `size` bytes.
pub fn frame(lsn: u64, size: usize) -> Frame {
    let padding = pb::event::Kind::Message(pb::LogicalMessage { content: vec![7; size].into(), ..Default::default() });
    let progress = pb::event::Kind::Progress(pb::Progress {
        position: Some(crate::wire::position_to_pb(position(lsn))),
        ..Default::default()
    });
    let events = [progress, padding].map(|kind| pb::Event { kind: Some(kind) }).into();
    framed(&pb::SubscribeResponse { events })
}

fn framed(message: &impl Message) -> Bytes {
    let mut bytes = BytesMut::new();
    bytes.put_u8(0);
    bytes.put_u32(message.encoded_len() as u32);
    message.encode(&mut bytes).unwrap();
    bytes.freeze()
}

/// The LSN of the message's progress event.
pub fn lsn_of(events: &[pb::Event]) -> String {
    match &events[0].kind {
        Some(pb::event::Kind::Progress(progress)) => progress.position.as_ref().unwrap().lsn.clone(),
        other => panic!("{other:?}"),
    }
}
