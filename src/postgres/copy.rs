//! [`COPY … TO STDOUT`](https://www.postgresql.org/docs/current/sql-copy.html) in text format, and a session whose values
//! print like those of the replication stream. The text format is what pgoutput sends too, plus escapes, so that a row
//! without a backslash is taken apart without a copy.

use std::{pin::Pin, task::Poll};

use bytes::Bytes;
use futures_util::Stream;
use tokio_postgres::CopyOutStream;

use super::{
    conninfo::ConnectOptions,
    error::{Error, Result},
    replication::{PINNED, literal},
    sql::{Sql, get},
};
use crate::model::Datum;

/// Beside those that decide the text form of values. Nobody but the server ends the transaction of a client whose host has gone, and
/// by itself it notices after [two hours](https://man7.org/linux/man-pages/man7/tcp.7.html). Not `tcp_user_timeout`: that ends
/// sessions whose client only waits with reading. Where a server cannot watch its connections while a query runs, it refuses
/// [`client_connection_check_interval`](https://www.postgresql.org/docs/current/runtime-config-connection.html).
pub(super) const SETTINGS: &str =
    "DO $$ BEGIN SET client_connection_check_interval = '5s'; EXCEPTION WHEN OTHERS THEN NULL; END $$;
     SET tcp_keepalives_idle = 30; SET tcp_keepalives_interval = 10; SET tcp_keepalives_count = 3;
     SET row_security = off; SET statement_timeout = 0; SET idle_in_transaction_session_timeout = 0;
     SET lock_timeout = '5s'; SET synchronize_seqscans = off; SET standard_conforming_strings = on; SET jit = off;";

/// Connects, and pins every setting that decides the text form of values, as the replication connection does. Row
/// security is an error instead of a silent filter, and no timeout of the role's ends a long read.
pub async fn connect(options: &ConnectOptions) -> Result<Sql> {
    let sql = Sql::connect(options).await?;
    let row = sql.one("SELECT pg_catalog.current_setting('server_encoding')", &[]).await?;
    let without_encoding = get::<&str>(&row, 0)? == "SQL_ASCII";
    let pinned = PINNED.iter().filter(|(name, _)| *name != "client_encoding" || !without_encoding);
    let mut settings: String = pinned.map(|(name, value)| format!("SET {name} = {};", literal(value))).collect();
    if without_encoding {
        settings.push_str("SET client_encoding = 'SQL_ASCII';");
    }
    settings.push_str(SETTINGS);
    sql.batch(&settings).await?;
    Ok(sql)
}

/// The rows of one COPY.
pub struct CopyRows(Pin<Box<CopyOutStream>>);

impl CopyRows {
    /// Runs `COPY (query) TO STDOUT`.
    pub async fn start(sql: &Sql, query: &str) -> Result<CopyRows> {
        let stream = sql.client().copy_out(&format!("COPY ({query}) TO STDOUT")).await?;
        Ok(CopyRows(Box::pin(stream)))
    }

    /// The next row with its newline; the server sends
    /// [one per message](https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-COPY).
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        std::future::poll_fn(|context| match self.0.as_mut().poll_next(context) {
            Poll::Ready(Some(Ok(row))) => Poll::Ready(Ok(Some(row))),
            Poll::Ready(Some(Err(error))) => Poll::Ready(Err(error.into())),
            Poll::Ready(None) => Poll::Ready(Ok(None)),
            Poll::Pending => Poll::Pending,
        })
        .await
    }
}

/// Takes rows apart. Keeps its buffers from row to row.
#[derive(Debug, Default)]
pub struct RowReader {
    unescaped: Vec<u8>,
    fields: Vec<Option<(usize, usize)>>,
}

impl RowReader {
    /// The columns of one row of COPY's text format.
    pub fn read<'a>(&'a mut self, line: &'a [u8]) -> Result<impl Iterator<Item = Datum<'a>> + Clone + use<'a>> {
        self.fields.clear();
        let Some((b'\n', line)) = line.split_last() else {
            return Err(Error::Protocol("a row of COPY does not end with a newline".into()));
        };
        let bytes: &'a [u8] = if memchr::memchr(b'\\', line).is_none() {
            let mut start = 0;
            for end in memchr::memchr_iter(b'\t', line).chain([line.len()]) {
                self.fields.push(Some((start, end)));
                start = end + 1;
            }
            line
        } else {
            self.unescape(line)?;
            &self.unescaped
        };
        Ok(self.fields.iter().map(move |field| match field {
            Some((start, end)) => Datum::Text(&bytes[*start..*end]),
            None => Datum::Null,
        }))
    }

    fn unescape(&mut self, line: &[u8]) -> Result<()> {
        self.unescaped.clear();
        for field in line.split(|byte| *byte == b'\t') {
            if field == b"\\N" {
                self.fields.push(None);
                continue;
            }
            let start = self.unescaped.len();
            let mut rest = field;
            while let Some(at) = memchr::memchr(b'\\', rest) {
                self.unescaped.extend_from_slice(&rest[..at]);
                self.unescaped.push(match rest.get(at + 1) {
                    Some(b'b') => 0x08,
                    Some(b'f') => 0x0c,
                    Some(b'n') => b'\n',
                    Some(b'r') => b'\r',
                    Some(b't') => b'\t',
                    Some(b'v') => 0x0b,
                    Some(other) => *other,
                    None => return Err(Error::Protocol("a row of COPY ends in an escape".into())),
                });
                rest = &rest[at + 2..];
            }
            self.unescaped.extend_from_slice(rest);
            self.fields.push(Some((start, self.unescaped.len())));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(line: &[u8]) -> Vec<Option<Vec<u8>>> {
        let mut reader = RowReader::default();
        let row = reader.read(line).unwrap();
        row.map(|datum| match datum {
            Datum::Text(text) => Some(text.to_vec()),
            _ => None,
        })
        .collect()
    }

    #[test]
    fn rows_come_apart() {
        let text = |text: &str| Some(text.as_bytes().to_vec());
        assert_eq!(fields(b"1\tabc\t\n"), [text("1"), text("abc"), text("")]);
        assert_eq!(fields(b"\\N\t\\\\N\ta\\tb\\nc\\\\d\n"), [None, text("\\N"), text("a\tb\nc\\d")]);
        assert_eq!(fields(b"\\b\\f\\r\\v\n"), [Some(vec![8, 12, 13, 11])]);
        assert_eq!(fields(b"\\\\xdeadbeef\t\xff\n"), [text("\\xdeadbeef"), Some(vec![0xff])]);
    }

    #[test]
    fn what_is_not_a_row_is_an_error() {
        assert!(RowReader::default().read(b"1").map(drop).is_err());
        assert!(RowReader::default().read(b"1\\\n").map(drop).is_err());
    }
}
