//! Types: what a relation accepts, and how values compare.

use super::*;
use crate::model::Operation;

fn check(predicate: &str) -> Result<Compiled, CheckError> {
    Predicate::parse(predicate).unwrap_or_else(|error| panic!("{predicate}: {error}")).check(&every_type())
}

#[test]
fn what_does_not_fit_is_refused_at_its_character() {
    for (text, offset, part) in [
        ("nix = 1", 0, "table public.Orders has no column \"nix\""),
        ("b AND \"ID\" = 1", 6, "did you mean \"id\", in quotes?"),
        ("i4 = 'ä' ", 5, "\"i4\" is int4: expected a number"),
        ("i2 = '40000'", 5, "in its range"),
        ("o = '-1'", 4, "in its range"),
        ("i4 = true", 5, "found TRUE"),
        ("i4", 0, "not bool"),
        ("b AND (i4 OR b)", 7, "not bool"),
        ("t = 5", 4, "expected a text in quotes"),
        ("b = 1", 4, "expected true or false"),
        ("b = 'maybe'", 4, "expected true or false"),
        ("f8 = '1e400'", 5, "in its range"),
        ("f8 = 1e-400", 5, "in its range"),
        ("f4 = 1e39", 5, "in its range"),
        ("n = 'x'", 4, "expected a number"),
        ("u = '1234'", 4, "a uuid"),
        ("y = 'abc'", 4, "bytes such as"),
        (r"y = '\xabc'", 4, "bytes such as"),
        ("d = '2026-02-30'", 4, "a date such as"),
        ("d = '2026-01-01 10:00'", 4, "a date such as"),
        ("ts = '2026-01-01 10:00:00+02'", 5, "without zone"),
        ("tstz = 'tomorrow'", 7, "a timestamp such as"),
        ("tm = '25:00'", 5, "a time such as"),
        ("iv = '3 moons'", 5, "an interval such as"),
        ("mood < 'ok'", 5, "whose order is not known"),
        ("mood = 1", 7, "expected a text in quotes"),
        ("tags BETWEEN 'a' AND 'b'", 5, "whose order is not known"),
        ("i4 LIKE '1%'", 3, "LIKE needs a text column"),
        ("t LIKE 5", 7, "expected a pattern"),
        (r"t LIKE 'a\'", 7, "escape character"),
        ("t = d", 2, "different types"),
        ("id = n", 3, "different types"),
        ("mood = tags", 5, "different types"),
        ("ts = timestamptz '2026-01-01'", 5, "literal of type timestamptz"),
        ("i4 = 1.5::int4", 5, "literal of type int4"),
        ("f4 = '0.1'::float8", 5, "literal of type float8"),
        ("c = 'a '::text", 4, "literal of type text"),
        ("t = 'a '::bpchar", 4, "literal of type bpchar"),
        ("t = 'ab'::char", 4, "literal of type char"),
        ("i4 IN (1, 'x')", 10, "expected a number"),
        ("1 IN (1)", 0, "needs a column"),
        ("changed(nix)", 8, "no column"),
    ] {
        let error = check(text).map(|_| ()).expect_err(text);
        assert_eq!(error.offset, offset, "{text}: {error}");
        assert!(error.message.contains(part), "{text}: {error}");
    }
}

#[test]
fn patterns_cost_no_more_than_a_predicate_may() {
    let many = |pattern: &str, count: usize| vec![format!("t {pattern}"); count].join(" OR ");
    for (pattern, fits) in [("LIKE '%note%'", 512), ("ILIKE '%urgent%'", 73), ("LIKE '%aaaaaaaaaaaaaaa_%'", 30)] {
        assert!(check(&many(pattern, fits)).is_ok(), "{pattern}");
        let error = check(&many(pattern, fits + 1)).map(|_| ()).expect_err(pattern);
        let last = many(pattern, fits + 1).rfind('\'').and_then(|end| many(pattern, fits + 1)[..end].rfind('\''));
        assert_eq!(Some(error.offset), last, "{pattern}: {error}");
        assert!(error.message.contains("more than the 512") && error.message.contains("= or IN"), "{error}");
    }
    for free in ["LIKE 'note%'", "NOT LIKE '%end'", "LIKE 'exactly'"] {
        assert!(check(&many(free, 600)).is_ok(), "{free}");
    }
}

fn selects(predicate: &str, column: &str, value: &str) -> Option<bool> {
    let relation = every_type();
    let index = relation.columns.iter().position(|c| c.name == column).unwrap();
    let mut row = Row { after: vec![Cell::Null; relation.columns.len()], ..Row::default() };
    row.after[index] = Cell::from_text(value, relation.columns[index].type_oid);
    compile(&relation, predicate).evaluate(Operation::Insert, &row).ok()
}

