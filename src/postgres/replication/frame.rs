//! What a walsender sends in COPY mode, parsed where it lies. Layouts:
//! [streaming replication protocol](https://www.postgresql.org/docs/current/protocol-replication.html).

use crate::{
    lsn::Lsn,
    postgres::error::{Error, Notice, Result},
};

/// One message of the stream, borrowed from the read buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// One pgoutput message.
    XLogData {
        /// WAL position of the message; `0/0` for Relation, and for Begin where Origin follows.
        wal_start: Lsn,
        /// The server's write position when it was sent; the same as `wal_start` in logical streams.
        wal_end: Lsn,
        /// The server's clock, microseconds since 2000-01-01 UTC.
        sent_at: i64,
        /// The pgoutput message.
        data: &'a [u8],
    },
    /// The server is alive, and everything before `wal_end` has been sent.
    Keepalive {
        /// Position that may be acknowledged once all frames before are durable.
        wal_end: Lsn,
        /// The server's clock, microseconds since 2000-01-01 UTC.
        sent_at: i64,
        /// The server wants a status update now, or it will end the connection.
        reply_requested: bool,
    },
    /// A warning. PostgreSQL 18 tells a missing publication this way (55000) and goes on without its changes.
    Notice(Notice),
    /// The server ends the stream, as it does when it shuts down. No further changes follow.
    CopyDone,
}

/// Parses the body of a CopyData message.
pub(super) fn copy_data(body: &[u8]) -> Result<Frame<'_>> {
    match body {
        [b'w', rest @ ..] if rest.len() >= 24 => Ok(Frame::XLogData {
            wal_start: Lsn(number(rest, 0)),
            wal_end: Lsn(number(rest, 8)),
            sent_at: number(rest, 16) as i64,
            data: &rest[24..],
        }),
        [b'k', rest @ ..] if rest.len() == 17 => Ok(Frame::Keepalive {
            wal_end: Lsn(number(rest, 0)),
            sent_at: number(rest, 8) as i64,
            reply_requested: rest[16] != 0,
        }),
        _ => Err(Error::Protocol(format!("a replication message of {} bytes that is neither w nor k", body.len()))),
    }
}

/// The big-endian number at `at`; the caller has checked the length.
fn number(bytes: &[u8], at: usize) -> u64 {
    bytes[at..].first_chunk().map_or(0, |chunk| u64::from_be_bytes(*chunk))
}

/// Parses the body of an ErrorResponse or NoticeResponse. Before the encoding is agreed upon the text may be in any;
/// what is not UTF-8 is replaced.
pub(in crate::postgres) fn notice(body: &[u8]) -> Notice {
    let mut notice = Notice::default();
    let mut translated = String::new();
    for field in body.split(|byte| *byte == 0) {
        let Some((kind, value)) = field.split_first() else { continue };
        let value = String::from_utf8_lossy(value).into_owned();
        match kind {
            b'V' => notice.severity = value,
            b'S' => translated = value,
            b'C' => notice.code = value,
            b'M' => notice.message = value,
            b'D' => notice.detail = Some(value),
            b'H' => notice.hint = Some(value),
            b'R' => notice.routine = value,
            _ => {}
        }
    }
    if notice.severity.is_empty() {
        notice.severity = translated;
    }
    notice
}

/// Appends a [standby status update](https://www.postgresql.org/docs/current/protocol-replication.html#PROTOCOL-REPLICATION-STANDBY-STATUS-UPDATE)
/// as a CopyData message. `clock` is in microseconds since 2000-01-01 UTC.
pub(super) fn status(out: &mut Vec<u8>, [written, flushed, applied]: [Lsn; 3], clock: i64, reply_requested: bool) {
    out.push(b'd');
    out.extend(38_u32.to_be_bytes());
    out.push(b'r');
    for lsn in [written, flushed, applied] {
        out.extend(lsn.0.to_be_bytes());
    }
    out.extend(clock.to_be_bytes());
    out.push(reply_requested.into());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copy_data_is_parsed_in_place() {
        let mut body = vec![b'w'];
        for n in [1_u64 << 32 | 2, 3, 4] {
            body.extend(n.to_be_bytes());
        }
        body.extend(b"data");
        let data = &b"data"[..];
        let expected = Frame::XLogData { wal_start: "1/2".parse().unwrap(), wal_end: Lsn(3), sent_at: 4, data };
        assert_eq!(copy_data(&body).unwrap(), expected);
        let mut body = vec![b'k'];
        body.extend(5_u64.to_be_bytes());
        body.extend((-6_i64).to_be_bytes());
        body.push(1);
        let expected = Frame::Keepalive { wal_end: Lsn(5), sent_at: -6, reply_requested: true };
        assert_eq!(copy_data(&body).unwrap(), expected);
        for bad in [&b""[..], b"w", b"k12345678", b"x"] {
            assert!(copy_data(bad).is_err());
        }
    }

    #[test]
    fn notices_prefer_the_untranslated_severity() {
        let body = b"SWARNUNG\0VWARNING\0C55000\0Mm\0Dd\0Hh\0Fx.c\0\0";
        let notice = notice(body);
        assert_eq!((notice.severity.as_str(), notice.code.as_str()), ("WARNING", "55000"));
        assert_eq!(
            (notice.message.as_str(), notice.detail.as_deref(), notice.hint.as_deref()),
            ("m", Some("d"), Some("h"))
        );
    }

    #[test]
    fn a_status_update_has_its_documented_length() {
        let mut out = Vec::new();
        status(&mut out, [Lsn(1), Lsn(2), Lsn(3)], 4, true);
        assert_eq!(out.len(), 1 + 38);
        assert_eq!((out[13], out[21], out[29], out[38]), (1, 2, 3, 1));
    }
}
