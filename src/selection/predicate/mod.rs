//! Row predicates: `where`, written like SQL, checked against each relation version, evaluated on every change.
//!
//! # Language
//! ```text
//! condition  = condition OR condition | condition AND condition | NOT condition | ( condition )
//!            | operand = <> != < <= > >= operand          operand IS [NOT] DISTINCT FROM operand
//!            | operand [NOT] BETWEEN operand AND operand  operand IS [NOT] NULL
//!            | column [NOT] IN (literal, ...)             column [NOT] LIKE | ILIKE 'pattern'
//!            | condition IS [NOT] TRUE | FALSE | UNKNOWN  changed(column)
//!            | boolean column | TRUE | FALSE | NULL
//! operand    = column | literal, at least one of them a column
//! column     = name | "Name" | before.name | after.name
//! literal    = 'text' | 12.5 | -1e3 | TRUE | FALSE | NULL | timestamptz '2026-01-01' | 'text'::type
//! ```
//! Precedence, three-valued logic and the folding of unquoted names are SQL's; a condition that is NULL selects nothing.
//!
//! # Rows and changes
//! A predicate that names bare columns only is over *rows*: the new row of INSERT, READ and UPDATE, the old row of DELETE.
//! An UPDATE is judged on both and becomes ENTER, STAY or LEAVE; INSERT and READ are ENTER, DELETE is LEAVE; so a
//! subscriber that adds on ENTER and removes on LEAVE holds exactly the selected rows. One that names `before.`, `after.`
//! or `changed()` is over *changes*: it selects those for which it holds and tells no transition. There is no row before
//! an INSERT and none after a DELETE: all its columns are NULL. `changed(c)` is `before.c IS DISTINCT FROM after.c`.
//!
//! What old values a change carries is the table's replica identity to say; [`Compiled::transition_support`] and
//! [`Compiled::delete_support`] tell beforehand where it says too little. An UPDATE without an old image has left the
//! identity's columns as they were, so their old values are the new ones. An unchanged TOASTed value is the old one if
//! the old image has it; otherwise it is known to be not null and unchanged, which decides `IS NULL`, `changed()` and
//! whatever the other conjuncts decide alone. What remains is [`Undecidable`], never a guess
//! ([TOAST and the replica identity](https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html)).
//!
//! # Comparison
//! By the type of the column, exactly. Numbers beside an integer column may have a fraction or any size; `numeric` compares
//! digit by digit at any length; `float4` literals are rounded to `float4` first (PostgreSQL compares `real = 0.1` as double
//! precision, which never holds). Timestamps are instants; literals without a zone are in UTC, and a zone beside a
//! `timestamp` column is refused, where PostgreSQL drops it silently. Intervals compare with months of 30 days. Text is
//! equal byte by byte and ordered by its bytes, as under the collation "C": collations, nondeterministic ones included,
//! are not applied. `char(n)` ignores spaces at the end, except under LIKE. NaN equals NaN and sorts last. A domain
//! compares as the type that it is over. Types without a class of their own (enums, arrays, json, ...) have `=`, `<>`, IN and
//! IS DISTINCT FROM on their text form.
//!
//! # Why not an expression library
//! `cel` has 64-bit integers and doubles and no three-valued logic: neither numeric nor `infinity` nor SQL's NULL, and
//! type-checking against a relation would be ours anyway. `evalexpr` is as narrow, and AGPL-3.0. `sqlparser` parses all
//! of SQL, nearly all of which would have to be refused here; its
//! [source spans](https://github.com/apache/datafusion-sqlparser-rs/issues/1548) are still incomplete and its errors
//! carry their place in prose, while a place at the character is half of what a parser is for here. The grammar above
//! takes two small files; types, unknown values and transitions, the larger part, no library has.

mod ast;
mod check;
mod class;
mod decide;
mod decimal;
mod lex;
mod like;
mod literal;
mod node;
mod parse;
mod route;
mod sql;
pub mod temporal;
#[cfg(test)]
mod tests;

use std::fmt;

