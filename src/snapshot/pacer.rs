//! Keeps to a number of rows per second where they are read. A server that is read slowly does not write slowly: it fills the
//! socket's buffers as fast as it can, [megabytes](https://man7.org/linux/man-pages/man7/tcp.7.html) (`tcp_wmem`) of which
//! nothing can be said from this end, sleeps until a third of them is free, and fills them again. For those milliseconds it
//! has a core, and who commits meanwhile waits for it. So rows with a limit are asked for in pieces of a millisecond's
//! work, one statement each, with nothing to do in between.

use std::time::Duration;

use tokio::time::Instant;

/// Pieces per second.
const PIECES: u32 = 600;
/// Rows of a piece at least and at most: a statement costs the server as much as a hundred rows.
const LEAST: usize = 128;
const MOST: usize = 4096;
/// What is behind by less than this is caught up with: timers are late by a millisecond.
const LATE: Duration = Duration::from_millis(2);

pub(super) struct Pacer {
    rows_per_second: u32,
    due: Instant,
}

impl Pacer {
    /// `rows_per_second`: 0 is no limit.
    pub fn new(rows_per_second: u32) -> Self {
        Pacer { rows_per_second, due: Instant::now() }
    }

    /// Rows that are read at once; `None`: no limit.
    pub fn piece(&self) -> Option<usize> {
        let least = LEAST.min(self.rows_per_second as usize);
        (self.rows_per_second > 0).then(|| ((self.rows_per_second / PIECES) as usize).clamp(least, MOST))
    }

    /// So many rows were read.
    pub fn count(&mut self, rows: usize) {
        if self.rows_per_second > 0 {
            let pause = Duration::from_secs_f64(rows as f64 / f64::from(self.rows_per_second));
            let now = Instant::now();
            self.due = self.due.max(now.checked_sub(LATE).unwrap_or(now)) + pause;
        }
    }

    /// Whether those before are due by then.
    pub fn is_ready_by(&self, then: Instant) -> bool {
        self.rows_per_second == 0 || self.due <= then
    }

    /// Waits until those before are due. Cancel-safe.
    pub async fn ready(&self) {
        if self.rows_per_second > 0 {
            tokio::time::sleep_until(self.due).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_is_a_fraction_of_a_second_and_worth_a_statement() {
        let piece = |rows| Pacer::new(rows).piece();
        assert_eq!([piece(0), piece(1), piece(10_000)], [None, Some(1), Some(LEAST)]);
        assert_eq!([piece(600_000), piece(u32::MAX)], [Some(1000), Some(MOST)]);
    }

    #[test]
    fn rows_are_due_as_long_after_one_another_as_the_limit_says() {
        let began = Instant::now();
        let mut pacer = Pacer::new(10_000);
        (0..100).for_each(|_| pacer.count(100));
        assert!(pacer.due >= began + Duration::from_secs(1) - LATE);
        pacer.due = began - Duration::from_secs(60);
        pacer.count(1);
        assert!(pacer.due >= began - LATE, "what was not read in time is not made up for");
    }
}
