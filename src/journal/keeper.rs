//! The one thread that writes the store: checkpoints, which somebody waits for, and catalogue rows, which nobody waits
//! for. It also runs retention. Off the commit path.

use std::{
    collections::BTreeMap,
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

use super::{Shared, retention, rows, store::Store, store::Write};
use crate::{
    feed::{BoxFuture, Change, Checkpoint, CheckpointError, Checkpoints, SubscriberKey},
    metrics,
};

/// Checkpoints that arrive within this time after a sync are written together.
const GROUP: Duration = Duration::from_millis(20);
/// How often retention looks.
const RETENTION_TICK: Duration = Duration::from_secs(1);

type Table = BTreeMap<SubscriberKey, Checkpoint>;
type Answer = oneshot::Sender<Result<(), CheckpointError>>;

#[derive(Debug, Default)]
struct Queue {
    /// What is durable. Reads come from here.
    durable: Table,
    /// What will be durable once `changes` is written: the base of the next change.
    staged: Table,
    changes: Vec<(SubscriberKey, Option<Checkpoint>)>,
    catalogue: Vec<Write>,
    answers: Vec<Answer>,
    stop: bool,
}

/// The keeper as everybody else sees it.
#[derive(Debug, Default)]
pub(super) struct Desk {
    queue: Mutex<Queue>,
    wake: Condvar,
}

impl Desk {
    pub fn new(checkpoints: Table) -> Arc<Desk> {
        let queue = Queue { staged: checkpoints.clone(), durable: checkpoints, ..Queue::default() };
        Arc::new(Desk { queue: Mutex::new(queue), wake: Condvar::new() })
    }

    /// Catalogue rows, written some time later.
    pub fn catalogue(&self, rows: impl IntoIterator<Item = Write>) {
        self.queue.lock().catalogue.extend(rows);
        self.wake.notify_one();
    }

    /// Returns once everything that was handed in before is durable.
    pub async fn settled(&self) -> Result<(), CheckpointError> {
        let answer = self.ask();
        self.wake.notify_one();
        answer.await.unwrap_or_else(|_| Err(stopped()))
    }

    fn ask(&self) -> oneshot::Receiver<Result<(), CheckpointError>> {
        let (answer, answered) = oneshot::channel();
        self.queue.lock().answers.push(answer);
        answered
    }

    pub fn checkpoint(&self, key: &SubscriberKey) -> Option<Checkpoint> {
        self.queue.lock().durable.get(key).cloned()
    }

    pub fn checkpoints(&self) -> Vec<(SubscriberKey, Checkpoint)> {
        self.queue.lock().durable.iter().map(|(key, checkpoint)| (key.clone(), checkpoint.clone())).collect()
    }

    /// Stages a change; the receiver hears when it, and all that was staged before, is durable.
    fn change<T>(
        &self,
        key: &SubscriberKey,
        change: impl FnOnce(Option<&Checkpoint>) -> (Option<Option<Checkpoint>>, T),
    ) -> (oneshot::Receiver<Result<(), CheckpointError>>, T) {
        let (answer, answered) = oneshot::channel();
        let mut queue = self.queue.lock();
        let (next, out) = change(queue.staged.get(key));
        if let Some(next) = next {
            match &next {
                Some(checkpoint) => queue.staged.insert(key.clone(), checkpoint.clone()),
                None => queue.staged.remove(key),
            };
            queue.changes.push((key.clone(), next));
        }
        if queue.stop {
            answer.send(Err(stopped())).ok();
        } else if queue.changes.is_empty() && queue.staged.get(key) == queue.durable.get(key) {
            answer.send(Ok(())).ok();
        } else {
            queue.answers.push(answer);
        }
        drop(queue);
        self.wake.notify_one();
        (answered, out)
    }
}

fn stopped() -> CheckpointError {
    CheckpointError::new("the journal is closed")
}

impl Checkpoints for super::Journal {
    fn get(&self, key: &SubscriberKey) -> Option<Checkpoint> {
        self.desk().checkpoint(key)
    }

    fn update<'a>(
        &'a self,
        key: &'a SubscriberKey,
        change: Change<'a>,
    ) -> BoxFuture<'a, Result<Option<Checkpoint>, CheckpointError>> {
        Box::pin(async move {
            let (durable, state) = self.desk().change(key, |present| match change(present) {
                Some(next) if rows::checkpoint_fits(key, &next) => (Some(Some(next.clone())), Ok(Some(next))),
                Some(_) => (None, Err(CheckpointError::new("name and filter are too long to be stored"))),
                None => (None, Ok(present.cloned())),
            });
            durable.await.unwrap_or_else(|_| Err(stopped()))?;
            state
        })
    }

    fn delete<'a>(&'a self, key: &'a SubscriberKey) -> BoxFuture<'a, Result<bool, CheckpointError>> {
        Box::pin(async move {
            let (durable, existed) = self.desk().change(key, |present| match present {
                Some(_) => (Some(None), true),
                None => (None, false),
            });
            durable.await.unwrap_or_else(|_| Err(stopped()))?;
            Ok(existed)
        })
    }

    fn count(&self) -> usize {
        self.desk().queue.lock().durable.len()
    }

    fn list(&self) -> Vec<(SubscriberKey, Checkpoint)> {
        self.desk().checkpoints()
    }
}

