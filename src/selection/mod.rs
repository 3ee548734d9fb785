//! A compiled filter.

pub mod predicate;

/// What a subscriber asked for, as plain data (`walcast.v1.Filter` without protobuf).
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Filter {
    /// Globs over `schema.table`; empty = all.
    pub tables: Vec<String>,
    /// Globs that take away again.
    pub exclude_tables: Vec<String>,
    /// Empty = all.
    pub operations: Vec<crate::model::Operation>,
    /// Globs over `schema.table.column`; empty = all; identity columns always come.
    pub columns: Vec<String>,
    /// Row predicate; empty = none.
    pub predicate: String,
    /// Globs; empty = no messages.
    pub message_prefixes: Vec<String>,
    /// Empty = all; "" = local.
    pub origins: Vec<String>,
    /// Per-table rules, instead of columns, predicate and operations.
    pub rules: Vec<TableRule>,
}

/// The first rule that matches a table holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct TableRule {
    /// Glob over `schema.table`.
    pub tables: String,
    /// As in [`Filter`].
    pub columns: Vec<String>,
    /// As in [`Filter`].
    pub predicate: String,
    /// As in [`Filter`].
    pub operations: Vec<crate::model::Operation>,
}
