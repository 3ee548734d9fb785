//! Text as PostgreSQL prints it, to values, through a scripted stream. All types against a real PostgreSQL are in the
//! conformance scenario.

use crate::scripted::*;
use jiff::civil;
use serde_json::json;
use walcast_client::{
    Client, Error, Interval, Position, Start, TimeTz, Value,
    pb::{self, event::Kind},
};

/// Decodes values that come as text of these types.
async fn decode(values: &[(&str, &str)]) -> Result<Vec<Value>, Error> {
    let column = |(at, (type_name, _)): (usize, &(&str, &str))| pb::Column {
        name: format!("c{at}"),
        type_name: (*type_name).into(),
        ..Default::default()
    };
    let relation =
        pb::Relation { relation_id: 7, columns: values.iter().enumerate().map(column).collect(), ..Default::default() };
    let value = |(_, text): &(&str, &str)| pb::Value { kind: Some(pb::value::Kind::Text((*text).into())) };
    let row = pb::Row { values: values.iter().map(value).collect() };
    let change = pb::Change { operation: 1, relation_id: 7, ordinal: 1, after_row: Some(row), ..Default::default() };
    let events =
        vec![opened(0, 0), event(Kind::Relation(relation)), begin(16), event(Kind::Change(change)), commit(16, 1)];
    let hub = Hub::new(vec![script(move |connection| {
        let events = events.clone();
        async move {
            connection.send(events).await;
            over()
        }
    })])
    .await;
    let mut stream = Client::new(&hub.address)?.subscription().stop_at_tail().subscribe()?;
    let tx = stream.next().await.expect("a transaction")?;
    let row = tx.changes()[0].after()?.expect("a row");
    Ok((0..values.len()).map(|at| row[format!("c{at}").as_str()].clone()).collect())
}

async fn one(type_name: &str, text: &str) -> Value {
    decode(&[(type_name, text)]).await.unwrap().remove(0)
}

fn special(type_name: &str, text: &str) -> Value {
    Value::Special { type_name: type_name.into(), text: text.into() }
}

#[tokio::test]
async fn dates_and_times() {
    let values = decode(&[
        ("date", "2024-02-29"),
        ("time", "23:59:59.9"),
        ("timetz", "12:00:00.000001-03:30"),
        ("timestamp", "2024-02-29 12:34:56.78"),
        ("timestamptz", "2024-02-29 12:34:56+05:30"),
        ("timestamptz", "9999-12-31 23:59:59.999999+00"),
    ])
    .await
    .unwrap();
    let at = |hour, minute, second, nanosecond| civil::date(2024, 2, 29).at(hour, minute, second, nanosecond);
    assert_eq!(
        values,
        [
            Value::Date(civil::date(2024, 2, 29)),
            Value::Time(civil::time(23, 59, 59, 900_000_000)),
            Value::TimeTz(TimeTz { time: civil::time(12, 0, 0, 1000), offset_seconds: -12_600 }),
            Value::Timestamp(at(12, 34, 56, 780_000_000)),
            Value::TimestampTz(at(7, 4, 56, 0)),
            Value::TimestampTz(civil::date(9999, 12, 31).at(23, 59, 59, 999_999_000)),
        ]
    );
    assert_eq!(values[4].as_timestamp().unwrap().to_string(), "2024-02-29T07:04:56Z");
    assert_eq!(values[2].to_string(), "12:00:00.000001-03:30");
    for (type_name, text) in [
        ("date", "infinity"),
        ("date", "0044-03-15 BC"),
        ("date", "12345-01-01"),
        ("time", "24:00:00"),
        ("timestamp", "12345-01-01 00:00:00"),
        ("timestamp", "0044-03-15 00:00:00 BC"),
        ("timestamptz", "-infinity"),
        ("timestamptz", "12345-01-01 00:00:00+00"),
        ("interval", "infinity"),
    ] {
        assert_eq!(one(type_name, text).await, special(type_name, text));
    }
}

