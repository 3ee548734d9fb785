//! What a selection means for one relation version.

use std::{fmt, sync::Arc};

use crate::model::{Operation, RowAccess};

/// A set of operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operations(u8);

impl Operations {
    /// Every operation.
    pub const ALL: Operations = Operations(u8::MAX);

    /// These; all for an empty list.
    pub fn of(operations: &[Operation]) -> Self {
        if operations.is_empty() {
            return Operations::ALL;
        }
        Operations(operations.iter().fold(0, |mask, operation| mask | 1 << *operation as u8))
    }

    /// Whether it is one of them.
    pub fn contains(self, operation: Operation) -> bool {
        self.0 & 1 << operation as u8 != 0
    }
}

/// What an UPDATE means to a stream under a predicate (`walcast.v1.Transition`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transition {
    /// The row did not match before and does now.
    Enter,
    /// It matched and matches.
    Stay,
    /// It matched and does not any more.
    Leave,
}

impl Transition {
    /// From whether the old and the new row match; `None`: the change is not selected.
    pub fn between(before: bool, after: bool) -> Option<Self> {
        match (before, after) {
            (false, true) => Some(Transition::Enter),
            (true, true) => Some(Transition::Stay),
            (true, false) => Some(Transition::Leave),
            (false, false) => None,
        }
    }
}

/// A row predicate compiled against one relation version.
pub trait Predicate: Send + Sync {
    /// Whether a change is selected and what it means; never asked for TRUNCATE, which always passes.
    fn transition(&self, operation: Operation, row: &dyn RowAccess) -> Option<Transition>;
}

/// What a selection means for one relation version.
#[derive(Clone, Default)]
pub struct RelationPlan {
    /// Whether anything of this table is selected at all.
    pub selected: bool,
    operations: Option<Operations>,
    /// One flag for each column, in order; `None`: all.
    pub columns: Option<Vec<bool>>,
    /// Decides row by row; `None`: every row.
    pub predicate: Option<Arc<dyn Predicate>>,
}

impl RelationPlan {
    pub(super) fn new(operations: Operations, columns: Option<Vec<bool>>) -> Self {
        RelationPlan { selected: true, operations: Some(operations), columns, predicate: None }
    }

    /// The same plan, with a predicate.
    pub fn with_predicate(self, predicate: Arc<dyn Predicate>) -> Self {
        RelationPlan { predicate: Some(predicate), ..self }
    }

    /// Whether changes of this kind pass, rows aside.
    pub fn passes(&self, operation: Operation) -> bool {
        self.selected && self.operations.is_some_and(|operations| operations.contains(operation))
    }
}

impl fmt::Debug for RelationPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RelationPlan")
            .field("selected", &self.selected)
            .field("operations", &self.operations)
            .field("columns", &self.columns)
            .field("predicate", &self.predicate.is_some())
            .finish()
    }
}
