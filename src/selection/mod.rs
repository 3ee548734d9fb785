//! A compiled filter: which tables, operations, columns, messages and origins a stream is to see. Pure; knows nothing of
//! how events travel.
//!
//! Tables of the schema `walcast` and logical messages whose prefix begins with `walcast.` are the hub's own and are
//! never selected, by no filter and no right.

mod canonical;
mod check;
mod compile;
mod error;
mod pattern;
mod plan;

pub use error::Error;
pub use plan::{Literal, Operations, RelationPlan, RowPredicate};

use std::sync::Arc;

use crate::model::{Relation, ReplicaIdentity};
use pattern::{Pattern, Patterns};
use plan::Where;

/// The schema whose tables are the hub's own.
pub const OWN_SCHEMA: &str = "walcast";

/// What the prefixes of the hub's own logical messages begin with.
pub const OWN_PREFIX: &str = "walcast.";

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
    /// Globs over `schema.table.column`; empty = all; identity columns always come, except under REPLICA IDENTITY FULL,
    /// which calls every column one.
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

/// By what the changes that a predicate can concern are found: those with another value there are not looked at.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Key {
    /// A value of a column of the table with this OID.
    Column(u32, predicate::Equality),
    /// A condition, of tables that are not known yet.
    Text(String),
}

/// A filter together with what its principal may read. Immutable; one is shared by all streams that ask for the same.
#[derive(Clone, Debug)]
pub struct Selection {
    tables: Patterns,
    exclude_tables: Patterns,
    rows: RowRule,
    rules: Vec<(Pattern, RowRule)>,
    /// `None`: every message.
    message_prefixes: Option<Patterns>,
    origins: Vec<String>,
    /// `None`: every table.
    rights: Option<Patterns>,
    everything: bool,
    canonical: String,
    filter_hash: u64,
}

/// What of a selected table's rows comes.
#[derive(Clone, Debug)]
struct RowRule {
    operations: Operations,
    columns: Patterns,
    predicate: Option<Where>,
}

impl RowRule {
    fn plan(&self, table: &str, relation: &Relation, partial: Option<&[String]>) -> Result<RelationPlan, Error> {
        let key_is_known = relation.replica_identity != ReplicaIdentity::Full;
        let columns: Vec<bool> = relation
            .columns
            .iter()
            .map(|column| {
                self.columns.is_empty()
                    || (key_is_known && column.in_identity)
                    || self.columns.matches(&format!("{table}.{}", column.name))
            })
            .collect();
        let all = columns.iter().all(|selected| *selected);
        let bind = |predicate: &Where| predicate.bind(relation, self.operations, partial);
        let predicate = self.predicate.as_ref().map(bind).transpose()?;
        Ok(RelationPlan::new(self.operations, (!all).then_some(columns), predicate.map(Arc::new)))
    }
}

impl Selection {
    /// What the selection means for one relation version.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the predicate that holds for the table does not fit this version: a column that it does not
    /// have, a literal of another type, a replica identity that carries too little.
    pub fn relation(&self, relation: &Relation) -> Result<RelationPlan, Error> {
        self.plan(relation, None)
    }

    fn plan(&self, relation: &Relation, partial: Option<&[String]>) -> Result<RelationPlan, Error> {
        let table = relation.qualified_name();
        if relation.schema == OWN_SCHEMA || !self.table(&table) || !self.may_read(&table) {
            return Ok(RelationPlan::default());
        }
        self.rule(&table).plan(&table, relation, partial)
    }

    /// What holds for the rows of this `schema.table`.
    fn rule(&self, table: &str) -> &RowRule {
        self.rules.iter().find(|(tables, _)| tables.matches(table)).map_or(&self.rows, |(_, rule)| rule)
    }

    /// Whether the filter alone, rights aside, asks for this `schema.table`.
    fn table(&self, table: &str) -> bool {
        (self.tables.is_empty() || self.tables.matches(table)) && !self.exclude_tables.matches(table)
    }

    fn may_read(&self, table: &str) -> bool {
        self.rights.as_ref().is_none_or(|rights| rights.matches(table))
    }

    /// Whether logical messages with this prefix are selected. Rights speak of tables only.
    pub fn messages(&self, prefix: &str) -> bool {
        !prefix.starts_with(OWN_PREFIX)
            && self.message_prefixes.as_ref().is_none_or(|patterns| patterns.matches(prefix))
    }

    /// Whether [`Selection::messages`] can say yes.
    pub fn selects_messages(&self) -> bool {
        self.message_prefixes.as_ref().is_none_or(|patterns| !patterns.is_empty())
    }

    /// Whether transactions of this replication origin are selected; empty = local, as are messages outside transactions,
    /// which carry no origin.
    pub fn origin(&self, name: &str) -> bool {
        self.origins.is_empty() || self.origins.iter().any(|origin| origin == name)
    }

    /// Whether [`Selection::origin`] can say no.
    pub fn filters_origins(&self) -> bool {
        !self.origins.is_empty()
    }

    /// Whether blocks may pass untouched, as long as they hold nothing of the hub's own: no filter, every right.
    pub fn is_everything(&self) -> bool {
        self.everything
    }

    /// Its predicates, in canonical text, with what finds the changes that they can concern without evaluating them: for each
    /// of these relation versions that it selects with a predicate; for predicates of none of them by their text.
    pub fn found_by<'a>(&self, relations: impl IntoIterator<Item = &'a Relation>) -> Vec<(Arc<str>, Option<Key>)> {
        let rows = std::iter::once(&self.rows).chain(self.rules.iter().map(|(_, rows)| rows));
        let predicates: Vec<&Where> = rows.filter_map(|rows| rows.predicate.as_ref()).collect();
        if predicates.is_empty() {
            return Vec::new();
        }
        let mut found: Vec<(Arc<str>, Option<Key>)> = Vec::new();
        found.extend(relations.into_iter().filter_map(|relation| self.found_in(relation)));
        for predicate in predicates {
            if !found.iter().any(|(text, _)| *text == predicate.canonical) {
                found.push((predicate.canonical.clone(), predicate.predicate.equality().map(Key::Text)));
            }
        }
        found
    }

    /// The same for one relation version, if it selects that with a predicate.
    pub fn found_in(&self, relation: &Relation) -> Option<(Arc<str>, Option<Key>)> {
        let predicate = self.relation(relation).ok()?.predicate?;
        let equality = predicate.compiled().equality();
        let key = equality.map(|equality| Key::Column(relation.oid, equality.clone()));
        Some((predicate.canonical().clone(), key))
    }

    /// Equal for selections that select the same way, whatever the order in which things were named.
    pub fn canonical(&self) -> &str {
        &self.canonical
    }

    /// Stable across restarts and versions: the first 8 bytes, big-endian, of SHA-256 over the canonical text of the
    /// filter. What the principal may read is not in it.
    pub fn filter_hash(&self) -> u64 {
        self.filter_hash
    }
}

#[cfg(test)]
mod tests;
