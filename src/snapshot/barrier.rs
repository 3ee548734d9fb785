//! PostgreSQL's own word that whatever ran at a point has ended and is seen: a temporary slot, for as long as its making takes.
//!
//! It is the way out where [`stuck`](super::stuck) may not see who waits. [`Replication::outlive`] needs no right to see anybody: the
//! server writes a record of the transactions that run, R, and later one in which none of these is left. Two things make that the answer
//! to commits that nobody sees yet and that the journal does not have:
//!
//! - A transaction is in such a record from when it has an id until it is taken off the list from which snapshots are made as well
//!   ([`ProcArrayEndTransaction`](https://github.com/postgres/postgres/blob/master/src/backend/access/transam/README)). It writes its commit
//!   record before that, and waits for a synchronous standby in between. So who is not in the later record any more has ended, and every
//!   snapshot that is taken afterwards sees what it did.
//! - Who is not in R and not seen later has been given its id behind R, and so its commit record lies behind R, and behind the tail
//!   that the journal had before. The hub's own slot exists: what commits there is in the journal or will be, however far that is behind,
//!   unless it has left the journal again.
//!
//! Commits with records in front of R are therefore seen, and those behind it come in the stream for as long as the journal reaches back to
//! that tail. Neither the point at which the slot would begin matters nor what it would deliver: transactions that began behind R
//! and wait may lie in front of that point, and are not lost.
//!
//! It waits for more than [`stuck`](super::stuck) does where that sees the sessions: for every open transaction. Where the journal grows and
//! knows the ids in it, the hub finds out by itself at the same time, from the oldest open transaction's. Where it does not, because the
//! hub was started and its slot is not to be had, nothing else tells.

use std::time::Duration;

use tokio::sync::oneshot;

use super::{Exporter, Session, away};
use crate::{
    feed::SnapshotError,
    model::Position,
    postgres::{
        self, Server,
        conninfo::ConnectOptions,
        replication::{Outlived, Replication},
        slot,
        sql::Sql,
    },
};

/// How long a walsender that was told to end may take.
const FAREWELL: Duration = Duration::from_secs(10);
/// How much longer than its snapshot a slot may wait by itself. The snapshot gives it up when its time is over, and says so; the server's own
/// limit is for a hub that is gone, and must not come first: that the lock is not to be had is no reason an operator could do anything about.
const ALONE: Duration = Duration::from_secs(30);

/// A slot that is being made. Dropped, it is given up, on the server too.
pub(super) struct Barrier {
    passed: oneshot::Receiver<Result<(), SnapshotError>>,
    tail: Position,
}

impl Barrier {
    /// Begins to wait, on the server of the session, for everything that runs there now. `tail`: the journal's, read before.
    pub fn raise(exporter: &Exporter, session: &Session, tail: Position) -> Barrier {
        let (sender, passed) = oneshot::channel();
        let making = Making {
            connect: exporter.connect.clone(),
            server: session.sql.server().clone(),
            place: session.place.clone(),
            patience: exporter.patience.settle + ALONE,
            name: format!("walcast_snapshot_{:016x}", fastrand::u64(..)),
        };
        tokio::spawn(making.run(sender));
        Barrier { passed, tail }
    }

    /// Waits until that has ended; the position behind which the journal must have everything. Not to be asked again once it has
    /// answered. Cancel-safe.
    ///
    /// # Errors
    /// SOURCE_UNAVAILABLE, with what an operator can do, when no slot can be made.
    pub async fn passed(&mut self) -> Result<Position, SnapshotError> {
        let passed = (&mut self.passed).await.unwrap_or_else(|_| Err(away("the hub is shutting down")));
        passed.map(|()| self.tail)
    }
}

/// Outlives the snapshot that wants it, because giving up takes a connection.
struct Making {
    connect: ConnectOptions,
    server: Server,
    place: Vec<u8>,
    patience: Duration,
    name: String,
}

impl Making {
    async fn run(self, mut passed: oneshot::Sender<Result<(), SnapshotError>>) {
        let opened = tokio::select! {
            opened = self.open() => opened,
            () = passed.closed() => return,
        };
        let (mut session, who) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                let _ = passed.send(Err(error));
                return;
            }
        };
        tracing::info!(slot = self.name, "making a temporary slot, to outlive commits that nobody sees yet");
        let outlived = tokio::select! {
            outlived = session.outlive(&self.name, self.patience) => outlived,
            () = passed.closed() => Ok(Outlived::Making),
        };
        let making = matches!(outlived, Ok(Outlived::Making));
        let _ = passed.send(outlived.map(drop).map_err(refused));
        // The slot goes with its session.
        drop(session);
        if making && let Err(error) = self.give_up(&who).await {
            tracing::warn!(slot = self.name, %error, "the server goes on making a temporary slot for a while");
        }
    }

    /// A session on the very server, and the server's process.
    async fn open(&self) -> Result<(Replication, String), SnapshotError> {
        let mut session = Replication::connect(&self.connect, &self.server).await.map_err(refused)?;
        if session.place().await.map_err(refused)?.map(String::into_bytes).as_ref() != Some(&self.place) {
            return Err(away("the server has failed over while a session was opened"));
        }
        let who = session.backend().await.map_err(refused)?;
        Ok((session, who))
    }

    /// Ends the server's process: it waits for a transaction and does not notice that nobody listens.
    async fn give_up(&self, who: &str) -> postgres::Result<()> {
        let sql = Sql::connect(&self.connect.only(&self.server.spec)).await?;
        match slot::state(&sql, &self.name).await?.and_then(|slot| slot.active_pid) {
            Some(pid) if slot::backend(&sql, pid).await?.as_deref() == Some(who) => {
                slot::release(&sql, &self.name, pid, FAREWELL).await
            }
            _ => Ok(()),
        }
    }
}

/// Whatever it is: the snapshot may be asked for again.
fn refused(error: postgres::Error) -> SnapshotError {
    let hint = error.hint().map_or_else(String::new, |hint| format!(". {hint}"));
    away(&format!("{error}{hint}"))
}
