//! One JSON object per line and change. int2 to int8 and oid are JSON numbers, exact up to 64 bits (jq 1.7 keeps
//! them; a reader with doubles only must take care beyond 2^53); numeric and all types without a JSON kind are text.

use serde_json::{Map, Value, json};

use super::follow::{Item, RowChange};
use crate::{
    cli::rows::{RowView, hex, table_name, to_json},
    wire::pb::{self, event::Kind},
};

/// The line for an item, without newline. `envelope`: lines for what is not a change, too.
pub fn line(item: &Item<'_>, envelope: bool) -> Option<String> {
    let value = match item {
        Item::Change(row) => change(row),
        Item::Truncate { begin, tables, truncate } => {
            let mut object = head("truncate", *begin, truncate.ordinal);
            object.insert("tables".into(), json!(tables));
            object.insert("cascade".into(), truncate.cascade.into());
            object.insert("restart_identity".into(), truncate.restart_identity.into());
            object
        }
        Item::Message { begin, message } => logical_message(*begin, message),
        Item::Discard { begin, reason } => {
            let mut object = named("discard", identity(begin));
            object.insert("reason".into(), reason.as_str().into());
            object
        }
        Item::Begin { abandoned: Some(abandoned), begin } if !envelope => {
            let mut object = named("abandoned", identity(abandoned));
            object.insert("next_commit_lsn".into(), begin.commit_lsn.as_str().into());
            object
        }
        Item::Other(kind @ (Kind::Gap(_) | Kind::TimelineChanged(_))) => other(kind),
        _ if !envelope => return None,
        Item::Begin { begin, .. } => named("begin", identity(begin)),
        Item::Commit { begin, commit } => {
            let mut object = named("commit", identity(begin));
            object.insert("position".into(), position(commit.position.as_ref()));
            object.insert("changes".into(), commit.changes.into());
            object.insert("total_changes".into(), commit.total_changes.into());
            object
        }
        Item::Other(kind) => other(kind),
    };
    Some(Value::Object(value).to_string())
}

fn change(row: &RowChange<'_>) -> Map<String, Value> {
    let mut object = head(operation(row.change.operation()), row.begin, row.change.ordinal);
    object.shift_insert(1, "table".into(), table_name(row.relation).into());
    object.insert("before".into(), row.before().map_or(Value::Null, |view| image(view).into()));
    object.insert("after".into(), row.after().map_or(Value::Null, |view| image(view).into()));
    let unchanged: Vec<Value> = row.after().map_or_else(Vec::new, |view| {
        let unchanged = view.iter().filter(|(_, value)| matches!(value, crate::model::Value::Unchanged));
        unchanged.map(|(column, _)| column.name.as_str().into()).collect()
    });
    object.insert("unchanged".into(), unchanged.into());
    match row.change.transition() {
        pb::Transition::Unspecified => {}
        pb::Transition::Enter => drop(object.insert("transition".into(), "enter".into())),
        pb::Transition::Stay => drop(object.insert("transition".into(), "stay".into())),
        pb::Transition::Leave => drop(object.insert("transition".into(), "leave".into())),
    }
    object
}

fn image(view: RowView<'_>) -> Map<String, Value> {
    view.iter().filter_map(|(column, value)| Some((column.name.clone(), to_json(column, value)?))).collect()
}

fn logical_message(begin: Option<&pb::Begin>, message: &pb::LogicalMessage) -> Map<String, Value> {
    let mut object = head("message", begin, message.ordinal);
    object.insert("prefix".into(), message.prefix.as_str().into());
    match std::str::from_utf8(&message.content) {
        Ok(text) => object.insert("content".into(), text.into()),
        Err(_) => object.insert("content".into(), json!({ "raw": hex(&message.content) })),
    };
    object.insert("lsn".into(), message.lsn.as_str().into());
    if message.position.is_some() {
        object.insert("position".into(), position(message.position.as_ref()));
    }
    object
}

