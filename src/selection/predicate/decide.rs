//! What becomes of one change under a predicate, and whether a table's replica identity tells enough for it.

use super::{
    Compiled,
    ast::{Side, write_identifier},
    node::{Image, Scope, Source},
};
use crate::model::{Operation, Relation, ReplicaIdentity, RowAccess};

/// How a change moves a row across a predicate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Transition {
    /// The row is selected now and was not before: INSERT, READ, or an UPDATE into the predicate.
    Enter = 1,
    /// An UPDATE of a row that was selected and still is.
    Stay = 2,
    /// The row was selected and is no longer: DELETE, or an UPDATE out of the predicate.
    Leave = 3,
}

/// Whether a change is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Not selected.
    Skip,
    /// Selected. The transition is there for predicates over rows; TRUNCATE and predicates over changes (those that
    /// name `before.`, `after.` or `changed()`) have none.
    Send(Option<Transition>),
}

/// A change does not carry a value that its decision depends on. To be answered with FILTER_INVALID: neither sending
/// nor skipping the change would be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the {operation:?} does not carry the value of column {column_name:?} that the predicate needs (unchanged TOAST, \
         or not in the replica identity); REPLICA IDENTITY FULL, of each partition if there are any, carries it"
)]
pub struct Undecidable {
    /// Index in [`Relation::columns`].
    pub column: usize,
    /// Its name.
    pub column_name: String,
    /// The change.
    pub operation: Operation,
}

/// A relation's replica identity carries too little for a predicate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message} (at character offset {offset})")]
pub struct Unsupported {
    /// Table, columns and the remedy.
    pub message: String,
    /// Where the predicate first names such a column: characters from 0.
    pub offset: usize,
    /// The columns, as indices in [`Relation::columns`], ascending.
    pub columns: Vec<usize>,
}

impl Compiled {
    /// Whether the predicate holds for a change, a bare column being read from the new row, on DELETE from the old
    /// one. NULL counts as no. TRUNCATE always passes.
    ///
    /// # Errors
    /// [`Undecidable`] when the change does not carry what the result depends on.
    pub fn evaluate<R: RowAccess + ?Sized>(&self, operation: Operation, row: &R) -> Result<bool, Undecidable> {
        match operation {
            Operation::Truncate => Ok(true),
            Operation::Delete => self.holds(&Scope { row, operation, bare: Image::Old }),
            Operation::Insert | Operation::Update | Operation::Read => {
                self.holds(&Scope { row, operation, bare: Image::New })
            }
        }
    }

    /// Whether a change is sent, and as what. A predicate over rows is evaluated on both images of an UPDATE.
    ///
    /// # Errors
    /// As [`Compiled::evaluate`].
    pub fn classify<R: RowAccess + ?Sized>(&self, operation: Operation, row: &R) -> Result<Decision, Undecidable> {
        let now = self.evaluate(operation, row)?;
        if operation == Operation::Truncate || !self.over_rows {
            return Ok(if now { Decision::Send(None) } else { Decision::Skip });
        }
        let transition = match operation {
            Operation::Update => match (self.holds(&Scope { row, operation, bare: Image::Old })?, now) {
                (false, true) => Transition::Enter,
                (true, true) => Transition::Stay,
                (true, false) => Transition::Leave,
                (false, false) => return Ok(Decision::Skip),
            },
            _ if !now => return Ok(Decision::Skip),
            Operation::Delete => Transition::Leave,
            _ => Transition::Enter,
        };
        Ok(Decision::Send(Some(transition)))
    }

    fn holds<R: RowAccess + ?Sized>(&self, scope: &Scope<'_, R>) -> Result<bool, Undecidable> {
        self.root.evaluate(scope).selects().ok_or_else(|| self.undecidable(scope))
    }

    #[cold]
    fn undecidable<R: RowAccess + ?Sized>(&self, scope: &Scope<'_, R>) -> Undecidable {
        let column = self.root.undecided(scope).map_or(0, |source| source.column as usize);
        let column_name = self.names.get(column).cloned().unwrap_or_default();
        Undecidable { column, column_name, operation: scope.operation }
    }

    /// Whether a predicate over rows, which tells ENTER, STAY and LEAVE, or one over changes.
    pub fn tells_transitions(&self) -> bool {
        self.over_rows
    }

