//! Log sequence numbers: byte positions in PostgreSQL's write-ahead log.
//!
//! The text form is two hexadecimal halves, `X/Y`, as the server prints its type
//! [`pg_lsn`](https://www.postgresql.org/docs/current/datatype-pg-lsn.html).

use std::{fmt, str::FromStr};

/// A byte position in the write-ahead log. Positions of different timelines do not compare; see
/// [`Position`](crate::model::Position).
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

impl Lsn {
    /// `0/0`, which PostgreSQL uses for "none".
    pub const ZERO: Lsn = Lsn(0);

    /// Bytes from `earlier` to here; 0 when `earlier` lies ahead.
    pub fn since(self, earlier: Lsn) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 as u32)
    }
}

impl fmt::Debug for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not two hexadecimal numbers of at most 32 bits with a slash between them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an LSN: expected two hexadecimal numbers such as 0/16B3748")]
pub struct ParseLsnError(String);

impl FromStr for Lsn {
    type Err = ParseLsnError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let half = |part: &str| match part.len() {
            1..=8 if part.bytes().all(|b| b.is_ascii_hexdigit()) => u64::from_str_radix(part, 16).ok(),
            _ => None,
        };
        text.split_once('/')
            .and_then(|(high, low)| Some(Lsn(half(high)? << 32 | half(low)?)))
            .ok_or_else(|| ParseLsnError(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form_is_that_of_pg_lsn() {
        assert_eq!(Lsn(0x1_6B37_48FF).to_string(), "1/6B3748FF");
        assert_eq!("16/B374D848".parse(), Ok(Lsn(0x16_B374_D848)));
        assert_eq!("ffffffff/FFFFFFFF".parse(), Ok(Lsn(u64::MAX)));
    }

    #[test]
    fn what_pg_lsn_refuses_is_refused() {
        for bad in ["", "/", "0/", "/0", "0", "0/0/0", " 0/0", "0/+1", "100000000/0", "0/123456789", "0/G"] {
            assert!(bad.parse::<Lsn>().is_err(), "{bad:?}");
        }
    }
}
