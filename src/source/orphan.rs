//! A walsender that creates a slot waits for other transactions and does not notice that its hub has died: it holds the
//! slot's name until they end. Who is waiting is therefore written into the data directory first. Whoever has the directory
//! next knows that the hub which wrote it is gone, and may end its walsender.
//!
//! So is what tables were like before, until it is known that no DDL was overlooked ([`catalog`]): a slot that a hub left
//! before it could compare is compared by the next one.

use std::{fs, io, io::Write as _, path::PathBuf, time::Duration};

use super::{Error, Options};
use crate::postgres::{
    catalog,
    slot::{self, SlotState},
    sql::Sql,
};

/// How long a walsender that was told to end may take.
const PATIENCE: Duration = Duration::from_secs(10);

fn file(options: &Options) -> PathBuf {
    options.rebase.with_file_name("creating-slot")
}

/// Writes down who is about to create the slot ([`Replication::backend`]), and what tables are like before. There must be none
/// of that name: what is noted would be said of it.
///
/// [`Replication::backend`]: crate::postgres::replication::Replication::backend
pub(super) fn note(options: &Options, who: &str, before: &str) {
    if let Err(error) = write(options, &format!("{who}\n{}\n{before}\n", options.slot)) {
        tracing::warn!(%error, "it cannot be noted who creates the slot");
    }
}

/// The slot is made, and nothing was overlooked.
pub(super) fn examined(options: &Options) {
    let noted = fs::read_to_string(file(options)).unwrap_or_default();
    let mut lines = noted.lines();
    let who = lines.next().unwrap_or_default();
    if lines.next().is_none() {
        return;
    }
    if let Err(error) = write(options, who) {
        tracing::warn!(%error, "it cannot be noted that the slot is made");
    }
}

fn write(options: &Options, noted: &str) -> io::Result<()> {
    let path = file(options);
    let new = path.with_extension("new");
    let mut file = fs::File::create(&new)?;
    file.write_all(noted.as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, &path)?;
    path.parent().map_or(Ok(()), |directory| fs::File::open(directory)?.sync_all())
}

/// A slot that somebody made with this data directory, and that did not come to be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unended {
    /// It has everything from where it begins.
    Whole,
    /// DDL has committed since, and may have been overlooked.
    Doubtful,
}

/// Whether the slot was left by an attempt that did not end: of a hub that died, or that lost its connection, or that found
/// out that the log tables cannot help after all.
pub(super) async fn unended(options: &Options, sql: &Sql, found: Option<&SlotState>) -> Result<Option<Unended>, Error> {
    let noted = fs::read_to_string(file(options)).unwrap_or_default();
    let mut lines = noted.lines().skip(1);
    if found.is_none_or(|found| lines.next() != Some(&found.name)) {
        return Ok(None);
    }
    let unchanged = catalog::unchanged(sql, lines.next().unwrap_or_default()).await?;
    Ok(Some(if unchanged { Unended::Whole } else { Unended::Doubtful }))
}

/// Ends the walsender that an earlier hub, or an earlier connection of this one, left waiting; the slot as it is then.
pub(super) async fn end(options: &Options, sql: &Sql, found: Option<SlotState>) -> Result<Option<SlotState>, Error> {
    let Some(pid) = found.as_ref().and_then(|slot| slot.active_pid) else { return Ok(found) };
    let noted = fs::read_to_string(file(options)).unwrap_or_default();
    let Some(who) = noted.lines().next().filter(|who| !who.is_empty()) else { return Ok(found) };
    if slot::backend(sql, pid).await?.as_deref() != Some(who) {
        return Ok(found);
    }
    tracing::warn!(pid, slot = options.slot, "ending the server process that an earlier attempt left with the slot");
    slot::release(sql, &options.slot, pid, PATIENCE).await?;
    Ok(slot::state(sql, &options.slot).await?)
}