pub use decide::{Decision, Transition, Undecidable, Unsupported};
pub use route::{Equality, KeyColumn};

use crate::model::Relation;

/// Longest text of a predicate in bytes, inclusive.
pub const MAX_LENGTH: usize = 16 * 1024;

/// How deep parentheses, NOT and IS may nest, inclusive.
pub const MAX_DEPTH: usize = 64;

/// The text is not a predicate, whatever the table.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message} (at character offset {offset})")]
pub struct ParseError {
    /// What is wrong, without the place.
    pub message: String,
    /// Where: characters (not bytes) from 0.
    pub offset: usize,
}

impl ParseError {
    fn new(message: impl Into<String>, offset: usize) -> Self {
        ParseError { message: message.into(), offset }
    }
}

/// The predicate does not fit a relation: an unknown column, a literal that is not of its column's type, an operator
/// that the type does not have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message} (at character offset {offset})")]
pub struct CheckError {
    /// What is wrong, without the place.
    pub message: String,
    /// Where: characters (not bytes) from 0.
    pub offset: usize,
}

impl CheckError {
    fn new(message: impl Into<String>, offset: usize) -> Self {
        CheckError { message: message.into(), offset }
    }
}

/// A parsed predicate, not yet bound to a relation.
#[derive(Clone, Debug)]
pub struct Predicate {
    root: ast::Expr,
}

impl Predicate {
    /// Reads a predicate.
    ///
    /// # Errors
    /// [`ParseError`] with the character where the text stops being one; at 0 when it is longer than [`MAX_LENGTH`].
    pub fn parse(text: &str) -> Result<Predicate, ParseError> {
        parse::parse(text).map(|root| Predicate { root })
    }

    /// The same for all predicates that differ in spaces, letter case, redundant parentheses or the form of operators
    /// only. For sharing one compiled predicate among subscriptions.
    pub fn canonical(&self) -> String {
        self.root.to_string()
    }

    /// A conjunct `column = literal` by which it could be found, in canonical text; [`Compiled::equality`] knows for a table.
    pub fn equality(&self) -> Option<String> {
        self.root.equality().map(ToString::to_string)
    }

    /// Resolves columns and types literals by them.
    ///
    /// # Errors
    /// [`CheckError`] with the character of the name, literal or operator that does not fit.
    pub fn check(&self, relation: &Relation) -> Result<Compiled, CheckError> {
        let mut checker = check::Checker::new(relation);
        let root = checker.condition(&self.root)?;
        Ok(Compiled {
            equality: route::equality(&root),
            over_rows: checker.seen.iter().all(|(source, _)| source.side == ast::Side::Row),
            names: relation.columns.iter().map(|column| column.name.clone()).collect(),
            seen: checker.seen.into(),
            spelled: checker.spelled.into(),
            root,
        })
    }
}

impl fmt::Display for Predicate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.root.fmt(f)
    }
}

/// A predicate for one relation version. Evaluation allocates nothing, save for ILIKE and `_` on text
/// that is not UTF-8.
#[derive(Clone, Debug)]
pub struct Compiled {
    root: node::Node,
    over_rows: bool,
    equality: Option<Equality>,
    /// Each column reference with its offset, in the order of the text.
    seen: Box<[(node::Source, usize)]>,
    /// Of the relation's columns.
    names: Box<[String]>,
    /// As [`Compiled::spelled`].
    spelled: Box<[(u32, Box<str>, usize)]>,
}

impl Compiled {
    /// Literals beside columns that compare in the form in which PostgreSQL prints them: the column's index, the text and its
    /// offset. In another form they equal nothing.
    pub fn spelled(&self) -> impl Iterator<Item = (usize, &str, usize)> {
        self.spelled.iter().map(|(column, text, offset)| (*column as usize, &**text, *offset))
    }

    /// The columns that the predicate reads: indices in [`Relation::columns`], ascending.
    pub fn columns(&self) -> Vec<usize> {
        let mut columns: Vec<usize> = self.seen.iter().map(|(source, _)| source.column as usize).collect();
        columns.sort_unstable();
        columns.dedup();
        columns
    }
}
