//! Equality conjuncts, for an index that finds the few predicates that a change can concern without evaluating the
//! many that it cannot.

use smallvec::SmallVec;

use super::{
    Compiled,
    ast::{Op, Side},
    class::{Class, Scalar},
    node::{Image, Node, Scope, Source, Test},
};
use crate::model::{Operation, RowAccess, Value};

/// What an index is kept on: the values of one column, as one kind of reference reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KeyColumn(Source);

/// A conjunct `column = literal`: the predicate cannot hold where the column has another value.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Equality {
    /// The column.
    pub on: KeyColumn,
    /// Canonical form of the literal: equal for equal values whatever their spelling (`1.0` and `1.00`).
    pub key: Box<[u8]>,
}

impl Compiled {
    /// A conjunct to index the predicate by: the first that is not on a boolean, which would find half of all rows.
    pub fn equality(&self) -> Option<&Equality> {
        self.equality.as_ref()
    }
}

impl KeyColumn {
    /// Index in [`Relation::columns`](crate::model::Relation::columns).
    pub fn column(&self) -> usize {
        self.0.column as usize
    }

    /// Calls `visit` with each key under which a predicate can be concerned by the change: none for NULL, two
    /// (equal ones perhaps) for an UPDATE that changed the value. `false` means that the change does not carry the value: every predicate on this
    /// column has to be evaluated. TRUNCATE passes all predicates and is not for indexes (`false`).
    #[must_use]
    pub fn keys<R: RowAccess + ?Sized>(&self, operation: Operation, row: &R, mut visit: impl FnMut(&[u8])) -> bool {
        let both = operation == Operation::Update && self.0.side == Side::Row;
        let bare = if operation == Operation::Delete { Image::Old } else { Image::New };
        let first = Scope { row, operation, bare }.value(self.0);
        let second = if both { Scope { row, operation, bare: Image::Old }.value(self.0) } else { Value::Null };
        if second == Value::Null || second == first {
            return self.visit(first, &mut visit);
        }
        self.visit(first, &mut visit) & self.visit(second, &mut visit)
    }

    fn visit(&self, value: Value<'_>, visit: &mut impl FnMut(&[u8])) -> bool {
        match value {
            Value::Null => true,
            Value::Absent | Value::Unchanged => false,
            value => self.0.class.read(value).map(|scalar| with_key(scalar, visit)).is_some(),
        }
    }
}

/// The first conjunct to index by.
pub(super) fn equality(root: &Node) -> Option<Equality> {
    let conjuncts = match root {
        Node::And(parts) => parts,
        other => std::slice::from_ref(other),
    };
    let (source, constant) = conjuncts.iter().find_map(|conjunct| match conjunct {
        Node::Test { source, test: Test::Compare(Op::EQUAL, constant), on_null }
            if !on_null.selects()? && source.class != Class::Bool =>
        {
            Some((*source, constant))
        }
        _ => None,
    })?;
    let mut key = None;
    with_key(constant.scalar(), &mut |bytes: &[u8]| key = Some(bytes.into()));
    Some(Equality { on: KeyColumn(source), key: key? })
}

/// Bytes that are equal exactly when the scalars of one class are.
fn with_key(scalar: Scalar<'_>, visit: &mut impl FnMut(&[u8])) {
    match scalar {
        Scalar::Int(int) => visit(&int.to_be_bytes()),
        Scalar::Span(span) => visit(&span.to_be_bytes()),
        Scalar::Bytes(bytes) => visit(bytes),
        Scalar::Float(float) if float.is_nan() => visit(b"nan"),
        Scalar::Float(float) => visit(&(float + 0.0).to_be_bytes()),
        Scalar::Decimal(decimal) => {
            let mut key = SmallVec::<[u8; 64]>::new();
            decimal.write_key(&mut key);
            visit(&key);
        }
    }
}
