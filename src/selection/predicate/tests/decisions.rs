//! Transitions, unknown values, the replica identity, and keys for an index.

use super::*;
use crate::model::Operation::{self, Delete, Insert, Read, Truncate, Update};
use Transition::{Enter, Leave, Stay};

const COLUMNS: [(&str, &str, u32); 4] =
    [("id", "int8", 20), ("status", "text", 25), ("body", "text", 25), ("price", "numeric", 1700)];

fn full() -> Relation {
    relation(&COLUMNS, ReplicaIdentity::Full)
}

fn keyed() -> Relation {
    relation(&COLUMNS, ReplicaIdentity::Default)
}

fn image(id: i64, status: &str) -> Vec<Cell> {
    vec![Cell::Int(id), text(status), text("long"), text("1.0")]
}

fn row(before: Vec<Cell>, after: Vec<Cell>) -> Row {
    Row { before, after }
}

fn decide(relation: &Relation, predicate: &str, operation: Operation, row: &Row) -> Result<Decision, Undecidable> {
    compile(relation, predicate).classify(operation, row)
}

#[test]
fn rows_enter_stay_and_leave() {
    let open = || image(1, "open");
    let closed = || image(1, "closed");
    let sent = |transition| Ok(Decision::Send(Some(transition)));
    let skip = Ok(Decision::Skip);
    for (operation, before, after, expected) in [
        (Insert, vec![], open(), sent(Enter)),
        (Insert, vec![], closed(), skip.clone()),
        (Read, vec![], open(), sent(Enter)),
        (Update, closed(), open(), sent(Enter)),
        (Update, open(), open(), sent(Stay)),
        (Update, open(), closed(), sent(Leave)),
        (Update, closed(), closed(), skip.clone()),
        (Delete, open(), vec![], sent(Leave)),
        (Delete, closed(), vec![], skip),
        (Truncate, vec![], vec![], Ok(Decision::Send(None))),
    ] {
        let row = row(before, after);
        assert_eq!(decide(&full(), "status = 'open'", operation, &row), expected, "{operation:?} {row:?}");
    }
}

#[test]
fn null_on_one_side_is_not_selected() {
    let null = || vec![Cell::Int(1), Cell::Null, Cell::Null, Cell::Null];
    let sent = |transition| Ok(Decision::Send(Some(transition)));
    assert_eq!(decide(&full(), "status = 'open'", Update, &row(null(), image(1, "open"))), sent(Enter));
    assert_eq!(decide(&full(), "status = 'open'", Update, &row(image(1, "open"), null())), sent(Leave));
    assert_eq!(decide(&full(), "NOT status = 'x'", Update, &row(null(), null())), Ok(Decision::Skip));
}

#[test]
fn predicates_over_changes_tell_no_transition() {
    let moved = row(image(1, "open"), image(1, "closed"));
    let inserted = row(vec![], image(1, "open"));
    let deleted = row(image(1, "open"), vec![]);
    for (predicate, operation, row, sent) in [
        ("changed(status)", Update, &moved, true),
        ("changed(price)", Update, &moved, false),
        ("changed(status)", Insert, &inserted, true),
        ("changed(status)", Delete, &deleted, true),
        ("before.status = 'open' AND after.status = 'closed'", Update, &moved, true),
        ("before.status < after.status", Update, &moved, false),
        ("before.status IS NULL", Insert, &inserted, true),
        ("after.status IS NULL", Delete, &deleted, true),
        ("after.status = 'open'", Delete, &deleted, false),
        ("status = 'closed' AND changed(status)", Update, &moved, true),
        ("status = 'open' AND changed(status)", Delete, &deleted, true),
    ] {
        let expected = if sent { Decision::Send(None) } else { Decision::Skip };
        assert_eq!(decide(&full(), predicate, operation, row), Ok(expected), "{predicate} {operation:?}");
        assert!(!compile(&full(), predicate).tells_transitions());
    }
}

#[test]
fn equal_numbers_have_not_changed() {
    let mut after = image(1, "open");
    after[3] = text("1.00");
    assert_eq!(decide(&full(), "changed(price)", Update, &row(image(1, "open"), after)), Ok(Decision::Skip));
}

