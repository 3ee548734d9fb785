//! Framed events and the gRPC messages made of them. Framed events describe themselves, so a message can be cut between
//! any two of them without an index.

use bytes::{BufMut, Bytes, BytesMut};

use crate::{feed::Frame, wire::block::MESSAGE_PREFIX};

/// What an event is, as far as sessions care.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Begin,
    /// A change or a truncate.
    Change,
    Message,
    Commit,
    Discard,
    /// Everything that is free and says nothing about transactions.
    Other,
}

impl Kind {
    /// Whether it uses event credit.
    pub fn counts(self) -> bool {
        matches!(self, Kind::Change | Kind::Message)
    }
}

/// The first event of a payload.
#[derive(Clone, Copy, Debug)]
pub(super) struct Event<'a> {
    pub kind: Kind,
    /// Of the framed event.
    pub len: usize,
    /// The message inside `Event.kind`.
    pub body: &'a [u8],
}

/// Reads the event at the beginning of `payload`; `None` if it does not start with a framed event.
pub(super) fn first(payload: &[u8]) -> Option<Event<'_>> {
    let (&tag, mut rest) = payload.split_first()?;
    let event_len = varint(&mut rest)?;
    let event = rest.get(..event_len)?;
    let len = payload.len() - rest.len() + event_len;
    let (&kind, mut body) = event.split_first()?;
    let body_len = varint(&mut body)?;
    let kind = match kind {
        0x0a => Kind::Begin,
        0x1a | 0x22 => Kind::Change,
        0x2a => Kind::Message,
        0x32 => Kind::Commit,
        0x42 => Kind::Discard,
        _ => Kind::Other,
    };
    (tag == 0x0a).then_some(Event { kind, len, body: body.get(..body_len)? })
}

/// `LogicalMessage.prefix`: its first field, which is left out when empty.
pub(super) fn message_prefix(body: &[u8]) -> Option<&str> {
    match body.split_first() {
        Some((0x0a, mut rest)) => {
            let len = varint(&mut rest)?;
            std::str::from_utf8(rest.get(..len)?).ok()
        }
        _ => Some(""),
    }
}

fn varint(bytes: &mut &[u8]) -> Option<usize> {
    usize::try_from(prost::encoding::decode_varint(bytes).ok()?).ok()
}

/// A gRPC message that is being filled with framed events.
#[derive(Debug)]
pub(super) struct Message(pub BytesMut);

impl Message {
    pub fn new() -> Self {
        let mut buffer = BytesMut::with_capacity(256);
        buffer.put_bytes(0, MESSAGE_PREFIX);
        Message(buffer)
    }

    pub fn is_empty(&self) -> bool {
        self.0.len() == MESSAGE_PREFIX
    }

    /// Bytes of payload so far.
    pub fn len(&self) -> usize {
        self.0.len() - MESSAGE_PREFIX
    }

    /// The finished message in a buffer of its own size, for those who keep it; empty bytes if nothing was added.
    pub fn finish_exact(self) -> Frame {
        let spare = self.0.capacity() - self.0.len();
        let frame = self.finish();
        if spare > frame.len() / 8 { Bytes::copy_from_slice(&frame) } else { frame }
    }

    /// The finished message; empty bytes if nothing was added.
    pub fn finish(mut self) -> Frame {
        if self.is_empty() {
            return Bytes::new();
        }
        let len = self.len() as u32;
        self.0[1..MESSAGE_PREFIX].copy_from_slice(&len.to_be_bytes());
        self.0.freeze()
    }
}

/// The payload of a finished message.
pub(super) fn payload(frame: &[u8]) -> &[u8] {
    frame.get(MESSAGE_PREFIX..).unwrap_or_default()
}
