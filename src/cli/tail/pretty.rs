//! Changes for people: a header per transaction, a line per change, and of an update only what changed. The text
//! carries ANSI styles; whoever prints it strips them where they do not belong.

use std::fmt::Write as _;

use anstyle::{AnsiColor, Style};
use jiff::{Timestamp, tz::TimeZone};

use super::{
    follow::{Item, RowChange},
    json::operation,
};
use crate::{
    cli::{
        rows::{RowView, table_name, to_text},
        text::{clock, plural, printable, shorten, timestamp, width},
    },
    config::units::show_duration,
    model::Value,
    wire::pb::{self, event::Kind},
};

const DIM: Style = Style::new().dimmed();
const BOLD: Style = Style::new().bold();
const NAME: Style = AnsiColor::Cyan.on_default();
const INSERT: Style = AnsiColor::Green.on_default().bold();
const UPDATE: Style = AnsiColor::Yellow.on_default().bold();
const DELETE: Style = AnsiColor::Red.on_default().bold();
const TRUNCATE: Style = AnsiColor::Magenta.on_default().bold();
const MESSAGE: Style = AnsiColor::Blue.on_default().bold();
const WARNING: Style = AnsiColor::Yellow.on_default();

/// Cells in front of a line that continues a change.
const INDENT: usize = 6;

/// What rendering depends on beside the event.
#[derive(Clone, Debug)]
pub struct View {
    /// Cells of a line; `None`: as many as it takes, nothing is shortened.
    pub width: Option<usize>,
    /// In which times are shown.
    pub zone: TimeZone,
    /// For the lag of a transaction.
    pub now: Timestamp,
}

/// Text and the cells that it takes.
struct Piece {
    styled: String,
    width: usize,
}

impl View {
    /// Appends the lines of an item; nothing for what people need not see.
    pub fn render(&self, out: &mut String, item: &Item<'_>) {
        match item {
            Item::Begin { begin, abandoned } => {
                if let Some(abandoned) = abandoned {
                    self.note(
                        out,
                        &format!("the transaction {} above did not complete: it does not count", abandoned.commit_lsn),
                    );
                }
                self.header(out, begin);
            }
            Item::Change(row) => self.change(out, row),
            Item::Truncate { tables, truncate, .. } => {
                let mut pieces = vec![plain("truncate"), styled(BOLD, &tables.join(", "))];
                pieces.extend(truncate.cascade.then(|| styled(DIM, "cascade")));
                pieces.extend(truncate.restart_identity.then(|| styled(DIM, "restart identity")));
                self.line(out, styled(TRUNCATE, "×"), pieces);
            }
            Item::Message { begin, message } => {
                if begin.is_none() {
                    let _ = writeln!(out, "{DIM}{}  message outside transactions{DIM:#}", message.lsn);
                }
                let content = String::from_utf8_lossy(&message.content);
                let pieces = vec![
                    plain("message"),
                    styled(BOLD, &printable(&message.prefix)),
                    plain(&self.cut(&printable(&content))),
                ];
                self.line(out, styled(MESSAGE, "»"), pieces);
            }
            Item::Discard { begin, reason } => {
                self.note(out, &format!("the transaction {} did not happen: {reason}", begin.commit_lsn));
            }
            Item::Other(kind) => self.other(out, kind),
            Item::Commit { .. } => {}
        }
    }

    fn header(&self, out: &mut String, begin: &pb::Begin) {
        let mut text = format!("{BOLD}{}{BOLD:#}{DIM}  xid {}", begin.commit_lsn, begin.xid);
        if let Some(time) = begin.commit_time.as_ref().and_then(timestamp) {
            let _ = write!(text, "  {}", clock(time, self.now, &self.zone));
            if let Ok(lag) = self.now.duration_since(time).try_into() {
                let _ = write!(text, "  lag {}", show_duration(lag));
            }
        }
        if !begin.origin.is_empty() {
            let _ = write!(text, "  origin {}", printable(&begin.origin));
        }
        if matches!(begin.provenance(), pb::Provenance::LogReplay | pb::Provenance::LogPoll) {
            text.push_str("  from log tables");
        }
        let _ = writeln!(out, "{text}{DIM:#}");
    }

