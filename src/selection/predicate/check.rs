//! From names to columns, from spellings to values of their types: what a relation makes of a predicate.

use std::cmp::Ordering;

use super::{
    CheckError,
    ast::{ColumnRef, Expr, Literal, Op, Operand, Side, Spelling},
    class::{Class, Constant},
    like::{Invalid, MAX_PIECE, MAX_STEPS, Pattern},
    literal::{Reduced, Typed, reduce, typed},
    node::{Items, Node, Source, Test, Truth},
};
use crate::model::{Column, Relation, ReplicaIdentity};

/// `"char"`'s OID in pg_type.
const CHAR: u32 = 18;

/// Compiles `expr` for one relation version.
pub(super) struct Checker<'a> {
    pub relation: &'a Relation,
    /// Every column reference that was resolved, with its offset, in the order of the text.
    pub seen: Vec<(Source, usize)>,
    /// Literals of columns that compare in text form: column, text and offset.
    pub spelled: Vec<(u32, Box<str>, usize)>,
    /// Of all patterns so far.
    steps: usize,
}

impl<'a> Checker<'a> {
    pub fn new(relation: &'a Relation) -> Self {
        Checker { relation, seen: Vec::new(), spelled: Vec::new(), steps: 0 }
    }

    pub fn condition(&mut self, expr: &Expr) -> Result<Node, CheckError> {
        Ok(match expr {
            Expr::And(parts) => Node::And(self.conditions(parts)?),
            Expr::Or(parts) => Node::Or(self.conditions(parts)?),
            Expr::Not(inner) => Node::Not(Box::new(self.condition(inner)?)),
            Expr::IsTruth(inner, truth) => {
                let truth = truth.map_or(Truth::NULL, Truth::from);
                Node::Is(Box::new(self.condition(inner)?), truth)
            }
            test => return self.test(test),
        })
    }

    fn conditions(&mut self, parts: &[Expr]) -> Result<Box<[Node]>, CheckError> {
        let mut nodes = Vec::with_capacity(parts.len());
        for part in parts {
            nodes.push(self.condition(part)?);
        }
        Ok(nodes.into())
    }

    /// A condition without others in it.
    fn test(&mut self, expr: &Expr) -> Result<Node, CheckError> {
        match expr {
            Expr::Operand(operand) => self.boolean(operand),
            Expr::IsNull(Operand::Column(column)) => Ok(Node::IsNull(self.resolve(column)?.0)),
            Expr::IsNull(Operand::Literal(literal)) => {
                Ok(Node::Constant(matches!(literal.spelling, Spelling::Null).into()))
            }
            Expr::Changed(column) => {
                let (left, _) = self.resolve(&ColumnRef { side: Side::Before, ..column.clone() })?;
                let (right, _) = self.resolve(&ColumnRef { side: Side::After, ..column.clone() })?;
                Ok(Node::Columns { left, right, op: Op::NOT_EQUAL, distinct: true })
            }
            Expr::Compare { left, op, distinct, right, offset } => match (left, right) {
                (Operand::Column(left), Operand::Column(right)) => self.columns(left, *op, *distinct, right, *offset),
                (Operand::Column(column), Operand::Literal(literal)) => {
                    self.compare(column, *op, *distinct, literal, *offset)
                }
                (Operand::Literal(literal), _) => Err(needs_column(literal)),
            },
            Expr::In { left: Operand::Column(column), items, .. } => self.any_of(column, items),
            Expr::Like { left: Operand::Column(column), pattern, insensitive, offset } => {
                self.like(column, pattern, *insensitive, *offset)
            }
            Expr::In { left: Operand::Literal(literal), .. } | Expr::Like { left: Operand::Literal(literal), .. } => {
                Err(needs_column(literal))
            }
            Expr::And(_) | Expr::Or(_) | Expr::Not(_) | Expr::IsTruth(..) => self.condition(expr),
        }
    }

    fn resolve(&mut self, reference: &ColumnRef) -> Result<(Source, &'a Column), CheckError> {
        let relation = self.relation;
        let Some(index) = relation.columns.iter().position(|column| column.name == reference.name) else {
            let similar = relation.columns.iter().find(|column| column.name.eq_ignore_ascii_case(&reference.name));
            let hint =
                similar.map_or_else(String::new, |column| format!("; did you mean \"{}\", in quotes?", column.name));
            let message = format!("table {} has no column {:?}{hint}", relation.qualified_name(), reference.name);
            return Err(CheckError::new(message, reference.offset));
        };
        let column = &relation.columns[index];
        let class = Class::of(column);
        let collates = class.is_text() && column.type_oid != CHAR;
        // Under FULL every UPDATE brings its old row; one that does not tells nothing of it.
        let in_identity = column.in_identity && relation.replica_identity != ReplicaIdentity::Full;
        let source = Source { column: index as u32, side: reference.side, in_identity, class, collates };
        self.seen.push((source, reference.offset));
        Ok((source, column))
    }

    fn typed(&mut self, literal: &Literal, column: &Column, source: Source) -> Result<Typed, CheckError> {
        let typed = typed(literal, column, source.class)?;
        if let (Class::Other, Spelling::Text(text)) = (source.class, &literal.spelling) {
            self.spelled.push((source.column, text.as_str().into(), literal.offset));
        }
        Ok(typed)
    }

