//! Looks at events without decoding them: what it takes to count them, to check their order, and to reconnect.

use super::guarantees::Guarantees;

/// `Operation.OPERATION_READ`: rows of a snapshot, which come between transactions.
const READ: u64 = walcast::wire::pb::Operation::Read as u64;

/// What a subscriber has seen.
#[derive(Default)]
pub struct Events {
    /// Bytes of a message that is not complete yet.
    partial: Vec<u8>,
    pub changes: u64,
    pub transactions: u64,
    /// Over the first column of every new image, in order.
    pub hash: u64,
    /// Sum of the same, where there is no order.
    pub ids: i64,
    /// The last position, as it was sent.
    pub position: Vec<u8>,
    pub caught_up: bool,
    /// First two values of the last change, when they are integers.
    pub values: [i64; 2],
    /// Whether to fill [`Events::compressed`].
    pub compress: bool,
    /// Bytes of all messages so far, each compressed by itself with zstd at its default level, 5 bytes of framing included.
    pub compressed: u64,
    guarantees: Guarantees,
}

/// The hash of what should come.
pub fn hash(hash: u64, id: i64) -> u64 {
    (hash ^ id as u64).wrapping_mul(0x0000_0100_0000_01b3)
}

impl Events {
    /// Takes a piece of the gRPC stream; `each` is called behind every change.
    pub fn take(&mut self, mut data: &[u8], mut each: impl FnMut(&Events)) {
        if !self.partial.is_empty() {
            self.partial.extend_from_slice(data);
            let whole = std::mem::take(&mut self.partial);
            let used = self.messages(&whole, &mut each);
            self.partial = whole;
            self.partial.drain(..used);
            return;
        }
        let used = self.messages(data, &mut each);
        data = &data[used..];
        self.partial.extend_from_slice(data);
    }

    fn messages(&mut self, data: &[u8], each: &mut impl FnMut(&Events)) -> usize {
        let mut used = 0;
        while let Some((head, rest)) = data[used..].split_first_chunk::<5>() {
            let len = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
            let Some(mut message) = rest.get(..len) else { break };
            if self.compress {
                self.compressed += 5 + zstd::bulk::compress(message, 0).expect("zstd").len() as u64;
            }
            while !message.is_empty() {
                let (_, event) = field(&mut message);
                self.event(event, each);
            }
            used += 5 + len;
        }
        used
    }

    fn event(&mut self, mut event: &[u8], each: &mut impl FnMut(&Events)) {
        let (kind, mut event) = field(&mut event);
        match kind {
            1 => self.guarantees.begin(),
            3 => {
                self.changes += 1;
                let (mut operation, mut ordinal) = (0, 0);
                while !event.is_empty() {
                    match scalar_or_field(&mut event) {
                        (1, value, _) => operation = value,
                        (3, value, _) => ordinal = value,
                        (5, _, mut row) => {
                            self.values = [value(&mut row), value(&mut row)];
                            self.hash = hash(self.hash, self.values[0]);
                            self.ids = self.ids.wrapping_add(self.values[0]);
                            break;
                        }
                        _ => {}
                    }
                }
                if operation != READ {
                    self.guarantees.event(ordinal);
                }
                each(self);
            }
            4 => self.guarantees.event(scalar(event, 4)),
            // A message outside of transactions has a position of its own.
            5 if scalar(event, 3) > 0 => self.guarantees.event(scalar(event, 3)),
            6 => {
                self.transactions += 1;
                let (events, total) = (scalar(event, 2), scalar(event, 3));
                let position = field(&mut event).1;
                self.guarantees.commit(order(position), events, total);
                self.place(position);
            }
            7 => {
                while !event.is_empty() {
                    match field(&mut event) {
                        (1, position) => {
                            self.guarantees.progress(order(position));
                            self.place(position);
                        }
                        (3, _) => self.caught_up = true,
                        _ => {}
                    }
                }
            }
            8 => self.guarantees.discard(),
            10 | 11 => self.guarantees.switched(),
            _ => {}
        }
    }

    fn place(&mut self, position: &[u8]) {
        self.position.clear();
        self.position.extend_from_slice(position);
    }
}

/// Number and content of the next field; scalars have none.
fn field<'a>(bytes: &mut &'a [u8]) -> (u64, &'a [u8]) {
    let (number, _, content) = scalar_or_field(bytes);
    (number, content)
}

/// The same, and a scalar's value.
fn scalar_or_field<'a>(bytes: &mut &'a [u8]) -> (u64, u64, &'a [u8]) {
    let key = varint(bytes);
    let (value, len) = match key & 7 {
        0 => (varint(bytes), 0),
        1 => (0, 8),
        2 => (0, varint(bytes) as usize),
        other => panic!("wire type {other}"),
    };
    let (content, rest) = bytes.split_at(len);
    *bytes = rest;
    (key >> 3, value, content)
}

/// The scalar of this number; 0 if it is not there.
fn scalar(mut message: &[u8], number: u64) -> u64 {
    while !message.is_empty() {
        let (found, value, _) = scalar_or_field(&mut message);
        if found == number {
            return value;
        }
    }
    0
}

/// LSN and sequence of a position.
fn order(mut position: &[u8]) -> (u64, u64) {
    let sequence = scalar(position, 3);
    let (_, lsn) = field(&mut position);
    let lsn = std::str::from_utf8(lsn).ok().and_then(|lsn| lsn.parse::<walcast::lsn::Lsn>().ok());
    (lsn.expect("an LSN").0, sequence)
}

fn value(row: &mut &[u8]) -> i64 {
    if row.is_empty() {
        return 0;
    }
    let (_, mut value) = field(row);
    if varint(&mut value) != 3 << 3 {
        return 0;
    }
    let zigzag = varint(&mut value);
    (zigzag >> 1) as i64 ^ -((zigzag & 1) as i64)
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first().expect("a varint");
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return value;
        }
    }
    panic!("a varint is too long")
}
