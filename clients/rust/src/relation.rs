//! Tables and their rows.

use std::{fmt, sync::Arc};

use crate::{
    Error, Value,
    decode::{Decoders, Plan},
    pb,
};

/// Which columns of the old row an update or delete carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplicaIdentity {
    /// The primary key.
    Default,
    /// Every column.
    Full,
    /// The columns of a chosen unique index.
    Index,
    /// None.
    Nothing,
}

/// A column of one relation version.
#[derive(Clone, Debug)]
pub struct Column {
    /// Unquoted.
    pub name: String,
    /// `int4`, `timestamptz`; types outside pg_catalog as `schema.name`.
    pub type_name: Arc<str>,
    /// pg_type.oid.
    pub type_oid: u32,
    /// pg_attribute.atttypmod; -1 for none.
    pub type_modifier: i32,
    /// Whether it is part of the replica identity.
    pub in_identity: bool,
}

/// One immutable version of a table.
pub struct Relation {
    relation_id: u32,
    oid: u32,
    schema: String,
    name: String,
    table: String,
    replica_identity: ReplicaIdentity,
    columns: Vec<Column>,
    plans: Vec<Plan>,
}

impl Relation {
    pub(crate) fn new(message: pb::Relation, decoders: &Decoders) -> Self {
        let replica_identity = match message.replica_identity() {
            pb::ReplicaIdentity::Full => ReplicaIdentity::Full,
            pb::ReplicaIdentity::Index => ReplicaIdentity::Index,
            pb::ReplicaIdentity::Nothing => ReplicaIdentity::Nothing,
            pb::ReplicaIdentity::Default | pb::ReplicaIdentity::Unspecified => ReplicaIdentity::Default,
        };
        let plans = message.columns.iter().map(|column| decoders.plan(&column.type_name)).collect();
        let columns = message.columns.into_iter().map(|column| Column {
            name: column.name,
            type_name: column.type_name.into(),
            type_oid: column.type_oid,
            type_modifier: column.type_modifier,
            in_identity: column.in_identity,
        });
        Relation {
            relation_id: message.relation_id,
            oid: message.oid,
            table: format!("{}.{}", message.schema, message.table),
            schema: message.schema,
            name: message.table,
            replica_identity,
            columns: columns.collect(),
            plans,
        }
    }

    /// The hub's number of this version, valid within one stream.
    pub fn relation_id(&self) -> u32 {
        self.relation_id
    }

    /// pg_class.oid.
    pub fn oid(&self) -> u32 {
        self.oid
    }

    /// Unquoted.
    pub fn schema(&self) -> &str {
        &self.schema
    }

    /// Without the schema, unquoted.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `schema.table`, unquoted.
    pub fn table(&self) -> &str {
        &self.table
    }

    /// Which columns old rows hold.
    pub fn replica_identity(&self) -> ReplicaIdentity {
        self.replica_identity
    }

    /// The selected columns, in the table's order.
    pub fn columns(&self) -> &[Column] {
        &self.columns
    }

    pub(crate) fn text(&self, column: usize, text: &str) -> Result<Value, Error> {
        let type_name = &self.columns[column].type_name;
        self.plans[column].decode(text, type_name).map_err(|wrong| {
            Error::Protocol(format!("{}.{} ({type_name}): {wrong}", self.table, self.columns[column].name))
        })
    }

    pub(crate) fn misfit(&self) -> Error {
        Error::Protocol(format!("{}: a row does not fit its {} columns", self.table, self.columns.len()))
    }

    pub(crate) fn unknown(&self, column: usize, what: &str) -> Error {
        let column = &self.columns[column].name;
        Error::Protocol(format!("{}.{column}: a value {what} that this version does not know", self.table))
    }
}

impl fmt::Debug for Relation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns: Vec<&str> = self.columns.iter().map(|column| column.name.as_str()).collect();
        write!(f, "Relation({}, version {}, {columns:?})", self.table, self.relation_id)
    }
}

/// A row by column name. NULL is [`Value::Null`], a value that PostgreSQL did not send is [`Value::Unchanged`], and a column
/// that is not known has no entry.
#[derive(Clone)]
pub struct Row {
    pub(crate) relation: Arc<Relation>,
    pub(crate) values: Vec<Option<Value>>,
}

impl Row {
    /// A column's value; `None` if it has no entry.
    pub fn get(&self, name: &str) -> Option<&Value> {
        let at = self.relation.columns.iter().position(|column| column.name == name)?;
        self.values[at].as_ref()
    }

    /// Names and values in the table's order of columns.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        let named = self.relation.columns.iter().zip(&self.values);
        named.filter_map(|(column, value)| Some((column.name.as_str(), value.as_ref()?)))
    }

    /// How many columns have an entry.
    pub fn len(&self) -> usize {
        self.values.iter().flatten().count()
    }

    /// Whether no column has an entry.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// By names and values.
impl PartialEq for Row {
    fn eq(&self, other: &Row) -> bool {
        self.iter().eq(other.iter())
    }
}

/// Panics if the column has no entry, as maps do.
impl std::ops::Index<&str> for Row {
    type Output = Value;

    fn index(&self, name: &str) -> &Value {
        match self.get(name) {
            Some(value) => value,
            None => panic!("{} has no value for {name}", self.relation.table),
        }
    }
}

/// As a map.
impl fmt::Debug for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

/// `id=1 status=new`, for people.
impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.iter().enumerate().try_for_each(|(at, (name, value))| {
            let space = if at == 0 { "" } else { " " };
            write!(f, "{space}{name}={value}")
        })
    }
}