#[test]
fn an_update_without_old_image_has_kept_the_identity() {
    let update = row(vec![], image(7, "open"));
    assert_eq!(decide(&keyed(), "id = 7", Update, &update), Ok(Decision::Send(Some(Stay))));
    assert_eq!(decide(&keyed(), "id = 8", Update, &update), Ok(Decision::Skip));
    let moved = row(vec![Cell::Int(8), Cell::Absent, Cell::Absent, Cell::Absent], image(7, "open"));
    assert_eq!(decide(&keyed(), "id = 8", Update, &moved), Ok(Decision::Send(Some(Leave))));
    assert_eq!(decide(&keyed(), "id = 7", Update, &moved), Ok(Decision::Send(Some(Enter))));
}

#[test]
fn unchanged_toast_is_the_old_value_or_undecidable() {
    let toasted = || vec![Cell::Int(1), text("open"), Cell::Unchanged, Cell::Null];
    let with_old = row(image(1, "open"), toasted());
    assert_eq!(decide(&full(), "body = 'long'", Update, &with_old), Ok(Decision::Send(Some(Stay))));
    assert_eq!(decide(&full(), "body = 'short'", Update, &with_old), Ok(Decision::Skip));
    assert_eq!(decide(&full(), "changed(body)", Update, &with_old), Ok(Decision::Skip));

    let without = row(vec![], toasted());
    let error = decide(&keyed(), "id = 1 AND after.body = 'long'", Update, &without).unwrap_err();
    assert_eq!((error.column, error.operation), (2, Update));
    assert!(error.to_string().contains("\"body\""), "{error}");
    for (predicate, sent) in [
        ("id = 2 AND after.body = 'long'", false),
        ("after.id = 1 OR after.body = 'long'", true),
        ("after.body IS NULL", false),
        ("after.body IS NOT NULL", true),
        ("changed(body)", false),
        ("before.body = after.body", true),
        ("after.body < NULL", false),
    ] {
        let expected = if sent { Decision::Send(None) } else { Decision::Skip };
        assert_eq!(decide(&keyed(), predicate, Update, &without), Ok(expected), "{predicate}");
    }
    for predicate in
        ["NOT after.body = 'long'", "after.body NOT IN ('x')", "after.body LIKE '%' AND id = 1", "body <> status"]
    {
        assert!(decide(&keyed(), predicate, Update, &without).is_err(), "{predicate}");
    }
}

#[test]
fn absent_old_values_are_undecidable_not_null() {
    let update = row(vec![], image(1, "open"));
    let delete = row(vec![Cell::Int(1), Cell::Absent, Cell::Absent, Cell::Absent], vec![]);
    for predicate in ["status = 'open'", "status IS NULL", "status IS DISTINCT FROM 'x'", "changed(status)"] {
        let error = decide(&keyed(), predicate, Update, &update).unwrap_err();
        assert_eq!(error.column, 1, "{predicate}");
        assert!(decide(&keyed(), predicate, Delete, &delete).is_err(), "{predicate}");
    }
    assert_eq!(decide(&keyed(), "id = 2 AND status = 'open'", Delete, &delete), Ok(Decision::Skip));
    assert_eq!(decide(&keyed(), "status = 'open' OR id = 1", Delete, &delete), Ok(Decision::Send(Some(Leave))));
}

