//! Dates, times and intervals as integers that sort like the values. The text is PostgreSQL's ISO output
//! ([date/time output](https://www.postgresql.org/docs/current/datatype-datetime.html)); years before 1 carry ` BC`
//! at the very end, behind the zone. Literals may also use `T`, `Z` and leave out what is zero.

/// Sorts after every other instant.
const INFINITY: i64 = i64::MAX;
const DAY: i64 = 86_400_000_000;

/// Days since 2000-01-01; `i64::MAX` and `i64::MIN` for the infinite ones, here and below.
pub fn date(text: &[u8]) -> Option<i64> {
    if let Some(infinite) = infinity(text) {
        return Some(infinite);
    }
    let mut reader = Reader(text);
    let date = reader.date()?;
    reader.end(date)
}

/// Microseconds since 2000-01-01; `None` where there is a zone.
pub fn timestamp(text: &[u8]) -> Option<i64> {
    match instant(text)? {
        (micros, None) => Some(micros),
        _ => None,
    }
}

/// Microseconds since 2000-01-01 UTC; without a zone the text is in UTC.
pub fn timestamptz(text: &[u8]) -> Option<i64> {
    match instant(text)? {
        (INFINITY, _) => Some(INFINITY),
        (i64::MIN, _) => Some(i64::MIN),
        (micros, zone) => micros.checked_sub(zone.unwrap_or(0) * 1_000_000),
    }
}

/// Microseconds since midnight, up to and including 24:00:00.
pub(super) fn time(text: &[u8]) -> Option<i64> {
    let mut reader = Reader(text);
    let micros = reader.time()?;
    reader.0.is_empty().then_some(micros)
}

/// `timetz` sorts by its instant and then from east to west.
pub(super) fn timetz(text: &[u8]) -> Option<i64> {
    const ZONES: i64 = 1 << 18;
    let mut reader = Reader(text);
    let micros = reader.time()?;
    let zone = reader.zone()?.unwrap_or(0);
    reader.0.is_empty().then_some((micros - zone * 1_000_000) * ZONES - zone)
}

/// Microseconds with months of 30 days and days of 24 hours, as `interval` compares.
pub(super) fn interval(text: &[u8]) -> Option<i128> {
    match infinity(text) {
        Some(INFINITY) => return Some(i128::MAX),
        Some(_) => return Some(i128::MIN),
        None => {}
    }
    let (mut months, mut days, mut micros) = (0_i64, 0_i64, 0_i64);
    let mut rest = text;
    while !rest.is_empty() {
        let word = next_word(&mut rest);
        let negative = word.starts_with(b"-");
        let signed = |magnitude: i64| if negative { -magnitude } else { magnitude };
        let mut reader = Reader(if negative || word.starts_with(b"+") { &word[1..] } else { word });
        let count = reader.number(1, 12)?;
        if reader.byte(b':').is_some() {
            let minutes = reader.two(59)?;
            let seconds = if reader.byte(b':').is_some() { reader.seconds()? } else { 0 };
            let span = count.checked_mul(3_600_000_000)?.checked_add(minutes * 60_000_000 + seconds)?;
            micros = micros.checked_add(signed(span))?;
        } else {
            let unit = next_word(&mut rest);
            let (sum, unit) = match unit.strip_suffix(b"s").unwrap_or(unit) {
                b"year" => (&mut months, 12),
                b"mon" | b"month" => (&mut months, 1),
                b"week" => (&mut days, 7),
                b"day" => (&mut days, 1),
                b"hour" => (&mut micros, 3_600_000_000),
                b"min" | b"minute" => (&mut micros, 60_000_000),
                b"sec" | b"second" => (&mut micros, 1_000_000),
                _ => return None,
            };
            *sum = sum.checked_add(signed(count).checked_mul(unit)?)?;
        }
        if !reader.0.is_empty() {
            return None;
        }
    }
    let days = i128::from(months) * 30 + i128::from(days);
    (!text.is_empty()).then_some(days * i128::from(DAY) + i128::from(micros))
}

/// Up to the next space, which is skipped.
fn next_word<'a>(rest: &mut &'a [u8]) -> &'a [u8] {
    let end = rest.iter().position(|byte| *byte == b' ').unwrap_or(rest.len());
    let (word, behind) = rest.split_at(end);
    *rest = behind.get(1..).unwrap_or_default();
    word
}

