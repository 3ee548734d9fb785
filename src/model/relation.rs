//! Tables as the stream describes them. One [`Relation`] is one immutable version: any change of name, columns or
//! replica identity makes a new one with a new id.

use std::fmt;

/// The hub's number of one relation version, from 1; 0 means none. Not PostgreSQL's OID.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelationId(pub u32);

impl fmt::Debug for RelationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "r{}", self.0)
    }
}

/// `pg_class.relreplident`: which old columns UPDATE and DELETE carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReplicaIdentity {
    /// The primary key.
    Default,
    /// Every column.
    Full,
    /// The columns of a chosen unique index.
    Index,
    /// None: UPDATE and DELETE on a table published for them fail at the source.
    Nothing,
}

/// A column of one relation version.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Column {
    /// Name, unquoted.
    pub name: String,
    /// `pg_type.oid`.
    pub type_oid: u32,
    /// `int4`, `timestamptz`; types outside pg_catalog as `schema.name`; `oid:N` where the server named none.
    pub type_name: String,
    /// `pg_attribute.atttypmod`, -1 for none.
    pub type_modifier: i32,
    /// Part of the replica identity.
    pub in_identity: bool,
}

/// A table as the source describes it now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Described {
    /// As the stream would describe it.
    pub relation: Relation,
    /// The same with what the replica identities of its partitions leave of its own.
    pub carried: Relation,
    /// Quoted names of what has to have REPLICA IDENTITY FULL and has not, the table before its partitions, for each of which
    /// it has to be told apart; empty unless it has partitions.
    pub partial: Vec<String>,
}

/// One immutable version of a table.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Relation {
    /// The hub's number of this version.
    pub id: RelationId,
    /// `pg_class.oid`.
    pub oid: u32,
    /// Schema, unquoted.
    pub schema: String,
    /// Table name, unquoted.
    pub table: String,
    /// What old images hold.
    pub replica_identity: ReplicaIdentity,
    /// In the order of the row images.
    pub columns: Vec<Column>,
}

impl Relation {
    /// `schema.table`, unquoted, as filters and struct rows name it.
    pub fn qualified_name(&self) -> String {
        format!("{}.{}", self.schema, self.table)
    }

    /// Rows of a partition come under this table's name with the old columns that the partition's own replica identity has:
    /// what is left is the part of the identity that both have. `has` tells whether the partition's identity has a column.
    pub fn narrow(&mut self, identity: ReplicaIdentity, has: impl Fn(&str) -> bool) {
        if identity == ReplicaIdentity::Full {
            return;
        }
        let mut less = self.replica_identity == ReplicaIdentity::Full;
        for column in self.columns.iter_mut().filter(|column| column.in_identity) {
            column.in_identity = has(&column.name);
            less |= !column.in_identity;
        }
        if less {
            self.replica_identity = identity;
        }
    }

    /// The same table in the same shape, whatever its number.
    pub fn same_version(&self, other: &Relation) -> bool {
        self.oid == other.oid
            && self.schema == other.schema
            && self.table == other.table
            && self.replica_identity == other.replica_identity
            && self.columns == other.columns
    }
}
