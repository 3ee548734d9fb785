//! Random predicates against an evaluator that knows neither text nor types: every value is a rank in a list.

use std::cmp::Ordering;

use proptest::{collection::vec, option, prelude::*, sample::select};

use super::*;
use crate::{
    model::Operation,
    selection::predicate::node::{Image, Scope, Truth},
};

/// Values of each column in ascending order; the spellings in one list are equal, the first is PostgreSQL's own.
const VALUES: [(&str, &str, u32, &[&[&str]]); 6] = [
    ("id", "int8", 20, &[&["-9223372036854775808"], &["-1"], &["0"], &["5"], &["9223372036854775807"]]),
    (
        "n",
        "numeric",
        1700,
        &[
            &["-Infinity"],
            &["-10.50", "-10.5", "-10.5000"],
            &["0", "0.000", "-0"],
            &["0.10", "0.1"],
            &["9"],
            &["10.0", "10", "10.00"],
            &["123456789012345678901234567890.001", "123456789012345678901234567890.0010"],
            &["NaN"],
        ],
    ),
    ("t", "text", 25, &[&[""], &["%"], &["A"], &["a"], &["ab"], &["it's"], &["ä"]]),
    (
        "tstz",
        "timestamptz",
        1184,
        &[
            &["-infinity"],
            &["0044-03-15 12:00:00+00 BC", "0044-03-15 14:00+02 BC"],
            &["2025-12-31 23:59:59.999999+00"],
            &["2026-01-01 00:00:00+00", "2026-01-01", "2026-01-01T05:30:00+05:30", "2025-12-31 16:00:00-08"],
            &["infinity"],
        ],
    ),
    ("b", "bool", 16, &[&["f", "false", "no"], &["t", "true", "on"]]),
    ("f8", "float8", 701, &[&["-Infinity"], &["-0.5", "-5e-1"], &["0", "-0"], &["1e300"], &["Infinity"], &["NaN"]]),
];

/// Rank and spelling.
type Choice = Option<(usize, usize)>;

#[derive(Clone, Debug)]
enum Tree {
    Compare(usize, Side, &'static str, Choice),
    Columns(usize, Side, &'static str, Side),
    In(usize, Vec<Choice>),
    Between(usize, Choice, Choice),
    IsNull(usize, Side),
    Changed(usize),
    And(Vec<Tree>),
    Or(Vec<Tree>),
    Not(Box<Tree>),
    Is(Box<Tree>, Option<bool>),
}

#[derive(Clone, Copy, Debug)]
enum Side {
    Bare,
    Before,
    After,
}

fn tree() -> impl Strategy<Value = Tree> {
    let side = || select(vec![Side::Bare, Side::Before, Side::After]);
    let op = || select(vec!["=", "<>", "<", "<=", ">", ">=", "IS DISTINCT FROM", "IS NOT DISTINCT FROM"]);
    let leaf = (0..VALUES.len()).prop_flat_map(move |column| {
        prop_oneof![
            4 => (side(), op(), choice(column)).prop_map(move |(side, op, value)| Tree::Compare(column, side, op, value)),
            1 => (side(), op(), side()).prop_map(move |(left, op, right)| Tree::Columns(column, left, op, right)),
            1 => vec(choice(column), 1..5).prop_map(move |items| Tree::In(column, items)),
            1 => (choice(column), choice(column)).prop_map(move |(low, high)| Tree::Between(column, low, high)),
            1 => side().prop_map(move |side| Tree::IsNull(column, side)),
            1 => Just(Tree::Changed(column)),
        ]
    });
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            vec(inner.clone(), 2..4).prop_map(Tree::And),
            vec(inner.clone(), 2..4).prop_map(Tree::Or),
            inner.clone().prop_map(|tree| Tree::Not(Box::new(tree))),
            (inner, option::of(any::<bool>())).prop_map(|(tree, truth)| Tree::Is(Box::new(tree), truth)),
        ]
    })
}

fn choice(column: usize) -> impl Strategy<Value = Choice> {
    let ranks = VALUES[column].3;
    let value = (0..ranks.len()).prop_flat_map(move |rank| (Just(rank), 0..ranks[rank].len()));
    option::weighted(0.9, value)
}

fn images() -> impl Strategy<Value = Vec<Choice>> {
    (0..VALUES.len())
        .map(|column| choice(column).prop_map(|value| value.map(|(rank, _)| (rank, 0))))
        .collect::<Vec<_>>()
}

