//! Relation versions. pgoutput describes a table before its first change on a connection and again whenever it thinks
//! the table may have changed, at unpredictable points (one extra was seen 40,000 messages into a transaction, during
//! ANALYZE). The hub numbers what really differs, so a description that repeats a known version costs nothing and a
//! re-sent change encodes to the same bytes as before.
//!
//! A change of a partition that is published under its root's name is written as the root's, and yet carries the old
//! columns of the partition's own replica identity, which ALTER TABLE on the root does not change. A root that is described as
//! FULL may so bring UPDATEs without an old image, and DELETEs with NULL for what was not logged. But pgoutput describes
//! [both, the root first](https://github.com/postgres/postgres/blob/REL_15_STABLE/src/backend/replication/pgoutput/pgoutput.c)
//! (`maybe_send_schema`), right in front of a change of the root, and again when either the partition changes: from that the
//! hub knows what old images have in common. A root's key columns that are not among them are not told to be any; under
//! FULL NULLs outside of them are written as absent, and an UPDATE without an old image gets one of what they are.
//! When only the root is altered nothing is described again: that it has become FULL shows in its old images.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use postgres_types::Type;

use crate::{
    model::{Column, Relation, RelationId, ReplicaIdentity},
    pgoutput::RelationMessage,
};

/// Every version this journal has seen, and which one holds for each table now.
#[derive(Debug, Default)]
pub(super) struct Versions {
    by_oid: HashMap<u32, Table>,
    type_names: HashMap<u32, String>,
    last_id: u32,
    /// The tables of the last two descriptions, while nothing but descriptions has come behind them.
    recent: [Option<u32>; 2],
    /// Partitions whose changes come under the name of another table.
    root_of: HashMap<u32, u32>,
}

#[derive(Debug, Default)]
struct Table {
    current: Option<Arc<Relation>>,
    /// The same with what its partitions leave of its replica identity, where that is FULL and theirs are not.
    written: Option<Arc<Relation>>,
    versions: Vec<Arc<Relation>>,
    /// As the connection described it.
    told: Option<Relation>,
    /// Replica identities of the partitions under its name that are not FULL, by OID, with their columns.
    partial: BTreeMap<u32, (ReplicaIdentity, Vec<String>)>,
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
        self.root_of.clear();
        self.recent = [None; 2];
        for table in self.by_oid.values_mut() {
            table.current = None;
            table.written = None;
            table.told = None;
            table.partial.clear();
        }
    }

    /// Remembers the name of a type outside pg_catalog; told before the relation that uses it.
    pub fn name_type(&mut self, oid: u32, schema: &str, name: &str) {
        self.type_names.insert(oid, format!("{schema}.{name}"));
    }

    /// Makes the described version current. Returns it when it must be journaled before the next block: it is new, or
    /// was not the current one until now.
    pub fn describe(&mut self, message: &RelationMessage<'_>) -> Option<Arc<Relation>> {
        self.recent = [self.recent[1], Some(message.oid)];
        let told = Relation {
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
        };
        self.by_oid.entry(message.oid).or_default().told = Some(told);
        self.adjust(message.oid)
    }

    /// A message came that describes nothing.
    pub fn described(&mut self) {
        self.recent = [None; 2];
    }

    /// Whether the next change tells more of what was described in front of it.
    pub fn just_described(&self) -> bool {
        self.recent[1].is_some()
    }

    /// A change of this table came, `whole` with an old image that calls itself full. As [`Versions::describe`].
    pub fn changed(&mut self, oid: u32, whole: bool) -> Option<Arc<Relation>> {
        let adjusted = match std::mem::take(&mut self.recent) {
            [_, Some(last)] if last == oid => {
                let root = self.root_of.remove(&oid);
                root.and_then(|root| self.leave(root, oid))
            }
            [Some(root), Some(last)] if root == oid => self.enter(root, last),
            _ => None,
        };
        let told = self.by_oid.get_mut(&oid).and_then(|table| table.told.as_mut());
        let Some(told) = told.filter(|told| whole && told.replica_identity != ReplicaIdentity::Full) else {
            return adjusted;
        };
        told.replica_identity = ReplicaIdentity::Full;
        told.columns.iter_mut().for_each(|column| column.in_identity = true);
        self.adjust(oid).or(adjusted)
    }

    /// A partition comes under the name of `root`.
    fn enter(&mut self, root: u32, partition: u32) -> Option<Arc<Relation>> {
        let told = self.by_oid.get(&partition)?.told.as_ref()?;
        let columns = told.columns.iter().filter(|column| column.in_identity).map(|column| column.name.clone());
        let (identity, columns) = (told.replica_identity, columns.collect());
        let table = self.by_oid.get_mut(&root)?;
        match identity {
            ReplicaIdentity::Full => drop(table.partial.remove(&partition)),
            _ => drop(table.partial.insert(partition, (identity, columns))),
        }
        self.root_of.insert(partition, root);
        self.adjust(root)
    }

    /// A table comes under its own name again.
    fn leave(&mut self, root: u32, partition: u32) -> Option<Arc<Relation>> {
        self.by_oid.get_mut(&root)?.partial.remove(&partition)?;
        self.adjust(root)
    }

    /// Makes current what the table was described as, as far as its partitions are like that.
    fn adjust(&mut self, oid: u32) -> Option<Arc<Relation>> {
        let table = self.by_oid.get(&oid)?;
        let told = table.told.clone()?;
        let mut narrow = told.clone();
        for (identity, columns) in table.partial.values() {
            narrow.narrow(*identity, |name| columns.iter().any(|column| column == name));
        }
        if told.replica_identity != ReplicaIdentity::Full || narrow == told {
            return self.adopt(narrow);
        }
        let version = self.adopt(told);
        let table = self.by_oid.get_mut(&oid)?;
        narrow.id = table.current.as_ref()?.id;
        table.written = Some(Arc::new(narrow));
        version
    }

    /// The same for a relation that was not described by the stream; its `id` is 0.
    pub fn adopt(&mut self, mut relation: Relation) -> Option<Arc<Relation>> {
        let table = self.by_oid.entry(relation.oid).or_default();
        table.written = None;
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

    /// The current version as changes are written by it, and whether it says less of old rows than the version itself, which
    /// is FULL: an UPDATE without an old image has then left the columns of the identity as they were.
    pub fn written(&self, oid: u32) -> Option<(&Arc<Relation>, bool)> {
        let table = self.by_oid.get(&oid)?;
        let narrow = table.written.as_ref().map(|written| (written, true));
        narrow.or(table.current.as_ref().map(|current| (current, false)))
    }

    /// The version that holds for this table on this connection.
    pub fn current(&self, oid: u32) -> Option<&Arc<Relation>> {
        self.by_oid.get(&oid).and_then(|table| table.current.as_ref())
    }
}