    fn change(&self, out: &mut String, row: &RowChange<'_>) {
        let (before, after) = (row.before(), row.after());
        let operation_ = row.change.operation();
        let (style, symbol) = match operation_ {
            pb::Operation::Insert => (INSERT, "+"),
            pb::Operation::Update => (UPDATE, "~"),
            pb::Operation::Delete => (DELETE, "-"),
            pb::Operation::Read => (NAME, "="),
            _ => (WARNING, operation(operation_)),
        };
        let key = key_columns(row.relation);
        let mut pieces = vec![styled(BOLD, &printable(&table_name(row.relation)))];
        let shown = if let pb::Operation::Delete = operation_ { before } else { after };
        if let Some(view) = shown {
            let key: Vec<String> = view
                .iter()
                .enumerate()
                .filter(|(index, _)| key.contains(index))
                .map(|(_, (column, value))| format!("{} {}", printable(&column.name), self.value(column, value)))
                .collect();
            pieces.extend((!key.is_empty()).then(|| plain(&format!("({})", key.join(", ")))));
        }
        match row.change.transition() {
            pb::Transition::Enter => pieces.push(styled(DIM, "enters")),
            pb::Transition::Leave => pieces.push(styled(DIM, "leaves")),
            pb::Transition::Stay | pb::Transition::Unspecified => {}
        }
        match (operation_, before, after) {
            (pb::Operation::Update, Some(before), Some(after)) => pieces.extend(self.difference(&key, before, after)),
            (pb::Operation::Delete, Some(before), _) => pieces.extend(self.values(&key, before)),
            (_, _, Some(after)) => pieces.extend(self.values(&key, after)),
            _ => {}
        }
        self.line(out, styled(style, symbol), pieces);
    }

    /// Where the old value is known, only what differs, as `old → new`; the new value elsewhere.
    fn difference(&self, key: &[usize], before: RowView<'_>, after: RowView<'_>) -> Vec<Piece> {
        let mut pieces = Vec::new();
        for (index, (column, new)) in after.iter().enumerate() {
            let old = before.value(index);
            let is_shown = match (old, new) {
                (_, Value::Unchanged | Value::Absent) => false,
                (Value::Absent | Value::Unchanged, _) => !key.contains(&index),
                (old, new) => old != new,
            };
            if !is_shown {
                continue;
            }
            let name = printable(&column.name);
            let new = self.value(column, new);
            pieces.push(match old {
                Value::Absent | Value::Unchanged => named(&name, &new),
                old => {
                    let old = self.value(column, old);
                    Piece {
                        styled: format!("{NAME}{name}:{NAME:#} {DIM}{old} →{DIM:#} {BOLD}{new}{BOLD:#}"),
                        width: width(&name) + width(&old) + width(&new) + 5,
                    }
                }
            });
        }
        pieces
    }

    fn values(&self, key: &[usize], view: RowView<'_>) -> Vec<Piece> {
        view.iter()
            .enumerate()
            .filter(|(index, (_, value))| !key.contains(index) && !matches!(value, Value::Absent | Value::Unchanged))
            .map(|(_, (column, value))| named(&printable(&column.name), &self.value(column, value)))
            .collect()
    }

