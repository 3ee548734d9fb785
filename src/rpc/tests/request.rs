use prost_types::Timestamp;

use super::*;
use crate::{
    model::Position,
    wire::{position_to_pb, timestamp},
};

fn request() -> pb::SubscribeRequest {
    pb::SubscribeRequest::default()
}

fn convert(request: pb::SubscribeRequest) -> Result<Subscription, Error> {
    subscription("", request, false, "198.51.100.7:4711".to_owned())
}

fn start(at: pb::start::At) -> Option<pb::Start> {
    Some(pb::Start { at: Some(at) })
}

/// Fields that are named in the refusal.
fn refused(request: pb::SubscribeRequest) -> (Reason, Vec<String>) {
    let error = convert(request).expect_err("must be refused");
    (error.reason(), error.violations().into_iter().map(|(field, _)| field).collect())
}

#[test]
fn an_empty_request_is_an_anonymous_subscription_to_everything() {
    let subscription = convert(request()).unwrap();
    assert_eq!(subscription.subscriber, None);
    assert_eq!(subscription.start, None);
    assert_eq!(subscription.filter, None);
    assert_eq!(subscription.row_format, RowFormat::Compact);
    assert_eq!(subscription.max_message_bytes, None);
    assert_eq!(subscription.progress_interval, None);
    assert_eq!(subscription.peer, "198.51.100.7:4711");
    assert!(!subscription.credits);
}

#[test]
fn every_field_arrives() {
    let filter = pb::Filter {
        tables: vec!["public.*".to_owned()],
        exclude_tables: vec!["public.audit".to_owned()],
        operations: vec![pb::Operation::Insert as i32, pb::Operation::Read as i32],
        columns: vec!["public.orders.id".to_owned()],
        r#where: "total > 10".to_owned(),
        message_prefixes: vec!["app.*".to_owned()],
        origins: vec![String::new()],
        rules: vec![pb::TableRule {
            tables: "public.items".to_owned(),
            columns: vec!["public.items.*".to_owned()],
            r#where: "id = 1".to_owned(),
            operations: vec![pb::Operation::Delete as i32],
        }],
    };
    let subscription = convert(pb::SubscribeRequest {
        subscriber: "billing".to_owned(),
        start: start(pb::start::At::AfterLsn("16/B374D848".to_owned())),
        filter: Some(filter.clone()),
        row_format: pb::RowFormat::Struct as i32,
        stop_at_tail: true,
        max_message_bytes: 65_536,
        progress_interval: Some(prost_types::Duration { seconds: 2, nanos: 500_000_000 }),
        source: String::new(),
    })
    .unwrap();
    assert_eq!(subscription.subscriber.as_deref(), Some("billing"));
    assert_eq!(subscription.start, Some(StartAt::Feed(Start::AfterLsn(Lsn(0x16_B374_D848)))));
    assert_eq!(subscription.row_format, RowFormat::Struct);
    assert!(subscription.stop_at_tail);
    assert_eq!(subscription.max_message_bytes, Some(65_536));
    assert_eq!(subscription.progress_interval, Some(Duration::from_millis(2500)));
    assert_eq!(pb::Filter::decode(subscription.filter_encoded).unwrap(), filter);
    let filter = subscription.filter.unwrap();
    assert_eq!(filter.tables, ["public.*"]);
    assert_eq!(filter.exclude_tables, ["public.audit"]);
    assert_eq!(filter.operations, [Operation::Insert, Operation::Read]);
    assert_eq!(filter.columns, ["public.orders.id"]);
    assert_eq!(filter.predicate, "total > 10");
    assert_eq!(filter.message_prefixes, ["app.*"]);
    assert_eq!(filter.origins, [""]);
    assert_eq!(
        filter.rules,
        [TableRule {
            tables: "public.items".to_owned(),
            columns: vec!["public.items.*".to_owned()],
            predicate: "id = 1".to_owned(),
            operations: vec![Operation::Delete],
        }]
    );
}

#[test]
fn every_start_is_understood() {
    use pb::start::At;
    let position = Position { lineage: "00ff00ff00ff00ff".parse().unwrap(), lsn: Lsn(77), sequence: 3 };
    for (at, expected) in [
        (At::Checkpoint(()), StartAt::Checkpoint),
        (At::Earliest(()), StartAt::Feed(Start::Earliest)),
        (At::Latest(()), StartAt::Feed(Start::Latest)),
        (At::After(position_to_pb(position)), StartAt::Feed(Start::After(position))),
        (At::Since(timestamp(1_234_567)), StartAt::Feed(Start::Since(1_234_567))),
        (At::Since(timestamp(-1_234_567)), StartAt::Feed(Start::Since(-1_234_567))),
    ] {
        let subscription = convert(pb::SubscribeRequest { start: start(at.clone()), ..request() }).unwrap();
        assert_eq!(subscription.start, Some(expected), "{at:?}");
    }
}

#[test]
fn a_time_between_two_microseconds_starts_at_the_later_one() {
    let since = |nanos| micros(&Timestamp { seconds: 946_684_800, nanos });
    assert_eq!(since(1), Some(1));
    assert_eq!(since(1000), Some(1));
    assert_eq!(since(1001), Some(2));
    assert_eq!(micros(&Timestamp { seconds: i64::MAX, nanos: 0 }), None);
    assert_eq!(micros(&Timestamp { seconds: i64::MIN, nanos: 0 }), None);
    assert_eq!(since(-1), None);
    assert_eq!(since(1_000_000_000), None);
}

