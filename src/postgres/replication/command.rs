//! [Replication commands](https://www.postgresql.org/docs/current/protocol-replication.html) with a result set.

use postgres_protocol::message::{backend::Message, frontend};
use tokio_postgres::fallible_iterator::FallibleIterator;

use super::{Answer, Replication, identifier};
use crate::{
    lsn::Lsn,
    postgres::{
        error::{Error, Phase, Result},
        server::Identity,
        slot::BACKEND,
        table::PLACE,
    },
};

/// What `CREATE_REPLICATION_SLOT` tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreatedSlot {
    /// Slot name.
    pub name: String,
    /// The slot delivers exactly the transactions that commit after this.
    pub consistent_point: Lsn,
    /// Name of the exported snapshot, if one was asked for.
    pub snapshot: Option<String>,
}

/// Whether a server of this `server_version_num` may make a slot that begins in the middle of a transaction, of which it then sends a part.
/// Before 14.13, 15.8 and 16.4 one that is made without a snapshot takes up what another slot has left, and no longer waits for
/// those that run ([why](https://github.com/postgres/postgres/commit/bb19b70081e2248f242cd00227abff5b1e105eb6)).
pub fn begins_amid(version: u32) -> bool {
    let (major, minor) = (version / 10_000, version % 10_000);
    match major {
        14 => minor < 13,
        15 => minor < 8,
        16 => minor < 4,
        _ => false,
    }
}

type Rows = Vec<Vec<Option<String>>>;

impl Replication {
    /// `IDENTIFY_SYSTEM`. What it gives as position is the flushed WAL on a primary, the replayed WAL on a standby.
    pub async fn identify_system(&mut self) -> Result<Identity> {
        let rows = self.rows("IDENTIFY_SYSTEM").await?;
        let wrong = || Error::Protocol("the answer to IDENTIFY_SYSTEM".into());
        let [row] = rows.as_slice() else { return Err(wrong()) };
        let [Some(system), Some(timeline), Some(position), dbname] = row.as_slice() else { return Err(wrong()) };
        Ok(Identity {
            system_identifier: system.parse().map_err(|_| wrong())?,
            timeline: timeline.parse().map_err(|_| wrong())?,
            xlogpos: position.parse().map_err(|_| wrong())?,
            dbname: dbname.clone(),
        })
    }

    /// The text of a timeline's history file; empty for timeline 1, which has none.
    pub async fn timeline_history(&mut self, timeline: u32) -> Result<String> {
        if timeline <= 1 {
            return Ok(String::new());
        }
        let rows = self.rows(&format!("TIMELINE_HISTORY {timeline}")).await?;
        match rows.into_iter().next().as_deref() {
            Some([_, Some(content)]) => Ok(content.clone()),
            _ => Err(Error::Protocol("the answer to TIMELINE_HISTORY".into())),
        }
    }

    /// This session's server process and when it began, as [`slot::backend`](crate::postgres::slot::backend) has it.
    pub async fn backend(&mut self) -> Result<String> {
        let rows = self.rows(&format!("{BACKEND} pg_catalog.pg_backend_pid()")).await?;
        let first = rows.into_iter().next().and_then(|row| row.into_iter().next().flatten());
        first.ok_or_else(|| Error::Protocol("the server does not know the session's process".into()))
    }

    /// The timeline and the system identifier of a primary ([`PLACE`]); `None` on a standby.
    pub async fn place(&mut self) -> Result<Option<String>> {
        let rows = self.rows(PLACE).await?;
        Ok(rows.into_iter().next().and_then(|row| row.into_iter().next().flatten()))
    }