/// What an operation is called on the command line and in JSON.
pub fn operation(operation: pb::Operation) -> &'static str {
    match operation {
        pb::Operation::Unspecified => "unknown",
        pb::Operation::Insert => "insert",
        pb::Operation::Update => "update",
        pb::Operation::Delete => "delete",
        pb::Operation::Truncate => "truncate",
        pb::Operation::Read => "read",
    }
}

fn head(op: &str, begin: Option<&pb::Begin>, ordinal: u64) -> Map<String, Value> {
    let mut object = Map::new();
    object.insert("op".into(), op.into());
    if let Some(begin) = begin {
        object.append(&mut identity(begin));
        object.insert("ordinal".into(), ordinal.into());
    }
    object
}

fn identity(begin: &pb::Begin) -> Map<String, Value> {
    let mut object = Map::new();
    object.insert("lineage".into(), begin.lineage.as_str().into());
    object.insert("commit_lsn".into(), begin.commit_lsn.as_str().into());
    object.insert("sequence".into(), begin.sequence.into());
    object.insert("xid".into(), begin.xid.into());
    object.insert("commit_time".into(), time(begin.commit_time.as_ref()));
    if !begin.origin.is_empty() {
        object.insert("origin".into(), begin.origin.as_str().into());
    }
    if begin.provenance() != pb::Provenance::Unspecified {
        object.insert("provenance".into(), begin.provenance().as_str_name().into());
    }
    object
}

fn named(event: &str, mut rest: Map<String, Value>) -> Map<String, Value> {
    let mut object = Map::new();
    object.insert("event".into(), event.into());
    object.append(&mut rest);
    object
}

fn other(kind: &Kind) -> Map<String, Value> {
    let (event, value) = match kind {
        Kind::Opened(opened) => (
            "opened",
            json!({
                "after": position(opened.after.as_ref()),
                "earliest": position(opened.earliest.as_ref()),
                "tail": position(opened.tail.as_ref()),
                "session": opened.session,
                "created": opened.created,
                "filter_changed": opened.filter_changed,
            }),
        ),
        Kind::Progress(progress) => (
            "progress",
            json!({
                "position": position(progress.position.as_ref()),
                "tail": position(progress.tail.as_ref()),
                "caught_up": progress.caught_up,
                "source_connected": progress.source_connected,
                "time": time(progress.time.as_ref()),
                "checkpoint": position(progress.checkpoint.as_ref()),
            }),
        ),
        Kind::TimelineChanged(changed) => (
            "timeline_changed",
            json!({
                "old_lineage": changed.old_lineage,
                "new_lineage": changed.new_lineage,
                "switch_lsn": changed.switch_lsn,
                "retracted": changed.retracted.iter().map(|retracted| json!({
                    "begin": retracted.begin.as_ref().map(identity),
                    "position": position(retracted.position.as_ref()),
                    "changes": retracted.changes,
                })).collect::<Vec<_>>(),
                "more": changed.more,
                "position": position(changed.position.as_ref()),
            }),
        ),
        Kind::Gap(gap) => (
            "gap",
            json!({
                "after": position(gap.after.as_ref()),
                "up_to": position(gap.up_to.as_ref()),
                "reason": gap.reason,
            }),
        ),
        Kind::SnapshotBegin(begin) => (
            "snapshot_begin",
            json!({
                "snapshot_id": begin.snapshot_id,
                "mode": begin.mode().as_str_name().trim_start_matches("SNAPSHOT_MODE_").to_ascii_lowercase(),
                "restarted": begin.restarted,
                "tables": begin.tables.iter().map(|table| json!({
                    "table": table.table,
                    "estimated_rows": table.estimated_rows,
                })).collect::<Vec<_>>(),
            }),
        ),
        Kind::SnapshotTableEnd(end) => {
            ("snapshot_table_end", json!({ "snapshot_id": end.snapshot_id, "table": end.table, "rows": end.rows }))
        }
        Kind::SnapshotEnd(end) => (
            "snapshot_end",
            json!({ "snapshot_id": end.snapshot_id, "position": position(end.position.as_ref()), "rows": end.rows }),
        ),
        Kind::Begin(_)
        | Kind::Relation(_)
        | Kind::Change(_)
        | Kind::Truncate(_)
        | Kind::Message(_)
        | Kind::Commit(_)
        | Kind::Discard(_) => ("other", Value::Null),
    };
    named(event, value.as_object().cloned().unwrap_or_default())
}

