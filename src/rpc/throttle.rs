//! A cap on what one kind of event may write into the log, so that a hostile client cannot fill a disk with it.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Lets a few through per second and counts the rest.
#[derive(Debug)]
pub struct Throttle {
    per_second: u32,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    since: Instant,
    passed: u32,
    suppressed: u64,
}

impl Throttle {
    /// At most `per_second` within any window that begins with a passed event.
    pub fn new(per_second: u32) -> Self {
        Throttle { per_second, state: Mutex::new(State { since: Instant::now(), passed: 0, suppressed: 0 }) }
    }

    /// Whether to report this one; if so, how many were left out since the last report.
    pub fn pass(&self) -> Option<u64> {
        self.pass_at(Instant::now())
    }

    fn pass_at(&self, now: Instant) -> Option<u64> {
        let mut state = self.state.lock();
        if now.duration_since(state.since) >= Duration::from_secs(1) {
            state.since = now;
            state.passed = 0;
        }
        if state.passed >= self.per_second {
            state.suppressed += 1;
            return None;
        }
        state.passed += 1;
        Some(std::mem::take(&mut state.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_pass_and_the_rest_is_counted() {
        let throttle = Throttle::new(2);
        let start = Instant::now();
        let passes: Vec<_> = (0..5).map(|_| throttle.pass_at(start)).collect();
        assert_eq!(passes, [Some(0), Some(0), None, None, None]);
        assert_eq!(throttle.pass_at(start + Duration::from_secs(2)), Some(3));
        assert_eq!(throttle.pass_at(start + Duration::from_secs(2)), Some(0));
        assert_eq!(throttle.pass_at(start + Duration::from_secs(2)), None);
    }
}
