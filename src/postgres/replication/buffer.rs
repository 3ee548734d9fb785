//! The read buffer: one allocation that frames are parsed in, moved and grown only when a frame does not fit.

use crate::postgres::error::{Error, Result};

/// Usual size. A read takes what the socket has, and sockets hold a few hundred KiB.
const USUAL: usize = 256 * 1024;
/// A read should have this much room, or what is left over is moved to the front first.
const ROOM: usize = 64 * 1024;
/// PostgreSQL builds a message in a buffer of at most 1 GiB.
const LARGEST: usize = (1 << 30) + 1024;

/// Bytes received and not consumed are `bytes[start..end]`.
pub(super) struct Buffer {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl Buffer {
    pub(super) fn new() -> Self {
        Buffer { bytes: vec![0; USUAL], start: 0, end: 0 }
    }

    /// Length of the frame at the front, tag and length word included; `None` while that is not known.
    fn frame_length(&self) -> Result<Option<usize>> {
        let Some(&[_, a, b, c, d]) = self.bytes[self.start..self.end].first_chunk::<5>() else { return Ok(None) };
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        match length {
            4..=LARGEST => Ok(Some(length + 1)),
            _ => Err(Error::Protocol(format!("a message of {length} bytes"))),
        }
    }

    /// Whether [`next`](Self::next) has something to give.
    pub(super) fn has_frame(&self) -> Result<bool> {
        Ok(self.frame_length()?.is_some_and(|length| self.end - self.start >= length))
    }

    /// The tag of the frame at the front, whether it is complete or not.
    pub(super) fn tag(&self) -> Option<u8> {
        self.bytes[self.start..self.end].first().copied()
    }

    /// The same with the first byte of its body.
    pub(super) fn tag_and_kind(&self) -> Option<(u8, u8)> {
        let front = self.bytes[self.start..self.end].first_chunk::<6>()?;
        Some((front[0], front[5]))
    }

    /// Consumes the frame at the front, if it is complete: its tag and body.
    pub(super) fn next(&mut self) -> Result<Option<(u8, &[u8])>> {
        let Some(length) = self.frame_length()? else { return Ok(None) };
        if self.end - self.start < length {
            return Ok(None);
        }
        let at = self.start;
        self.start += length;
        Ok(Some((self.bytes[at], &self.bytes[at + 5..at + length])))
    }

    /// Room to read into, never empty while the frame at the front is incomplete.
    pub(super) fn room(&mut self) -> Result<&mut [u8]> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
            if self.bytes.len() > 4 * USUAL {
                self.bytes = vec![0; USUAL];
            }
        }
        let frame = self.frame_length()?.unwrap_or(0);
        if frame > self.bytes.len() {
            // A fresh zeroed allocation is mapped lazily: a length that never arrives costs no memory.
            let mut larger = vec![0; frame + ROOM];
            larger[..self.end - self.start].copy_from_slice(&self.bytes[self.start..self.end]);
            self.bytes = larger;
            (self.start, self.end) = (0, self.end - self.start);
        } else if self.start > 0 && (self.bytes.len() - self.end < ROOM || self.start + frame > self.bytes.len()) {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        Ok(&mut self.bytes[self.end..])
    }

    /// Tells that `n` bytes were read into [`room`](Self::room).
    pub(super) fn filled(&mut self, n: usize) {
        self.end = (self.end + n).min(self.bytes.len());
    }

    /// Bytes held.
    #[cfg(test)]
    pub(super) fn capacity(&self) -> usize {
        self.bytes.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(tag: u8, body: &[u8]) -> Vec<u8> {
        let mut bytes = vec![tag];
        bytes.extend((body.len() as u32 + 4).to_be_bytes());
        bytes.extend(body);
        bytes
    }

    /// Feeds `stream` in pieces of at most `piece` bytes and returns the bodies seen.
    fn run(stream: &[u8], piece: usize) -> (Vec<(u8, Vec<u8>)>, Buffer) {
        let (mut buffer, mut seen, mut rest) = (Buffer::new(), Vec::new(), stream);
        while !rest.is_empty() {
            let room = buffer.room().unwrap();
            assert!(!room.is_empty());
            let n = piece.min(room.len()).min(rest.len());
            room[..n].copy_from_slice(&rest[..n]);
            rest = &rest[n..];
            buffer.filled(n);
            while let Some((tag, body)) = buffer.next().unwrap() {
                seen.push((tag, body.to_vec()));
            }
        }
        (seen, buffer)
    }

    #[test]
    fn frames_come_out_whole_however_they_arrive() {
        let bodies: Vec<Vec<u8>> =
            [0, 1, 7, 100, 70_000, 3, 300_000, 5, 2_000_000, 9].iter().map(|n| vec![*n as u8; *n]).collect();
        let stream: Vec<u8> = bodies.iter().flat_map(|body| frame(b'd', body)).collect();
        for piece in [1, 3, 4096, 65_536, usize::MAX] {
            let (seen, _) = run(&stream, piece);
            assert!(seen.iter().map(|(_, body)| body).eq(&bodies), "pieces of {piece}");
        }
    }

    #[test]
    fn a_large_frame_does_not_keep_its_memory() {
        let (_, mut buffer) = run(&frame(b'd', &vec![1; 20 << 20]), 1 << 20);
        assert!(buffer.capacity() > 20 << 20);
        buffer.room().unwrap();
        assert_eq!(buffer.capacity(), USUAL);
    }

    #[test]
    fn impossible_lengths_are_errors() {
        for length in [0_u32, 3, u32::MAX, 1 << 31] {
            let mut buffer = Buffer::new();
            buffer.room().unwrap()[..5]
                .copy_from_slice(&[b'd'].into_iter().chain(length.to_be_bytes()).collect::<Vec<_>>());
            buffer.filled(5);
            assert!(buffer.next().is_err(), "{length}");
        }
    }
}