    fn boolean(&mut self, operand: &Operand) -> Result<Node, CheckError> {
        match operand {
            Operand::Column(reference) => {
                let (source, column) = self.resolve(reference)?;
                if source.class != Class::Bool {
                    let message = format!(
                        "column {:?} is {}, not bool: compare it with something",
                        column.name, column.type_name
                    );
                    return Err(CheckError::new(message, reference.offset));
                }
                let test = Test::Compare(Op::EQUAL, Constant::Bool(true));
                Ok(Node::Test { source, test, on_null: Truth::NULL })
            }
            Operand::Literal(Literal { spelling: Spelling::Null, .. }) => Ok(Node::Constant(Truth::NULL)),
            Operand::Literal(Literal { spelling: Spelling::Bool(truth), .. }) => Ok(Node::Constant((*truth).into())),
            Operand::Literal(literal) => {
                Err(CheckError::new("expected a condition, but found a literal", literal.offset))
            }
        }
    }

    fn compare(
        &mut self,
        reference: &ColumnRef,
        op: Op,
        distinct: bool,
        literal: &Literal,
        offset: usize,
    ) -> Result<Node, CheckError> {
        let (source, column) = self.resolve(reference)?;
        require_order(source.class, column, op, offset)?;
        let on_null = if distinct { op.holds(Ordering::Less).into() } else { Truth::NULL };
        let test = match self.typed(literal, column, source)? {
            Typed::Null if !distinct => return Ok(Node::Constant(Truth::NULL)),
            Typed::Null if op == Op::EQUAL => return Ok(Node::IsNull(source)),
            Typed::Null => return Ok(Node::Not(Box::new(Node::IsNull(source)))),
            Typed::Constant(constant) => Test::Compare(op, constant),
            Typed::Between(floor) => match reduce(op, floor) {
                Reduced::Compare(op, int) => Test::Compare(op, Constant::Int(int)),
                Reduced::Always(truth) => Test::Always(truth),
            },
        };
        Ok(Node::Test { source, test, on_null })
    }

    fn columns(
        &mut self,
        left: &ColumnRef,
        op: Op,
        distinct: bool,
        right: &ColumnRef,
        offset: usize,
    ) -> Result<Node, CheckError> {
        let (left, left_column) = self.resolve(left)?;
        let (right, right_column) = self.resolve(right)?;
        let same_other = left.class != Class::Other || left_column.type_oid == right_column.type_oid;
        if !left.class.comparable(right.class) || !same_other {
            let message = format!(
                "columns {:?} ({}) and {:?} ({}) are of different types",
                left_column.name, left_column.type_name, right_column.name, right_column.type_name
            );
            return Err(CheckError::new(message, offset));
        }
        require_order(left.class, left_column, op, offset)?;
        Ok(Node::Columns { left, right, op, distinct })
    }

    fn any_of(&mut self, reference: &ColumnRef, items: &[Literal]) -> Result<Node, CheckError> {
        let (source, column) = self.resolve(reference)?;
        let mut constants = Vec::with_capacity(items.len());
        let mut has_null = false;
        for item in items {
            match self.typed(item, column, source)? {
                Typed::Null => has_null = true,
                Typed::Constant(constant) => constants.push(constant),
                Typed::Between(_) => {}
            }
        }
        let test = match (constants.pop(), has_null) {
            (Some(only), false) if constants.is_empty() => Test::Compare(Op::EQUAL, only),
            (last, _) => Test::In { items: Items::new(constants.into_iter().chain(last).collect()), has_null },
        };
        Ok(Node::Test { source, test, on_null: Truth::NULL })
    }

    fn like(
        &mut self,
        reference: &ColumnRef,
        pattern: &Literal,
        insensitive: bool,
        offset: usize,
    ) -> Result<Node, CheckError> {
        let (source, column) = self.resolve(reference)?;
        if !source.class.is_text() {
            let message = format!("column {:?} is {}: LIKE needs a text column", column.name, column.type_name);
            return Err(CheckError::new(message, offset));
        }
        let text = match &pattern.spelling {
            Spelling::Null => return Ok(Node::Constant(Truth::NULL)),
            Spelling::Text(text) => text,
            _ => {
                return Err(CheckError::new(
                    format!("expected a pattern in quotes, but found {pattern}"),
                    pattern.offset,
                ));
            }
        };
        let message = match Pattern::compile(text, insensitive) {
            Ok(pattern) => {
                self.steps += pattern.steps();
                if self.steps <= MAX_STEPS {
                    return Ok(Node::Test { source, test: Test::Like(pattern), on_null: Truth::NULL });
                }
                format!(
                    "the patterns up to here take {} steps for each character of a text, more than the {MAX_STEPS} that one \
                     predicate may: a pattern with % around a text takes 1, with _ or ILIKE as many as there are characters \
                     between two %, 24 at most, and one more; split the filter over several streams, or compare by = or IN",
                    self.steps
                )
            }
            Err(Invalid::Escape) => "a pattern cannot end with the escape character".to_owned(),
            Err(Invalid::Long) => {
                format!("with _ or ILIKE a pattern has at most {MAX_PIECE} characters between two %")
            }
        };
        Err(CheckError::new(message, pattern.offset))
    }
}

fn require_order(class: Class, column: &Column, op: Op, offset: usize) -> Result<(), CheckError> {
    if class != Class::Other || op.is_equality() {
        return Ok(());
    }
    let message = format!(
        "column {:?} is {}, whose order is not known here: only =, <>, IN, IS NULL and IS DISTINCT FROM, on its text form",
        column.name, column.type_name
    );
    Err(CheckError::new(message, offset))
}

fn needs_column(literal: &Literal) -> CheckError {
    CheckError::new("a comparison needs a column on its left side", literal.offset)
}
