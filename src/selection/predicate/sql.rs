//! A predicate as a condition for PostgreSQL, so that rows which nobody wants are not read out of it.
//!
//! A part is written only where PostgreSQL decides it as [`Node::evaluate`] does for a row that is read; the hub evaluates
//! the whole on whatever comes. So a conjunct without a form of its own costs rows on the way and nothing else. Left out
//! are: ILIKE, whose letter case is the database's; `interval` and `timetz`; types that are compared by their text form,
//! since a cast to text need not be the output function; text in databases that are not UTF-8, where bytes sort otherwise;
//! and numbers and years at the far ends, where PostgreSQL would refuse the literal.

use std::fmt::Write;

use super::{
    Compiled,
    ast::{Op, Side},
    class::{Class, Constant, Scalar},
    like::Pattern,
    node::{Items, Node, Source, Test, Truth},
    temporal,
};

impl Compiled {
    /// A condition over the relation's bare column names that holds for every row for which the predicate holds. `None`:
    /// nothing of it can be told to PostgreSQL. `utf8`: the database's encoding is UTF8.
    pub fn to_sql(&self, utf8: bool) -> Option<String> {
        let writer = Writer { names: &self.names, utf8 };
        match &self.root {
            Node::And(parts) => {
                let parts: Vec<String> = parts.iter().filter_map(|part| writer.condition(part)).collect();
                (!parts.is_empty()).then(|| parts.join(" AND "))
            }
            root => writer.condition(root),
        }
    }
}

struct Writer<'a> {
    names: &'a [String],
    utf8: bool,
}

impl Writer<'_> {
    /// Exactly this condition, in parentheses.
    fn condition(&self, node: &Node) -> Option<String> {
        match node {
            Node::And(parts) => self.joined(parts, " AND "),
            Node::Or(parts) => self.joined(parts, " OR "),
            Node::Not(inner) => Some(["(NOT ", &self.condition(inner)?, ")"].concat()),
            Node::Is(inner, truth) => {
                let word = if *truth == Truth::NULL { "UNKNOWN" } else { truth_word(*truth)? };
                Some(["(", &self.condition(inner)?, " IS ", word, ")"].concat())
            }
            Node::Constant(truth) => truth_word(*truth).map(str::to_owned),
            Node::IsNull(source) => self.is_null(*source),
            Node::Test { source, test, on_null } => self.test(*source, test, *on_null),
            Node::Columns { left, right, op, distinct } => self.columns(*left, *right, operator(*op, *distinct)?),
        }
    }

    fn joined(&self, parts: &[Node], between: &str) -> Option<String> {
        let mut conditions = Vec::with_capacity(parts.len());
        for part in parts {
            conditions.push(self.condition(part)?);
        }
        (!conditions.is_empty()).then(|| ["(", &conditions.join(between), ")"].concat())
    }

    /// Not of composite values: there `IS NULL` looks into them.
    fn is_null(&self, source: Source) -> Option<String> {
        let name = self.name(source)?;
        (source.class != Class::Other).then(|| format!("({name} IS NULL)"))
    }

    fn columns(&self, left: Source, right: Source, operator: &str) -> Option<String> {
        Some(format!("({} {operator} {})", self.comparable(left)?, self.comparable(right)?))
    }

    fn test(&self, source: Source, test: &Test, on_null: Truth) -> Option<String> {
        let plain = on_null == Truth::NULL;
        let column = self.comparable(source)?;
        Some(match test {
            Test::Compare(op, constant) => {
                let distinct = !plain;
                let as_distinct = Truth::from(op.holds(std::cmp::Ordering::Less));
                if distinct && on_null != as_distinct {
                    return None;
                }
                format!("({column} {} {})", operator(*op, distinct)?, scalar(source.class, constant.scalar())?)
            }
            Test::Always(true) if plain => format!("({column} IS NOT NULL OR NULL)"),
            Test::Always(false) if plain => format!("({column} IS NULL AND NULL)"),
            Test::In { items, has_null } if plain => {
                let mut list = in_list(source.class, items)?;
                if list.is_empty() {
                    return None;
                }
                if *has_null {
                    list.push("NULL".to_owned());
                }
                format!("({column} IN ({}))", list.join(", "))
            }
            Test::Like(pattern) if plain => format!("({column} LIKE {})", like(pattern)?),
            Test::Always(_) | Test::In { .. } | Test::Like(_) => return None,
        })
    }

    fn name(&self, source: Source) -> Option<String> {
        let name = self.names.get(source.column as usize)?;
        (source.side != Side::Before).then(|| format!("\"{}\"", name.replace('"', "\"\"")))
    }

    /// A column such that PostgreSQL's operators compare it as [`Scalar`]s do.
    fn comparable(&self, source: Source) -> Option<String> {
        let name = self.name(source)?;
        Some(match source.class {
            Class::Oid => format!("{name}::int8"),
            Class::Text if self.utf8 && source.collates => format!("{name}::text COLLATE \"C\""),
            Class::Padded if self.utf8 => format!("{name} COLLATE \"C\""),
            Class::Bool
            | Class::Int2
            | Class::Int4
            | Class::Int8
            | Class::Float4
            | Class::Float8
            | Class::Numeric
            | Class::Uuid
            | Class::Bytes
            | Class::Date
            | Class::Time
            | Class::Timestamp
            | Class::TimestampTz => name,
            Class::Text | Class::Padded | Class::Hex | Class::TimeTz | Class::Interval | Class::Other => return None,
        })
    }
}

