//! Grammar: what parses to what, and where it stops.

use super::*;

#[test]
fn canonical_text_is_one_for_one_meaning() {
    for (text, canonical) in [
        ("a=1", "a = 1"),
        ("  A  =\t1 ", "a = 1"),
        ("((a) = (1))", "a = 1"),
        ("1 = a", "a = 1"),
        ("1 < a", "a > 1"),
        ("1 >= a", "a <= 1"),
        ("a != +1e+5", "a <> 1e5"),
        ("a <= -.5", "a <= -.5"),
        ("\"A b\"\"c\" = 'it''s'", "\"A b\"\"c\" = 'it''s'"),
        ("a = 1 and b = 2 AND (c = 3 and d = 4)", "a = 1 AND b = 2 AND c = 3 AND d = 4"),
        ("a = 1 or b = 2 and c = 3", "a = 1 OR (b = 2 AND c = 3)"),
        ("(a = 1 or b = 2) and c = 3", "(a = 1 OR b = 2) AND c = 3"),
        ("not a = 1 and b", "NOT (a = 1) AND b"),
        ("not not b", "NOT (NOT (b))"),
        ("a in (1,2 , null)", "a IN (1, 2, NULL)"),
        ("a not in (1)", "NOT (a IN (1))"),
        ("a is not null", "NOT (a IS NULL)"),
        ("a = 1 is null", "(a = 1) IS UNKNOWN"),
        ("b is not true", "NOT ((b) IS TRUE)"),
        ("a is distinct from 1", "a IS DISTINCT FROM 1"),
        ("a is not distinct from null", "a IS NOT DISTINCT FROM NULL"),
        ("a between 1 and 2 or b", "(a >= 1 AND a <= 2) OR b"),
        ("a not between 1 and 2", "NOT (a >= 1 AND a <= 2)"),
        ("t like 'a%' and t not ilike '_'", "t LIKE 'a%' AND NOT (t ILIKE '_')"),
        ("before.a <> after.a", "before.a <> after.a"),
        ("before.\"X\" = 1", "before.\"X\" = 1"),
        ("before = 1 and changed = 2", "\"before\" = 1 AND \"changed\" = 2"),
        ("changed(a)", "changed(a)"),
        ("CHANGED ( \"A\" )", "changed(\"A\")"),
        ("ts < timestamptz '2026-01-01'", "ts < '2026-01-01'::timestamptz"),
        ("mood = 'ok'::public.mood", "mood = 'ok'::public.mood"),
        ("größe = 1", "\"größe\" = 1"),
        ("true", "TRUE"),
    ] {
        let parsed = Predicate::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(parsed.canonical(), canonical, "{text}");
        assert_eq!(Predicate::parse(canonical).unwrap().canonical(), canonical, "read back");
    }
}

