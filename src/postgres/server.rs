//! What a server says about itself: identity, history, positions, transaction ids.

use std::time::Duration;

use super::{
    error::{Error, Result},
    sql::{Sql, get, text},
};
use crate::{
    lsn::Lsn,
    model::{ParseVisibilityError, Visibility},
};

/// The answer to `IDENTIFY_SYSTEM`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Set by initdb and kept by every physical copy.
    pub system_identifier: u64,
    /// Current timeline, from 1.
    pub timeline: u32,
    /// Flushed WAL on a primary, replayed WAL on a standby.
    pub xlogpos: Lsn,
    /// The connection's database.
    pub dbname: Option<String>,
}

/// One line of a [timeline history file](https://www.postgresql.org/docs/current/continuous-archiving.html#BACKUP-TIMELINES).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Switch {
    /// The timeline that was left.
    pub timeline: u32,
    /// Where it was left: WAL at and after this is on the next one.
    pub at: Lsn,
    /// Why, in words.
    pub reason: String,
}

/// The switches of a history file, oldest first. Comments and empty lines are left out.
pub fn parse_history(text: &str) -> Result<Vec<Switch>> {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let wrong = || Error::Protocol(format!("a timeline history with the line {line:?}"));
            let mut fields = line.splitn(3, char::is_whitespace);
            let timeline = fields.next().and_then(|text| text.parse().ok()).ok_or_else(wrong)?;
            let at = fields.next().and_then(|text| text.parse().ok()).ok_or_else(wrong)?;
            Ok(Switch { timeline, at, reason: fields.next().unwrap_or_default().trim().to_owned() })
        })
        .collect()
}

/// The two ends of a primary's WAL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalPositions {
    /// `pg_current_wal_flush_lsn()`. Can lie inside a record.
    pub flush: Lsn,
    /// `pg_current_wal_insert_lsn()`. Always at the end of a record.
    pub insert: Lsn,
}

/// Reads both ends. On a standby the server refuses (55000).
pub async fn wal_positions(sql: &Sql) -> Result<WalPositions> {
    let row = sql
        .one("SELECT pg_catalog.pg_current_wal_flush_lsn()::text, pg_catalog.pg_current_wal_insert_lsn()::text", &[])
        .await?;
    Ok(WalPositions { flush: lsn(get(&row, 0)?)?, insert: lsn(get(&row, 1)?)? })
}

/// How far all of these standbys, by application name, have flushed; `None` while one of them is not connected. The server's
/// own name (`cluster_name`, which a standby's walreceiver uses) does not count: after a failover it is the primary.
pub async fn flushed_by(sql: &Sql, standbys: &[String]) -> Result<Option<Lsn>> {
    let names = standbys.join("\u{1}");
    let row = sql
        .one(
            "SELECT CASE WHEN pg_catalog.count(*) > 0 AND pg_catalog.count(*) = pg_catalog.count(r.flushed)
                         THEN pg_catalog.min(r.flushed)::text END
             FROM pg_catalog.string_to_table($1, E'\\x01') n
             LEFT JOIN LATERAL (SELECT pg_catalog.max(s.flush_lsn) AS flushed FROM pg_catalog.pg_stat_replication s
                                WHERE s.application_name = n AND s.state = 'streaming') r ON true
             WHERE n <> pg_catalog.current_setting('cluster_name')",
            &[text(&names.as_str())],
        )
        .await?;
    get::<Option<&str>>(&row, 0)?.map(lsn).transpose()
}

/// Whether the server is a standby.
pub async fn in_recovery(sql: &Sql) -> Result<bool> {
    get(&sql.one("SELECT pg_catalog.pg_is_in_recovery()", &[]).await?, 0)
}

/// `server_version_num`, read anew.
pub async fn server_version_num(sql: &Sql) -> Result<u32> {
    let row = sql.one("SELECT pg_catalog.current_setting('server_version_num')::int4", &[]).await?;
    Ok(get::<i32>(&row, 0)?.unsigned_abs())
}

/// A transaction id of 64 bits that is near the newest: `xmax` of `pg_current_snapshot()`, the last completed one plus
/// one. A reference for [`widen`].
pub async fn current_xid8(sql: &Sql) -> Result<u64> {
    let row = sql.one("SELECT pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())::text", &[]).await?;
    let text: &str = get(&row, 0)?;
    text.parse().map_err(|_| Error::Protocol(format!("{text:?} as a transaction id")))
}

