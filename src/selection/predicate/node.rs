//! The compiled form and its evaluation. A condition over values that a change does not carry yields the set of
//! results that it may have; `FALSE AND unknown` is still FALSE.

use std::cmp::Ordering;

use super::{
    ast::{Op, Side},
    class::{Class, Constant, Scalar},
    like::Pattern,
};
use crate::model::{Operation, RowAccess, Value};

/// A non-empty set of SQL truth values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Truth(u8);

impl Truth {
    pub const FALSE: Truth = Truth(1);
    pub const NULL: Truth = Truth(2);
    pub const TRUE: Truth = Truth(4);
    pub const FALSE_OR_TRUE: Truth = Truth(5);
    pub const ANY: Truth = Truth(7);

    const AND: [[u8; 8]; 8] = pairwise(true);
    const OR: [[u8; 8]; 8] = pairwise(false);

    pub fn is_decided(self) -> bool {
        self.0.is_power_of_two()
    }

    /// Whether a row is selected; `None` where that depends on what is not known.
    pub fn selects(self) -> Option<bool> {
        match (self.0 & 4 != 0, self.0 & 3 != 0) {
            (true, true) => None,
            (selected, _) => Some(selected),
        }
    }

    /// Whether all of `other` is possible.
    #[cfg(test)]
    pub fn includes(self, other: Truth) -> bool {
        self.0 & other.0 == other.0
    }

    fn and(self, other: Truth) -> Truth {
        Truth(Self::AND[usize::from(self.0)][usize::from(other.0)])
    }

    fn or(self, other: Truth) -> Truth {
        Truth(Self::OR[usize::from(self.0)][usize::from(other.0)])
    }

    fn not(self) -> Truth {
        Truth(self.0 & 2 | self.0 >> 2 | (self.0 & 1) << 2)
    }

    fn union(self, other: Truth) -> Truth {
        Truth(self.0 | other.0)
    }

    /// `IS truth`: never null.
    fn is(self, truth: Truth) -> Truth {
        let yes = if self.0 & truth.0 != 0 { 4 } else { 0 };
        let no = if self.0 & !truth.0 != 0 { 1 } else { 0 };
        Truth(yes | no)
    }
}

impl From<bool> for Truth {
    fn from(truth: bool) -> Self {
        if truth { Truth::TRUE } else { Truth::FALSE }
    }
}

/// FALSE < NULL < TRUE: AND is the least of both, OR the greatest.
const fn pairwise(least: bool) -> [[u8; 8]; 8] {
    let mut table = [[0; 8]; 8];
    let mut cell = 0;
    while cell < 64 * 9 {
        let (left, right, i, j) = (cell / 9 / 8, cell / 9 % 8, cell % 3, cell % 9 / 3);
        if left >> i & 1 == 1 && right >> j & 1 == 1 {
            table[left][right] |= 1 << if (i < j) == least { i } else { j };
        }
        cell += 1;
    }
    table
}

/// Where a value is read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Source {
    pub column: u32,
    pub side: Side,
    /// Part of the replica identity: an UPDATE without the old value has left it as it is.
    pub in_identity: bool,
    pub class: Class,
    /// The type takes a collation in PostgreSQL: all text but `"char"`.
    pub collates: bool,
}

#[derive(Clone, Debug)]
pub(super) enum Test {
    /// The same for all values that are not null.
    Always(bool),
    Compare(Op, Constant),
    In {
        items: Items,
        has_null: bool,
    },
    Like(Pattern),
}

/// What IN looks through, sorted.
#[derive(Clone, Debug)]
pub(super) enum Items {
    Ints(Box<[i64]>),
    /// By length, then by bytes: a search compares lengths mostly.
    Bytes(Box<[Box<[u8]>]>),
    Others(Box<[Constant]>),
}

