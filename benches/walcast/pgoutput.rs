//! Arrivals at PostgreSQL's own client: pg_recvlogical writes every message as it comes, followed by a line feed.

use std::io::Read;

use super::proc::now_us;

/// Reads messages until so many inserts have come; microseconds from the second column, a number, to now.
pub fn latencies(pipe: impl Read, inserts: u64) -> Vec<u32> {
    let mut latencies = Vec::with_capacity(inserts as usize);
    follow(pipe, inserts, |sent| latencies.push((now_us() as i64 - sent).max(0) as u32));
    latencies
}

/// Reads messages until so many inserts have come, and hands on the second column of each, a number.
pub fn follow(mut pipe: impl Read, inserts: u64, mut arrived: impl FnMut(i64)) {
    let mut seen = 0;
    let (mut buffer, mut filled) = (vec![0; 1 << 20], 0);
    while seen < inserts {
        let n = pipe.read(&mut buffer[filled..]).expect("pg_recvlogical");
        assert!(n > 0, "pg_recvlogical ended");
        filled += n;
        let mut at = 0;
        while let Some((len, sent)) = message(&buffer[at..filled]) {
            if let Some(sent) = sent {
                arrived(sent);
                seen += 1;
            }
            at += len + 1;
        }
        buffer.copy_within(at..filled, 0);
        filled -= at;
    }
}

/// Length of the message at the front, and the second column if it is an insert; `None` while it is not complete.
fn message(bytes: &[u8]) -> Option<(usize, Option<i64>)> {
    let mut at = Cursor { bytes, at: 0 };
    let mut sent = None;
    match at.take(1)?[0] {
        b'B' => drop(at.take(20)?),
        b'C' => drop(at.take(25)?),
        b'R' => {
            at.take(4)?;
            at.text()?;
            at.text()?;
            at.take(1)?;
            for _ in 0..at.number(2)? {
                at.take(1)?;
                at.text()?;
                at.take(8)?;
            }
        }
        b'I' => {
            at.take(5)?;
            for column in 0..at.number(2)? {
                if at.take(1)?[0] == b't' {
                    let len = at.number(4)?;
                    let text = at.take(len)?;
                    if column == 1 {
                        sent = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok());
                    }
                }
            }
        }
        b'M' => {
            at.take(9)?;
            at.text()?;
            let len = at.number(4)?;
            at.take(len)?;
        }
        other => panic!("message {:?}", char::from(other)),
    }
    let len = at.at;
    at.take(1)?;
    Some((len, sent))
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let taken = self.bytes.get(self.at..self.at + len)?;
        self.at += len;
        Some(taken)
    }

    fn number(&mut self, len: usize) -> Option<usize> {
        Some(self.take(len)?.iter().fold(0, |number, byte| number << 8 | usize::from(*byte)))
    }

    fn text(&mut self) -> Option<()> {
        let len = self.bytes[self.at..].iter().position(|byte| *byte == 0)?;
        self.take(len + 1).map(drop)
    }
}