fn position(position: Option<&pb::Position>) -> Value {
    position.map_or(
        Value::Null,
        |position| json!({ "lsn": position.lsn, "lineage": position.lineage, "sequence": position.sequence }),
    )
}

fn time(time: Option<&prost_types::Timestamp>) -> Value {
    time.and_then(crate::cli::text::timestamp).map_or(Value::Null, |time| time.to_string().into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{
        tail::follow::Follower,
        testing::{begin, change, commit, event, missing, position, relation, row, text},
    };

    fn lines(events: &[pb::Event], envelope: bool) -> Vec<String> {
        let mut follower = Follower::default();
        let mut lines = Vec::new();
        for event in events {
            let item = follower.accept(event.clone()).expect("a valid event");
            lines.extend(item.and_then(|item| line(&item, envelope)));
        }
        lines
    }

    fn update() -> Vec<pb::Event> {
        let before = row(&[text("7"), missing(pb::Missing::Absent), missing(pb::Missing::Absent)]);
        let after = row(&[text("8"), missing(pb::Missing::Null), missing(pb::Missing::Unchanged)]);
        vec![
            event(Kind::Relation(relation(1, &[("id", true), ("name", false), ("doc", false)]))),
            begin("0/16B3748", 742),
            change(pb::Operation::Update, 1, Some(before), Some(after)),
            commit("0/16B3780"),
        ]
    }

    #[test]
    fn a_change_is_one_line_with_its_identity() {
        assert_eq!(
            lines(&update(), false),
            [concat!(
                r#"{"op":"update","table":"public.t","lineage":"00000000000000aa","commit_lsn":"0/16B3748","sequence":0,"#,
                r#""xid":742,"commit_time":"2026-01-31T12:00:00.5Z","ordinal":1,"before":{"id":"7"},"#,
                r#""after":{"id":"8","name":null},"unchanged":["doc"]}"#
            )]
        );
    }

    #[test]
    fn the_envelope_shows_begin_commit_and_progress() {
        let mut events = update();
        events.push(event(Kind::Progress(pb::Progress { position: Some(position("0/20")), ..Default::default() })));
        let events: Vec<Value> =
            lines(&events, true).iter().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        let names: Vec<_> = events.iter().map(|line| line["event"].as_str().or(line["op"].as_str())).collect();
        assert_eq!(names, [Some("begin"), Some("update"), Some("commit"), Some("progress")]);
        assert_eq!(events[2]["position"]["lsn"], "0/16B3780");
    }

    #[test]
    fn messages_and_truncates_have_lines_of_their_own() {
        let message = |content: &'static [u8]| pb::LogicalMessage {
            prefix: "app".into(),
            content: content.into(),
            lsn: "0/30".into(),
            position: Some(position("0/31")),
            ..Default::default()
        };
        let truncate = pb::Truncate { relation_ids: vec![1], cascade: true, ordinal: 2, ..Default::default() };
        let events = [
            update().remove(0),
            event(Kind::Message(message(b"hi"))),
            event(Kind::Message(message(&[0xFF]))),
            begin("0/40", 1),
            event(Kind::Truncate(truncate)),
        ];
        let lines: Vec<Value> =
            lines(&events, false).iter().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        assert_eq!(lines[0]["content"], "hi");
        assert_eq!(lines[0]["position"]["lsn"], "0/31");
        assert_eq!(lines[1]["content"]["raw"], "\\xff");
        assert_eq!(lines[2]["tables"], json!(["public.t"]));
    }
}
