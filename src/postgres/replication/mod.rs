//! The walsender connection: our own client of the
//! [streaming replication protocol](https://www.postgresql.org/docs/current/protocol-replication.html), because
//! tokio-postgres has none and the crates that do hide NoticeResponse, in which PostgreSQL 18 tells that a publication
//! is missing.
//!
//! [`Replication`] runs commands. [`Replication::start`] turns it into a [`ReplicationStream`]:
//!
//! ```text
//! loop {
//!     select! { stream.fill(), ticks, ... }          // cancel-safe, wakes when bytes have come
//!     while let Some(frame) = stream.next_frame()?   // borrowed from the read buffer, no allocation
//! }
//! ```

mod buffer;
pub(super) mod channel;
mod command;
mod consistent;
pub(super) mod frame;
mod pace;
pub(super) mod startup;
mod temporary;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::FutureExt;

use self::{
    channel::{Answer, Channel},
    pace::Pace,
    startup::Kind,
};
use super::{
    connect::{self, Server},
    conninfo::ConnectOptions,
    error::{Error, Phase, Result},
};
use crate::lsn::Lsn;

pub use self::{command::CreatedSlot, consistent::Consistency, frame::Frame, temporary::Outlived};
pub(super) use self::{command::begins_amid, startup::PINNED};

/// Between the epochs of Unix and PostgreSQL (2000-01-01).
const EPOCH: Duration = Duration::from_secs(946_684_800);
/// How long [`ReplicationStream::stop`] waits for the server's farewell. A walsender inside a large transaction does not
/// answer before its end, and closing the connection is then the only way.
const FAREWELL: Duration = Duration::from_secs(5);

/// A replication session that waits for commands.
pub struct Replication {
    channel: Channel,
    server: Server,
    version: u32,
}

impl Replication {
    /// Connects to the very server that an SQL connection has reached ([`Sql::server`](super::sql::Sql::server)).
    pub async fn connect(options: &ConnectOptions, server: &Server) -> Result<Replication> {
        connect::at(options, &server.spec, &server.address, |stream, server| async move {
            let mut channel = Channel::new(stream);
            let greeting = startup::start(&mut channel, options, &server, Kind::Replication).await?;
            let mut session = Replication { channel, server, version: greeting.version };
            if greeting.without_encoding {
                session.take_bytes_as_they_are().await?;
            }
            Ok(session)
        })
        .await
    }

    /// The server that was reached.
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// `server_version_num`, such as 150018, from the server's greeting.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Ends the session.
    pub async fn close(mut self) -> Result<()> {
        self.channel.queue(|out| out.extend([b'X', 0, 0, 0, 4]));
        self.channel.flush().await?;
        self.channel.shutdown().await
    }

    /// `START_REPLICATION` of a logical pgoutput slot with protocol version 1 and messages. The server begins with the
    /// first transaction whose commit LSN is at or after `from`, or after what the slot has confirmed if that is later.
    ///
    /// A missing publication is not noticed here but with the first change.
    pub async fn start(mut self, slot: &str, from: Lsn, publication: &str) -> Result<ReplicationStream> {
        self.hear_where_decoding_is_consistent().await?;
        let command = format!(
            "START_REPLICATION SLOT {} LOGICAL {from} (proto_version '1', publication_names {}, messages 'true')",
            identifier(slot),
            literal(&identifier(publication)),
        );
        self.query(&command).await?;
        match self.channel.answer().await? {
            Answer::CopyBoth => Ok(ReplicationStream { channel: self.channel, server: self.server, pace: Pace::new() }),
            Answer::Error(notice) => Err(Error::Server { phase: Phase::Command, notice }),
            Answer::Message(_) => Err(Error::Protocol("START_REPLICATION without CopyBothResponse".into())),
        }
    }
}

/// The stream of changes. One task reads it and reports status; it is `Send`, and needs no locking.
pub struct ReplicationStream {
    channel: Channel,
    server: Server,
    pace: Pace,
}