fn truth_word(truth: Truth) -> Option<&'static str> {
    [(Truth::TRUE, "TRUE"), (Truth::FALSE, "FALSE"), (Truth::NULL, "NULL::bool")]
        .into_iter()
        .find_map(|(known, word)| (known == truth).then_some(word))
}

fn operator(op: Op, distinct: bool) -> Option<&'static str> {
    match (op, distinct) {
        (op, false) => Some(op.text()),
        (Op::EQUAL, true) => Some("IS NOT DISTINCT FROM"),
        (Op::NOT_EQUAL, true) => Some("IS DISTINCT FROM"),
        _ => None,
    }
}

fn in_list(class: Class, items: &Items) -> Option<Vec<String>> {
    match items {
        Items::Ints(ints) => ints.iter().map(|int| scalar(class, Scalar::Int(*int))).collect(),
        Items::Bytes(items) => items.iter().map(|bytes| scalar(class, Scalar::Bytes(bytes))).collect(),
        Items::Others(constants) => constants.iter().map(|it: &Constant| scalar(class, it.scalar())).collect(),
    }
}

/// A literal that PostgreSQL reads as this very value.
fn scalar(class: Class, value: Scalar<'_>) -> Option<String> {
    Some(match (class, value) {
        (Class::Bool, Scalar::Int(int)) => if int == 0 { "FALSE" } else { "TRUE" }.to_owned(),
        (Class::Int2 | Class::Int4 | Class::Int8 | Class::Oid, Scalar::Int(int)) => format!("'{int}'::int8"),
        (Class::Float4 | Class::Float8, Scalar::Float(float)) if float.is_nan() => "'NaN'::float8".to_owned(),
        (Class::Float4 | Class::Float8, Scalar::Float(float)) if float.is_infinite() => {
            format!("'{}Infinity'::float8", if float < 0.0 { "-" } else { "" })
        }
        (Class::Float4 | Class::Float8, Scalar::Float(float)) => format!("'{float:e}'::float8"),
        (Class::Numeric, Scalar::Decimal(decimal)) => format!("'{}'::numeric", decimal.to_text()?),
        (Class::Text, Scalar::Bytes(bytes)) => text(bytes)?,
        (Class::Padded, Scalar::Bytes(bytes)) => format!("{}::bpchar", text(bytes)?),
        (Class::Uuid, Scalar::Bytes(bytes)) => format!("{}::uuid", text(bytes)?),
        (Class::Bytes, Scalar::Bytes(bytes)) => {
            let mut hex = String::with_capacity(2 * bytes.len());
            for byte in bytes {
                write!(hex, "{byte:02x}").ok()?;
            }
            format!("'\\x{hex}'::bytea")
        }
        (Class::Date, Scalar::Int(days)) => format!("'{}'::date", temporal::date_text(days)?),
        (Class::Time, Scalar::Int(micros)) => format!("'{}'::time", temporal::time_text(micros)),
        (Class::Timestamp, Scalar::Int(micros)) => format!("'{}'::timestamp", temporal::timestamp_text(micros, "")?),
        (Class::TimestampTz, Scalar::Int(micros)) => {
            format!("'{}'::timestamptz", temporal::timestamp_text(micros, "+00")?)
        }
        _ => return None,
    })
}

/// In quotes, for `standard_conforming_strings`.
fn text(bytes: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(bytes).ok()?;
    (!text.contains('\0')).then(|| format!("'{}'", text.replace('\'', "''")))
}

fn like(pattern: &Pattern) -> Option<String> {
    text(pattern.to_text()?.as_bytes())
}
