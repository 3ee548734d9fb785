//! What a stream has to send of one block: shared messages wherever they fit, otherwise cut at event boundaries, because
//! the client cannot receive more at once or has not granted more.

use std::collections::VecDeque;

use prost::Message as _;

use super::{
    credit::Credits,
    frames::{self, Event, Kind, Message},
};
use crate::{
    feed::Frame,
    model::{Position, RelationId},
    wire::{pb, position_from_pb},
};

/// A message that is to be sent, whole or in pieces.
#[derive(Debug)]
pub(super) struct Item {
    pub message: Frame,
    pub events: u32,
    pub counted: u64,
    /// Whether a transaction is open towards the client after it; `None`: as before.
    pub begun: Option<bool>,
    /// The resume point that is reached after it, if any.
    pub reached: Option<Position>,
}

/// What to do next.
#[derive(Debug)]
pub(super) enum Next {
    Frame {
        frame: Frame,
        events: u32,
    },
    /// Nothing may be sent before the next grant.
    Starved,
    /// The next event, of this size, can never be sent.
    TooLarge(usize),
    Empty,
    /// The bytes are not framed events.
    Malformed,
}

/// The messages of one block, and whether a transaction is open towards the client.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    items: VecDeque<Item>,
    /// Payload bytes of the first item that have been sent.
    offset: usize,
    begun: bool,
    reached: Option<Position>,
}

impl Outbox {
    pub fn push(&mut self, item: Item) {
        if !item.message.is_empty() {
            self.items.push_back(item);
        }
    }

    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Whether `begin` has been sent and neither `commit` nor `discard`.
    pub fn begun(&self) -> bool {
        self.begun
    }

    /// The last resume point that was reached since the last call.
    pub fn take_reached(&mut self) -> Option<Position> {
        self.reached.take()
    }

    /// The next message of at most `limit` bytes within `credits`, which it uses up.
    pub fn next(&mut self, limit: usize, credits: Option<&mut Credits>) -> Next {
        let Some(item) = self.items.front() else { return Next::Empty };
        let len = frames::payload(&item.message).len();
        let covered = credits.as_ref().is_none_or(|credits| credits.covers(item.counted, len));
        if self.offset > 0 || len > limit || !covered {
            return self.cut(limit, credits);
        }
        let Some(item) = self.items.pop_front() else { return Next::Empty };
        if let Some(credits) = credits {
            credits.spend(item.counted, len);
        }
        self.begun = item.begun.unwrap_or(self.begun);
        self.reached = item.reached.or(self.reached);
        Next::Frame { frame: item.message, events: item.events }
    }

    fn cut(&mut self, limit: usize, mut credits: Option<&mut Credits>) -> Next {
        let Some(item) = self.items.front() else { return Next::Empty };
        let payload = frames::payload(&item.message);
        let mut message = Message::new();
        let mut events = 0;
        while let Some(event) = payload.get(self.offset..).and_then(frames::first) {
            let ends = matches!(event.kind, Kind::Commit | Kind::Discard);
            if !ends && credits.as_ref().is_some_and(|credits| !credits.positive()) {
                if message.is_empty() {
                    return Next::Starved;
                }
                break;
            }
            if event.kind.counts() && event.len > limit && message.is_empty() {
                return Next::TooLarge(event.len);
            }
            if message.len() + event.len > limit && !message.is_empty() {
                break;
            }
            message.0.extend_from_slice(&payload[self.offset..self.offset + event.len]);
            events += 1;
            if let Some(credits) = credits.as_deref_mut() {
                credits.spend(u64::from(event.kind.counts()), event.len);
            }
            self.offset += event.len;
            match event.kind {
                Kind::Begin => self.begun = true,
                Kind::Commit | Kind::Discard => self.begun = false,
                Kind::Change | Kind::Message | Kind::Other => {}
            }
            if !self.begun {
                self.reached = position(&event).or(self.reached);
            }
        }
        if events == 0 && self.offset < payload.len() {
            return Next::Malformed;
        }
        if self.offset >= payload.len() {
            self.begun = item.begun.unwrap_or(self.begun);
            self.reached = item.reached.or(self.reached);
            self.items.pop_front();
            self.offset = 0;
        }
        match events {
            0 => Next::Empty,
            _ => Next::Frame { frame: message.finish(), events },
        }
    }

    /// The table and ordinal of the next event, if it is a change: what names the row.
    pub fn subject(&self) -> Option<Subject> {
        let payload = frames::payload(&self.items.front()?.message);
        let event = payload.get(self.offset..).and_then(frames::first)?;
        match event.kind {
            Kind::Change => {
                let change = pb::Change::decode(event.body).ok()?;
                Some(Subject { relation: RelationId(change.relation_id), ordinal: change.ordinal })
            }
            _ => None,
        }
    }

    /// How the transaction of the next event ends: at a resume point (of a message outside transactions its own), or
    /// never.
    pub fn end(&self) -> End {
        let mut offset = self.offset;
        for item in &self.items {
            let payload = frames::payload(&item.message);
            while let Some(event) = payload.get(offset..).and_then(frames::first) {
                match event.kind {
                    Kind::Discard => return End::Discarded,
                    Kind::Commit => return position(&event).map_or(End::Later, End::At),
                    Kind::Message if !self.begun => return position(&event).map_or(End::Later, End::At),
                    _ => offset += event.len,
                }
            }
            offset = 0;
        }
        End::Later
    }

    /// Leaves out the next event, which belongs to a transaction that never happened.
    pub fn leave_out(&mut self) {
        if let Some(item) = self.items.front() {
            let payload = frames::payload(&item.message);
            self.offset += payload.get(self.offset..).and_then(frames::first).map_or(0, |event| event.len);
        }
    }
}

/// Which change it is in its transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Subject {
    pub relation: RelationId,
    pub ordinal: u64,
}

/// How a transaction ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    At(Position),
    Discarded,
    /// In a later block.
    Later,
}

/// The resume point in a `commit` or in a message outside transactions.
fn position(event: &Event<'_>) -> Option<Position> {
    let position = match event.kind {
        Kind::Commit => pb::Commit::decode(event.body).ok()?.position?,
        Kind::Message => pb::LogicalMessage::decode(event.body).ok()?.position?,
        _ => return None,
    };
    position_from_pb(&position).ok()
}
