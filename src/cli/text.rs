//! Text for terminals: widths, shortening, tables, times. Pure.

use jiff::{Timestamp, tz::TimeZone};
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// A protobuf timestamp; `None` outside of what a calendar holds.
pub fn timestamp(time: &prost_types::Timestamp) -> Option<Timestamp> {
    Timestamp::new(time.seconds, time.nanos).ok()
}

/// Time of day with milliseconds; with the date when it is another day than `now`'s.
pub fn clock(time: Timestamp, now: Timestamp, zone: &TimeZone) -> String {
    let (time, now) = (time.to_zoned(zone.clone()), now.to_zoned(zone.clone()));
    let format = if time.date() == now.date() { "%H:%M:%S%.3f" } else { "%Y-%m-%d %H:%M:%S%.3f" };
    time.strftime(format).to_string()
}

/// Cells that the text takes on a terminal.
pub fn width(text: &str) -> usize {
    text.width()
}

/// The text in at most `max` cells, with `…` at the end of what was cut.
pub fn shorten(text: &str, max: usize) -> String {
    if text.width() <= max {
        return text.to_owned();
    }
    let mut left = max.saturating_sub(1);
    let mut short = String::new();
    for c in text.chars() {
        let cells = c.width().unwrap_or(0);
        if cells > left {
            break;
        }
        left -= cells;
        short.push(c);
    }
    short.push('…');
    short
}

/// The text in one line, with nothing in it that a terminal would obey.
pub fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' => shown.push_str("\\n"),
            '\t' => shown.push_str("\\t"),
            c if c.is_control() => shown.extend(c.escape_unicode()),
            c => shown.push(c),
        }
    }
    shown
}

/// Whole numbers with thin groups: `1,234,567`.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1 change`, `2 changes`.
pub fn plural(number: u64, word: &str) -> String {
    format!("{} {word}{}", grouped(number), if number == 1 { "" } else { "s" })
}

/// Columns as wide as their widest cell, two spaces between, a line per row, headers first.
pub fn table(headers: &[&str], rows: &[Vec<String>]) -> String {
    let widths: Vec<usize> = headers
        .iter()
        .enumerate()
        .map(|(index, header)| {
            rows.iter()
                .filter_map(|row| row.get(index))
                .map(|cell| width(cell))
                .chain([width(header)])
                .max()
                .unwrap_or(0)
        })
        .collect();
    let mut text = String::new();
    let mut line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut out = String::new();
        for (cell, cells) in cells.zip(&widths) {
            out.push_str(cell);
            out.extend(std::iter::repeat_n(' ', cells + 2 - width(cell).min(*cells)));
        }
        text.push_str(out.trim_end());
        text.push('\n');
    };
    line(&mut headers.iter().copied());
    rows.iter().for_each(|row| line(&mut row.iter().map(String::as_str)));
    text
}

/// Names and values, the values aligned.
pub fn pairs(rows: &[(&str, String)]) -> String {
    let wide = rows.iter().map(|(name, _)| width(name)).max().unwrap_or(0);
    rows.iter().map(|(name, value)| format!("{name:<wide$}  {value}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shortening_counts_cells() {
        assert_eq!(shorten("abcdef", 6), "abcdef");
        assert_eq!(shorten("abcdef", 4), "abc…");
        assert_eq!(shorten("日本語", 5), "日本…");
        assert_eq!(shorten("abc", 0), "…");
    }

    #[test]
    fn nothing_steers_the_terminal() {
        assert_eq!(printable("a\nb\t\u{1b}[31m\u{7}"), "a\\nb\\t\\u{1b}[31m\\u{7}");
    }

    #[test]
    fn numbers_are_grouped() {
        assert_eq!([grouped(0), grouped(999), grouped(1000), grouped(1_234_567)], ["0", "999", "1,000", "1,234,567"]);
        assert_eq!((plural(1, "change"), plural(0, "change")), ("1 change".into(), "0 changes".into()));
    }

    #[test]
    fn tables_are_aligned() {
        let rows =
            vec![vec!["a".into(), "long cell".into(), "x".into()], vec!["日本".into(), String::new(), "y".into()]];
        assert_eq!(table(&["ID", "B", "C"], &rows), "ID    B          C\na     long cell  x\n日本             y\n");
    }

    #[test]
    fn the_date_is_shown_when_it_is_not_today() {
        let zone = TimeZone::UTC;
        let time: Timestamp = "2026-01-31T12:00:00.5Z".parse().expect("a time");
        let later: Timestamp = "2026-02-01T00:00:00Z".parse().expect("a time");
        assert_eq!(clock(time, time, &zone), "12:00:00.500");
        assert_eq!(clock(time, later, &zone), "2026-01-31 12:00:00.500");
    }
}