impl Tree {
    fn text(&self) -> String {
        let name = |column: usize, side: &Side| match side {
            Side::Bare => VALUES[column].0.to_owned(),
            Side::Before => format!("before.{}", VALUES[column].0),
            Side::After => format!("after.{}", VALUES[column].0),
        };
        let literal = |column: usize, value: &Choice| match value {
            None => "NULL".to_owned(),
            Some((rank, spelling)) => format!("'{}'", VALUES[column].3[*rank][*spelling].replace('\'', "''")),
        };
        let join = |trees: &[Tree], word: &str| {
            trees.iter().map(|tree| format!("({})", tree.text())).collect::<Vec<_>>().join(word)
        };
        match self {
            Tree::Compare(column, side, op, value) => {
                format!("{} {op} {}", name(*column, side), literal(*column, value))
            }
            Tree::Columns(column, left, op, right) => format!("{} {op} {}", name(*column, left), name(*column, right)),
            Tree::In(column, items) => {
                let items: Vec<String> = items.iter().map(|item| literal(*column, item)).collect();
                format!("{} IN ({})", VALUES[*column].0, items.join(", "))
            }
            Tree::Between(column, low, high) => {
                format!("{} BETWEEN {} AND {}", VALUES[*column].0, literal(*column, low), literal(*column, high))
            }
            Tree::IsNull(column, side) => format!("{} IS NULL", name(*column, side)),
            Tree::Changed(column) => format!("changed({})", VALUES[*column].0),
            Tree::And(trees) => join(trees, " AND "),
            Tree::Or(trees) => join(trees, " OR "),
            Tree::Not(tree) => format!("NOT ({})", tree.text()),
            Tree::Is(tree, None) => format!("({}) IS UNKNOWN", tree.text()),
            Tree::Is(tree, Some(truth)) => format!("({}) IS {truth}", tree.text()),
        }
    }

    fn value(&self, before: &[Choice], after: &[Choice], bare: &[Choice]) -> Option<bool> {
        let read = |column: usize, side: &Side| match side {
            Side::Bare => bare[column],
            Side::Before => before[column],
            Side::After => after[column],
        };
        let rank = |value: Choice| value.map(|(rank, _)| rank);
        match self {
            Tree::Compare(column, side, op, value) => compare(rank(read(*column, side)), op, rank(*value)),
            Tree::Columns(column, left, op, right) => {
                compare(rank(read(*column, left)), op, rank(read(*column, right)))
            }
            Tree::In(column, items) => {
                any_true(items.iter().map(|item| compare(rank(bare[*column]), "=", rank(*item))))
            }
            Tree::Between(column, low, high) => all_true(
                [compare(rank(bare[*column]), ">=", rank(*low)), compare(rank(bare[*column]), "<=", rank(*high))]
                    .into_iter(),
            ),
            Tree::IsNull(column, side) => Some(read(*column, side).is_none()),
            Tree::Changed(column) => Some(rank(before[*column]) != rank(after[*column])),
            Tree::And(trees) => all_true(trees.iter().map(|tree| tree.value(before, after, bare))),
            Tree::Or(trees) => any_true(trees.iter().map(|tree| tree.value(before, after, bare))),
            Tree::Not(tree) => tree.value(before, after, bare).map(|truth| !truth),
            Tree::Is(tree, truth) => Some(tree.value(before, after, bare) == *truth),
        }
    }
}

fn compare(left: Option<usize>, op: &str, right: Option<usize>) -> Option<bool> {
    match op {
        "IS DISTINCT FROM" => return Some(left != right),
        "IS NOT DISTINCT FROM" => return Some(left == right),
        _ => {}
    }
    let ordering = left?.cmp(&right?);
    Some(match op {
        "=" => ordering == Ordering::Equal,
        "<>" => ordering != Ordering::Equal,
        "<" => ordering == Ordering::Less,
        "<=" => ordering != Ordering::Greater,
        ">" => ordering == Ordering::Greater,
        _ => ordering != Ordering::Less,
    })
}

fn any_true(truths: impl Iterator<Item = Option<bool>>) -> Option<bool> {
    let truths: Vec<_> = truths.collect();
    if truths.contains(&Some(true)) { Some(true) } else { (!truths.contains(&None)).then_some(false) }
}

fn all_true(truths: impl Iterator<Item = Option<bool>>) -> Option<bool> {
    any_true(truths.map(|truth| truth.map(|truth| !truth))).map(|truth| !truth)
}

