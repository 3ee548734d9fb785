//! A replay from log tables counts as a whole or not at all. Until its RECOVERED record is durable nobody hears of it
//! ([`super::writer`] holds the marks), and when the journal is opened without one, its segments go.
//!
//! This is not a rewriting of the journal: like a torn tail, nobody was ever told of what is cut.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use super::{
    Error, Journal,
    disk::{FilePieces, list_segments, read_header, sync_dir},
    segment::{Kind, RECORDS, Scanner, Step},
    tail::read_begin,
};
use crate::{
    failpoint,
    feed::{self, Cursor, Feed, Fetched, Start},
    lsn::Lsn,
    model::{LineageId, Position, Provenance},
    wire::block::{Block, SpanEnd},
};

/// Removes the segments of a replay that never ended, newest first, so that a crash on the way leaves an unfinished one.
pub(super) fn cut(dir: &Path) -> Result<(), Error> {
    let segments = list_segments(dir).map_err(Error::io(dir))?;
    let mut unfinished: Vec<PathBuf> = Vec::new();
    for (_, path) in segments.into_iter().rev() {
        let file = File::open(&path).map_err(Error::io(&path))?;
        match read_header(&file).map_err(Error::io(&path))? {
            Ok(header) if header.replay && !recovered(&file, header.salt).map_err(Error::io(&path))? => {
                unfinished.push(path);
            }
            _ => break,
        }
    }
    if unfinished.is_empty() {
        return Ok(());
    }
    tracing::warn!(segments = unfinished.len(), "removing what a replay from log tables had written before it ended");
    for path in unfinished {
        fs::remove_file(&path).map_err(Error::io(&path))?;
        sync_dir(dir).map_err(Error::io(dir))?;
    }
    Ok(())
}

fn recovered(file: &File, salt: u64) -> std::io::Result<bool> {
    let mut scanner = Scanner::new(FilePieces::new(file, u64::MAX, 4096)?, salt, RECORDS, false);
    loop {
        match scanner.step()? {
            Step::End { .. } => return Ok(false),
            Step::Damage { .. } => {}
            Step::Record { header, .. } if header.kind == Kind::Recovered as u8 => return Ok(true),
            Step::Record { .. } => {}
        }
    }
}

/// A whole transaction of the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Journaled {
    /// With its epoch.
    pub xid: u64,
    /// The resume point behind it.
    pub position: Position,
    /// Where its commit record begins; of a replayed one where the replay says.
    pub commit_lsn: Lsn,
    /// From the slot, or from log tables.
    pub provenance: Provenance,
}

impl Journal {
    /// Whether retention has removed nothing yet.
    fn has_its_beginning(&self) -> bool {
        let map = self.shared().map.read();
        map.segments.first().is_some_and(|first| first.after.lineage == LineageId::default())
    }

    /// Hears of every whole transaction that was journaled after a position (exclusive) and still holds: those that a
    /// failover took back are left out. In the order of the journal.
    pub async fn transactions_after(
        &self,
        after: Position,
        hear: &mut (dyn FnMut(Journaled) + Send),
    ) -> Result<(), feed::Error> {
        let mut cursor: Cursor = match self.locate(Start::After(after)).await {
            // It is not that something was removed: the journal begins there.
            Err(feed::Error::Expired { .. }) if self.has_its_beginning() => self.locate(Start::Earliest).await?,
            located => located?,
        };
        let history = self.history();
        while let Fetched::Block(block) = self.fetch(&mut cursor).await? {
            let damaged = |what: &str| feed::Error::Corrupt {
                after: block.after,
                up_to: Some(block.up_to),
                detail: format!("block {}: {what}", block.number),
            };
            let index = block.index().map_err(|error| damaged(&error.to_string()))?;
            for span in &index.spans {
                let SpanEnd::Commit { position, .. } = span.ending else { continue };
                let is_dead = history.check(position).is_err() && !failpoint::planted("bare_xid");
                if history.key(position) <= history.key(after) || is_dead {
                    continue;
                }
                let begin = begin_of(&block, span.start, span.begin_len).and_then(|begin| read_begin(&begin));
                let transaction = begin.ok_or_else(|| damaged("a begin that cannot be read"))?;
                hear(Journaled {
                    xid: transaction.xid,
                    position,
                    commit_lsn: transaction.commit_lsn,
                    provenance: transaction.provenance,
                });
            }
        }
        Ok(())
    }
}

fn begin_of(block: &Block, start: u32, len: u32) -> Option<bytes::Bytes> {
    if len == 0 {
        return Some(block.continued_begin().clone());
    }
    let payload = block.payload();
    let (start, end) = (start as usize, start as usize + len as usize);
    (end <= payload.len()).then(|| payload.slice(start..end))
}
