//! Streams that catch up give way to those that are live. Reading the journal as fast as it goes takes every core there is,
//! hub and client together, and what a live event then waits for is a core: the kernel lets whoever runs go on for
//! [milliseconds](https://docs.kernel.org/scheduler/sched-eevdf.html), at each of the dozen wake-ups between a commit and its
//! subscriber. So while anybody is live, streams that are behind take in a [`PIECE`] at a time and rest until they are let
//! go on.
//!
//! Who lets them is a thread, since the shortest rest of a runtime's timer is a millisecond. And how long it takes from there
//! until the stream really goes on is what a live stream waits for behind a block: a thread of the runtime that has to be
//! woken, a core for it, and the tasks in front of it. [`rate`] makes of it how many pieces there are in a second.
//!
//! A rest holds neither a turn at the disk nor a block in memory. It is never so long that the stream would advance
//! less than [`TIMES`] as fast as the journal grows: whoever catches up arrives.

mod rate;
mod stride;

#[cfg(test)]
mod tests;

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

pub(super) use stride::Stride;

use self::rate::{Growth, Lateness, Rate};
use crate::{feed::Feed, metrics};

/// Bytes that a stream takes in between two rests: two blocks.
const PIECE: usize = 60 << 10;
/// What a block costs, however small it is, in bytes that cost as much.
const BLOCK: usize = 1 << 10;
/// A stream that has taken in so much without coming to the tail catches up, and one that reads files. Less is a burst.
const BURST: usize = 1 << 20;
/// How much faster than the journal grows a stream advances at least.
const TIMES: u32 = 2;
/// A stream is live for so long after an event that reached it at the tail.
const LIVE: Duration = Duration::from_secs(1);
/// The runtime's timer is not exact enough for less.
const SHORTEST: Duration = Duration::from_millis(2);
/// How often the journal's growth is looked at.
const LOOK: Duration = Duration::from_millis(20);
/// The thread ends after so long without anybody who rests.
const LINGER: Duration = Duration::from_secs(10);

/// Of one hub.
pub(super) struct Governor {
    feed: Arc<dyn Feed>,
    grants: Arc<Grants>,
}

/// What the thread knows; not the feed, which it would keep open after the hub.
struct Grants {
    began: Instant,
    /// When a live stream last got an event, in microseconds after the beginning; 0: never.
    live: AtomicU64,
    state: Mutex<State>,
    come: Condvar,
    lateness: Lateness,
}

#[derive(Default)]
struct State {
    resting: VecDeque<oneshot::Sender<Instant>>,
    growth: Growth,
    /// Whether the thread runs.
    runs: bool,
}

/// Until this stream may go on.
#[derive(Debug)]
pub(super) struct Rest {
    /// When it was.
    granted: oneshot::Receiver<Instant>,
    at_latest: Option<tokio::time::Instant>,
}

impl Rest {
    /// Cancel-safe.
    async fn over(&mut self, governor: &Governor) {
        let at_latest = async {
            match self.at_latest {
                Some(instant) => tokio::time::sleep_until(instant).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            granted = &mut self.granted => {
                if let Ok(granted) = granted {
                    governor.grants.lateness.add(granted.elapsed());
                }
            }
            () = at_latest => {}
        }
    }
}

impl Governor {
    pub fn new(feed: Arc<dyn Feed>) -> Self {
        let grants = Grants {
            began: Instant::now(),
            live: AtomicU64::new(0),
            state: Mutex::default(),
            come: Condvar::new(),
            lateness: Lateness::default(),
        };
        Governor { feed, grants: Arc::new(grants) }
    }

    /// A stream that stood at the tail got something.
    pub fn live(&self) {
        self.grants.live.store(self.grants.now().max(1), Ordering::Relaxed);
    }

    /// Behind a piece of so many bytes, for which a stream needed so long. `None`: it may go on.
    fn rest(&self, bytes: usize, took: Duration) -> Option<Rest> {
        if !self.grants.anybody_live() {
            return None;
        }
        let mut state = self.grants.state.lock();
        if state.growth.is_older_than(LOOK) {
            state.growth.look(self.feed.window().bytes);
        }
        let at_most = state.growth.time_for(bytes).map(|time| (time / TIMES).saturating_sub(took));
        if at_most.is_some_and(|at_most| at_most < SHORTEST) {
            return None;
        }
        if !state.runs {
            let grants = self.grants.clone();
            let run = move || grants.let_go_on();
            if let Err(error) = thread::Builder::new().name("catch-up".to_owned()).spawn(run) {
                tracing::warn!(%error, "streams that catch up give way to nobody");
                return None;
            }
            state.runs = true;
        }
        let (grant, granted) = oneshot::channel();
        state.resting.push_back(grant);
        drop(state);
        self.grants.come.notify_one();
        metrics::add(metrics::CATCH_UP_RESTS, 1);
        Some(Rest { granted, at_latest: at_most.map(|at_most| tokio::time::Instant::now() + at_most) })
    }
}

impl Grants {
    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    fn anybody_live(&self) -> bool {
        let live = self.live.load(Ordering::Relaxed);
        live > 0 && u128::from(self.now().saturating_sub(live)) < LIVE.as_micros()
    }

    fn let_go_on(&self) {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let mut rate = Rate::new(cores, Instant::now());
        let mut next = Instant::now();
        loop {
            let mut idle = false;
            let mut state = self.state.lock();
            while state.resting.is_empty() {
                idle = true;
                if self.come.wait_for(&mut state, LINGER).timed_out() && state.resting.is_empty() {
                    state.runs = false;
                    metrics::set(metrics::CATCH_UP_PIECES, 0.0);
                    return;
                }
            }
            if !self.anybody_live() {
                let all = std::mem::take(&mut state.resting);
                drop(state);
                for grant in all {
                    let _ = grant.send(Instant::now()); // or it does not rest any more
                }
                metrics::set(metrics::CATCH_UP_PIECES, 0.0);
                continue;
            }
            if idle {
                next = Instant::now();
            }
            let mut left = rate.at_once();
            while left > 0
                && let Some(grant) = state.resting.pop_front()
            {
                if grant.send(Instant::now()).is_ok() {
                    left -= 1; // one that does not rest any more costs nothing
                    rate.take();
                }
            }
            drop(state);
            let now = Instant::now();
            next = (next + rate.gap()).max(now);
            thread::sleep(next - now);
            if let Some(per_second) = rate.judge(Instant::now(), &self.lateness) {
                metrics::set(metrics::CATCH_UP_PIECES, per_second);
            }
        }
    }
}