fn cells(values: &[Choice]) -> Vec<Cell> {
    let cell = |(column, value): (usize, &Choice)| match value {
        None => Cell::Null,
        Some((rank, _)) => Cell::from_text(VALUES[column].3[*rank][0], VALUES[column].2),
    };
    values.iter().enumerate().map(cell).collect()
}

fn table(replica_identity: ReplicaIdentity) -> Relation {
    relation(&VALUES.map(|(name, type_name, oid, _)| (name, type_name, oid)), replica_identity)
}

fn truth(value: Option<bool>) -> Truth {
    value.map_or(Truth::NULL, Truth::from)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn agrees_with_the_naive_evaluator(tree in tree(), before in images(), after in images()) {
        let text = tree.text();
        let compiled = compile(&table(ReplicaIdentity::Full), &text);
        let row = Row { before: cells(&before), after: cells(&after) };
        let scope = Scope { row: &row, operation: Operation::Update, bare: Image::New };
        prop_assert_eq!(compiled.root.evaluate(&scope), truth(tree.value(&before, &after, &after)), "{}", &text);

        let canonical = Predicate::parse(&text).unwrap().canonical();
        let again = compile(&table(ReplicaIdentity::Full), &canonical);
        prop_assert_eq!(again.root.evaluate(&scope), compiled.root.evaluate(&scope), "{} | {}", &text, &canonical);
    }

    /// Whatever the values are that a change does not carry: a decision that is made without them is theirs too.
    #[test]
    fn unknown_values_never_change_a_decision(
        tree in tree(),
        before in images(),
        after in images(),
        hidden in vec(any::<bool>(), VALUES.len()),
    ) {
        let text = tree.text();
        let mut row = Row { before: cells(&before), after: cells(&after) };
        let mut old = before;
        for (column, hidden) in hidden.into_iter().enumerate() {
            if hidden {
                row.before[column] = Cell::Absent;
                if VALUES[column].0 == "t" && after[column].is_some() {
                    row.after[column] = Cell::Unchanged;
                    old[column] = after[column];
                } else if VALUES[column].0 == "id" {
                    old[column] = after[column];
                }
            }
        }
        let compiled = compile(&table(ReplicaIdentity::Default), &text);
        for (image, bare) in [(Image::New, &after), (Image::Old, &old)] {
            let scope = Scope { row: &row, operation: Operation::Update, bare: image };
            let possible = compiled.root.evaluate(&scope);
            let actual = tree.value(&old, &after, bare);
            prop_assert!(possible.includes(truth(actual)), "{} is {:?}, not in {:?}", &text, actual, possible);
            if possible.selects().is_none() {
                prop_assert!(compiled.root.undecided(&scope).is_some());
            }
        }
    }

    /// An index by equality finds every predicate that the change concerns.
    #[test]
    fn keys_cover_what_is_sent(tree in tree(), before in images(), after in images(), column in 0..VALUES.len(), rank in 0_usize..8) {
        let ranks = VALUES[column].3;
        let literal = ranks[rank % ranks.len()].last().unwrap().replace('\'', "''");
        let text = format!("{} = '{literal}' AND ({})", VALUES[column].0, tree.text());
        let compiled = compile(&table(ReplicaIdentity::Full), &text);
        let row = Row { before: cells(&before), after: cells(&after) };
        if let (Some(equality), Ok(Decision::Send(_))) = (compiled.equality(), compiled.classify(Operation::Update, &row)) {
            let mut found = false;
            prop_assert!(equality.on.keys(Operation::Update, &row, |key| found |= *key == *equality.key));
            prop_assert!(found, "{}", text);
        }
    }

    #[test]
    fn no_text_breaks_the_parser(text in "[ -~äß]{0,60}") {
        if let Ok(predicate) = Predicate::parse(&text) {
            let canonical = predicate.canonical();
            prop_assert_eq!(Predicate::parse(&canonical).map(|again| again.canonical()), Ok(canonical));
        }
    }

    #[test]
    fn errors_lie_inside_the_text(words in vec(select(vec!["a", "ä", "=", "(", ")", "and", "not", "in", "is", "'x'", "1", "null", "before", ".", ",", "like", "::"]), 0..12)) {
        let text = words.join(" ");
        if let Err(error) = Predicate::parse(&text) {
            prop_assert!(error.offset <= text.chars().count(), "{}: {}", text, error);
        }
    }
}
