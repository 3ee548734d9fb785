//! When to try again.

use std::time::{Duration, Instant};

/// Exponential back-off with full jitter; what the hub asks for by RetryInfo is never undercut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retry {
    /// Upper bound of the first delay.
    pub initial: Duration,
    /// Upper bound of all delays.
    pub maximum: Duration,
    /// Give up when nothing was received for this long; `None` is never.
    pub give_up_after: Option<Duration>,
}

impl Default for Retry {
    fn default() -> Self {
        Retry { initial: Duration::from_millis(100), maximum: Duration::from_secs(30), give_up_after: None }
    }
}

/// The state of one subscription's retries.
pub(crate) struct Backoff {
    retry: Retry,
    failures: i32,
    healthy: Instant,
}

impl Backoff {
    pub(crate) fn new(retry: Retry, now: Instant) -> Self {
        Backoff { retry, failures: 0, healthy: now }
    }

    /// The stream moved forward.
    pub(crate) fn succeeded(&mut self, now: Instant) {
        self.failures = 0;
        self.healthy = now;
    }

    /// How long to wait before the next attempt, `jitter` being random between 0 and 1; `None` to give up.
    pub(crate) fn delay(&mut self, asked: Option<Duration>, now: Instant, jitter: f64) -> Option<Duration> {
        if self.retry.give_up_after.is_some_and(|limit| now - self.healthy >= limit) {
            return None;
        }
        let doubled = self.retry.initial.as_secs_f64() * 2f64.powi(self.failures.min(60));
        self.failures += 1;
        let ceiling = doubled.min(self.retry.maximum.as_secs_f64());
        Some(asked.unwrap_or_default() + Duration::from_secs_f64(ceiling * jitter))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn back_off_doubles_and_starts_over() {
        let start = Instant::now();
        let (initial, maximum) = (Duration::from_millis(100), Duration::from_secs(1));
        let retry = Retry { initial, maximum, give_up_after: Some(Duration::from_secs(100)) };
        let mut backoff = Backoff::new(retry, start);
        let mut at = |seconds: u64, asked: Option<u64>, jitter: f64| {
            let now = start + Duration::from_secs(seconds);
            backoff.delay(asked.map(Duration::from_secs), now, jitter).map(|delay| delay.as_millis())
        };
        assert_eq!([1, 1, 1, 1, 1].map(|second| at(second, None, 1.0)), [100, 200, 400, 800, 1000].map(Some));
        assert_eq!(at(1, Some(5), 1.0), Some(6000), "never earlier than the hub asks for");
        assert_eq!(at(1, None, 0.0), Some(0), "full jitter");
        assert_eq!(at(100, None, 1.0), None);
        backoff.succeeded(start + Duration::from_secs(100));
        assert_eq!(backoff.delay(None, start + Duration::from_secs(101), 1.0), Some(initial));
    }
}
