//! `numeric` compared in its text form: exact at any length, without building a number. PostgreSQL holds up to
//! 131072 digits before the point, equals NaN to itself and sorts it above Infinity
//! ([numeric](https://www.postgresql.org/docs/current/datatype-numeric.html)).

use std::cmp::Ordering;

/// A number as a view of its digits: `0.d1d2d3... * 10^exponent`, where `d1` is not 0 and the digits are those of
/// `head` followed by those of `tail`. Zeros at the end count for nothing.
#[derive(Clone, Copy, Debug)]
pub(super) struct Decimal<'a> {
    kind: Kind,
    negative: bool,
    exponent: i64,
    head: &'a [u8],
    tail: &'a [u8],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Zero,
    Finite,
    Infinite,
    NaN,
}

impl<'a> Decimal<'a> {
    /// Reads `[-]digits[.digits][e[-]digits]`, `NaN`, `[-]Infinity`. `None` for anything else.
    pub fn read(text: &'a [u8]) -> Option<Decimal<'a>> {
        let (negative, digits) = match text.strip_prefix(b"-") {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let special = |kind, negative| Decimal { kind, negative, exponent: 0, head: &[], tail: &[] };
        match digits.first()? {
            b'0'..=b'9' | b'.' => {}
            _ if digits.eq_ignore_ascii_case(b"nan") && !negative => return Some(special(Kind::NaN, false)),
            _ if digits.eq_ignore_ascii_case(b"infinity") || digits.eq_ignore_ascii_case(b"inf") => {
                return Some(special(Kind::Infinite, negative));
            }
            _ => return None,
        }
        let whole = &digits[..run(digits)];
        let (fraction, rest) = match digits[whole.len()..].strip_prefix(b".") {
            Some(rest) => rest.split_at(run(rest)),
            None => (&[][..], &digits[whole.len()..]),
        };
        if whole.is_empty() && fraction.is_empty() {
            return None;
        }
        let shift = match rest {
            [] => 0,
            [b'e' | b'E', exponent @ ..] => std::str::from_utf8(exponent).ok()?.parse::<i32>().ok()?,
            _ => return None,
        };
        let head = &whole[zeros(whole)..];
        if !head.is_empty() {
            let exponent = head.len() as i64 + i64::from(shift);
            return Some(Decimal { kind: Kind::Finite, negative, exponent, head, tail: fraction });
        }
        let leading = zeros(fraction);
        if leading == fraction.len() {
            return Some(special(Kind::Zero, false));
        }
        let exponent = i64::from(shift) - leading as i64;
        Some(Decimal { kind: Kind::Finite, negative, exponent, head: &fraction[leading..], tail: &[] })
    }

    /// The order of `numeric`: total, NaN last.
    pub fn order(&self, other: &Decimal<'_>) -> Ordering {
        let magnitude = || self.exponent.cmp(&other.exponent).then_with(|| self.order_digits(other));
        if (self.kind, other.kind) == (Kind::Finite, Kind::Finite) && self.negative == other.negative {
            return if self.negative { magnitude().reverse() } else { magnitude() };
        }
        let rank = |decimal: &Decimal<'_>| match (decimal.kind, decimal.negative) {
            (Kind::Infinite, true) => -2,
            (Kind::Finite, true) => -1,
            (Kind::Zero, _) => 0,
            (Kind::Finite, false) => 1,
            (Kind::Infinite, false) => 2,
            (Kind::NaN, _) => 3,
        };
        rank(self).cmp(&rank(other))
    }

    fn order_digits(&self, other: &Decimal<'_>) -> Ordering {
        if self.head.len() == other.head.len() {
            return self.head.cmp(other.head).then_with(|| order_fractions(self.tail, other.tail));
        }
        let (left, right) = (self.significant(), other.significant());
        let mut right = right.chain(std::iter::repeat(b'0'));
        let mut count = 0;
        for digit in left {
            count += 1;
            match digit.cmp(&right.next().unwrap_or(b'0')) {
                Ordering::Equal => {}
                unequal => return unequal,
            }
        }
        if other.significant().skip(count).any(|digit| digit != b'0') { Ordering::Less } else { Ordering::Equal }
    }

    fn significant(&self) -> impl Iterator<Item = u8> {
        self.head.iter().chain(self.tail).copied()
    }

    /// For integers: the greatest integer not above this number and whether it is this number. Numbers beyond 18
    /// digits saturate far outside of `i64`. `None` for NaN; infinities saturate too.
    pub fn floor(&self) -> Option<(i128, bool)> {
        const BEYOND: i128 = 1 << 100;
        let magnitude = match self.kind {
            Kind::NaN => return None,
            Kind::Zero => return Some((0, true)),
            Kind::Finite if self.exponent <= 20 => {
                let digits = self.significant().chain(std::iter::repeat(b'0'));
                let whole = usize::try_from(self.exponent).unwrap_or(0);
                let value = digits.take(whole).fold(0, |value, digit| value * 10 + i128::from(digit - b'0'));
                let exact = !self.significant().skip(whole).any(|digit| digit != b'0');
                (value, exact)
            }
            Kind::Finite | Kind::Infinite => (BEYOND, true),
        };
        Some(match (self.negative, magnitude) {
            (false, found) => found,
            (true, (value, true)) => (-value, true),
            (true, (value, false)) => (-value - 1, false),
        })
    }

    /// As a literal, if it is short enough for PostgreSQL to take it whatever its sign and scale.
    pub fn to_text(self) -> Option<String> {
        const DIGITS: i64 = 4000;
        let digits: String = self.significant().map(char::from).collect();
        let fits = |exponent: i64| exponent.abs() + digits.len() as i64 <= DIGITS;
        let sign = if self.negative { "-" } else { "" };
        match self.kind {
            Kind::Zero => Some("0".to_owned()),
            Kind::NaN => Some("NaN".to_owned()),
            Kind::Infinite => Some(format!("{sign}Infinity")),
            Kind::Finite => fits(self.exponent).then(|| format!("{sign}0.{digits}e{}", self.exponent)),
        }
    }

    /// Appends bytes that are equal exactly when the numbers are.
    pub fn write_key(&self, key: &mut impl Extend<u8>) {
        let kind = match self.kind {
            Kind::Zero => b'0',
            Kind::Finite => b'f',
            Kind::Infinite => b'i',
            Kind::NaN => b'n',
        };
        key.extend([kind, u8::from(self.negative)]);
        key.extend(self.exponent.to_be_bytes());
        let trailing = self.tail.iter().rev().take_while(|digit| **digit == b'0').count();
        let tail = &self.tail[..self.tail.len() - trailing];
        let head = match tail {
            [] => &self.head[..self.head.len() - self.head.iter().rev().take_while(|digit| **digit == b'0').count()],
            _ => self.head,
        };
        key.extend(head.iter().chain(tail).copied());
    }
}

/// A [`Decimal`] that owns its digits.
#[derive(Clone, Debug)]
pub(super) struct Owned {
    kind: Kind,
    negative: bool,
    exponent: i64,
    head: Box<[u8]>,
    tail: Box<[u8]>,
}

impl Owned {
    /// See [`Decimal::read`].
    pub fn read(text: &str) -> Option<Owned> {
        let Decimal { kind, negative, exponent, head, tail } = Decimal::read(text.as_bytes())?;
        Some(Owned { kind, negative, exponent, head: head.into(), tail: tail.into() })
    }

