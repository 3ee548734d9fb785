//! When to let bytes gather. A walsender that works through a backlog sends every change with a write of its own
//! ([`WalSndWriteData`](https://github.com/postgres/postgres/blob/REL_15_STABLE/src/backend/replication/walsender.c)
//! flushes after each), so a reader that keeps up is woken a million times for a million changes, which costs both sides
//! more than the changes do. While bytes come faster than [`RATE`], a pause before each read takes a hundred changes at
//! once; below that rate every byte is read as soon as it is there.

use std::time::{Duration, Instant};

/// The rate is measured over this many bytes.
const WINDOW: usize = 64 * 1024;
/// Bytes per second that make pauses worth while: 20,000 small transactions per second, or a burst inside a large one.
const RATE: f64 = 8e6;
/// A walsender fills 10 to 20 KiB in this time. In a millisecond, the shortest pause of tokio's timer, it fills the
/// socket's window and has to wait for us.
const PAUSE: Duration = Duration::from_micros(200);

pub(super) struct Pace {
    began: Instant,
    received: usize,
    crowded: bool,
    /// Since the last read; so that a pause that is cancelled behind its sleep is not begun again.
    paused: bool,
}

impl Pace {
    pub(super) fn new() -> Self {
        Pace { began: Instant::now(), received: 0, crowded: false, paused: false }
    }

    /// Whether bytes come so fast that the next read should wait for more of them.
    pub(super) fn crowded(&self) -> bool {
        self.crowded
    }

    /// Tells that a read has brought `n` bytes.
    pub(super) fn received(&mut self, n: usize) {
        self.paused = false;
        self.received += n;
        if self.received >= WINDOW {
            let elapsed = self.began.elapsed();
            self.crowded = self.received as f64 >= elapsed.as_secs_f64() * RATE;
            self.began += elapsed;
            self.received = 0;
        }
    }

    /// Tells that a pause has brought nothing.
    pub(super) fn ended(&mut self) {
        self.crowded = false;
        self.paused = false;
    }

    /// Lets bytes gather. It is the thread that sleeps, since a source has one of its own; then everything else on it has
    /// its turn, and the runtime learns what has come.
    pub(super) async fn pause(&mut self) {
        if !self.paused {
            self.paused = true;
            std::thread::sleep(PAUSE);
            tokio::task::yield_now().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fast_stream_is_crowded_until_it_ends_or_slows_down() {
        let mut pace = Pace::new();
        for _ in 0..WINDOW / 200 {
            pace.received(200);
            assert!(!pace.crowded(), "not before the first window is full");
        }
        pace.received(200);
        assert!(pace.crowded());
        pace.ended();
        assert!(!pace.crowded());
        pace.received(WINDOW);
        assert!(pace.crowded());
        pace.began -= Duration::from_secs(1);
        pace.received(WINDOW);
        assert!(!pace.crowded());
    }
}