#[test]
fn all_that_is_wrong_is_named_at_once() {
    let (reason, fields) = refused(pb::SubscribeRequest {
        source: "other".to_owned(),
        row_format: 99,
        max_message_bytes: 10,
        progress_interval: Some(prost_types::Duration { seconds: -1, nanos: 0 }),
        start: start(pb::start::At::AfterLsn("zebra".to_owned())),
        filter: Some(pb::Filter { operations: vec![1, 0, 42], tables: vec![String::new()], ..Default::default() }),
        ..request()
    });
    assert_eq!(reason, Reason::RequestInvalid);
    assert_eq!(
        fields,
        [
            "source",
            "row_format",
            "max_message_bytes",
            "progress_interval",
            "start.after_lsn",
            "filter.tables[0]",
            "filter.operations[1]",
            "filter.operations[2]",
        ]
    );
}

#[test]
fn a_wrong_filter_is_filter_invalid() {
    let rules = vec![pb::TableRule { operations: vec![-1], columns: vec![String::new()], ..Default::default() }];
    let (reason, fields) =
        refused(pb::SubscribeRequest { filter: Some(pb::Filter { rules, ..Default::default() }), ..request() });
    assert_eq!(reason, Reason::FilterInvalid);
    assert_eq!(fields, ["filter.rules[0].tables", "filter.rules[0].columns[0]", "filter.rules[0].operations[0]"]);
}

#[test]
fn a_position_that_no_hub_handed_out_is_refused_by_its_part() {
    let good = position_to_pb(Position { lineage: "00ff00ff00ff00ff".parse().unwrap(), lsn: Lsn(77), sequence: 0 });
    for (position, field) in [
        (pb::Position { lsn: "77".to_owned(), ..good.clone() }, "start.after.lsn"),
        (pb::Position { lineage: String::new(), ..good.clone() }, "start.after.lineage"),
    ] {
        let request = pb::SubscribeRequest { start: start(pb::start::At::After(position)), ..request() };
        assert_eq!(refused(request), (Reason::RequestInvalid, vec![field.to_owned()]));
    }
    assert_eq!(required_position("position", Some(&good)).unwrap().position.lsn, Lsn(77));
    let missing = required_position("position", None).unwrap_err();
    assert_eq!(missing.violations(), [("position".to_owned(), "must be set".to_owned())]);
}

#[test]
fn what_a_position_says_of_a_snapshot_is_kept_or_refused() {
    use pb::start::At;
    let progress = crate::wire::token::Progress { id: 5, incremental: true, ..Default::default() };
    let token = Token { handover: None, progress: Some(progress) }.encode();
    let lineage = "00ff00ff00ff00ff".to_owned();
    let position = pb::Position { lsn: "0/4D".to_owned(), lineage, snapshot: token.clone(), ..Default::default() };
    let asked = |at| subscription("", pb::SubscribeRequest { start: start(at), ..request() }, false, String::new());
    let found = asked(At::After(position.clone())).unwrap().start;
    assert!(
        matches!(found, Some(StartAt::Resume(resume)) if resume.snapshot == token && resume.position.lsn == Lsn(77))
    );
    let garbage = pb::Position { snapshot: vec![1].into(), ..position };
    let (reason, fields) = refused(pb::SubscribeRequest { start: start(At::After(garbage)), ..request() });
    assert_eq!((reason, fields), (Reason::RequestInvalid, vec!["start.after.snapshot".to_owned()]));
}

#[test]
fn a_snapshot_start_says_how() {
    use pb::start::At;
    let options = pb::SnapshotOptions { mode: pb::SnapshotMode::Incremental as i32, max_rows_per_second: 5 };
    let asked = pb::SubscribeRequest { start: start(At::Snapshot(options)), ..request() };
    let found = convert(asked).unwrap().start;
    let expected = StartAt::Snapshot { mode: Some(SnapshotMode::Incremental), max_rows_per_second: 5 };
    assert_eq!(found, Some(expected));
    let options = pb::SnapshotOptions { mode: 77, max_rows_per_second: 0 };
    let (_, fields) = refused(pb::SubscribeRequest { start: start(At::Snapshot(options)), ..request() });
    assert_eq!(fields, ["start.snapshot.mode"]);
    let filter = pb::Filter { operations: vec![pb::Operation::Insert as i32], ..Default::default() };
    let at = At::Snapshot(pb::SnapshotOptions::default());
    let (_, fields) = refused(pb::SubscribeRequest { start: start(at), filter: Some(filter), ..request() });
    assert_eq!(fields, ["filter.operations"], "no READ, no rows");
}

#[test]
fn a_start_without_a_place_is_refused() {
    let empty = Some(pb::Start { at: None });
    let (reason, fields) = refused(pb::SubscribeRequest { start: empty, ..request() });
    assert_eq!((reason, fields), (Reason::RequestInvalid, vec!["start.at".to_owned()]));
    assert!(required_start("start", None).is_err());
}

#[test]
fn intervals_have_a_range() {
    let interval = |seconds, nanos| interval_from_pb(&prost_types::Duration { seconds, nanos });
    assert_eq!(interval(0, 0), Ok(None));
    assert_eq!(interval(0, 10_000_000), Ok(Some(Duration::from_millis(10))));
    for (seconds, nanos) in [(0, 9_999_999), (86_401, 0), (i64::MAX, 0), (1, -1), (-1, 0), (0, 1_000_000_000)] {
        assert!(interval(seconds, nanos).is_err(), "{seconds} {nanos}");
    }
}

#[test]
fn the_path_begins_at_the_message_that_was_sent() {
    let request = pb::SubscribeRequest { source: "x".to_owned(), ..request() };
    let error = subscription("open.", request, true, String::new()).unwrap_err();
    assert_eq!(error.violations()[0].0, "open.source");
}
