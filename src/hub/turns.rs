//! Turns at reading from disk. So many streams read at once, and of those that wait the next in the order of the journal goes
//! first, as a lift serves floors: streams at the same place come one after another and find what the first of them
//! read. In the order of arrival, a thousand streams at a hundred places would read each place again for each stream.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::lsn::Lsn;

/// Hands out turns.
#[derive(Debug)]
pub(super) struct Turns(Mutex<State>);

#[derive(Debug)]
struct State {
    free: usize,
    /// By place, and then by arrival.
    waiting: BTreeMap<(Lsn, u64), oneshot::Sender<Turn>>,
    arrivals: u64,
    /// Where the last turn was.
    at: Lsn,
    /// Turns until the next one is the first of all, so that streams which always come back further ahead keep nobody waiting.
    left: usize,
}

/// The right to read, for as long as it is held.
#[derive(Debug)]
pub(super) struct Turn(Option<Arc<Turns>>);

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(turns) = self.0.take() {
            turns.give_back();
        }
    }
}

impl Turns {
    /// At least one at a time.
    pub fn new(limit: usize) -> Arc<Turns> {
        let state = State { free: limit.max(1), waiting: BTreeMap::new(), arrivals: 0, at: Lsn::ZERO, left: 0 };
        Arc::new(Turns(Mutex::new(state)))
    }

    /// Waits for a turn to read at a place. Cancel-safe.
    pub async fn take(self: &Arc<Self>, place: Lsn) -> Turn {
        let granted = {
            let mut state = self.0.lock();
            if state.free > 0 {
                state.free -= 1;
                return Turn(Some(self.clone()));
            }
            let (grant, granted) = oneshot::channel();
            state.arrivals += 1;
            let key = (place, state.arrivals);
            state.waiting.insert(key, grant);
            granted
        };
        // The sender goes only with a turn in it, since whoever waits keeps the table alive.
        granted.await.unwrap_or(Turn(None))
    }

    /// Whether so many wait for a turn already. Those who gave up do not count.
    pub fn is_crowded(&self, limit: usize) -> bool {
        let waiting = &mut self.0.lock().waiting;
        if waiting.len() >= limit {
            waiting.retain(|_, grant| !grant.is_closed());
        }
        waiting.len() >= limit
    }

    fn give_back(self: &Arc<Self>) {
        let mut state = self.0.lock();
        while let Some(grant) = state.next() {
            if !grant.is_closed() {
                let sent = grant.send(Turn(Some(self.clone())));
                let Err(mut turn) = sent else { return };
                turn.0 = None; // nobody waits for it any more
            }
        }
        state.free += 1;
    }
}

impl State {
    fn next(&mut self) -> Option<oneshot::Sender<Turn>> {
        let ahead = self.waiting.range((self.at, 0)..).next().map(|(key, _)| *key);
        let key = match ahead {
            Some(key) if self.left > 0 => key,
            _ => {
                self.left = 4 * self.waiting.len();
                *self.waiting.first_key_value()?.0
            }
        };
        self.left = self.left.saturating_sub(1);
        self.at = key.0;
        self.waiting.remove(&key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn order(turns: &Arc<Turns>, places: &[u64]) -> Vec<u64> {
        let held = turns.take(Lsn(0)).await;
        let served = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = Vec::new();
        for place in places {
            let (turns, served, place) = (turns.clone(), served.clone(), *place);
            tasks.push(tokio::spawn(async move {
                let _turn = turns.take(Lsn(place)).await;
                served.lock().push(place);
            }));
            tokio::task::yield_now().await;
        }
        drop(held);
        for task in tasks {
            task.await.expect("served");
        }
        Arc::into_inner(served).expect("everybody was served").into_inner()
    }

    #[tokio::test]
    async fn those_at_the_same_place_come_one_after_another() {
        let turns = Turns::new(1);
        assert_eq!(order(&turns, &[30, 10, 20, 30, 10, 20]).await, [10, 10, 20, 20, 30, 30]);
    }

    #[tokio::test]
    async fn no_more_than_the_limit_and_all_of_them_come_back() {
        let turns = Turns::new(3);
        let held: Vec<_> = [turns.take(Lsn(1)).await, turns.take(Lsn(2)).await, turns.take(Lsn(3)).await].into();
        let mut fourth = Box::pin(turns.take(Lsn(4)));
        assert!(futures_util::poll!(&mut fourth).is_pending());
        let mut fifth = Box::pin(turns.take(Lsn(5)));
        assert!(futures_util::poll!(&mut fifth).is_pending());
        drop(fourth); // who no longer waits is passed by
        drop(held);
        drop(fifth.await);
        assert_eq!(turns.0.lock().free, 3);
    }

    #[tokio::test]
    async fn who_comes_back_further_ahead_keeps_nobody_waiting() {
        let turns = Turns::new(1);
        let mut held = turns.take(Lsn(100)).await;
        let mut behind = Box::pin(turns.take(Lsn(1)));
        assert!(futures_util::poll!(&mut behind).is_pending());
        turns.0.lock().at = Lsn(100);
        turns.0.lock().left = 8;
        for place in 101.. {
            let mut ahead = Box::pin(turns.take(Lsn(place)));
            assert!(futures_util::poll!(&mut ahead).is_pending());
            drop(held);
            if futures_util::poll!(&mut behind).is_ready() {
                assert!(place <= 110, "served at {place}");
                return;
            }
            held = ahead.await;
        }
    }
}