fn instant(text: &[u8]) -> Option<(i64, Option<i64>)> {
    if let Some(infinite) = infinity(text) {
        return Some((infinite, None));
    }
    let mut reader = Reader(text);
    if let Some((days, seconds)) = text.first_chunk().and_then(usual_head) {
        reader.0 = &text[19..];
        let micros = seconds * 1_000_000 + if reader.byte(b'.').is_some() { reader.fraction()? } else { 0 };
        let zone = if reader.0 == b"+00" { Some(0) } else { None };
        if zone.is_some() || reader.0.is_empty() {
            return Some((days * DAY + micros, zone));
        }
        reader.0 = text;
    }
    let date = reader.date()?;
    let (mut micros, mut zone) = (0, None);
    if reader.byte(b'T').is_some() || (reader.0.get(1).is_some_and(u8::is_ascii_digit) && reader.byte(b' ').is_some()) {
        micros = reader.time()?;
        zone = reader.zone()?;
    }
    Some((reader.end(date)?.checked_mul(DAY)?.checked_add(micros)?, zone))
}

/// Days since 2000-01-01 and seconds of `YYYY-MM-DD HH:MM:SS`, the head of nearly every timestamp. Leaves what is not
/// certainly right to the long way.
fn usual_head(head: &[u8; 19]) -> Option<(i64, i64)> {
    if [head[4], head[7], head[10], head[13], head[16]] != *b"-- ::" {
        return None;
    }
    let mut digits = true;
    let mut two = |at: usize| {
        let (tens, ones) = (head[at].wrapping_sub(b'0'), head[at + 1].wrapping_sub(b'0'));
        digits &= tens <= 9 && ones <= 9;
        i64::from(tens) * 10 + i64::from(ones)
    };
    let (century, year, month, day) = (two(0), two(2), two(5), two(8));
    let (hours, minutes, seconds) = (two(11), two(14), two(17));
    let sure = century > 0 && (1..=12).contains(&month) && (1..=28).contains(&day);
    (digits && sure && hours < 24 && minutes < 60 && seconds < 60)
        .then(|| (days(century * 100 + year, month, day), hours * 3600 + minutes * 60 + seconds))
}

fn infinity(text: &[u8]) -> Option<i64> {
    match text {
        b"infinity" => Some(INFINITY),
        b"-infinity" => Some(i64::MIN),
        _ => None,
    }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn byte(&mut self, byte: u8) -> Option<()> {
        self.0 = self.0.strip_prefix(&[byte])?;
        Some(())
    }

    fn number(&mut self, at_least: usize, at_most: usize) -> Option<i64> {
        let mut value = 0;
        let mut count = 0;
        while count < at_most {
            match self.0.get(count) {
                Some(digit @ b'0'..=b'9') => value = value * 10 + i64::from(digit - b'0'),
                _ => break,
            }
            count += 1;
        }
        self.0 = &self.0[count..];
        (count >= at_least).then_some(value)
    }

    fn two(&mut self, at_most: i64) -> Option<i64> {
        match self.0 {
            [tens @ b'0'..=b'9', ones @ b'0'..=b'9', rest @ ..] => {
                self.0 = rest;
                let value = i64::from(tens - b'0') * 10 + i64::from(ones - b'0');
                (value <= at_most).then_some(value)
            }
            _ => None,
        }
    }

    fn date(&mut self) -> Option<(i64, i64, i64)> {
        let year = self.number(4, 7)?;
        self.byte(b'-')?;
        let month = self.two(12)?;
        self.byte(b'-')?;
        let day = self.two(31)?;
        (year > 0 && month > 0 && day > 0).then_some((year, month, day))
    }

    /// The rest must be empty or ` BC`: days since 2000-01-01 of a date that exists.
    fn end(&self, (year, month, day): (i64, i64, i64)) -> Option<i64> {
        let year = match self.0 {
            b"" => year,
            b" BC" => 1 - year,
            _ => return None,
        };
        let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
        let last = match month {
            2 => 28 + i64::from(leap),
            4 | 6 | 9 | 11 => 30,
            _ => 31,
        };
        (day <= last).then(|| days(year, month, day))
    }

    fn time(&mut self) -> Option<i64> {
        let hours = self.two(24)?;
        self.byte(b':')?;
        let minutes = self.two(59)?;
        let seconds = if self.byte(b':').is_some() { self.seconds()? } else { 0 };
        let micros = hours * 3_600_000_000 + minutes * 60_000_000 + seconds;
        (micros <= DAY).then_some(micros)
    }

    /// `SS[.ffffff]` in microseconds; more than six digits would have to be rounded and are refused.
    fn seconds(&mut self) -> Option<i64> {
        let mut micros = self.two(59)? * 1_000_000;
        if self.byte(b'.').is_some() {
            micros += self.fraction()?;
        }
        Some(micros)
    }

    /// One to six digits behind the point.
    fn fraction(&mut self) -> Option<i64> {
        let before = self.0.len();
        let fraction = self.number(1, 6)?;
        Some(fraction * 10_i64.pow(6 - (before - self.0.len()) as u32))
    }

    /// `Z`, `+HH`, `+HH:MM`, `+HH:MM:SS` in seconds east of UTC; the outer `None` is a broken one.
    fn zone(&mut self) -> Option<Option<i64>> {
        if self.byte(b'Z').is_some() {
            return Some(Some(0));
        }
        let sign = match self.0.first() {
            Some(b'+') => 1,
            Some(b'-') => -1,
            _ => return Some(None),
        };
        self.0 = &self.0[1..];
        let mut seconds = self.two(15)? * 3600;
        if self.byte(b':').is_some() {
            seconds += self.two(59)? * 60;
            if self.byte(b':').is_some() {
                seconds += self.two(59)?;
            }
        }
        Some(Some(sign * seconds))
    }
}

