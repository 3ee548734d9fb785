//! Which transactions a snapshot of the source sees.

use std::{fmt, str::FromStr};

/// A [`pg_snapshot`](https://www.postgresql.org/docs/current/functions-info.html#FUNCTIONS-INFO-SNAPSHOT): what
/// `pg_current_snapshot()` tells about the snapshot of its statement. Valid for top-level transactions that have
/// committed; those that rolled back are seen by nobody.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Visibility {
    /// Every transaction below has ended.
    pub xmin: u64,
    /// No transaction from here on is seen. The last completed one plus one, not the next to be assigned: a commit that
    /// waits for a synchronous standby can have an id from here on and be in the WAL already.
    pub xmax: u64,
    /// Between the two, those that had not ended; ascending.
    pub running: Vec<u64>,
}

impl Visibility {
    /// Whether the snapshot shows what this transaction (xid8) committed.
    pub fn sees(&self, xid: u64) -> bool {
        xid < self.xmin || (xid < self.xmax && self.running.binary_search(&xid).is_err())
    }
}

impl fmt::Display for Visibility {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:", self.xmin, self.xmax)?;
        for (at, xid) in self.running.iter().enumerate() {
            write!(f, "{}{xid}", if at == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

/// The text is not `xmin:xmax:xid,xid,…`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a snapshot: expected xmin:xmax:xid,...")]
pub struct ParseVisibilityError(String);

impl FromStr for Visibility {
    type Err = ParseVisibilityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || ParseVisibilityError(text.to_owned());
        let mut parts = text.splitn(3, ':');
        let mut number = || parts.next().and_then(|part| part.parse().ok()).ok_or_else(wrong);
        let (xmin, xmax) = (number()?, number()?);
        let listed = parts.next().ok_or_else(wrong)?;
        let xids = listed.split(',').filter(|xid| !xid.is_empty());
        let mut running = xids.map(|xid| xid.parse().map_err(|_| wrong())).collect::<Result<Vec<u64>, _>>()?;
        running.sort_unstable();
        Ok(Visibility { xmin, xmax, running })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_had_not_ended_is_not_seen() {
        let snapshot: Visibility = "10:20:10,14,15".parse().unwrap();
        let seen: Vec<u64> = (5..25).filter(|xid| snapshot.sees(*xid)).collect();
        assert_eq!(seen, [5, 6, 7, 8, 9, 11, 12, 13, 16, 17, 18, 19]);
        assert_eq!(snapshot.to_string(), "10:20:10,14,15");
    }

    #[test]
    fn a_stuck_commit_at_xmax_is_not_seen() {
        let snapshot: Visibility = "11989:11989:".parse().unwrap();
        assert!(snapshot.sees(11988) && !snapshot.sees(11989) && snapshot.running.is_empty());
    }

    #[test]
    fn other_texts_are_refused() {
        for text in ["", "1", "1:2", "a:2:", "1:2:x"] {
            assert!(text.parse::<Visibility>().is_err(), "{text:?}");
        }
    }
}
