//! Relation versions. pgoutput describes a table before its first change on a connection and again whenever it thinks
//! the table may have changed, at unpredictable points (one extra was seen 40,000 messages into a transaction, during
//! ANALYZE). The hub numbers what really differs, so a description that repeats a known version costs nothing and a
//! re-sent change encodes to the same bytes as before.

use std::{collections::HashMap, sync::Arc};

use postgres_types::Type;

use crate::{
    model::{Column, Relation, RelationId},
    pgoutput::RelationMessage,
};

/// Every version this journal has seen, and which one holds for each table now.
#[derive(Debug, Default)]
pub(super) struct Versions {
    by_oid: HashMap<u32, Table>,
    type_names: HashMap<u32, String>,
    last_id: u32,
}

#[derive(Debug, Default)]
struct Table {
    current: Option<Arc<Relation>>,
    versions: Vec<Arc<Relation>>,
}

impl Versions {
    /// With what the journal recovered. None of it is current: each connection describes its tables anew.
    pub fn new(known: &[Arc<Relation>]) -> Self {
        let mut versions = Versions::default();
        for relation in known {
            versions.last_id = versions.last_id.max(relation.id.0);
            versions.by_oid.entry(relation.oid).or_default().versions.push(relation.clone());
        }
        versions
    }

    /// Forgets what the last connection described; the versions and their numbers stay.
    pub fn start_connection(&mut self) {
        self.type_names.clear();
        for table in self.by_oid.values_mut() {
            table.current = None;
        }
    }

    /// Remembers the name of a type outside pg_catalog; told before the relation that uses it.
    pub fn name_type(&mut self, oid: u32, schema: &str, name: &str) {
        self.type_names.insert(oid, format!("{schema}.{name}"));
    }

    /// Makes the described version current. Returns it when it must be journaled before the next block: it is new, or
    /// was not the current one until now.
    pub fn describe(&mut self, message: &RelationMessage<'_>) -> Option<Arc<Relation>> {
        self.adopt(Relation {
            id: RelationId(0),
            oid: message.oid,
            schema: message.namespace.to_string(),
            table: message.name.to_string(),
            replica_identity: message.replica_identity,
            columns: message
                .columns
                .clone()
                .map(|column| Column {
                    name: column.name.to_string(),
                    type_oid: column.type_oid,
                    type_name: self.type_name(column.type_oid),
                    type_modifier: column.modifier,
                    in_identity: column.in_identity,
                })
                .collect(),
        })
    }

    /// The same for a relation that was not described by the stream; its `id` is 0.
    pub fn adopt(&mut self, mut relation: Relation) -> Option<Arc<Relation>> {
        let table = self.by_oid.entry(relation.oid).or_default();
        if table.current.as_ref().is_some_and(|current| current.same_version(&relation)) {
            return None;
        }
        let version = match table.versions.iter().find(|version| version.same_version(&relation)) {
            Some(known) => known.clone(),
            None => {
                self.last_id += 1;
                relation.id = RelationId(self.last_id);
                let version = Arc::new(relation);
                table.versions.push(version.clone());
                version
            }
        };
        table.current = Some(version.clone());
        Some(version)
    }

    fn type_name(&self, oid: u32) -> String {
        match (self.type_names.get(&oid), Type::from_oid(oid)) {
            (Some(name), _) => name.clone(),
            (None, Some(builtin)) => builtin.name().to_owned(),
            (None, None) => format!("oid:{oid}"),
        }
    }

    /// The version that holds for this table on this connection.
    pub fn current(&self, oid: u32) -> Option<&Arc<Relation>> {
        self.by_oid.get(&oid).and_then(|table| table.current.as_ref())
    }
}