/// The text of a date from the years 1 to 9999, or of an infinite one.
pub(super) fn date_text(days: i64) -> Option<String> {
    const DAYS: std::ops::Range<i64> = -730_119..2_921_940;
    match days {
        INFINITY => Some("infinity".to_owned()),
        i64::MIN => Some("-infinity".to_owned()),
        days if DAYS.contains(&days) => {
            let (year, month, day) = civil(days);
            Some(format!("{year:04}-{month:02}-{day:02}"))
        }
        _ => None,
    }
}

/// The text of a time of day.
pub(super) fn time_text(micros: i64) -> String {
    let seconds = micros / 1_000_000;
    format!("{:02}:{:02}:{:02}.{:06}", seconds / 3600, seconds / 60 % 60, seconds % 60, micros % 1_000_000)
}

/// The text of a timestamp from the years 1 to 9999 with this zone, or of an infinite one.
pub(super) fn timestamp_text(micros: i64, zone: &str) -> Option<String> {
    if micros == INFINITY || micros == i64::MIN {
        return date_text(micros);
    }
    let date = date_text(micros.div_euclid(DAY))?;
    Some(format!("{date} {}{zone}", time_text(micros.rem_euclid(DAY))))
}

/// The inverse of [`days`].
fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 730_425;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    (year, month, day_of_year - (153 * shifted + 2) / 5 + 1)
}

