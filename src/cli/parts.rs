//! What commands need of the hub's own parts, as plain data: the one place where the person's side meets `postgres`
//! and `journal`.

use std::path::{Path, PathBuf};

use super::{args::SourceArgs, error::Error};
use crate::config::Dsn;

/// A logical replication slot of the source.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SlotRow {
    /// `slot_name`.
    pub name: String,
    /// Output plug-in.
    pub plugin: String,
    /// Database that it decodes.
    pub database: String,
    /// Process that streams from it.
    pub active_pid: Option<i32>,
    /// `reserved`, `extended`, `unreserved`, `lost`.
    pub wal_status: String,
    /// `confirmed_flush_lsn`, text form; empty for none.
    pub confirmed_flush_lsn: String,
    /// WAL that it holds back, bytes.
    pub retained_bytes: u64,
}

/// One precondition at the source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// What is checked, such as `wal_level`.
    pub name: String,
    /// How it stands.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What to run; empty when nothing is needed.
    pub fix: String,
}

/// How a precondition stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Met.
    Good,
    /// The hub runs, but something will hurt.
    Warning,
    /// The hub cannot run.
    Bad,
}

/// One segment file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentRow {
    /// File name.
    pub file: PathBuf,
    /// Bytes on disk.
    pub bytes: u64,
    /// Blocks in it.
    pub blocks: u64,
    /// Resume point in front of its first block, text form.
    pub after: String,
    /// Last resume point in it, text form.
    pub up_to: String,
}

/// One segment file after every record of it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// File name.
    pub file: PathBuf,
    /// Records whose CRC holds.
    pub records: u64,
    /// What is wrong and where; `None`: nothing.
    pub damage: Option<String>,
}

/// The connection string from flag, environment or file.
pub fn dsn(args: &SourceArgs) -> Result<Dsn, Error> {
    match (&args.dsn, &args.dsn_file) {
        (Some(dsn), _) => Ok(Dsn::new(dsn.trim())),
        (None, Some(path)) => {
            let text = std::fs::read_to_string(path).map_err(Error::io(path.display().to_string()))?;
            Ok(Dsn::new(text.trim()))
        }
        (None, None) => Err(Error::Usage("give --dsn, --dsn-file, WALCAST_DSN or WALCAST_DSN_FILE".to_owned())),
    }
}

/// Every logical slot of the source.
pub async fn slots(dsn: &Dsn) -> Result<Vec<SlotRow>, Error> {
    let _ = dsn;
    Err(absent())
}

/// Drops a slot.
pub async fn drop_slot(dsn: &Dsn, slot: &str) -> Result<(), Error> {
    let _ = (dsn, slot);
    Err(absent())
}

/// Every precondition at the source.
pub async fn preflight(dsn: &Dsn, slot: &str, publication: &str) -> Result<Vec<Check>, Error> {
    let _ = (dsn, slot, publication);
    Err(absent())
}

/// Every segment file of a data directory, oldest first.
pub fn segments(data_dir: &Path) -> Result<Vec<SegmentRow>, Error> {
    let _ = data_dir;
    Err(absent())
}

/// Reads a segment file from end to end; `progress` hears bytes read so far.
pub fn verify(segment: &SegmentRow, progress: &mut dyn FnMut(u64)) -> Result<Verified, Error> {
    let _ = (segment, progress);
    Err(absent())
}

fn absent() -> Error {
    Error::Failed("this part of the hub is not in this build".to_owned())
}
