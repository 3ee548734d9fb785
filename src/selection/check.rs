//! What a filter may name, given what is published and what its principal may read.

use super::{Error, Literal, OWN_SCHEMA, Selection, pattern::Pattern};
use crate::model::{Printed, Relation, Spelled};

/// Tables of which it is told what is wrong with a predicate; more are only counted.
const TABLES_NAMED: usize = 10;

impl Selection {
    /// Checks the tables that the filter names before a stream opens. An exact name must be published; a name or an
    /// explicit glob must not reach a published table that the principal may not read (unless the filter itself
    /// excludes it). A glob that matches nothing yet is no error.
    ///
    /// `published` holds `(schema, table)`; `None`: not known yet, and then exact names that `known` does not know cannot be
    /// verified.
    pub fn check(&self, published: Option<&[(String, String)]>, known: impl Fn(&str) -> bool) -> Result<(), Error> {
        let published: Option<Vec<String>> = published.map(|tables| {
            let foreign = tables.iter().filter(|(schema, _)| schema != OWN_SCHEMA);
            foreign.map(|(schema, table)| format!("{schema}.{table}")).collect()
        });
        for pattern in &self.tables.0 {
            match (pattern, &published) {
                (Pattern::Exact(table), _) if !self.may_read(table) => return Err(Error::Denied(table.clone())),
                (Pattern::Exact(table), Some(published)) if !published.contains(table) => {
                    return Err(Error::NotPublished(table.clone()));
                }
                (Pattern::Exact(table), None) if !known(table) => return Err(Error::Unverified(table.clone())),
                (Pattern::Exact(_), _) | (Pattern::Glob(_), None) => {}
                (Pattern::Glob(glob), Some(published)) => {
                    let forbidden = |table: &&String| {
                        glob.is_match(table) && !self.exclude_tables.matches(table) && !self.may_read(table)
                    };
                    if let Some(table) = published.iter().find(forbidden) {
                        return Err(Error::Denied(table.clone()));
                    }
                }
            }
        }
        Ok(())
    }

    /// Whether the filter names this table, not by a glob.
    pub fn names(&self, schema: &str, table: &str) -> bool {
        self.tables.0.iter().any(|pattern| match pattern {
            Pattern::Exact(name) => {
                name.split_once('.') == Some((schema, table)) || *name == format!("{schema}.{table}")
            }
            Pattern::Glob(_) => false,
        })
    }

    /// Whether a predicate holds for this table: it is selected, and may be read.
    pub fn judges(&self, schema: &str, table: &str) -> bool {
        let table = format!("{schema}.{table}");
        let selected = schema != OWN_SCHEMA && self.table(&table) && self.may_read(&table);
        selected && self.rule(&table).predicate.is_some()
    }

    /// Whether there is a predicate that [`Selection::check_relations`] would check.
    pub fn has_predicates(&self) -> bool {
        self.rows.predicate.is_some() || self.rules.iter().any(|(_, rule)| rule.predicate.is_some())
    }

    /// Checks the predicates against the tables as they are now, those that the filter does not select aside.
    /// With each comes what is known of its partitions: see [`Described::partial`](crate::model::Described::partial).
    pub fn check_relations<'a>(
        &self,
        relations: impl IntoIterator<Item = (&'a Relation, Option<&'a [String]>)>,
    ) -> Result<(), Error> {
        let mut found = Vec::new();
        let mut more = 0;
        for (relation, partial) in relations {
            match self.plan(relation, partial) {
                Ok(_) => {}
                Err(Error::Invalid(violations)) if found.len() < TABLES_NAMED => found.extend(violations),
                Err(Error::Invalid(_)) => more += 1,
                Err(error) => return Err(error),
            }
        }
        if let Some((_, detail)) = found.last_mut().filter(|_| more > 0) {
            detail.push_str(&format!("; {more} more tables do not fit either"));
        }
        if found.is_empty() { Ok(()) } else { Err(Error::Invalid(found)) }
    }

    /// Literals of predicates that fit the table, and that only PostgreSQL can judge.
    pub fn literals(&self, relation: &Relation) -> Vec<Literal> {
        let predicate = self.relation(relation).ok().and_then(|plan| plan.predicate);
        predicate.iter().flat_map(|predicate| predicate.literals(relation)).collect()
    }

    /// Whether PostgreSQL would print all of them as they are written, as far as it says.
    pub fn check_literals(
        &self,
        literals: &[Literal],
        printed: impl Fn(&Spelled) -> Option<Printed>,
    ) -> Result<(), Error> {
        let wrong = literals.iter().filter_map(|literal| literal.violation(&printed(&literal.spelled)?));
        let mut found: Vec<(String, String)> = wrong.take(TABLES_NAMED).collect();
        found.dedup();
        if found.is_empty() { Ok(()) } else { Err(Error::Invalid(found)) }
    }
}
