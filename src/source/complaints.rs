//! What is wrong with the source, in the log: when it changes, and then once a minute with how often it was tried. An outage of
//! ten minutes has hundreds of attempts that all say the same.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use crate::{lsn::Lsn, reason::Reason};

/// Between two lines of the log about the same.
const REMINDER: Duration = Duration::from_secs(60);
/// Things that may be wrong in turns: one server of several is away, the next one refuses.
const REMEMBERED: usize = 8;

/// What was said, and when.
#[derive(Debug, Default)]
pub(super) struct Complaints {
    said: VecDeque<(String, Instant)>,
    attempts: u64,
}

impl Complaints {
    /// It streams and comes further: whatever is wrong from now on is new.
    pub fn settled(&mut self) {
        *self = Complaints::default();
    }

    /// An attempt has failed.
    pub fn failed(&mut self, reason: Reason, told: &str, retry_in: Duration) {
        let (reason_name, retry_in_ms) = (reason.as_str(), retry_in.as_millis() as u64);
        match self.due(reason, told, Instant::now()) {
            Some(attempts) => tracing::warn!(reason = reason_name, attempts, retry_in_ms, "{told}"),
            None => tracing::debug!(reason = reason_name, retry_in_ms, "{told}"),
        }
    }

    /// Counts; `Some` number of attempts since the source last came further: to be said.
    fn due(&mut self, reason: Reason, told: &str, now: Instant) -> Option<u64> {
        self.attempts += 1;
        let what = format!("{} {}", reason.as_str(), without_numbers(told));
        match self.said.iter_mut().find(|(said, _)| *said == what) {
            Some((_, at)) if now.duration_since(*at) < REMINDER => return None,
            Some((_, at)) => *at = now,
            None => {
                if self.said.len() == REMEMBERED {
                    self.said.pop_front();
                }
                self.said.push_back((what, now));
            }
        }
        Some(self.attempts)
    }
}

/// Process ids, transaction ids, LSNs and counts differ from attempt to attempt. Numbers in names are left: `db1:5432` and
/// `db2:5432` are two servers, `orders_1` and `orders_2` two tables.
fn without_numbers(text: &str) -> String {
    let is_number = |word: &str| word.bytes().all(|byte| byte.is_ascii_digit()) || word.parse::<Lsn>().is_ok();
    let bare = |word: &str| word.trim_matches(|letter: char| !letter.is_ascii_alphanumeric()).to_owned();
    let words: Vec<_> = text.split_whitespace().filter(|word| !is_number(&bare(word))).collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_is_said_once_a_minute_and_anything_else_at_once() {
        let (mut complaints, began) = (Complaints::default(), Instant::now());
        let mut at = |seconds, reason, told: &str| complaints.due(reason, told, began + Duration::from_secs(seconds));
        let (lost, away) = (Reason::SlotLost, Reason::SourceUnavailable);
        assert_eq!(at(0, lost, "missing from 0/A1 to 0/B2 (pid 17)"), Some(1));
        assert_eq!(at(1, away, "cannot connect"), Some(2));
        assert_eq!(at(2, lost, "missing from 0/A1 to 0/F00D2 (pid 4711)"), None);
        assert_eq!(at(3, away, "cannot connect"), None);
        assert_eq!(at(4, away, "wrong password"), Some(5));
        assert_eq!(at(60, lost, "missing from 0/A1 to 0/C3 (pid 5)"), Some(6));
        assert_eq!(at(60, away, "cannot connect"), None);
        assert_eq!(at(62, away, "cannot connect"), Some(8));
        complaints.settled();
        assert_eq!(complaints.due(away, "cannot connect", began + Duration::from_secs(63)), Some(1));
    }

    #[test]
    fn numbers_in_names_tell_one_fault_from_another() {
        let differ = [
            ("cannot connect to db1:5432: refused", "cannot connect to db2:5432: refused"),
            ("cannot connect to 10.0.0.1:5432 (os error 111)", "cannot connect to 10.0.0.2:5432 (os error 111)"),
            ("public.orders_1: its triggers", "public.orders_2: its triggers"),
            ("database \"shop1\"", "database \"shop2\""),
        ];
        for (one, other) in differ {
            assert_ne!(without_numbers(one), without_numbers(other));
        }
        let same = [
            ("slot \"s\" is active for PID 4711.", "slot \"s\" is active for PID 17."),
            ("waits for (754, 755): 3 rows", "waits for (760, 761): 12 rows"),
            ("from 0/16B3748, at 1/0:", "from 0/A, at FFFF/F00:"),
        ];
        for (one, other) in same {
            assert_eq!(without_numbers(one), without_numbers(other));
        }
    }
}
