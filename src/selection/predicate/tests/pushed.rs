//! What PostgreSQL is told of a predicate.

use super::*;

fn sql(predicate: &str) -> Option<String> {
    compile(&every_type(), predicate).to_sql(true)
}

#[test]
fn values_are_told_as_they_compare() {
    for (predicate, expected) in [
        ("i2 = 7", "(\"i2\" = '7'::int8)"),
        ("i4 < 7.5", "(\"i4\" <= '7'::int8)"),
        ("id <> 7.5", "(\"id\" IS NOT NULL OR NULL)"),
        ("o >= 3000000000", "(\"o\"::int8 >= '3000000000'::int8)"),
        ("f4 = 0.1", "(\"f4\" = '1.0000000149011612e-1'::float8)"),
        ("f8 > '-Infinity'", "(\"f8\" > '-Infinity'::float8)"),
        ("n = -12.50", "(\"n\" = '-0.1250e2'::numeric)"),
        ("n <> 'NaN'", "(\"n\" <> 'NaN'::numeric)"),
        ("t < 'it''s'", "(\"t\"::text COLLATE \"C\" < 'it''s')"),
        ("c = 'ab  '", "(\"c\" COLLATE \"C\" = 'ab'::bpchar)"),
        (r"v LIKE 'a\%b%c_'", r#"("v"::text COLLATE "C" LIKE 'a\%b%c_')"#),
        (r"t LIKE '%a\\b'", r#"("t"::text COLLATE "C" LIKE '%a\\b')"#),
        ("b", "(\"b\" = TRUE)"),
        ("u = 'A0EEBC999C0B4EF8BB6D6BB9BD380A11'", "(\"u\" = 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'::uuid)"),
        (r"y = '\x00FF'", r#"("y" = '\x00ff'::bytea)"#),
        ("d = '2024-02-29'", "(\"d\" = '2024-02-29'::date)"),
        ("tm < '24:00'", "(\"tm\" < '24:00:00.000000'::time)"),
        ("ts = '1999-12-31T23:59:59.5'", "(\"ts\" = '1999-12-31 23:59:59.500000'::timestamp)"),
        ("tstz = '2026-01-01 02:00+02'", "(\"tstz\" = '2026-01-01 00:00:00.000000+00'::timestamptz)"),
        ("tstz < 'infinity'", "(\"tstz\" < 'infinity'::timestamptz)"),
        ("i4 IN (3, 1, NULL)", "(\"i4\" IN ('1'::int8, '3'::int8, NULL))"),
        ("i4 IS NOT DISTINCT FROM 3", "(\"i4\" IS NOT DISTINCT FROM '3'::int8)"),
        ("i4 IS DISTINCT FROM i2", "(\"i4\" IS DISTINCT FROM \"i2\")"),
        ("NOT (n IS NULL OR i4 = 1)", "(NOT ((\"n\" IS NULL) OR (\"i4\" = '1'::int8)))"),
        ("(b IS UNKNOWN) IS NOT TRUE", "(NOT (((\"b\" = TRUE) IS UNKNOWN) IS TRUE))"),
    ] {
        assert_eq!(sql(predicate).as_deref(), Some(expected), "{predicate}");
    }
}

#[test]
fn what_postgresql_might_decide_otherwise_is_kept_here() {
    for predicate in [
        "t ILIKE 'a'",
        "iv = '1 day'",
        "tz = '10:00+00'",
        "mood = 'ok'",
        "mood IS NULL",
        "tags = '{}'",
        "n = 1e100000",
        "d = '0044-03-15 BC'",
        "i4 = 1 OR t ILIKE 'a'",
        "before.i4 = 1",
        "changed(i4)",
    ] {
        assert_eq!(sql(predicate), None, "{predicate}");
    }
    assert_eq!(compile(&every_type(), "t = 'a'").to_sql(false), None, "bytes of another encoding");
    let char = relation(&[("id", "char", 18)], ReplicaIdentity::Full);
    assert_eq!(compile(&char, "id = 'a'").to_sql(true), None, "\"char\" has no collation");
}

#[test]
fn the_other_conjuncts_are_told_all_the_same() {
    assert_eq!(sql("t ILIKE 'a' AND i4 = 1 AND after.b").as_deref(), Some("(\"i4\" = '1'::int8) AND (\"b\" = TRUE)"));
    let quoted = relation(&[("a\"b", "int4", 23)], ReplicaIdentity::Full);
    assert_eq!(compile(&quoted, "\"a\"\"b\" = 1").to_sql(true).as_deref(), Some("(\"a\"\"b\" = '1'::int8)"));
}
