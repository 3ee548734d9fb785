//! What one selection sees of one block: a pure function of both, so that it is computed once and shared by every stream
//! that asked for the same.
//!
//! A transaction that lies in the block as a whole is written with its `begin` and `commit`, if something between them
//! was selected. Of a transaction that the block continues (the [`Head`]) a projection cannot know whether its `begin` was
//! sent or how many changes came before: there the streams write `begin` and `commit` themselves, around shared bytes.
//!
//! [`project`](super::projector::project) computes it.

use std::sync::Arc;

use bytes::Bytes;

use super::{Error, group::Plan};
use crate::{
    feed::Frame,
    lsn::Lsn,
    model::{Position, RelationId},
    reason::{Classified, Reason},
    wire::block::{Index, Span, SpanEnd},
};

/// A run of framed events as one gRPC message.
#[derive(Clone, Debug, Default)]
pub(super) struct Part {
    /// Prefix and events; empty when there are none.
    pub message: Frame,
    /// Events in it.
    pub events: u32,
    /// Events in it that use credit.
    pub counted: u64,
}

/// What was selected of the transaction that the block continues.
#[derive(Clone, Debug)]
pub(super) struct Head {
    /// Without `begin`, `commit` and `discard`.
    pub part: Part,
    /// How the transaction ends in this block.
    pub ending: SpanEnd,
    /// The framed `discard`, where that is how it ends.
    pub discard: Bytes,
}

/// What was selected of the transaction that begins in the block and goes on in the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tail {
    /// Whether its `begin` is in the projection.
    pub begun: bool,
    /// Its events so far.
    pub counted: u64,
}

/// What one selection sees of one block.
#[derive(Debug)]
pub(super) struct Projection {
    /// The block's number.
    pub block: u64,
    /// The block's own bytes are to be sent: `body.message` stands for them and is empty, `head` only counts.
    pub untouched: bool,
    /// Present if the block begins inside a transaction.
    pub head: Option<Head>,
    /// Everything behind the head; of an untouched block everything.
    pub body: Part,
    /// Present if the block ends inside a transaction that begins in it.
    pub tail: Option<Tail>,
    /// Relation versions in order of their first use.
    pub relations: Vec<RelationId>,
    /// The filter cannot be applied to the rest of the block.
    pub failed: Option<Failed>,
}

/// Where a filter stops being applicable. Everything before is in the projection, nothing behind is.
#[derive(Clone, Debug)]
pub(super) struct Failed {
    pub error: Error,
    /// The last resume point before it.
    pub up_to: Position,
}

impl Projection {
    /// Bytes of memory that it holds on to.
    pub fn footprint(&self) -> usize {
        let head = self.head.as_ref().map_or(0, |head| head.part.message.len() + head.discard.len());
        size_of::<Self>() + self.body.message.len() + head + self.relations.len() * size_of::<RelationId>()
    }
}

impl Failed {
    /// Filters fail somewhere; everything else fails the whole block.
    pub fn at(up_to: Position, error: Error) -> Result<Self, Error> {
        if error.reason() == Reason::FilterInvalid { Ok(Failed { error, up_to }) } else { Err(error) }
    }
}

/// What one stream alone leaves out of a block. The default leaves out nothing and is what is shared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Cut {
    /// Transactions and messages up to and including this resume point.
    pub after: Option<Position>,
    /// Transactions and messages that end behind this, unless they do at the end of a record there.
    pub up_to: Option<Lsn>,
    /// What belongs to the transaction that the block continues.
    pub head: bool,
    /// The transaction that begins in the block and goes on in the next one.
    pub tail: bool,
    /// The block's own bytes must not be used.
    pub rewrite: bool,
}

/// Where plans come from.
pub(super) trait Plans {
    fn plan(&self, id: RelationId) -> Result<Arc<Plan>, Error>;
}

/// The block's first span, if it continues a transaction.
pub(super) fn head_of(index: &Index) -> Option<&Span> {
    let first = index.spans.first()?;
    let continued = first.begin_len == 0 && !matches!(first.ending, SpanEnd::Message { .. });
    continued.then_some(first)
}