#[test]
fn values_compare_by_type() {
    for (predicate, column, value, expected) in [
        ("i4 = 5.0", "i4", "5", true),
        ("i4 = 5.0::int2", "i4", "5", true),
        ("c = 'a'::text", "c", "a    ", true),
        ("i4 > 1.5", "i4", "2", true),
        ("i4 > 1.5", "i4", "1", false),
        ("i4 >= -1.5", "i4", "-1", true),
        ("i4 <= -1.5", "i4", "-1", false),
        ("i4 < 99999999999999999999", "i4", "7", true),
        ("i4 > -1e30", "i4", "-7", true),
        ("i4 < -1e30", "i4", "-7", false),
        ("i4 = 1.5", "i4", "1", false),
        ("i4 <> 1.5", "i4", "1", true),
        ("i4 IN (1.5, 2)", "i4", "2", true),
        ("id = 9223372036854775807", "id", "9223372036854775807", true),
        ("id < 9223372036854775808", "id", "9223372036854775807", true),
        ("o > 3000000000", "o", "4294967295", true),
        ("n = 1.0", "n", "1.00", true),
        ("n = 0.1", "n", "0.10000000000000000000000000000001", false),
        ("n < 0.10000000000000000000000000000002", "n", "0.10000000000000000000000000000001", true),
        ("n > 9", "n", "10", true),
        ("n > 'Infinity'", "n", "NaN", true),
        ("n = 'NaN'", "n", "NaN", true),
        ("n IN (3, 2, 1.50)", "n", "1.5", true),
        ("f4 = 0.1", "f4", "0.1", true),
        ("f8 = 0.1", "f8", "0.1", true),
        ("f8 = 'nan'", "f8", "NaN", true),
        ("f8 > 'Infinity'", "f8", "NaN", true),
        ("f8 = 0", "f8", "-0", true),
        ("f8 = '0E5'", "f8", "0", true),
        ("t < 'b'", "t", "a", true),
        ("t < 'a'", "t", "Z", true),
        ("t = 'a '", "t", "a", false),
        ("c = 'a '", "c", "a    ", true),
        ("c = 'a'", "c", "a    ", true),
        ("c LIKE 'a'", "c", "a    ", false),
        ("c LIKE 'a%'", "c", "a    ", true),
        ("v IN ('b', 'a', 'c')", "v", "c", true),
        ("v IN ('b', 'a', 'c')", "v", "d", false),
        ("b", "b", "t", true),
        ("b = 'no'", "b", "f", true),
        ("b > false", "b", "t", true),
        ("u = '{A0EEBC999C0B4EF8BB6D6BB9BD380A11}'", "u", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", true),
        (r"y > '\x00'", "y", r"\x0000", true),
        (r"y = '\xDEad'", "y", r"\xdead", true),
        ("d < '0001-01-01'", "d", "0044-03-15 BC", true),
        ("d < 'infinity'", "d", "5874897-12-31", true),
        ("tstz = '2026-01-01T05:30+05:30'", "tstz", "2026-01-01 00:00:00+00", true),
        ("tstz >= '2026-01-01'", "tstz", "2025-12-31 23:59:59.999999+00", false),
        ("tstz < '-infinity'", "tstz", "0044-03-15 12:00:00+00 BC", false),
        ("ts > '2026-01-01'", "ts", "2026-01-01 00:00:00.000001", true),
        ("tm = '10:00'", "tm", "10:00:00", true),
        ("tz = '12:00+02'", "tz", "12:00:00+02", true),
        ("tz = '12:00+02'", "tz", "10:00:00+00", false),
        ("iv = '24 hours'", "iv", "1 day", true),
        ("iv > '1 mon'", "iv", "30 days 00:00:00.000001", true),
        ("mood = 'ok'", "mood", "ok", true),
        ("mood IN ('sad', 'ok'::mood)", "mood", "ok", true),
        ("tags = '{a,b}'", "tags", "{a,b}", true),
    ] {
        assert_eq!(selects(predicate, column, value), Some(expected), "{predicate} with {column} = {value}");
    }
}

#[test]
fn null_selects_nothing() {
    let relation = every_type();
    let nulls = Row { after: vec![Cell::Null; relation.columns.len()], ..Row::default() };
    for (predicate, expected) in [
        ("i4 = 1", false),
        ("i4 <> 1", false),
        ("NOT (i4 = 1)", false),
        ("i4 = NULL", false),
        ("i4 IN (1, 2)", false),
        ("i4 NOT IN (1, 2)", false),
        ("i4 IS NULL", true),
        ("i4 = 1 OR TRUE", true),
        ("NOT (i4 = 1 AND FALSE)", true),
        ("NOT (i4 = 1 OR FALSE)", false),
        ("i4 = 1 IS UNKNOWN", true),
        ("(i4 = 1) IS NOT TRUE", true),
        ("i4 IS DISTINCT FROM 1", true),
        ("i4 IS NOT DISTINCT FROM 1", false),
        ("i4 IS NOT DISTINCT FROM NULL", true),
        ("i4 IS NOT DISTINCT FROM i2", true),
        ("t LIKE '%'", false),
        ("NOT t LIKE '%'", false),
        ("i4 < 1.5 IS UNKNOWN", true),
        ("NULL", false),
        ("b", false),
        ("NOT b", false),
    ] {
        assert_eq!(compile(&relation, predicate).evaluate(Operation::Insert, &nulls), Ok(expected), "{predicate}");
    }
    assert_eq!(selects("i4 NOT IN (1, NULL)", "i4", "2"), Some(false), "NULL, not TRUE");
    assert_eq!(selects("i4 IN (1, NULL)", "i4", "1"), Some(true));
}

#[test]
fn values_that_are_not_of_their_type_are_undecidable() {
    let relation = every_type();
    let mut row = Row { after: vec![Cell::Null; relation.columns.len()], ..Row::default() };
    row.after[17] = text("next week");
    row.after[7] = Cell::Raw(b"\xff%".to_vec());
    let error = compile(&relation, "tstz < '2026-01-01'").evaluate(Operation::Insert, &row).unwrap_err();
    assert_eq!((error.column, error.column_name.as_str()), (17, "tstz"));
    assert_eq!(compile(&relation, "t = '\u{fffd}%'").evaluate(Operation::Insert, &row), Ok(false));
    assert_eq!(compile(&relation, "t LIKE '_\\%'").evaluate(Operation::Insert, &row), Ok(true));
}