#[tokio::test]
async fn intervals_arrays_ranges_and_json() {
    let interval = Interval { months: -14, days: 3, microseconds: -14_706_700_000 };
    assert_eq!(one("interval", "-1 years -2 mons +3 days -04:05:06.7").await, Value::Interval(interval));
    let numbers = |numbers: &[i64]| Value::Array(numbers.iter().map(|number| Value::Int(*number)).collect());
    let nested = Value::Array(vec![numbers(&[1, 2]), Value::Array(vec![Value::Int(3), Value::Null])]);
    assert_eq!(one("_int4", "[0:1][1:2]={{1,2},{3,NULL}}").await, nested);
    let Value::Array(texts) = one("_text", r#"{a,"b,c","d\"e","NULL","",ü}"#).await else { panic!() };
    assert_eq!(
        texts.iter().map(|text| text.as_str().unwrap()).collect::<Vec<_>>(),
        ["a", "b,c", "d\"e", "NULL", "", "ü"]
    );
    let Value::Array(boxes) = one("_box", "{(1,1),(0,0);(2,2),(1,1)}").await else { panic!() };
    assert_eq!(boxes[1].as_str(), Some("(2,2),(1,1)"));
    for text in ["[1,5)", "(,5)", "empty", "(,)"] {
        assert_eq!(one("int4range", text).await.to_string(), text);
    }
    let Value::Multirange(ranges) = one("int4multirange", "{[1,2),[5,)}").await else { panic!() };
    assert_eq!(ranges.iter().map(ToString::to_string).collect::<Vec<_>>(), ["[1,2)", "[5,)"]);
    let Value::Range(stamps) = one("tsrange", r#"["2024-01-01 00:00:00",)"#).await else { panic!() };
    assert_eq!(stamps.lower, Some(Value::Timestamp(civil::date(2024, 1, 1).at(0, 0, 0, 0))));
    assert_eq!(one("jsonb", r#"{"a": [1, null]}"#).await, Value::Json(json!({"a": [1, null]})));
    assert_eq!(one("public.mood", "ok").await, Value::Text("ok".into()));
    assert_eq!(one("numeric", "-0.10").await.as_str(), Some("-0.10"));
}

#[tokio::test]
async fn what_is_no_value_is_an_error_and_no_panic() {
    for (type_name, text) in [
        ("date", "2024-2-9"),
        ("date", "20é4-02-2"),
        ("timestamp", "2024-02-29"),
        ("timestamp", "2024-02-2é 1:1:1"),
        ("timestamptz", "2024-02-29 12:34:56"),
        ("interval", "1 fortnight"),
        ("_int4", "{1,2"),
        ("_int4", ""),
        ("_int4", "{{{{{{{{1}}}}}}}}"),
        ("int4range", "[1,5"),
        ("int4range", ""),
        ("int4multirange", ""),
        ("int4multirange", "é"),
        ("int4", "x"),
        ("uuid", "x"),
        ("json", "[1,]"),
        ("bytea", "\\x0"),
    ] {
        let outcome = decode(&[(type_name, text)]).await;
        assert!(matches!(outcome, Err(Error::Protocol(_))), "{type_name} {text:?}: {outcome:?}");
    }
}

#[test]
fn positions_and_starts() {
    let position =
        Position { lsn: "1/ABC".into(), lineage: "00ff".into(), sequence: 3, snapshot: vec![1u8, 0xab].into() };
    assert_eq!(position.to_string(), "00ff:1/ABC:3:01ab");
    assert_eq!(position.to_string().parse::<Position>().unwrap(), position);
    assert_eq!(position.to_string().parse::<Start>().unwrap(), Start::After(position));
    assert_eq!("0/10".parse::<Start>().unwrap(), Start::AfterLsn("0/10".into()));
    assert!("yesterday".parse::<Start>().is_err() && "::".parse::<Start>().is_err());
}

#[test]
fn the_proto_is_the_repository_s() {
    for name in ["event.proto", "walcast.proto"] {
        if let Ok(repository) = std::fs::read(format!("../../proto/walcast/v1/{name}")) {
            let mine = std::fs::read(format!("proto/walcast/v1/{name}")).unwrap();
            assert!(mine == repository, "proto/walcast/v1/{name} is stale: cp -r ../../proto .");
        }
    }
}