    fn other(&self, out: &mut String, kind: &Kind) {
        match kind {
            Kind::Opened(opened) if opened.filter_changed => {
                self.note(out, "the filter differs from the one that the checkpoint was made with");
            }
            Kind::TimelineChanged(changed) => {
                let lost: u64 = changed.retracted.iter().map(|retracted| retracted.changes).sum();
                self.note(
                    out,
                    &format!(
                        "the source failed over at {}: {} with {} taken back",
                        changed.switch_lsn,
                        plural(changed.retracted.len() as u64, "transaction"),
                        plural(lost, "change")
                    ),
                );
            }
            Kind::Gap(gap) => {
                let lsn =
                    |position: &Option<pb::Position>| position.as_ref().map_or("?", |p| p.lsn.as_str()).to_owned();
                self.note(out, &format!("gap from {} to {}: {}", lsn(&gap.after), lsn(&gap.up_to), gap.reason));
            }
            Kind::SnapshotBegin(begin) => {
                let rows: i64 = begin.tables.iter().map(|table| table.estimated_rows.max(0)).sum();
                let again = if begin.restarted { " starts over" } else { "" };
                let tables = plural(begin.tables.len() as u64, "table");
                self.note(out, &format!("snapshot{again}: {tables}, about {}", plural(rows.unsigned_abs(), "row")));
            }
            Kind::SnapshotTableEnd(end) => {
                self.note(out, &format!("snapshot of {}: {}", end.table, plural(end.rows, "row")));
            }
            _ => {}
        }
    }

    fn note(&self, out: &mut String, text: &str) {
        let _ = writeln!(out, "{WARNING}! {}{WARNING:#}", printable(text));
    }

    fn value(&self, column: &pb::Column, value: Value<'_>) -> String {
        self.cut(&printable(&to_text(column, value)))
    }

    /// No value takes more than half a line.
    fn cut(&self, text: &str) -> String {
        match self.width {
            Some(width) => shorten(text, (width / 2).saturating_sub(INDENT).max(8)),
            None => text.to_owned(),
        }
    }

    /// Fills lines from left to right.
    fn line(&self, out: &mut String, symbol: Piece, pieces: Vec<Piece>) {
        let _ = write!(out, "  {}", symbol.styled);
        let mut used = 2 + symbol.width;
        for (index, piece) in pieces.iter().enumerate() {
            let space = if index <= 1 { 1 } else { 2 };
            if index > 0 && self.width.is_some_and(|width| used + space + piece.width > width) {
                let _ = write!(out, "\n{:INDENT$}{}", "", piece.styled);
                used = INDENT + piece.width;
            } else {
                let _ = write!(out, "{:space$}{}", "", piece.styled);
                used += space + piece.width;
            }
        }
        out.push('\n');
    }
}

/// The columns that name a row. Under REPLICA IDENTITY FULL every column is marked, and `id`, or else the first, is
/// the best guess.
fn key_columns(relation: &pb::Relation) -> Vec<usize> {
    let columns = || relation.columns.iter().enumerate();
    if relation.columns.len() > 1 && relation.columns.iter().all(|column| column.in_identity) {
        return vec![columns().find(|(_, column)| column.name == "id").map_or(0, |(index, _)| index)];
    }
    columns().filter(|(_, column)| column.in_identity).map(|(index, _)| index).collect()
}

fn plain(text: &str) -> Piece {
    Piece { styled: text.to_owned(), width: width(text) }
}

fn styled(style: Style, text: &str) -> Piece {
    Piece { styled: format!("{style}{text}{style:#}"), width: width(text) }
}