impl Items {
    pub fn new(mut constants: Vec<Constant>) -> Items {
        let ints = constants.iter().map(|constant| match constant.scalar() {
            Scalar::Int(int) => Some(int),
            _ => None,
        });
        if let Some(mut ints) = ints.collect::<Option<Box<[i64]>>>() {
            ints.sort_unstable();
            return Items::Ints(ints);
        }
        let bytes = constants.iter().map(|constant| match constant.scalar() {
            Scalar::Bytes(bytes) => Some(Box::from(bytes)),
            _ => None,
        });
        if let Some(mut bytes) = bytes.collect::<Option<Box<[Box<[u8]>]>>>() {
            bytes.sort_unstable_by(|left, right| by_length(left, right));
            return Items::Bytes(bytes);
        }
        constants.sort_by(|left, right| left.scalar().order(&right.scalar()).unwrap_or(Ordering::Equal));
        Items::Others(constants.into())
    }

    fn contain(&self, scalar: Scalar<'_>) -> bool {
        match (self, scalar) {
            (Items::Ints(items), Scalar::Int(int)) => items.binary_search(&int).is_ok(),
            (Items::Bytes(items), Scalar::Bytes(bytes)) => {
                items.binary_search_by(|item| by_length(item, bytes)).is_ok()
            }
            (Items::Others(items), scalar) => {
                items.binary_search_by(|item| item.scalar().order(&scalar).unwrap_or(Ordering::Less)).is_ok()
            }
            _ => false,
        }
    }
}

fn by_length(left: &[u8], right: &[u8]) -> Ordering {
    left.len().cmp(&right.len()).then_with(|| left.cmp(right))
}

#[derive(Clone, Debug)]
pub(super) enum Node {
    Constant(Truth),
    And(Box<[Node]>),
    Or(Box<[Node]>),
    Not(Box<Node>),
    Is(Box<Node>, Truth),
    IsNull(Source),
    Test {
        source: Source,
        test: Test,
        on_null: Truth,
    },
    /// Two columns; with `distinct` nulls compare as values.
    Columns {
        left: Source,
        right: Source,
        op: Op,
        distinct: bool,
    },
}

/// Which row a bare column reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Image {
    Old,
    New,
}

/// One change as the conditions see it.
pub(super) struct Scope<'r, R: ?Sized> {
    pub row: &'r R,
    pub operation: Operation,
    pub bare: Image,
}

impl<'r, R: RowAccess + ?Sized> Scope<'r, R> {
    /// [`Value::Absent`] where the change does not tell; [`Value::Unchanged`] where it tells only that the value is
    /// not null, since NULL is never TOASTed.
    #[inline]
    pub fn value(&self, source: Source) -> Value<'r> {
        let image = match source.side {
            Side::Row => self.bare,
            Side::Before => Image::Old,
            Side::After => Image::New,
        };
        let column = source.column as usize;
        match (image, self.operation) {
            (Image::New, Operation::Insert | Operation::Read) => self.row.after(column),
            (Image::Old, Operation::Delete) => self.row.before(column),
            (Image::New, Operation::Update) => match self.row.after(column) {
                Value::Unchanged => match self.row.before(column) {
                    Value::Absent | Value::Null => Value::Unchanged,
                    old => old,
                },
                new => new,
            },
            (Image::Old, Operation::Update) => match self.row.before(column) {
                Value::Absent => match self.row.after(column) {
                    Value::Unchanged => Value::Unchanged,
                    new if source.in_identity => new,
                    _ => Value::Absent,
                },
                old => old,
            },
            (Image::Old, Operation::Insert | Operation::Read) | (Image::New, Operation::Delete) => Value::Null,
            (_, Operation::Truncate) => Value::Absent,
        }
    }
}

