//! Predicates and rules of filters.

use std::fmt;

use crate::{Operation, Value, pb};

/// What is selected of the tables that match, instead of the subscription's columns, where and operations.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rule {
    /// One glob over `schema.table`.
    pub tables: String,
    /// Globs over `schema.table.column`; empty is all.
    pub columns: Vec<String>,
    /// A predicate; empty is none.
    pub r#where: String,
    /// Empty is all.
    pub operations: Vec<Operation>,
}

impl From<Rule> for pb::TableRule {
    fn from(rule: Rule) -> Self {
        let operations = rule.operations.into_iter().map(|operation| pb::Operation::from(operation) as i32).collect();
        pb::TableRule { tables: rule.tables, columns: rule.columns, r#where: rule.r#where, operations }
    }
}

/// A column's name, quoted as PostgreSQL does.
pub fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A value in a predicate.
#[derive(Clone, Debug, PartialEq)]
pub struct Literal(String);

impl fmt::Display for Literal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<&str> for Literal {
    fn from(text: &str) -> Self {
        Literal(format!("'{}'", text.replace('\'', "''")))
    }
}

impl From<String> for Literal {
    fn from(text: String) -> Self {
        text.as_str().into()
    }
}

impl From<bool> for Literal {
    fn from(value: bool) -> Self {
        Literal(if value { "TRUE" } else { "FALSE" }.into())
    }
}

impl From<f64> for Literal {
    fn from(value: f64) -> Self {
        if value.is_finite() { Literal(format!("{value:?}")) } else { Literal(format!("'{value}'")) }
    }
}

macro_rules! integers {
    ($($kind:ty)+) => { $(impl From<$kind> for Literal {
        fn from(value: $kind) -> Self {
            Literal(value.to_string())
        }
    })+ };
}

integers!(i16 i32 i64 u32);

/// Dates, numerics, UUIDs and the like by their text.
impl From<&Value> for Literal {
    fn from(value: &Value) -> Self {
        match value {
            Value::Null => Literal("NULL".into()),
            Value::Bool(value) => (*value).into(),
            Value::Int(value) => (*value).into(),
            Value::Float(value) => (*value).into(),
            other => other.to_string().into(),
        }
    }
}

/// Equality of columns as a predicate: `filter::equal("status", "paid").and_in("region", ["eu", "us"])`.
#[derive(Clone, Debug, PartialEq)]
pub struct Where(Vec<String>);

/// A column that equals a value.
pub fn equal(column: &str, value: impl Into<Literal>) -> Where {
    Where(Vec::new()).and(column, value)
}

/// A column that is one of several values. No value at all is a predicate that never holds.
pub fn one_of<I: IntoIterator<Item: Into<Literal>>>(column: &str, values: I) -> Where {
    Where(Vec::new()).and_in(column, values)
}

/// A column that is NULL.
pub fn is_null(column: &str) -> Where {
    Where(Vec::new()).and_null(column)
}

impl Where {
    /// And another column that equals a value.
    #[must_use]
    pub fn and(mut self, column: &str, value: impl Into<Literal>) -> Self {
        self.0.push(format!("{} = {}", identifier(column), value.into()));
        self
    }

    /// And another column that is one of several values.
    #[must_use]
    pub fn and_in<I: IntoIterator<Item: Into<Literal>>>(mut self, column: &str, values: I) -> Self {
        let values: Vec<String> = values.into_iter().map(|value| value.into().0).collect();
        let term = if values.is_empty() {
            "FALSE".into()
        } else {
            format!("{} IN ({})", identifier(column), values.join(", "))
        };
        self.0.push(term);
        self
    }

    /// And another column that is NULL.
    #[must_use]
    pub fn and_null(mut self, column: &str) -> Self {
        self.0.push(format!("{} IS NULL", identifier(column)));
        self
    }
}

impl fmt::Display for Where {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(" AND "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_values_are_quoted() {
        let predicate = equal("status", "it's").and_in("n", [1, 2]).and_null("gone").and("a\"b", true);
        let text = r#""status" = 'it''s' AND "n" IN (1, 2) AND "gone" IS NULL AND "a""b" = TRUE"#;
        assert_eq!(predicate.to_string(), text);
    }
}
