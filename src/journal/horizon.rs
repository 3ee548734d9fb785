//! Horizons: what a replay from log tables need not read, because the journal has it.
//!
//! A horizon is a snapshot with two LSNs, never a bare transaction id: after a failover the new primary hands out ids
//! again that the old one had used, and only a horizon whose high LSN lies before the switch means the same on both.

use bytes::{Buf, BufMut};

use super::tail::Unreadable;
use crate::{lsn::Lsn, model::LineageId};

/// One horizon. It is recorded once the journal is complete up to `high`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Horizon {
    /// The history on which it was taken.
    pub lineage: LineageId,
    /// Text of a [`pg_snapshot`](https://www.postgresql.org/docs/current/functions-info.html#FUNCTIONS-PG-SNAPSHOT):
    /// transactions that are visible in it need not be read.
    pub snapshot: String,
    /// Transactions that are not visible in the snapshot have commit records at or after this.
    pub low: Lsn,
    /// Commit records of transactions that are visible in the snapshot lie before this.
    pub high: Lsn,
}

impl Horizon {
    pub(super) fn encoded_len(&self) -> usize {
        24 + self.snapshot.len()
    }
}

/// How many are kept. With one every few seconds the newest half covers a standby's usual lag; the older half thins out,
/// so that there is one for a standby that was far behind, too.
const KEPT: usize = 24;

/// Adds a horizon, and forgets one when there are too many.
pub(super) fn keep(horizons: &mut Vec<Horizon>, horizon: Horizon) {
    horizons.push(horizon);
    if horizons.len() > KEPT {
        // Where the next but one is nearest: the horizons in front of the newest half end up ever farther apart.
        let gap = |at: usize| horizons[at + 1].high.since(horizons[at - 1].high);
        let at = (1..KEPT / 2).min_by_key(|at| gap(*at)).unwrap_or(1);
        horizons.remove(at);
    }
}

/// Appends the payload of a HORIZON record.
pub(super) fn put_horizon(out: &mut impl BufMut, horizon: &Horizon) {
    out.put_u64_le(horizon.lineage.0);
    out.put_u64_le(horizon.low.0);
    out.put_u64_le(horizon.high.0);
    out.put_slice(horizon.snapshot.as_bytes());
}

/// Reads the payload of a HORIZON record.
pub(super) fn get_horizon(mut bytes: &[u8]) -> Result<Horizon, Unreadable> {
    let unreadable = || Unreadable("HORIZON");
    if bytes.len() < 24 {
        return Err(unreadable());
    }
    let (lineage, low, high) = (LineageId(bytes.get_u64_le()), Lsn(bytes.get_u64_le()), Lsn(bytes.get_u64_le()));
    let snapshot = std::str::from_utf8(bytes).map_err(|_| unreadable())?.to_owned();
    Ok(Horizon { lineage, snapshot, low, high })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_ones_thin_out_and_the_first_stays() {
        let mut horizons = Vec::new();
        for n in 1..=10_000_u64 {
            let (low, high) = (Lsn(n * 100), Lsn(n * 100 + 50));
            keep(&mut horizons, Horizon { lineage: LineageId(1), snapshot: format!("{n}:{n}:"), low, high });
        }
        assert_eq!(horizons.len(), KEPT);
        assert!(horizons.is_sorted_by_key(|horizon| horizon.high));
        let newest: Vec<u64> = horizons[KEPT / 2..].iter().map(|horizon| horizon.low.0 / 100).collect();
        assert_eq!(newest, (10_001 - newest.len() as u64..=10_000).collect::<Vec<_>>());
        let mut payload = Vec::new();
        put_horizon(&mut payload, &horizons[3]);
        assert_eq!(get_horizon(&payload).unwrap(), horizons[3]);
        assert!(get_horizon(&payload[..20]).is_err());
    }
}