/// The running thread. Dropping it writes what is queued, closes the store and waits for that.
#[derive(Debug)]
pub(super) struct Keeper {
    desk: Arc<Desk>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    pub fn start(desk: Arc<Desk>, store: Store, shared: Arc<Shared>) -> std::io::Result<Keeper> {
        let thread = std::thread::Builder::new().name("walcast-keeper".into()).spawn({
            let desk = desk.clone();
            move || run(&desk, store, &shared)
        })?;
        Ok(Keeper { desk, thread: Some(thread) })
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.desk.queue.lock().stop = true;
        self.desk.wake.notify_one();
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

fn run(desk: &Desk, mut store: Store, shared: &Shared) {
    let mut last_sync: Option<Instant> = None;
    let mut next_tick = Instant::now() + RETENTION_TICK;
    let mut unwritten: Vec<Write> = Vec::new();
    loop {
        let mut queue = desk.queue.lock();
        loop {
            let now = Instant::now();
            let work = !(queue.changes.is_empty() && queue.catalogue.is_empty() && queue.answers.is_empty());
            let ready = last_sync.is_none_or(|at| now.duration_since(at) >= GROUP);
            if queue.stop || (work && ready) || now >= next_tick {
                break;
            }
            let until = match last_sync {
                Some(at) if work => (at + GROUP).min(next_tick),
                _ => next_tick,
            };
            desk.wake.wait_until(&mut queue, until);
        }
        let stop = queue.stop;
        let changes = std::mem::take(&mut queue.changes);
        let answers = std::mem::take(&mut queue.answers);
        unwritten.append(&mut queue.catalogue);
        drop(queue);

        if !changes.is_empty() || !unwritten.is_empty() {
            let result = write(&mut store, &changes, &mut unwritten)
                .map_err(|detail| CheckpointError { detail, disk_full: no_room(shared) });
            last_sync = Some(Instant::now());
            settle(desk, changes, answers, result);
        } else {
            answers.into_iter().for_each(|answer| drop(answer.send(Ok(()))));
        }
        if stop {
            return;
        }
        if Instant::now() >= next_tick {
            next_tick = Instant::now() + RETENTION_TICK;
            retention::run(shared, desk);
        }
    }
}

/// Catalogue rows stay queued after an error: segments have everything, so they may be late, but not be skipped.
fn write(
    store: &mut Store,
    changes: &[(SubscriberKey, Option<Checkpoint>)],
    unwritten: &mut Vec<Write>,
) -> Result<(), String> {
    let checkpoint = |(key, change): &(SubscriberKey, Option<Checkpoint>)| match change {
        Some(checkpoint) => rows::put_checkpoint(key, checkpoint),
        None => rows::drop_checkpoint(key),
    };
    let catalogue = unwritten.len();
    unwritten.extend(changes.iter().map(checkpoint));
    let result = store.write(unwritten);
    match result {
        Ok(()) => unwritten.clear(),
        Err(_) => unwritten.truncate(catalogue),
    }
    result
}

/// Whether a write can have failed for lack of room; the database's own error does not always say.
fn no_room(shared: &Shared) -> bool {
    let options = &shared.options;
    options.disk.available(&options.dir).is_ok_and(|available| available < 1 << 20)
}

fn settle(
    desk: &Desk,
    changes: Vec<(SubscriberKey, Option<Checkpoint>)>,
    mut answers: Vec<Answer>,
    result: Result<(), CheckpointError>,
) {
    let mut queue = desk.queue.lock();
    match &result {
        Ok(()) => {
            for (key, change) in changes {
                match change {
                    Some(checkpoint) => queue.durable.insert(key, checkpoint),
                    None => queue.durable.remove(&key),
                };
            }
            metrics::add(metrics::CHECKPOINT_WRITES, 1);
        }
        Err(error) => {
            tracing::error!(%error, "checkpoints cannot be written");
            queue.staged = queue.durable.clone();
            queue.changes.clear();
            answers.append(&mut queue.answers);
        }
    }
    drop(queue);
    answers.into_iter().for_each(|answer| drop(answer.send(result.clone())));
}