#[test]
fn errors_name_the_character() {
    for (text, offset, part) in [
        ("", 0, "the predicate ends"),
        ("   ", 3, "the predicate ends"),
        ("a =", 3, "the predicate ends"),
        ("a = 1 b", 6, "expected AND, OR or the end"),
        ("a = 1 AND", 9, "the predicate ends"),
        ("ä = 'ö' ? 1", 8, "unexpected character '?'"),
        ("ä = 'ö", 4, "has no end"),
        ("\"ä", 0, "has no end"),
        ("\"\" = 1", 0, "cannot be empty"),
        ("a = 1x", 5, "in a number"),
        ("a = 1e", 4, "no digits"),
        ("a == 1", 3, "found \"=\""),
        ("a = = 1", 4, "found \"=\""),
        ("a < b < c", 6, "AND, OR or the end"),
        ("(a = 1", 6, "expected )"),
        ("a = 1)", 5, "AND, OR or the end"),
        ("1", 0, "expected a condition"),
        ("a = 1 and 'x'", 10, "expected a condition"),
        ("1 = 2", 0, "at least one side"),
        ("(a = 1) = true", 0, "found a condition"),
        ("a in ()", 6, "expected a column, a literal"),
        ("a in (b)", 6, "found a column"),
        ("a in 1", 5, "expected ("),
        ("a not 1", 6, "after NOT"),
        ("a like b", 7, "found a column"),
        ("a is 1", 5, "after IS"),
        ("a between 1 or 2", 12, "expected AND"),
        ("lower(a) = 'x'", 0, "no function lower()"),
        ("public.orders = 1", 6, "not qualified"),
        ("before.a.b = 1", 8, "not qualified"),
        ("before. = 1", 8, "expected a column after"),
        ("changed(1)", 8, "name of one column"),
        ("changed(before.a)", 8, "name of one column"),
        ("a::text = 'x'", 1, "only literals can be cast"),
        ("a = 'x'::", 9, "name of a type"),
        ("a = '1'::int::int", 14, "once only"),
        ("a = -'1'", 5, "expected a number"),
        ("a = 1; drop", 5, "unexpected character ';'"),
        ("select = 1 and and", 15, "found AND"),
    ] {
        let error = Predicate::parse(text).map(|parsed| parsed.canonical()).expect_err(text);
        assert_eq!(error.offset, offset, "{text}: {error}");
        assert!(error.message.contains(part), "{text}: {error}");
    }
}

/// On a stack as small as a thread ever has: the text is a stranger's.
fn on_a_small_stack<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    std::thread::Builder::new().stack_size(256 << 10).spawn(work).unwrap().join().unwrap()
}

#[test]
fn depth_and_length_are_limited() {
    let nested = |depth: usize| format!("{}b{}", "(".repeat(depth), ")".repeat(depth));
    assert!(Predicate::parse(&nested(MAX_DEPTH)).is_ok());
    assert_eq!(Predicate::parse(&nested(MAX_DEPTH + 1)).unwrap_err().offset, MAX_DEPTH + 1);
    for bomb in ["(", "NOT ", "changed(", "a IN (", "a = (", "NOT (a IS NULL AND "] {
        let text = bomb.repeat(MAX_LENGTH / bomb.len());
        assert!(!on_a_small_stack(move || Predicate::parse(&text).is_ok()), "{bomb}");
    }
    assert!(Predicate::parse(&format!("b{}", " IS NULL".repeat(MAX_DEPTH + 1))).is_err());
    // Each parenthesis around as many more as are left.
    let tower = (1..MAX_DEPTH).fold("b".to_owned(), |inner, depth| format!("({inner}){}", " IS TRUE".repeat(depth)));
    assert!(tower.len() < MAX_LENGTH);
    assert!(Predicate::parse(&tower).is_err_and(|error| error.message.contains("inside one another")));
    let chain = format!("b{}", " AND b".repeat(MAX_LENGTH / 6 - 1));
    assert!(Predicate::parse(&chain).is_ok());
    assert_eq!(Predicate::parse(&"a".repeat(MAX_LENGTH + 1)).unwrap_err().offset, 0);
}

#[test]
fn the_deepest_predicate_needs_little_stack() {
    let text = (0..MAX_DEPTH).fold("b".to_owned(), |inner, _| format!("i4 = 1 OR i4 = 2 AND ({inner})"));
    let negated = format!("{}b", "NOT ".repeat(MAX_DEPTH));
    for text in [text, negated] {
        on_a_small_stack(move || {
            let relation = every_type();
            let predicate = Predicate::parse(&text).unwrap();
            assert!(predicate.canonical().len() > text.len());
            let compiled = predicate.clone().check(&relation).unwrap();
            let nulls = Row { after: vec![Cell::Null; relation.columns.len()], ..Row::default() };
            assert_eq!(compiled.evaluate(crate::model::Operation::Insert, &nulls), Ok(false));
            assert!(compiled.evaluate(crate::model::Operation::Insert, &Row::default()).is_err());
            assert!(compiled.to_sql(true).is_some());
        });
    }
}