/// `pg_current_snapshot()`: what the server would export now.
pub async fn current_snapshot(sql: &Sql) -> Result<Visibility> {
    let row = sql.one("SELECT pg_catalog.pg_current_snapshot()::text", &[]).await?;
    parse_snapshot(&get::<String>(&row, 0)?)
}

/// The text form of a `pg_snapshot`.
pub fn parse_snapshot(text: &str) -> Result<Visibility> {
    text.parse().map_err(|error: ParseVisibilityError| Error::Protocol(error.to_string()))
}

/// Uses up a transaction id: every id at or above it is assigned after this call began.
pub async fn assign_xid(sql: &Sql) -> Result<u64> {
    let row = sql.one("SELECT pg_catalog.pg_current_xact_id()::text::int8", &[]).await?;
    Ok(get::<i64>(&row, 0)?.unsigned_abs())
}

/// The 64-bit form of a transaction id from the stream, given any 64-bit id less than 2^31 transactions away from it in
/// either direction. The three permanent ids (invalid, bootstrap, frozen) have no epoch and stay as they are.
pub fn widen(xid: u32, reference: u64) -> u64 {
    if xid < 3 {
        return xid.into();
    }
    let distance = i64::from(xid.wrapping_sub(reference as u32) as i32);
    reference.checked_add_signed(distance).unwrap_or_else(|| xid.into())
}

/// An LSN that the server wrote.
pub(super) fn lsn(text: &str) -> Result<Lsn> {
    text.parse().map_err(|error| Error::Protocol(format!("{error}")))
}

/// `wal_sender_timeout`: without a status update for this long the server ends the connection; `None` when it never does.
pub async fn wal_sender_timeout(sql: &Sql) -> Result<Option<Duration>> {
    let statement = "SELECT setting::int8 FROM pg_catalog.pg_settings WHERE name = 'wal_sender_timeout'";
    let millis: i64 = get(&sql.one(statement, &[]).await?, 0)?;
    Ok(u64::try_from(millis).ok().filter(|millis| *millis > 0).map(Duration::from_millis))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widening_goes_to_the_nearest_epoch() {
        const EPOCH: u64 = 1 << 32;
        assert_eq!(widen(1000, 1010), 1000);
        assert_eq!(widen(1010, 1000), 1010);
        assert_eq!(widen(5, 7 * EPOCH - 10), 7 * EPOCH + 5, "the reference is before the wraparound");
        assert_eq!(widen(u32::MAX - 3, 7 * EPOCH + 100), 7 * EPOCH - 4, "the reference is after it");
        assert_eq!(widen(u32::MAX - 3, 100), u64::from(u32::MAX - 3), "nothing is before epoch 0");
        assert_eq!(widen(0, 9 * EPOCH), 0);
        assert_eq!(widen(3, 9 * EPOCH + 3), 9 * EPOCH + 3);
    }

    #[test]
    fn widening_inverts_truncation_within_half_the_range() {
        for reference in [3_u64, 1 << 31, (1 << 32) - 1, 1 << 32, (1 << 40) + 12345] {
            for distance in [-(1_i64 << 31) + 4, -1000, -1, 0, 1, 1000, (1 << 31) - 1] {
                let Some(xid) = reference.checked_add_signed(distance) else { continue };
                if xid as u32 >= 3 {
                    assert_eq!(widen(xid as u32, reference), xid, "{reference} {distance}");
                }
            }
        }
    }

    #[test]
    fn history_files() {
        let text = "1\t0/14FFFF0\tno recovery target specified\n\n# c\n2\t1/0\tafter a\tpause\n";
        let expected = [(1, "0/14FFFF0", "no recovery target specified"), (2, "1/0", "after a\tpause")];
        let expected = expected.map(|(timeline, at, reason)| Switch {
            timeline,
            at: at.parse().unwrap(),
            reason: reason.to_owned(),
        });
        assert_eq!(parse_history(text).unwrap(), expected);
        assert!(parse_history("x y z").is_err());
        assert_eq!(parse_history("").unwrap(), []);
    }
}
