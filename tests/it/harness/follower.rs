//! A subscriber in the background that reconnects whatever happens, as a real consumer does.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use walcast::{
    lsn::Lsn,
    reason::Reason,
    wire::pb::{self, event::Kind},
};

use super::{
    client::{Client, Request},
    history::{End, History, order},
    wait::eventually,
};

/// How it resumes after a broken stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resume {
    /// After the last position that it received itself.
    Position,
    /// At its checkpoint; it acknowledges about one in `one_in` resume points.
    Checkpoint { one_in: u32, seed: u64 },
}

/// A running subscriber.
pub struct Follower {
    shared: Arc<Mutex<Seen>>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct Seen {
    history: History,
    /// Sent, answered or not.
    asked: Vec<pb::Position>,
    answered: Vec<pb::Position>,
    /// Updated with every message, so that waiting does not read the whole log.
    position: Option<pb::Position>,
    inside: bool,
}

/// What a follower leaves.
pub struct Followed {
    pub history: History,
    /// Acknowledgements that were answered.
    pub acknowledged: Vec<pb::Position>,
}

impl Follower {
    /// Starts following. `may_be_cut`: the test will break connections.
    pub fn start(client: Client, request: Request, resume: Resume, may_be_cut: bool) -> Follower {
        let shared = Arc::new(Mutex::new(Seen::default()));
        {
            let mut seen = shared.lock().expect("seen");
            seen.history.subscriber = request.0.subscriber.clone();
            seen.history.filter = request.0.filter.clone();
            seen.history.may_be_cut = may_be_cut;
            seen.history.note = format!("{resume:?}");
        }
        let stop = CancellationToken::new();
        let task = tokio::spawn(follow(client, request, resume, shared.clone(), stop.clone()));
        Follower { shared, stop, task }
    }

    /// Where it stands.
    pub fn position(&self) -> Option<pb::Position> {
        self.shared.lock().expect("seen").position.clone()
    }

    /// Whether it has received a part of a transaction now.
    pub fn inside_transaction(&self) -> bool {
        self.shared.lock().expect("seen").inside
    }

    pub fn changes(&self) -> usize {
        self.shared.lock().expect("seen").history.changes()
    }

    /// Waits until everything up to `lsn` has come.
    pub async fn reaches(&self, lsn: Lsn, deadline: Duration) {
        eventually(deadline, || async {
            if self.task.is_finished() {
                let seen = self.shared.lock().expect("seen");
                panic!("{:?} gave up: {:?}", seen.history.subscriber, seen.history.streams.last().map(|s| &s.end));
            }
            match self.position() {
                Some(position) if order(&position).0 >= lsn => Ok(()),
                other => Err(format!("at {other:?}, waiting for {lsn}")),
            }
        })
        .await;
    }

    /// Waits until everything up to `lsn` of a lineage has come.
    pub async fn reaches_on(&self, lineage: String, lsn: Lsn, deadline: Duration) {
        eventually(deadline, || async {
            if self.task.is_finished() {
                let seen = self.shared.lock().expect("seen");
                panic!("{:?} gave up: {:?}", seen.history.subscriber, seen.history.streams.last().map(|s| &s.end));
            }
            match self.position() {
                Some(position) if position.lineage == lineage && order(&position).0 >= lsn => Ok(()),
                other => Err(format!("at {other:?}, waiting for {lsn} on {lineage}")),
            }
        })
        .await;
    }

