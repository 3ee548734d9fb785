//! What the text says, before any table is known; and the canonical text of it.

use std::fmt::{self, Write};

/// Which row a column reference reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Side {
    /// `column`: the row that the predicate judges.
    Row,
    /// `before.column`: the row before the change.
    Before,
    /// `after.column`: the row after the change.
    After,
}

/// A column by name. Offsets are characters from 0, here and below.
#[derive(Clone, Debug)]
pub(super) struct ColumnRef {
    pub side: Side,
    pub name: String,
    pub offset: usize,
}

/// A literal's spelling; it gets its meaning from the column that it is compared with.
#[derive(Clone, Debug)]
pub(super) enum Spelling {
    Null,
    Bool(bool),
    /// `[-]digits[.digits][e[-]digits]`
    Number(String),
    /// Without quotes.
    Text(String),
}

#[derive(Clone, Debug)]
pub(super) struct Literal {
    pub spelling: Spelling,
    /// Type name of `type '...'` or `'...'::type`, in lower case unless it was quoted.
    pub cast: Option<String>,
    pub offset: usize,
}

#[derive(Clone, Debug)]
pub(super) enum Operand {
    Column(ColumnRef),
    Literal(Literal),
}

impl Operand {
    pub fn offset(&self) -> usize {
        match self {
            Operand::Column(column) => column.offset,
            Operand::Literal(literal) => literal.offset,
        }
    }
}

/// A comparison as the set of orderings that satisfy it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Op(u8);

impl Op {
    pub const LESS: Op = Op(1);
    pub const EQUAL: Op = Op(2);
    pub const GREATER: Op = Op(4);
    pub const LESS_EQUAL: Op = Op(3);
    pub const GREATER_EQUAL: Op = Op(6);
    pub const NOT_EQUAL: Op = Op(5);

    /// Whether `left op right` holds when `left` stands to `right` as told.
    pub fn holds(self, ordering: std::cmp::Ordering) -> bool {
        self.0 >> (ordering as i8 + 1) & 1 == 1
    }

    /// The same comparison with its sides exchanged.
    pub fn flipped(self) -> Op {
        Op(self.0 & 2 | self.0 >> 2 | (self.0 & 1) << 2)
    }

    /// `=` or `<>`: needs no order.
    pub fn is_equality(self) -> bool {
        self == Op::EQUAL || self == Op::NOT_EQUAL
    }

    pub fn text(self) -> &'static str {
        match self {
            Op::LESS => "<",
            Op::EQUAL => "=",
            Op::LESS_EQUAL => "<=",
            Op::GREATER => ">",
            Op::NOT_EQUAL => "<>",
            _ => ">=",
        }
    }
}

#[derive(Clone, Debug)]
pub(super) enum Expr {
    And(Vec<Expr>),
    Or(Vec<Expr>),
    Not(Box<Expr>),
    /// A boolean column, TRUE, FALSE or NULL.
    Operand(Operand),
    /// With `distinct`, `=` is IS NOT DISTINCT FROM and `<>` is IS DISTINCT FROM.
    Compare {
        left: Operand,
        op: Op,
        distinct: bool,
        right: Operand,
        offset: usize,
    },
    In {
        left: Operand,
        items: Vec<Literal>,
    },
    Like {
        left: Operand,
        pattern: Literal,
        insensitive: bool,
        offset: usize,
    },
    IsNull(Operand),
    /// IS TRUE, IS FALSE, IS UNKNOWN.
    IsTruth(Box<Expr>, Option<bool>),
    Changed(ColumnRef),
}

impl Expr {
    /// The first conjunct `column = literal`, as far as can be told without a table: not one with TRUE or FALSE.
    pub fn equality(&self) -> Option<&Expr> {
        match self {
            Expr::And(parts) => parts.iter().find_map(Expr::equality),
            Expr::Compare { left, op: Op::EQUAL, distinct: false, right, .. } => match (left, right) {
                (Operand::Column(_), Operand::Literal(literal)) | (Operand::Literal(literal), Operand::Column(_)) => {
                    (!matches!(literal.spelling, Spelling::Bool(_))).then_some(self)
                }
                _ => None,
            },
            _ => None,
        }
    }
}

/// Words that name something else than a column unless they are quoted.
pub(super) const KEYWORDS: [&str; 16] = [
    "after", "and", "before", "between", "changed", "distinct", "false", "from", "ilike", "in", "is", "like", "not",
    "null", "or", "true",
];

/// An identifier, in quotes where it would not be read back as it is.
pub(super) fn write_identifier(out: &mut impl Write, name: &str) -> fmt::Result {
    let plain = name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
        && !KEYWORDS.contains(&name);
    if plain { out.write_str(name) } else { write!(out, "\"{}\"", name.replace('"', "\"\"")) }
}

impl fmt::Display for ColumnRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.side {
            Side::Row => {}
            Side::Before => f.write_str("before.")?,
            Side::After => f.write_str("after.")?,
        }
        write_identifier(f, &self.name)
    }
}

impl fmt::Display for Literal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.spelling {
            Spelling::Null => f.write_str("NULL")?,
            Spelling::Bool(true) => f.write_str("TRUE")?,
            Spelling::Bool(false) => f.write_str("FALSE")?,
            Spelling::Number(digits) => f.write_str(digits)?,
            Spelling::Text(text) => write!(f, "'{}'", text.replace('\'', "''"))?,
        }
        if let Some(cast) = &self.cast {
            f.write_str("::")?;
            for (index, part) in cast.split('.').enumerate() {
                f.write_str(if index > 0 { "." } else { "" })?;
                write_identifier(f, part)?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Operand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Operand::Column(column) => column.fmt(f),
            Operand::Literal(literal) => literal.fmt(f),
        }
    }
}

impl fmt::Display for Expr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Expr::And(parts) => write_list(f, parts, " AND "),
            Expr::Or(parts) => write_list(f, parts, " OR "),
            Expr::Not(inner) => write!(f, "NOT ({inner})"),
            Expr::Operand(operand) => operand.fmt(f),
            Expr::Compare { left, op, distinct: false, right, .. } => write!(f, "{left} {} {right}", op.text()),
            Expr::Compare { left, op, right, .. } => {
                let not = if *op == Op::EQUAL { "NOT " } else { "" };
                write!(f, "{left} IS {not}DISTINCT FROM {right}")
            }
            Expr::In { left, items, .. } => {
                write!(f, "{left} IN (")?;
                for (index, item) in items.iter().enumerate() {
                    write!(f, "{}{item}", if index > 0 { ", " } else { "" })?;
                }
                f.write_str(")")
            }
            Expr::Like { left, pattern, insensitive, .. } => {
                write!(f, "{left} {} {pattern}", if *insensitive { "ILIKE" } else { "LIKE" })
            }
            Expr::IsNull(operand) => write!(f, "{operand} IS NULL"),
            Expr::IsTruth(inner, truth) => {
                let word = match truth {
                    Some(true) => "TRUE",
                    Some(false) => "FALSE",
                    None => "UNKNOWN",
                };
                write!(f, "({inner}) IS {word}")
            }
            Expr::Changed(column) => write!(f, "changed({column})"),
        }
    }
}

fn write_list(f: &mut fmt::Formatter<'_>, parts: &[Expr], separator: &str) -> fmt::Result {
    for (index, part) in parts.iter().enumerate() {
        f.write_str(if index > 0 { separator } else { "" })?;
        match part {
            Expr::And(_) | Expr::Or(_) => write!(f, "({part})")?,
            _ => write!(f, "{part}")?,
        }
    }
    Ok(())
}