fn named(name: &str, value: &str) -> Piece {
    Piece { styled: format!("{NAME}{name}:{NAME:#} {value}"), width: width(name) + 2 + width(value) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{
        tail::follow::Follower,
        testing::{begin, change, commit, event, missing, position, relation, row, text},
    };

    fn view(width: Option<usize>) -> View {
        View { width, zone: TimeZone::UTC, now: "2026-01-31T12:00:00.503Z".parse().expect("a time") }
    }

    fn render(view: &View, events: &[pb::Event]) -> String {
        let mut follower = Follower::default();
        let mut out = String::new();
        for event in events {
            if let Some(item) = follower.accept(event.clone()).expect("a valid event") {
                view.render(&mut out, &item);
            }
        }
        anstream::adapter::strip_str(&out).to_string()
    }

    fn orders(full: bool) -> pb::Event {
        let mut relation = relation(1, &[("id", true), ("customer", full), ("status", full)]);
        relation.table = "orders".into();
        event(Kind::Relation(relation))
    }

    #[test]
    fn a_transaction_reads_from_top_to_bottom() {
        let absent = || missing(pb::Missing::Absent);
        let events = [
            orders(false),
            begin("0/16B3748", 742),
            change(pb::Operation::Insert, 1, None, Some(row(&[text("7"), text("ann"), missing(pb::Missing::Null)]))),
            change(pb::Operation::Update, 2, None, Some(row(&[text("7"), text("ann"), text("paid")]))),
            change(
                pb::Operation::Update,
                3,
                Some(row(&[text("7"), absent(), absent()])),
                Some(row(&[text("8"), text("ann"), missing(pb::Missing::Unchanged)])),
            ),
            change(pb::Operation::Delete, 4, Some(row(&[text("8"), absent(), absent()])), None),
            commit("0/16B3780"),
        ];
        assert_eq!(
            render(&view(Some(80)), &events),
            "0/16B3748  xid 742  12:00:00.500  lag 3 ms\n  \
             + public.orders (id 7)  customer: ann  status: null\n  \
             ~ public.orders (id 7)  customer: ann  status: paid\n  \
             ~ public.orders (id 8)  id: 7 → 8  customer: ann\n  \
             - public.orders (id 8)\n"
        );
    }

    #[test]
    fn with_the_old_image_only_what_changed_is_shown() {
        let before = row(&[text("7"), text("ann"), text("new")]);
        let after = row(&[text("7"), text("ann"), text("paid")]);
        let events = [
            orders(true),
            begin("0/10", 1),
            change(pb::Operation::Update, 1, Some(before.clone()), Some(after)),
            change(pb::Operation::Delete, 2, Some(before), None),
        ];
        assert_eq!(
            render(&view(None), &events).lines().skip(1).collect::<Vec<_>>(),
            ["  ~ public.orders (id 7)  status: new → paid", "  - public.orders (id 7)  customer: ann  status: new"]
        );
    }

    #[test]
    fn lines_stay_within_the_terminal() {
        let long = "x".repeat(200);
        let wide = row(&[text("7"), text(&long), text("日本語".repeat(30).as_str())]);
        let events = [orders(false), begin("0/10", 1), change(pb::Operation::Insert, 1, None, Some(wide))];
        let lines = render(&view(Some(60)), &events);
        assert!(lines.lines().all(|line| width(line) <= 60), "{lines}");
        assert!(lines.lines().count() > 2 && lines.contains('…'), "{lines}");
        assert!(render(&view(None), &events).contains(&long));
    }

    #[test]
    fn values_cannot_steer_the_terminal() {
        let sly = row(&[text("7"), text("a\u{1b}]0;title\u{7}\n"), text("")]);
        let mut out = String::new();
        let mut follower = Follower::default();
        for event in [orders(false), begin("0/10", 1), change(pb::Operation::Insert, 1, None, Some(sly))] {
            if let Some(item) = follower.accept(event).expect("a valid event") {
                view(None).render(&mut out, &item);
            }
        }
        assert!(out.contains("a\\u{1b}]0;title\\u{7}\\n"), "{out}");
    }

    #[test]
    fn what_is_no_row_change_has_its_own_line() {
        let message = pb::LogicalMessage {
            prefix: "app".into(),
            content: "hello".into(),
            lsn: "0/30".into(),
            position: Some(position("0/31")),
            ..Default::default()
        };
        let truncate = pb::Truncate { relation_ids: vec![1], cascade: true, ordinal: 1, ..Default::default() };
        let gap = pb::Gap { after: Some(position("0/40")), up_to: Some(position("0/50")), reason: "slot lost".into() };
        let events = [
            orders(false),
            event(Kind::Message(message)),
            event(Kind::Gap(gap)),
            begin("0/60", 1),
            event(Kind::Truncate(truncate)),
            event(Kind::Discard(pb::Discard { reason: "failover".into() })),
        ];
        assert_eq!(
            render(&view(Some(80)), &events),
            "0/30  message outside transactions\n  \
             » message app  hello\n\
             ! gap from 0/40 to 0/50: slot lost\n\
             0/60  xid 1  12:00:00.500  lag 3 ms\n  \
             × truncate public.orders  cascade\n\
             ! the transaction 0/60 did not happen: failover\n"
        );
    }
}