#[test]
fn support_follows_the_replica_identity() {
    for (predicate, updates, deletes) in [
        ("id = 1", true, true),
        ("status = 'open'", false, false),
        ("after.status = 'open'", true, true),
        ("before.status = 'open'", false, false),
        ("changed(status)", false, false),
        ("status = 'open' AND changed(id)", true, false),
        ("TRUE", true, true),
    ] {
        let compiled = compile(&keyed(), predicate);
        assert_eq!(compiled.transition_support(&keyed(), None).is_ok(), updates, "{predicate}");
        assert_eq!(compiled.delete_support(&keyed(), None).is_ok(), deletes, "{predicate}");
        assert!(compile(&full(), predicate).transition_support(&full(), None).is_ok(), "{predicate}");
        assert!(compile(&full(), predicate).delete_support(&full(), None).is_ok(), "{predicate}");
    }
    let error =
        compile(&keyed(), "id = 1 AND (status = 'x' OR price > 2)").transition_support(&keyed(), None).unwrap_err();
    assert_eq!((error.offset, error.columns.as_slice()), (12, &[1, 3][..]));
    for part in
        ["public.Orders", "status, price", "ALTER TABLE public.\"Orders\" REPLICA IDENTITY FULL", "after.column"]
    {
        assert!(error.message.contains(part), "{error}");
    }
    let mut keyless = keyed();
    keyless.columns.iter_mut().for_each(|column| column.in_identity = false);
    assert!(
        compile(&keyless, "status = 'x'").transition_support(&keyless, None).is_ok(),
        "its UPDATEs fail at the source"
    );
}

#[test]
fn equality_conjuncts_have_canonical_keys() {
    let relation = every_type();
    let key = |predicate: &str| compile(&relation, predicate).equality().cloned();
    for (one, other) in [
        ("n = 1.0", "n = 1"),
        ("f8 = 0", "f8 = -0.0"),
        ("i4 = 5", "i4 = 5.0"),
        ("c = 'a'", "c = 'a  '"),
        ("tstz = '2026-01-01'", "tstz = '2026-01-01 02:00+02'"),
        ("t = 'a' AND n > 5", "(i4 > 2 AND 'a' = t)"),
        ("b AND id = 1", "id = 1"),
        ("t IN ('a')", "t IS NOT DISTINCT FROM 'a'"),
    ] {
        assert!(key(one).is_some(), "{one}");
        assert_eq!(key(one), key(other), "{one} | {other}");
    }
    assert_ne!(key("n = 1"), key("n = 10"));
    assert_ne!(key("i4 = 1"), key("i2 = 1"));
    assert_ne!(key("t = 'a'"), key("after.t = 'a'"));
    for none in [
        "b",
        "b = true AND t LIKE '%a%'",
        "t = 'a' OR b",
        "NOT t = 'a'",
        "t <> 'a'",
        "t = NULL",
        "i4 = 1.5",
        "t = v",
        "t IN ('a', 'b')",
        "t IS NULL",
    ] {
        assert_eq!(key(none), None, "{none}");
    }
}

#[test]
fn keys_of_a_change_cover_both_images() {
    let keys = |relation: &Relation, predicate: &str, operation, row: &Row| {
        let equality = compile(relation, predicate).equality().cloned().unwrap();
        let mut keys = Vec::new();
        let complete = equality.on.keys(operation, row, |key| keys.push(String::from_utf8(key.to_vec()).unwrap()));
        complete.then_some(keys)
    };
    let moved = row(image(1, "open"), image(1, "closed"));
    let found = |keys: &[&str]| Some(keys.iter().map(|key| (*key).to_owned()).collect::<Vec<_>>());
    assert_eq!(keys(&full(), "status = 'x'", Update, &moved), found(&["closed", "open"]));
    assert_eq!(keys(&full(), "after.status = 'x'", Update, &moved), found(&["closed"]));
    assert_eq!(keys(&full(), "before.status = 'x'", Update, &moved), found(&["open"]));
    assert_eq!(keys(&full(), "status = 'x'", Insert, &row(vec![], image(1, "open"))), found(&["open"]));
    assert_eq!(keys(&full(), "status = 'x'", Delete, &row(image(1, "open"), vec![])), found(&["open"]));
    assert_eq!(keys(&full(), "body = 'x'", Update, &row(image(1, "a"), image(1, "b"))), found(&["long"]));
    assert_eq!(keys(&full(), "status = 'x'", Insert, &row(vec![], vec![Cell::Null; 4])), found(&[]));
    assert_eq!(keys(&keyed(), "status = 'x'", Update, &row(vec![], image(1, "open"))), None);
    let toasted = row(vec![], vec![Cell::Int(1), text("a"), Cell::Unchanged, Cell::Null]);
    assert_eq!(keys(&keyed(), "after.body = 'x'", Update, &toasted), None);
}