    pub fn view(&self) -> Decimal<'_> {
        let Owned { kind, negative, exponent, .. } = *self;
        Decimal { kind, negative, exponent, head: &self.head, tail: &self.tail }
    }
}

fn run(text: &[u8]) -> usize {
    text.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(text.len())
}

fn zeros(text: &[u8]) -> usize {
    text.iter().position(|byte| *byte != b'0').unwrap_or(text.len())
}

fn order_fractions(left: &[u8], right: &[u8]) -> Ordering {
    let common = left.len().min(right.len());
    let nonzero = |rest: &[u8]| zeros(rest) < rest.len();
    left[..common].cmp(&right[..common]).then_with(|| nonzero(&left[common..]).cmp(&nonzero(&right[common..])))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(left: &str, right: &str) -> Ordering {
        Decimal::read(left.as_bytes()).unwrap().order(&Decimal::read(right.as_bytes()).unwrap())
    }

    #[test]
    fn numbers_sort_as_numeric() {
        let ascending: &[&[&str]] = &[
            &["-Infinity", "-inf"],
            &["-1e200000"],
            &["-100.5", "-100.50", "-1.005e2"],
            &["-100"],
            &["-99.99"],
            &["-0.001"],
            &["0", "0.000", "-0", "0e9", "00"],
            &["1e-30", "0.000000000000000000000000000001"],
            &["0.1", ".1", "00.10"],
            &["0.12"],
            &["1", "1.0", "10e-1", "1."],
            &["9.99"],
            &["10", "1e1", "10.000"],
            &["123456789012345678901234567890.1"],
            &["123456789012345678901234567890.12", "1.2345678901234567890123456789012e29"],
            &["1e200000"],
            &["Infinity", "infinity"],
            &["NaN", "nan"],
        ];
        for (i, left) in ascending.iter().enumerate() {
            for (j, right) in ascending.iter().enumerate() {
                for (left, right) in left.iter().flat_map(|l| right.iter().map(move |r| (l, r))) {
                    assert_eq!(order(left, right), i.cmp(&j), "{left} {right}");
                    let key = |text: &str| {
                        let mut key = Vec::new();
                        Decimal::read(text.as_bytes()).unwrap().write_key(&mut key);
                        key
                    };
                    assert_eq!(key(left) == key(right), i == j, "keys of {left} {right}");
                }
            }
        }
    }

    #[test]
    fn what_is_no_number_is_refused() {
        for bad in ["", "-", ".", "1e", "1.2.3", "0x1", "1 ", "-nan", "--1", "e1", "+1"] {
            assert!(Decimal::read(bad.as_bytes()).is_none(), "{bad:?}");
        }
    }

    #[test]
    fn floors() {
        let floor = |text: &str| Decimal::read(text.as_bytes()).unwrap().floor();
        assert_eq!(floor("1.5"), Some((1, false)));
        assert_eq!(floor("-1.5"), Some((-2, false)));
        assert_eq!(floor("-0.5"), Some((-1, false)));
        assert_eq!(floor("15e-1"), Some((1, false)));
        assert_eq!(floor("1.50e2"), Some((150, true)));
        assert_eq!(floor("9223372036854775808"), Some((1 << 63, true)));
        assert_eq!(floor("NaN"), None);
        assert!(floor("1e21").unwrap().0 > i128::from(i64::MAX));
        assert!(floor("-1e5000").unwrap().0 < i128::from(i64::MIN));
    }
}
