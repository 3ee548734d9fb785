//! The output plug-in `pgoutput`, protocol 1, from bytes to borrowed views.
//!
//! Protocol 1 sends a transaction only once it has committed, whole, and never two at a time; a decoder of it needs no
//! memory between messages, and this one has none: [`decode`] is a pure function, without I/O, clock or allocation.
//! Protocols 2 to 4 put an xid in front of most messages and are another decoder, not an option of this one.
//!
//! Each message is validated completely when it is decoded (what the documentation calls
//! [logical replication message formats](https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html)),
//! tuples included, so reading a [`Tuple`] later cannot fail. Trailing bytes are an error: they would be a field that
//! this decoder does not know, and to skip it could lose data.
//!
//! **Names that are not UTF-8.** With `client_encoding` UTF8 the server converts names, but a SQL_ASCII database
//! converts nothing. An error would stop the whole hub for one name, and U+FFFD would make two tables one to every
//! filter; so each byte that is not UTF-8 reads as `\xHH` and different names stay different. Only then is a name
//! allocated. Values are not names: they stay bytes.

mod decode;
#[cfg(test)]
mod tests;
mod tuple;

use std::borrow::Cow;

pub use decode::{Columns, Oids, decode};
pub use tuple::Tuple;

use crate::{
    lsn::Lsn,
    model::{OldImage, ReplicaIdentity},
    reason::{Classified, Reason},
};

/// One message of protocol 1, borrowed from the receive buffer.
#[derive(Clone, Debug, PartialEq)]
pub enum Message<'a> {
    /// A committed transaction begins.
    Begin {
        /// Where its commit record starts; the same as `commit_lsn` of its [`Message::Commit`].
        final_lsn: Lsn,
        /// Microseconds since 2000-01-01 UTC.
        commit_time: i64,
        /// Without epoch.
        xid: u32,
    },
    /// The open transaction ends.
    Commit {
        /// None are defined; always 0 so far.
        flags: u8,
        /// Where the commit record starts.
        commit_lsn: Lsn,
        /// First byte behind the commit record: the resume point.
        end_lsn: Lsn,
        /// Microseconds since 2000-01-01 UTC.
        commit_time: i64,
    },
    /// Where the open transaction was first committed; follows `Begin`.
    Origin {
        /// Commit LSN on the origin.
        lsn: Lsn,
        /// Name of the replication origin.
        name: Cow<'a, str>,
    },
    /// The shape of a table from here on. Sent before its first change on a connection and again after every
    /// invalidation, whether or not anything differs.
    Relation(RelationMessage<'a>),
    /// The name of a type that is not built in; precedes the `Relation` that uses it.
    Type {
        /// `pg_type.oid`.
        oid: u32,
        /// Schema; the empty one of the wire reads as `pg_catalog`.
        namespace: Cow<'a, str>,
        /// Name, unquoted.
        name: Cow<'a, str>,
    },
    /// A row was inserted.
    Insert {
        /// `pg_class.oid`.
        oid: u32,
        /// The row.
        new: Tuple<'a>,
    },
    /// A row was updated.
    Update {
        /// `pg_class.oid`.
        oid: u32,
        /// Present with REPLICA IDENTITY FULL, or when a column of the identity changed.
        old: Option<(OldImage, Tuple<'a>)>,
        /// The row.
        new: Tuple<'a>,
    },
    /// A row was deleted.
    Delete {
        /// `pg_class.oid`.
        oid: u32,
        /// What `old` holds.
        old_image: OldImage,
        /// The row as it was, or its key.
        old: Tuple<'a>,
    },
    /// Tables were emptied by one statement.
    Truncate {
        /// `pg_class.oid` of each.
        oids: Oids<'a>,
        /// TRUNCATE ... CASCADE.
        cascade: bool,
        /// TRUNCATE ... RESTART IDENTITY.
        restart_identity: bool,
    },
    /// `pg_logical_emit_message`.
    Message {
        /// Whether it belongs to the open transaction; otherwise it stands between transactions.
        transactional: bool,
        /// End of its WAL record.
        lsn: Lsn,
        /// Chosen by its sender.
        prefix: Cow<'a, str>,
        /// Any bytes.
        content: &'a [u8],
    },
}

/// A table as the server describes it.
#[derive(Clone, Debug, PartialEq)]
pub struct RelationMessage<'a> {
    /// `pg_class.oid`.
    pub oid: u32,
    /// Schema; the empty one of the wire reads as `pg_catalog`.
    pub namespace: Cow<'a, str>,
    /// Name, unquoted.
    pub name: Cow<'a, str>,
    /// What old images will hold.
    pub replica_identity: ReplicaIdentity,
    /// The published columns, in the order of the tuples.
    pub columns: Columns<'a>,
}

/// A column as the server describes it.
#[derive(Clone, Debug, PartialEq)]
pub struct ColumnMessage<'a> {
    /// Part of the replica identity; with REPLICA IDENTITY FULL every column is.
    pub in_identity: bool,
    /// Name, unquoted.
    pub name: Cow<'a, str>,
    /// `pg_type.oid`.
    pub type_oid: u32,
    /// `pg_attribute.atttypmod`, -1 for none.
    pub modifier: i32,
}

/// The bytes are not a message of protocol 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("pgoutput: {kind} at byte {offset}")]
pub struct Error {
    /// Where in the message, in bytes from its tag at 0.
    pub offset: usize,
    /// What is wrong there.
    pub kind: ErrorKind,
}

/// What can be wrong with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ErrorKind {
    /// The message ends inside a field.
    #[error("{missing} bytes are missing")]
    Truncated {
        /// At least this many.
        missing: usize,
    },
    /// Bytes behind the last field.
    #[error("{0} trailing bytes")]
    Trailing(usize),
    /// No message of protocol 1 begins with this tag.
    #[error("unknown message tag {0:#04x}")]
    UnknownMessage(u8),
    /// Neither `N`, nor an old image where one may stand.
    #[error("unexpected tuple tag {0:#04x}")]
    UnexpectedTuple(u8),
    /// Not `n`, `u`, `t` or `b`.
    #[error("unknown column kind {0:#04x}")]
    UnknownColumnKind(u8),
    /// Not `d`, `f`, `i` or `n`.
    #[error("unknown replica identity {0:#04x}")]
    UnknownReplicaIdentity(u8),
    /// Flags of which this decoder does not know the meaning.
    #[error("unknown flags {0:#04x}")]
    UnknownFlags(u8),
    /// A length or a count below zero.
    #[error("negative length {0}")]
    NegativeLength(i32),
    /// No NUL behind a name.
    #[error("unterminated string")]
    UnterminatedString,
}

impl Classified for Error {
    fn reason(&self) -> Reason {
        Reason::DecodeError
    }
}
