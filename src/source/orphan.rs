//! A walsender that creates a slot waits for other transactions and does not notice that its hub has died: it holds the
//! slot's name until they end. Who is waiting is therefore written into the data directory first. Whoever has the directory
//! next knows that the hub which wrote it is gone, and may end its walsender.

use std::{fs, io, path::PathBuf, time::Duration};

use super::{Error, Options};
use crate::postgres::{
    replication::Replication,
    slot::{self, SlotState},
    sql::Sql,
};

/// How long a walsender that was told to end may take.
const PATIENCE: Duration = Duration::from_secs(10);

fn file(options: &Options) -> PathBuf {
    options.rebase.with_file_name("creating-slot")
}

/// Writes down who is about to create a slot.
pub(super) async fn note(options: &Options, replication: &mut Replication) -> Result<(), Error> {
    let who = replication.backend().await?;
    if let Err(error) = fs::write(file(options), who) {
        tracing::warn!(%error, "it cannot be noted who creates the slot");
    }
    Ok(())
}

/// Ends the walsender that an earlier hub, or an earlier connection of this one, left waiting; the slot as it is then.
pub(super) async fn end(options: &Options, sql: &Sql, found: Option<SlotState>) -> Result<Option<SlotState>, Error> {
    let Some(pid) = found.as_ref().and_then(|slot| slot.active_pid) else { return Ok(found) };
    let noted = match fs::read_to_string(file(options)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        noted => noted.unwrap_or_default(),
    };
    if slot::backend(sql, pid).await?.as_deref() != Some(noted.trim()) {
        return Ok(found);
    }
    tracing::warn!(pid, slot = options.slot, "ending the server process that an earlier attempt left with the slot");
    slot::release(sql, &options.slot, pid, PATIENCE).await?;
    Ok(slot::state(sql, &options.slot).await?)
}
