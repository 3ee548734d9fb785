//! The gate: nothing is journaled, and so nothing delivered or acknowledged, before the chosen standbys have flushed it. A
//! failover to one of them then takes nothing back, on any PostgreSQL version. Synchronous replication alone does not give
//! that: a walsender streams a commit that still waits for its standbys
//! ([`synchronized_standby_slots`](https://www.postgresql.org/docs/current/runtime-config-replication.html) of 17 does).
//!
//! The price is one standby's flush per transaction, and a stall while one of them is away.

use std::time::Duration;

use tokio::sync::watch;

use super::Error;
use crate::{
    ingest,
    lsn::Lsn,
    postgres::{server, sql::Sql},
};

/// Between two looks while something waits.
const BUSY: Duration = Duration::from_millis(5);
/// The same while nothing does.
const IDLE: Duration = Duration::from_millis(500);

/// The source's side of [`ingest::Gate`].
pub(super) struct Keeper {
    names: Vec<String>,
    open: watch::Sender<Lsn>,
    wanted: watch::Receiver<Lsn>,
}

/// A gate for these standbys, by application name; `None` when there are none.
pub(super) fn gate(names: &[String]) -> (Option<Keeper>, Option<ingest::Gate>) {
    if names.is_empty() {
        return (None, None);
    }
    let (open, opened) = watch::channel(Lsn::ZERO);
    let (want, wanted) = watch::channel(Lsn::ZERO);
    (Some(Keeper { names: names.to_vec(), open, wanted }), Some(ingest::Gate::new(opened, want)))
}

impl Keeper {
    /// Closes the gate: what standbys of another server have says nothing about this one's.
    pub fn close(&self) {
        self.open.send_replace(Lsn::ZERO);
    }

    /// Follows the standbys; returns when the server cannot be asked any more.
    pub async fn run(&mut self, sql: &Sql) -> Error {
        let mut stalled = false;
        loop {
            let flushed = match server::flushed_by(sql, &self.names).await {
                Ok(flushed) => flushed,
                Err(error) if error.is_locked() => {
                    tokio::time::sleep(BUSY).await;
                    continue;
                }
                Err(error) => return error.into(),
            };
            let wanted = *self.wanted.borrow_and_update();
            let waits = flushed.is_none_or(|flushed| flushed < wanted) && wanted > Lsn::ZERO;
            if flushed.is_none() && waits && !std::mem::replace(&mut stalled, true) {
                tracing::warn!(gate = self.names.join(","), "a standby of the gate is away: nothing is delivered");
            }
            if let Some(flushed) = flushed {
                stalled = false;
                self.open.send_if_modified(|open| std::mem::replace(open, flushed) != flushed);
            }
            let pause = tokio::time::sleep(if waits { BUSY } else { IDLE });
            tokio::select! {
                () = pause => {}
                changed = self.wanted.changed(), if !waits => {
                    if changed.is_err() {
                        std::future::pending::<()>().await;
                    }
                }
            }
        }
    }
}