/// Days since 2000-01-01 in the proleptic Gregorian calendar, year 0 being 1 BC
/// ([days_from_civil](https://howardhinnant.github.io/date_algorithms.html)).
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * (month + if month > 2 { -3 } else { 9 }) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 730_425
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_count_from_2000() {
        for (text, days) in [
            ("2000-01-01", 0),
            ("1999-12-31", -1),
            ("2000-03-01", 60),
            ("1970-01-01", -10_957),
            ("0001-01-01", -730_119),
            ("0001-12-31 BC", -730_120),
            ("4714-11-24 BC", -2_451_545),
            ("5874897-12-31", 2_145_031_948),
        ] {
            assert_eq!(date(text.as_bytes()), Some(days), "{text}");
        }
        for bad in
            ["2000-1-1", "2001-02-29", "0000-01-01", "2000-13-01", "2000-01-32", "2000-01-01 00:00", "01/02/2000"]
        {
            assert_eq!(date(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn instants_do_not_depend_on_their_zone() {
        let utc = timestamptz(b"2026-01-01 00:00:00+00").unwrap();
        for same in ["2026-01-01", "2026-01-01T00:00:00Z", "2026-01-01 05:30:00+05:30", "2025-12-31 16:00-08"] {
            assert_eq!(timestamptz(same.as_bytes()), Some(utc), "{same}");
        }
        assert_eq!(timestamptz(b"2026-01-01 00:00:00.5+00"), Some(utc + 500_000));
        assert_eq!(timestamp(b"2026-01-01 00:00:00.000001"), Some(utc + 1));
        assert_eq!(timestamp(b"2026-01-01 00:00:00+00"), None);
        assert_eq!(timestamptz(b"-infinity"), Some(i64::MIN));
        assert!(
            timestamptz(b"0044-03-15 12:00:00+00 BC").unwrap() < timestamptz(b"0043-03-15 12:00:00+00 BC").unwrap()
        );
        for bad in [
            "2026-01-01 ",
            "2026-01-01 1:00",
            "2026-01-01 00:00:00.0000001",
            "2026-01-01 25:00",
            "now",
            "2026-01-01 00:00:60",
        ] {
            assert_eq!(timestamptz(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn the_short_way_and_the_long_way_agree() {
        for date in ["2026-01-01", "2000-02-28", "2000-02-29", "1900-12-31", "9999-06-15", "0100-03-01"] {
            for time in ["00:00:00", "23:59:59", "12:34:56.7", "12:34:56.789012"] {
                let short = format!("{date} {time}");
                let long = format!("{date}T{time}");
                assert_eq!(timestamp(short.as_bytes()), timestamp(long.as_bytes()), "{short}");
                assert!(timestamp(short.as_bytes()).is_some(), "{short}");
                let (short, long) = (format!("{short}+00"), format!("{short}+00:00"));
                assert_eq!(timestamptz(short.as_bytes()), timestamptz(long.as_bytes()), "{short}");
            }
        }
        for bad in
            ["2026-01-01 00:00:00.", "2026-01-01 00:00:00.+00", "2026-01-01 00:00:00.1234567", "2026-01-01 2x:00:00"]
        {
            assert_eq!(instant(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn texts_are_read_back() {
        for micros in [0, 1, -1, DAY - 1, -DAY, 200_000_000_000_000_123, -60_000_000_000_000_000, INFINITY, i64::MIN] {
            let text = timestamp_text(micros, "+00").unwrap();
            assert_eq!(timestamptz(text.as_bytes()), Some(micros), "{text}");
        }
        for days in (-730_119..2_921_940).step_by(97).chain([INFINITY, i64::MIN, -730_119, 2_921_939]) {
            let text = date_text(days).unwrap();
            assert_eq!(date(text.as_bytes()), Some(days), "{text}");
        }
        assert_eq!((date_text(-730_120), date_text(2_921_940)), (None, None));
        assert_eq!(date_text(-730_119).as_deref(), Some("0001-01-01"));
        assert_eq!(date_text(2_921_939).as_deref(), Some("9999-12-31"));
        assert_eq!(time_text(DAY), "24:00:00.000000");
    }

    #[test]
    fn times_and_intervals() {
        assert_eq!(time(b"24:00:00"), Some(DAY));
        assert_eq!(time(b"24:00:01"), None);
        assert_eq!(timetz(b"12:00:00+00"), timetz(b"12:00Z"));
        assert!(timetz(b"12:00:00+00") < timetz(b"13:00:00+00"));
        assert!(timetz(b"13:00:00+01") < timetz(b"12:00:00+00"), "equal instants sort from east to west");
        assert!(timetz(b"12:00:00-15:59:59").is_some());
        assert_eq!(interval(b"1 year 2 mons 3 days 04:05:06.7"), Some((423 * 24 * 3600 + 14706) * 1_000_000 + 700_000));
        assert_eq!(interval(b"1 day"), interval(b"24:00:00"));
        assert_eq!(interval(b"-1 days +02:00:00"), interval(b"-22:00:00"));
        assert_eq!(interval(b"1 mon"), interval(b"30 days"));
        for bad in ["", "1", "1 fortnight", "x", "1:2"] {
            assert_eq!(interval(bad.as_bytes()), None, "{bad}");
        }
    }
}