    /// Whether every DELETE can be decided: asked when the filter selects DELETE. `partial`: as in
    /// [`Described`](crate::model::Described), if that is known.
    ///
    /// # Errors
    /// [`Unsupported`] names the columns and the remedy.
    pub fn delete_support(&self, relation: &Relation, partial: Option<&[String]>) -> Result<(), Unsupported> {
        let needs = |source: Source| source.side != Side::After;
        self.support(relation, partial, needs, "deciding on a DELETE", "DELETE")
    }

    /// Whether every UPDATE can be decided, and told apart as ENTER, STAY or LEAVE: asked when the filter selects
    /// UPDATE. Unchanged TOAST is not covered: a column outside the identity that is read from the new row only can
    /// still make one UPDATE [`Undecidable`]. `partial` as for DELETE.
    ///
    /// # Errors
    /// [`Unsupported`] names the columns and the remedy.
    pub fn transition_support(&self, relation: &Relation, partial: Option<&[String]>) -> Result<(), Unsupported> {
        let needs = |source: Source| source.side == Side::Before || self.over_rows && source.side == Side::Row;
        let task =
            if self.over_rows { "telling ENTER, STAY and LEAVE apart on an UPDATE" } else { "deciding on an UPDATE" };
        self.support(relation, partial, needs, task, "UPDATE")
    }

    fn support(
        &self,
        relation: &Relation,
        partial: Option<&[String]>,
        needs: impl Fn(Source) -> bool,
        task: &str,
        operation: &str,
    ) -> Result<(), Unsupported> {
        // Partitions may have what identifies a row where their root has nothing.
        if identity_less(relation) && partial.is_none_or(<[String]>::is_empty) {
            return Ok(());
        }
        let missing =
            |source: Source| needs(source) && !source.in_identity && relation.replica_identity != ReplicaIdentity::Full;
        let mut columns: Vec<usize> =
            self.seen.iter().filter(|(s, _)| missing(*s)).map(|(s, _)| s.column as usize).collect();
        let Some(offset) = self.seen.iter().filter(|(s, _)| missing(*s)).map(|(_, offset)| *offset).min() else {
            return Ok(());
        };
        columns.sort_unstable();
        columns.dedup();
        let names: Vec<&str> =
            columns.iter().filter_map(|column| self.names.get(*column)).map(String::as_str).collect();
        let (fix, names) = (remedy(relation, partial), names.join(", "));
        let way_out = if self.over_rows && operation == "UPDATE" {
            "; or write after.column to judge each change by its new row alone"
        } else {
            ""
        };
        let message = format!(
            "table {}: {task} needs the old value of {names}, which is not in the replica identity; run {fix}, \
             or leave {operation} out of the operations{way_out}",
            relation.qualified_name()
        );
        Err(Unsupported { message, offset, columns })
    }
}

/// Nothing identifies a row: PostgreSQL refuses UPDATE and DELETE on such a table as soon as they are published, so
/// none can arrive and an append-only table without a key may have any predicate.
fn identity_less(relation: &Relation) -> bool {
    relation.replica_identity != ReplicaIdentity::Full && !relation.columns.iter().any(|column| column.in_identity)
}

/// Statements of which more are only counted.
const STATEMENTS: usize = 10;

/// What to run, for a table or for it and its partitions; `None`: not known whether it has any.
fn remedy(relation: &Relation, partial: Option<&[String]>) -> String {
    let full = |table: &str| format!("ALTER TABLE {table} REPLICA IDENTITY FULL");
    match partial {
        None => full(&quoted_table(relation)) + " (and the same for each of its partitions, if it has any)",
        Some([]) => full(&quoted_table(relation)),
        Some(tables) => {
            let statements: Vec<_> = tables.iter().take(STATEMENTS).map(|table| full(table)).collect();
            let more = match tables.len().saturating_sub(STATEMENTS) {
                0 => String::new(),
                more => format!("; the same for {more} more of its partitions"),
            };
            statements.join("; ") + &more
        }
    }
}

fn quoted_table(relation: &Relation) -> String {
    let mut text = String::new();
    let written = write_identifier(&mut text, &relation.schema).and_then(|()| {
        text.push('.');
        write_identifier(&mut text, &relation.table)
    });
    written.map_or_else(|_| relation.qualified_name(), |()| text)
}