    /// Creates a logical pgoutput slot. The server first waits for every transaction that runs now, however long.
    /// `failover` (17 and later) has standbys keep it in step, and is refused on a standby.
    ///
    /// No snapshot is exported, except by releases that without one [begin amid a transaction](begins_amid): it is gone with the next
    /// command on this session.
    pub async fn create_slot(&mut self, name: &str, failover: bool) -> Result<CreatedSlot> {
        if begins_amid(self.version()) {
            return self.create_slot_with_snapshot(name, failover).await;
        }
        let options = match (self.version(), failover) {
            (..150_000, _) => "NOEXPORT_SNAPSHOT",
            (170_000.., true) => "(SNAPSHOT 'nothing', FAILOVER)",
            _ => "(SNAPSHOT 'nothing')",
        };
        let command = format!("CREATE_REPLICATION_SLOT {} LOGICAL pgoutput {options}", identifier(name));
        self.created(&command).await
    }

    /// The same, with a snapshot that sees exactly what committed before the slot's consistent point. Other sessions can
    /// import it until the next command on this one, or its end.
    pub async fn create_slot_with_snapshot(&mut self, name: &str, failover: bool) -> Result<CreatedSlot> {
        let options = match (self.version(), failover) {
            (..150_000, _) => "EXPORT_SNAPSHOT",
            (170_000.., true) => "(SNAPSHOT 'export', FAILOVER)",
            _ => "(SNAPSHOT 'export')",
        };
        self.created(&format!("CREATE_REPLICATION_SLOT {} LOGICAL pgoutput {options}", identifier(name))).await
    }

    async fn created(&mut self, command: &str) -> Result<CreatedSlot> {
        let rows = self.rows(command).await?;
        match rows.into_iter().next().as_deref() {
            Some([Some(name), Some(point), snapshot, ..]) => {
                let wrong = |error| Error::Protocol(format!("CREATE_REPLICATION_SLOT: {error}"));
                Ok(CreatedSlot {
                    name: name.clone(),
                    consistent_point: point.parse().map_err(wrong)?,
                    snapshot: snapshot.clone(),
                })
            }
            _ => Err(Error::Protocol("the answer to CREATE_REPLICATION_SLOT".into())),
        }
    }

    /// Has standbys keep an existing slot in step; 17 and later, and not while it streams.
    pub async fn set_failover(&mut self, name: &str) -> Result<()> {
        self.rows(&format!("ALTER_REPLICATION_SLOT {} (FAILOVER true)", identifier(name))).await.map(drop)
    }

    /// A SQL_ASCII database holds bytes of any encoding. With `client_encoding` UTF8 the server converts nothing but
    /// verifies, and one byte that is not UTF-8 would end the stream at the same place for ever (22021).
    pub(super) async fn take_bytes_as_they_are(&mut self) -> Result<()> {
        self.rows("SET client_encoding = 'SQL_ASCII'").await.map(drop)
    }

    pub(super) async fn hear_where_decoding_is_consistent(&mut self) -> Result<()> {
        self.rows("SET client_min_messages = log").await.map(drop)
    }

    pub(super) async fn query(&mut self, command: &str) -> Result<()> {
        self.channel.queue_message(|out| frontend::query(command, out))?;
        self.channel.flush().await
    }

    pub(super) async fn rows(&mut self, command: &str) -> Result<Rows> {
        self.query(command).await?;
        let mut rows = Rows::new();
        let mut failure = None;
        loop {
            match self.channel.answer().await {
                Ok(Answer::Message(Message::DataRow(body))) => {
                    let values = body
                        .ranges()
                        .map(|range| Ok(range.map(|range| String::from_utf8_lossy(&body.buffer()[range]).into_owned())))
                        .collect()
                        .map_err(|error| Error::Protocol(error.to_string()))?;
                    rows.push(values);
                }
                Ok(Answer::Message(Message::ReadyForQuery(_))) => return failure.map_or(Ok(rows), Err),
                Ok(Answer::Message(_)) => {}
                Ok(Answer::Error(notice)) => failure = Some(Error::Server { phase: Phase::Command, notice }),
                Ok(Answer::CopyBoth) => return Err(Error::Protocol("CopyBothResponse out of place".into())),
                // After a FATAL error the connection ends instead of becoming ready.
                Err(error) => return Err(failure.unwrap_or(error)),
            }
        }
    }
}
