//! One text for all filters that mean the same, so that their streams share projections, and a hash of it that
//! tells after a restart whether a subscriber came back with another filter.
//!
//! Each list is sorted and freed of repeats (rules are not: the first that matches holds), each string is written with
//! its length in front, so two different filters cannot read the same.

use std::fmt::Write;

use sha2::{Digest, Sha256};

use super::{Filter, RowRule, TableRule, pattern::Pattern};
use crate::model::Operation;

/// The canonical text of a filter that was compiled to these rules. Predicates come in their own canonical form.
pub(super) fn filter(filter: Option<&Filter>, rows: &RowRule, compiled: &[(Pattern, RowRule)]) -> String {
    let Some(filter) = filter else { return "everything".to_owned() };
    let mut text = String::from("v1");
    list(&mut text, "tables", &filter.tables);
    list(&mut text, "exclude", &filter.exclude_tables);
    operations(&mut text, &filter.operations);
    list(&mut text, "columns", &filter.columns);
    string(&mut text, "where", canonical(rows));
    list(&mut text, "prefixes", &filter.message_prefixes);
    list(&mut text, "origins", &filter.origins);
    for (TableRule { tables, columns, operations: rule_operations, .. }, (_, rows)) in filter.rules.iter().zip(compiled)
    {
        string(&mut text, "rule", tables);
        list(&mut text, "columns", columns);
        string(&mut text, "where", canonical(rows));
        operations(&mut text, rule_operations);
    }
    text
}

fn canonical(rows: &RowRule) -> &str {
    rows.predicate.as_ref().map_or("", |predicate| &predicate.canonical)
}

/// The canonical text of what a principal may read.
pub(super) fn rights(tables: Option<&[String]>) -> String {
    let mut text = String::new();
    match tables {
        None => text.push_str(";all"),
        Some(tables) => list(&mut text, "rights", tables),
    }
    text
}

/// The first 8 bytes, big-endian, of SHA-256 over the canonical text of the filter (rights are not in it).
pub(super) fn hash(text: &str) -> u64 {
    let digest = Sha256::digest(text.as_bytes());
    digest.iter().take(8).fold(0, |hash, byte| hash << 8 | u64::from(*byte))
}

fn list(out: &mut String, name: &str, items: &[String]) {
    let mut sorted: Vec<&String> = items.iter().collect();
    sorted.sort_unstable();
    sorted.dedup();
    let _ = write!(out, ";{name}={}", sorted.len());
    for item in sorted {
        let _ = write!(out, ",{}:{item}", item.len());
    }
}

fn string(out: &mut String, name: &str, text: &str) {
    let _ = write!(out, ";{name}={}:{text}", text.len());
}

fn operations(out: &mut String, operations: &[Operation]) {
    let mut sorted: Vec<u8> = operations.iter().map(|operation| *operation as u8).collect();
    sorted.sort_unstable();
    sorted.dedup();
    let _ = write!(out, ";operations={sorted:?}");
}
