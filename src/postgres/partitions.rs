//! What the partitions of a table that is published under its own name have for a replica identity: what their old images
//! carry is theirs to say, and neither [ALTER TABLE on the root](https://www.postgresql.org/docs/current/sql-altertable.html)
//! nor ATTACH PARTITION makes it the root's.

use std::collections::HashMap;

use tokio_postgres::types::Type;

use super::{
    contents,
    error::Result,
    publication::replica_identity,
    sql::{Sql, get},
};
use crate::model::{Described, Relation, ReplicaIdentity};

/// A partition that holds rows, or the root itself.
struct Leaf {
    /// Quoted.
    name: String,
    identity: ReplicaIdentity,
    /// Of the identity; none under FULL.
    columns: Vec<String>,
}

/// These tables, of which `roots` are partitioned ones, with what the partitions leave of their replica identities.
pub(super) async fn described(sql: &Sql, relations: Vec<Relation>, roots: &[u32]) -> Result<Vec<Described>> {
    let leaves = if roots.is_empty() { HashMap::new() } else { leaves(sql, roots).await? };
    let describe = |relation: Relation| {
        let (mut carried, mut partial) = (relation.clone(), Vec::new());
        let leaves = leaves.get(&relation.oid).into_iter().flatten();
        for leaf in leaves.filter(|leaf| leaf.identity != ReplicaIdentity::Full) {
            partial.push(leaf.name.clone());
            carried.narrow(leaf.identity, |name| leaf.columns.iter().any(|column| column == name));
        }
        Described { relation, carried, partial }
    };
    Ok(relations.into_iter().map(describe).collect())
}

/// By the OID of their root, which comes first, in the order of their own.
async fn leaves(sql: &Sql, roots: &[u32]) -> Result<HashMap<u32, Vec<Leaf>>> {
    let tree = contents::tree("pg_catalog.unnest($1)");
    let statement = format!("SELECT t.root, pg_catalog.format('%I.%I', n.nspname, c.relname), c.relreplident::text,
                            ARRAY(SELECT a.attname::text FROM pg_catalog.pg_index i
                                  JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid
                                       AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1])
                                  WHERE i.indrelid = c.oid
                                    AND CASE c.relreplident WHEN 'd' THEN i.indisprimary WHEN 'i' THEN i.indisreplident END)
                     FROM {tree} t
                     JOIN pg_catalog.pg_class c ON c.oid = t.relid AND (c.relkind = 'r' OR c.oid = t.root)
                     JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                     ORDER BY t.root, c.oid <> t.root, c.oid");
    let mut leaves: HashMap<u32, Vec<Leaf>> = HashMap::new();
    for row in sql.query(&statement, &[(&roots, Type::OID_ARRAY)]).await? {
        leaves.entry(get(&row, 0)?).or_default().push(Leaf {
            name: get(&row, 1)?,
            identity: replica_identity(get(&row, 2)?),
            columns: get(&row, 3)?,
        });
    }
    Ok(leaves)
}