impl Node {
    pub fn evaluate<R: RowAccess + ?Sized>(&self, scope: &Scope<'_, R>) -> Truth {
        match self {
            Node::Test { source, test, on_null } => match scope.value(*source) {
                Value::Null => *on_null,
                Value::Unchanged => test.over_unknown(),
                Value::Absent => test.over_unknown().union(*on_null),
                value => test.evaluate(source.class, value),
            },
            Node::And(parts) => {
                let mut result = Truth::TRUE;
                for part in parts {
                    result = match part.evaluate(scope) {
                        Truth::FALSE => return Truth::FALSE,
                        Truth::TRUE => continue,
                        truth => result.and(truth),
                    };
                }
                result
            }
            Node::Or(parts) => {
                let mut result = Truth::FALSE;
                for part in parts {
                    result = match part.evaluate(scope) {
                        Truth::TRUE => return Truth::TRUE,
                        Truth::FALSE => continue,
                        truth => result.or(truth),
                    };
                }
                result
            }
            Node::Not(inner) => inner.evaluate(scope).not(),
            Node::Is(inner, truth) => inner.evaluate(scope).is(*truth),
            Node::IsNull(source) => match scope.value(*source) {
                Value::Null => Truth::TRUE,
                Value::Absent => Truth::FALSE_OR_TRUE,
                _ => Truth::FALSE,
            },
            Node::Columns { left, right, op, distinct } => columns(scope, *left, *right, *op, *distinct),
            Node::Constant(truth) => *truth,
        }
    }

    /// The first source whose value is missing for a decision.
    pub fn undecided<R: RowAccess + ?Sized>(&self, scope: &Scope<'_, R>) -> Option<Source> {
        if self.evaluate(scope).is_decided() {
            return None;
        }
        match self {
            Node::And(parts) | Node::Or(parts) => parts.iter().find_map(|part| part.undecided(scope)),
            Node::Not(inner) | Node::Is(inner, _) => inner.undecided(scope),
            Node::IsNull(source) | Node::Test { source, .. } => Some(*source),
            Node::Columns { left, right, .. } => {
                let known = |value| !matches!(value, Value::Absent | Value::Unchanged);
                Some(if known(scope.value(*left)) && left.class.read(scope.value(*left)).is_some() {
                    *right
                } else {
                    *left
                })
            }
            Node::Constant(_) => None,
        }
    }
}

impl Test {
    #[inline]
    fn evaluate(&self, class: Class, value: Value<'_>) -> Truth {
        let truth = match self {
            Test::Compare(op, constant) => constant.compare(class, value, *op),
            Test::In { items, has_null } => match class.read(value).map(|scalar| items.contain(scalar)) {
                Some(false) if *has_null => return Truth::NULL,
                found => found,
            },
            Test::Like(pattern) => match value {
                Value::Text(text) => Some(pattern.matches(text)),
                Value::RawText(raw) => Some(pattern.matches_raw(raw)),
                _ => None,
            },
            Test::Always(truth) => class.read(value).map(|_| *truth),
        };
        truth.map_or(Truth::ANY, Truth::from)
    }

    /// Over all values that are not null.
    fn over_unknown(&self) -> Truth {
        match self {
            Test::Always(truth) => (*truth).into(),
            Test::In { has_null: true, .. } => Truth::NULL.union(Truth::TRUE),
            _ => Truth::FALSE_OR_TRUE,
        }
    }
}

fn columns<R: RowAccess + ?Sized>(scope: &Scope<'_, R>, left: Source, right: Source, op: Op, distinct: bool) -> Truth {
    let (old, new) = (scope.value(left), scope.value(right));
    let same = left.column == right.column && scope.operation == Operation::Update;
    match (old, new) {
        (Value::Unchanged, Value::Unchanged) if same => op.holds(Ordering::Equal).into(),
        (Value::Null, Value::Null) if distinct => op.holds(Ordering::Equal).into(),
        (Value::Absent, Value::Absent | Value::Null) | (Value::Null, Value::Absent) if distinct => Truth::FALSE_OR_TRUE,
        (Value::Null, _) | (_, Value::Null) => {
            if distinct {
                op.holds(Ordering::Less).into()
            } else {
                Truth::NULL
            }
        }
        (Value::Absent, _) | (_, Value::Absent) => {
            if distinct {
                Truth::FALSE_OR_TRUE
            } else {
                Truth::ANY
            }
        }
        (Value::Unchanged, _) | (_, Value::Unchanged) => Truth::FALSE_OR_TRUE,
        _ => match (left.class.read(old), right.class.read(new)) {
            (Some(old), Some(new)) => old.satisfies(op, &new).map_or(Truth::ANY, Truth::from),
            _ => Truth::ANY,
        },
    }
}