    /// Closes the stream.
    pub async fn stop(self) -> Followed {
        self.stop.cancel();
        if let Err(error) = self.task.await {
            std::panic::resume_unwind(error.into_panic());
        }
        let mut seen = self.shared.lock().expect("seen");
        Followed { history: std::mem::take(&mut seen.history), acknowledged: std::mem::take(&mut seen.answered) }
    }
}

async fn follow(client: Client, request: Request, resume: Resume, shared: Arc<Mutex<Seen>>, stop: CancellationToken) {
    let mut random = fastrand::Rng::with_seed(if let Resume::Checkpoint { seed, .. } = resume { seed } else { 0 });
    let mut number = 0;
    while !stop.is_cancelled() {
        let request = next_request(&request, resume, &shared.lock().expect("seen"));
        let mut stream = tokio::select! {
            stream = client.subscribe(&request) => stream,
            () = stop.cancelled() => return,
        };
        if matches!(stream.log.end, End::Cut(_)) {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        }
        stream.log.number = number;
        number += 1;
        if let Some(pb::start::At::After(position)) = request.0.start.as_ref().and_then(|start| start.at.as_ref()) {
            stream.log.resumes_after = Some(position.clone());
        }
        let mut log = stream.log.clone();
        log.events.clear();
        shared.lock().expect("seen").history.streams.push(log);
        loop {
            let more = tokio::select! {
                more = stream.pull() => more,
                () = stop.cancelled() => {
                    take(&mut stream, &shared);
                    shared.lock().expect("seen").history.streams.last_mut().expect("stream").end = End::Closed;
                    return;
                }
            };
            let session = stream.log.opened().map_or(0, |opened| opened.session);
            check_checkpoint(&mut stream, resume, &request, &shared);
            let reached = take(&mut stream, &shared);
            if let (Resume::Checkpoint { one_in, .. }, Some(position)) = (resume, reached)
                && random.u32(..one_in) == 0
            {
                shared.lock().expect("seen").asked.push(position.clone());
                if let Ok(checkpoint) = client.acknowledge(&request.0.subscriber, &position, session).await {
                    assert!(order(&checkpoint) >= order(&position), "{checkpoint:?} answers {position:?}");
                    shared.lock().expect("seen").answered.push(position);
                }
            }
            if !more {
                break;
            }
        }
        let end = shared.lock().expect("seen").history.last().end.clone();
        match end {
            End::Cut(_) => {}
            End::Failed(failure) if failure.reason == "POSITION_DIVERGED" && resume == Resume::Position => {
                // As a client is told to: back to the last common position.
                let common = pb::Position {
                    lsn: failure.metadata["common"].clone(),
                    lineage: failure.metadata["lineage"].clone(),
                    ..pb::Position::default()
                };
                shared.lock().expect("seen").position = Some(common);
                continue;
            }
            End::Failed(failure) => {
                let reason = Reason::ALL.iter().find(|reason| reason.as_str() == failure.reason);
                if reason.is_none_or(|reason| reason.retry_after().is_none()) {
                    return;
                }
            }
            _ => return,
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn next_request(first: &Request, resume: Resume, seen: &Seen) -> Request {
    match (resume, &seen.position) {
        (Resume::Position, Some(position)) => first.clone().after(position),
        (Resume::Checkpoint { .. }, _) if !seen.answered.is_empty() => {
            let mut request = first.clone();
            request.0.start = None;
            request
        }
        _ => first.clone(),
    }
}

/// A stream that resumed at the checkpoint begins at one that was asked for, not before the last answered one.
fn check_checkpoint(stream: &mut super::client::Stream, resume: Resume, request: &Request, shared: &Mutex<Seen>) {
    let from_checkpoint = matches!(resume, Resume::Checkpoint { .. }) && request.0.start.is_none();
    let Some(after) = stream.log.opened().and_then(|opened| opened.after.clone()) else { return };
    if !from_checkpoint || stream.log.resumes_after.is_some() {
        return;
    }
    let mut seen = shared.lock().expect("seen");
    let asked = seen.asked.iter().any(|asked| asked.lineage == after.lineage && order(asked) == order(&after));
    // A checkpoint that a failover took back comes down to where both histories part; then the stream begins with that.
    let floor = seen.answered.iter().filter(|answered| answered.lineage == after.lineage).map(order).max();
    let tail = stream.log.opened().and_then(|opened| opened.tail.clone());
    let ended = tail.is_some_and(|tail| tail.lineage != after.lineage);
    // The hub may have kept one whose answer was never heard.
    let beyond = |asked: &pb::Position| asked.lineage == after.lineage && order(asked) > order(&after);
    if ended && seen.asked.iter().any(beyond) {
        return;
    }
    assert!(floor.is_none_or(|floor| order(&after) >= floor), "resumed at {after:?}, acknowledged {floor:?}");
    assert!(asked, "resumed at {after:?}, which was never acknowledged");
    stream.log.resumes_after = Some(after.clone());
    seen.history.streams.last_mut().expect("stream").resumes_after = Some(after);
}

/// Moves what has come into the history; the newest resume point in it.
fn take(stream: &mut super::client::Stream, shared: &Mutex<Seen>) -> Option<pb::Position> {
    let mut seen = shared.lock().expect("seen");
    let keep_opened = usize::from(stream.log.opened().is_some());
    let moved = seen.history.last().events.len();
    let new: Vec<_> =
        if moved == 0 { stream.log.events.clone() } else { stream.log.events.drain(keep_opened..).collect() };
    stream.log.events.truncate(keep_opened);
    let mut reached = None;
    for record in &new {
        match record.kind {
            Kind::Begin(_) => seen.inside = true,
            Kind::Commit(_) | Kind::Discard(_) | Kind::Opened(_) => seen.inside = false,
            _ => {}
        }
        let Some(position) = super::history::resume_point(&record.kind) else { continue };
        if !matches!(record.kind, Kind::Opened(_)) {
            reached = Some(position.clone());
        } else if seen.position.is_none() {
            seen.position = Some(position.clone()); // a stream from `latest` that breaks at once goes on from here
        }
    }
    if let Some(position) = &reached {
        seen.position = Some(position.clone());
    }
    let end = stream.log.end.clone();
    let last = seen.history.streams.last_mut().expect("stream");
    last.events.extend(new);
    last.end = end;
    reached
}
