//! What a selection means for one relation version.

use std::sync::Arc;

use super::{
    Error,
    predicate::{Compiled, Decision, Predicate},
};
use crate::model::{Operation, Printed, Relation, RowAccess, Spelled};

/// A set of operations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Operations(u8);

impl Operations {
    /// No operation.
    pub const NONE: Operations = Operations(0);

    /// Every operation.
    pub const ALL: Operations = Operations(u8::MAX);

    /// These; all for an empty list.
    pub fn of(operations: &[Operation]) -> Self {
        if operations.is_empty() {
            return Operations::ALL;
        }
        Operations(operations.iter().fold(0, |mask, operation| mask | 1 << *operation as u8))
    }

    /// These and those.
    pub fn or(self, other: Operations) -> Self {
        Operations(self.0 | other.0)
    }

    /// Whether it is one of them.
    pub fn contains(self, operation: Operation) -> bool {
        self.0 & 1 << operation as u8 != 0
    }
}

/// A `where` that was parsed, and which field of the filter it is.
#[derive(Clone, Debug)]
pub(super) struct Where {
    /// `filter.where`, `filter.rules[1].where`.
    pub path: Arc<str>,
    pub predicate: Predicate,
    pub canonical: Arc<str>,
}

impl Where {
    /// The predicate for one relation version, of which the filter selects these operations.
    pub fn bind(
        &self,
        relation: &Relation,
        operations: Operations,
        partial: Option<&[String]>,
    ) -> Result<RowPredicate, Error> {
        let table = relation.qualified_name();
        let compiled = self.predicate.check(relation).map_err(|error| match error.message.starts_with("table ") {
            true => self.wrong(error.to_string()),
            false => self.wrong(format!("table {table}: {error}")),
        })?;
        if operations.contains(Operation::Update) {
            compiled.transition_support(relation, partial).map_err(|error| self.wrong(error.to_string()))?;
        }
        if operations.contains(Operation::Delete) {
            compiled.delete_support(relation, partial).map_err(|error| self.wrong(error.to_string()))?;
        }
        Ok(RowPredicate { compiled, path: self.path.clone(), canonical: self.canonical.clone(), table })
    }

    fn wrong(&self, detail: String) -> Error {
        Error::Invalid(vec![(self.path.to_string(), detail)])
    }
}

/// A row predicate for one relation version.
#[derive(Debug)]
pub struct RowPredicate {
    compiled: Compiled,
    path: Arc<str>,
    canonical: Arc<str>,
    table: String,
}

impl RowPredicate {
    /// Whether a change is selected and as what.
    ///
    /// # Errors
    /// [`Error::Invalid`] names the column without whose value that cannot be told.
    pub fn decide<R: RowAccess + ?Sized>(&self, operation: Operation, row: &R) -> Result<Decision, Error> {
        self.compiled
            .classify(operation, row)
            .map_err(|error| Error::Invalid(vec![(self.path.to_string(), format!("table {}: {error}", self.table))]))
    }

    /// What the predicate's literals are to be asked about.
    pub(super) fn literals<'a>(&'a self, relation: &'a Relation) -> impl Iterator<Item = Literal> + 'a {
        self.compiled.spelled().filter_map(|(column, text, offset)| {
            let column = relation.columns.get(column)?;
            let (type_oid, type_modifier) = (column.type_oid, column.type_modifier);
            Some(Literal {
                spelled: Spelled { type_oid, type_modifier, text: text.to_owned() },
                path: self.path.clone(),
                of: format!("table {}: column {:?} is {}", self.table, column.name, column.type_name),
                offset,
            })
        })
    }

    /// The predicate as such.
    pub fn compiled(&self) -> &Compiled {
        &self.compiled
    }

    /// The same for predicates that are written differently and decide the same way on the same relation version.
    pub fn canonical(&self) -> &Arc<str> {
        &self.canonical
    }
}

/// A literal of a predicate that only PostgreSQL can judge.
#[derive(Clone, Debug)]
pub struct Literal {
    /// What to ask.
    pub spelled: Spelled,
    path: Arc<str>,
    of: String,
    offset: usize,
}

impl Literal {
    /// The field and what is wrong, if the answer is that no value equals the literal.
    pub fn violation(&self, printed: &Printed) -> Option<(String, String)> {
        let wrong = match printed {
            Printed::As(text) if *text == self.spelled.text => return None,
            Printed::As(text) => {
                let text = text.replace('\'', "''");
                format!("it compares in the form in which PostgreSQL prints it, and this is printed as '{text}'")
            }
            Printed::Refused(why) => why.clone(),
        };
        Some((self.path.to_string(), format!("{}: {wrong} (at character offset {})", self.of, self.offset)))
    }
}

/// What a selection means for one relation version.
#[derive(Clone, Debug, Default)]
pub struct RelationPlan {
    /// Whether anything of this table is selected at all.
    pub selected: bool,
    operations: Operations,
    /// One flag for each column, in order; `None`: all.
    pub columns: Option<Vec<bool>>,
    /// Decides row by row, TRUNCATE aside, which always passes; `None`: every row.
    pub predicate: Option<Arc<RowPredicate>>,
}

impl RelationPlan {
    pub(super) fn new(
        operations: Operations,
        columns: Option<Vec<bool>>,
        predicate: Option<Arc<RowPredicate>>,
    ) -> Self {
        RelationPlan { selected: true, operations, columns, predicate }
    }

    /// Whether changes of this kind pass, rows aside.
    pub fn passes(&self, operation: Operation) -> bool {
        self.selected && self.operations.contains(operation)
    }

    /// Which operations may pass.
    pub fn operations(&self) -> Operations {
        if self.selected { self.operations } else { Operations::NONE }
    }
}
