//! Row images: as they arrive ([`Datum`]) and as predicates and printers see them ([`Value`]).

/// One column of a tuple as pgoutput sends it, borrowed from the receive buffer
/// ([TupleData](https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Datum<'a> {
    /// SQL NULL. In a key image also: not part of the key.
    Null,
    /// A TOASTed value that the UPDATE did not touch and the server did not send.
    Unchanged,
    /// The type's text form; bytes, since SQL_ASCII databases may send anything.
    Text(&'a [u8]),
    /// The type's binary form; only when asked for.
    Binary(&'a [u8]),
}

/// Which old image a change carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OldImage {
    /// Only the replica identity's columns; the others are absent, not null.
    Key,
    /// Every column (REPLICA IDENTITY FULL).
    Full,
}

/// A typed column value borrowed from an encoded event.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    /// SQL NULL.
    Null,
    /// Unchanged TOASTed value, not sent.
    Unchanged,
    /// Not in the replica identity, or no such image at all.
    Absent,
    /// `bool`.
    Bool(bool),
    /// `int2`, `int4`, `int8`, `oid`.
    Int(i64),
    /// `float4` (widened), `float8`.
    Float(f64),
    /// `bytea`.
    Bytes(&'a [u8]),
    /// Every other type in PostgreSQL's text form.
    Text(&'a str),
    /// Text that is not UTF-8.
    RawText(&'a [u8]),
}

/// Read access to both images of a change by column number (from 0, of the relation version).
pub trait RowAccess {
    /// The old image's value; [`Value::Absent`] where there is none.
    fn before(&self, column: usize) -> Value<'_>;
    /// The new image's value; [`Value::Absent`] where there is none.
    fn after(&self, column: usize) -> Value<'_>;
}