impl ReplicationStream {
    /// The server that streams.
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// Waits until more bytes have come, or until a stream that was [`crowded`](Self::crowded) no longer is. Take all
    /// frames with [`next_frame`](Self::next_frame) first. Cancel-safe: bytes are in the buffer or still in the socket, and
    /// a status update that was cut short is completed.
    ///
    /// Fails with [`Error::Closed`] when the server has ended the connection.
    pub async fn fill(&mut self) -> Result<()> {
        let before = self.channel.received();
        if self.pace.crowded() && !self.channel.has_frame()? {
            self.pace.pause().await;
            if self.channel.fill().now_or_never().transpose()?.is_none() {
                self.pace.ended();
                return Ok(());
            }
        } else {
            self.channel.fill().await?;
        }
        self.pace.received((self.channel.received() - before) as usize);
        Ok(())
    }

    /// Whether changes come so fast that the next ones follow within a fraction of a millisecond: no reason to hurry with
    /// those that are here.
    pub fn crowded(&self) -> bool {
        self.pace.crowded()
    }

    /// The next frame that is complete in the buffer; `None` means [`fill`](Self::fill). An ErrorResponse is
    /// [`Error::Server`] in [`Phase::Streaming`].
    pub fn next_frame(&mut self) -> Result<Option<Frame<'_>>> {
        while let Some(b'S' | b'A') = self.channel.peek() {
            if self.channel.next()?.is_none() {
                return Ok(None);
            }
        }
        let Some((tag, body)) = self.channel.next()? else { return Ok(None) };
        match tag {
            b'd' => frame::copy_data(body).map(Some),
            b'N' => Ok(Some(Frame::Notice(frame::notice(body)))),
            b'E' => Err(Error::Server { phase: Phase::Streaming, notice: frame::notice(body) }),
            // A walsender that shuts down sends CommandComplete without CopyDone.
            b'c' | b'C' => Ok(Some(Frame::CopyDone)),
            _ => Err(Error::Protocol(format!("message {:?} in the stream of changes", char::from(tag)))),
        }
    }

    /// Sends a standby status update: the three positions are exclusive ends of what was received, what is durable
    /// (this is what the slot may forget) and what was applied. Cancel-safe: it is queued by the call itself.
    pub async fn send_status(&mut self, written: Lsn, flushed: Lsn, applied: Lsn, reply_requested: bool) -> Result<()> {
        let clock = SystemTime::now().duration_since(UNIX_EPOCH + EPOCH).map_or(0, |age| age.as_micros() as i64);
        self.channel.queue(|out| frame::status(out, [written, flushed, applied], clock, reply_requested));
        self.channel.flush().await
    }

    /// Ends the stream and the session in an orderly way, so that the slot is free when this returns, unless the server
    /// does not answer within 5 s. What it still sends is thrown away.
    pub async fn stop(mut self) -> Result<()> {
        let orderly = async {
            self.channel.queue(|out| out.extend([b'c', 0, 0, 0, 4]));
            self.channel.flush().await?;
            loop {
                match self.channel.next()? {
                    Some((b'Z', _)) => break,
                    Some((b'E', body)) => {
                        return Err(Error::Server { phase: Phase::Streaming, notice: frame::notice(body) });
                    }
                    Some(_) => {}
                    None => self.channel.fill().await?,
                }
            }
            self.channel.queue(|out| out.extend([b'X', 0, 0, 0, 4]));
            self.channel.flush().await?;
            self.channel.shutdown().await?;
            // The walsender releases the slot before it ends the connection.
            loop {
                match self.channel.fill().await {
                    Ok(()) => while self.channel.next()?.is_some() {},
                    Err(Error::Closed | Error::Lost(_)) => return Ok(()),
                    Err(error) => return Err(error),
                }
            }
        };
        tokio::time::timeout(FAREWELL, orderly).await.unwrap_or(Ok(()))
    }
}

/// A name for the replication grammar and for `publication_names`.
pub(super) fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A string for the replication grammar and, with `standard_conforming_strings`, for SQL.
pub(super) fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}
