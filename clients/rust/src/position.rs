//! Positions in a stream, and where subscriptions begin.

use std::{fmt, str::FromStr, time::SystemTime};

use bytes::Bytes;

use crate::{Error, pb};

/// `X/Y` as a number of bytes.
///
/// # Errors
/// [`Error::Argument`] if it is no LSN.
pub fn lsn_to_u64(lsn: &str) -> Result<u64, Error> {
    let number = |digits: &str| match digits.starts_with('+') {
        true => None,
        false => u32::from_str_radix(digits, 16).ok(),
    };
    lsn.split_once('/')
        .and_then(|(high, low)| Some(u64::from(number(high)?) << 32 | u64::from(number(low)?)))
        .ok_or_else(|| Error::Argument(format!("not an LSN: {lsn:?}")))
}

/// A resume point: everything up to and including it is done. Store it whole; its text and [`FromStr`] are inverse.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Position {
    /// End LSN of the commit record, `X/Y`.
    pub lsn: String,
    /// One unbroken course of history, 16 hexadecimal digits. Equal or not; never compared for order.
    pub lineage: String,
    /// 0 for transactions from the slot.
    pub sequence: u32,
    /// Opaque progress of running snapshots; empty without.
    pub snapshot: Bytes,
}

impl Position {
    /// Whether this position is on the same lineage and at or behind the other.
    pub fn reaches(&self, other: &Position) -> bool {
        let order = |position: &Position| Some((lsn_to_u64(&position.lsn).ok()?, position.sequence));
        match (order(self), order(other)) {
            (Some(mine), Some(its)) => self.lineage == other.lineage && mine >= its,
            _ => false,
        }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}:", self.lineage, self.lsn, self.sequence)?;
        self.snapshot.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for Position {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = || Error::Argument(format!("not a position: {text:?}"));
        let parts: Vec<&str> = text.split(':').collect();
        let [lineage, lsn, sequence, snapshot] = parts[..] else { return Err(wrong()) };
        lsn_to_u64(lsn)?;
        let sequence = sequence.parse().map_err(|_| wrong())?;
        let snapshot = unhex(snapshot).ok_or_else(wrong)?.into();
        Ok(Position { lsn: lsn.into(), lineage: lineage.into(), sequence, snapshot })
    }
}

/// Bytes from hexadecimal digits.
pub(crate) fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    if text.len() % 2 == 1 {
        return None;
    }
    text.as_bytes().chunks_exact(2).map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?)).collect()
}

/// As a hub sent it. What cannot be resumed from is an [`Error::Protocol`].
impl TryFrom<pb::Position> for Position {
    type Error = Error;

    fn try_from(message: pb::Position) -> Result<Self, Error> {
        let pb::Position { lsn, lineage, sequence, snapshot } = message;
        match lsn_to_u64(&lsn) {
            Ok(_) => Ok(Position { lsn, lineage, sequence, snapshot }),
            Err(_) => Err(Error::Protocol(format!("the hub sent a position whose LSN is {lsn:?}"))),
        }
    }
}

impl From<Position> for pb::Position {
    fn from(position: Position) -> Self {
        let Position { lsn, lineage, sequence, snapshot } = position;
        pb::Position { lsn, lineage, sequence, snapshot }
    }
}

/// How the rows of a snapshot are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SnapshotMode {
    /// As the hub chooses by the size of the tables.
    #[default]
    HubChooses,
    /// All tables as of one point, in front of all changes.
    Consistent,
    /// In chunks between changes, which go on meanwhile.
    Incremental,
}

/// How a snapshot is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// In which order.
    pub mode: SnapshotMode,
    /// Bound on the load on the source; 0 is unlimited.
    pub max_rows_per_second: u32,
}

impl From<Snapshot> for pb::SnapshotOptions {
    fn from(snapshot: Snapshot) -> Self {
        let mode = match snapshot.mode {
            SnapshotMode::HubChooses => pb::SnapshotMode::Unspecified,
            SnapshotMode::Consistent => pb::SnapshotMode::Consistent,
            SnapshotMode::Incremental => pb::SnapshotMode::Incremental,
        };
        pb::SnapshotOptions { mode: mode.into(), max_rows_per_second: snapshot.max_rows_per_second }
    }
}

/// Where a subscription begins. A named subscriber begins there only if it has no checkpoint.
///
/// From text: `earliest`, `latest`, `snapshot`, an LSN `X/Y`, or a position as its text.
#[derive(Clone, Debug, PartialEq)]
pub enum Start {
    /// The oldest change that the journal has.
    Earliest,
    /// Whatever commits from now on.
    Latest,
    /// Behind a position that a hub sent (exclusive).
    After(Position),
    /// Behind an LSN `X/Y` of the current lineage (exclusive).
    AfterLsn(String),
    /// The first block that holds a commit at or after this time (inclusive); somewhat earlier commits may come too.
    Since(SystemTime),
    /// The rows that are there, then the changes that follow them without a gap.
    Snapshot(Snapshot),
}

impl FromStr for Start {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Ok(match text {
            "earliest" => Start::Earliest,
            "latest" => Start::Latest,
            "snapshot" => Start::Snapshot(Snapshot::default()),
            position if position.contains(':') => Start::After(position.parse()?),
            lsn => {
                lsn_to_u64(lsn)?;
                Start::AfterLsn(lsn.into())
            }
        })
    }
}

impl From<Position> for Start {
    fn from(position: Position) -> Self {
        Start::After(position)
    }
}

impl From<Start> for pb::Start {
    fn from(start: Start) -> Self {
        use pb::start::At;
        let at = match start {
            Start::Earliest => At::Earliest(()),
            Start::Latest => At::Latest(()),
            Start::After(position) => At::After(position.into()),
            Start::AfterLsn(lsn) => At::AfterLsn(lsn),
            Start::Since(time) => At::Since(time.into()),
            Start::Snapshot(snapshot) => At::Snapshot(snapshot.into()),
        };
        pb::Start { at: Some(at) }
    }
}
