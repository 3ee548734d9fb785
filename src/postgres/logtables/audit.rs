//! Whether the log has what the slot sent: a count per transaction and table. It shows what looking at triggers cannot: a
//! trigger that was disabled for a moment, or a session that fired none.

use std::collections::HashMap;

use tokio_postgres::types::{ToSql, Type};

use crate::postgres::{
    error::Result,
    publication::Publication,
    sql::{Sql, get},
};

/// Per streamed table (by OID) one transaction and how many of its changes the slot sent.
pub type Sample = HashMap<u32, (u64, u64)>;

/// A table with another number of logged than of streamed changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// `pg_class.oid`.
    pub oid: u32,
    /// Table and numbers, for people.
    pub text: String,
}

/// Compares a sample with the log. Transactions that have not ended for this session yet are left out.
pub async fn compare(sql: &Sql, publication: &Publication, sample: &Sample) -> Result<Vec<Mismatch>> {
    let ops: Vec<&str> =
        [(publication.insert, "I"), (publication.update, "U"), (publication.delete, "D"), (publication.truncate, "T")]
            .into_iter()
            .filter_map(|(published, op)| published.then_some(op))
            .collect();
    let oids: Vec<u32> = sample.keys().copied().collect();
    let xids: Vec<i64> = oids.iter().map(|oid| sample[oid].0.cast_signed()).collect();
    let table = if publication.via_partition_root {
        "coalesce(pg_catalog.pg_partition_root(l.relid)::oid, l.relid)"
    } else {
        "l.relid"
    };
    // As a replay has it: TRUNCATE of a partition is not one of its root.
    let counted = match publication.via_partition_root {
        true => "(l.op <> 'T' OR coalesce(pg_catalog.pg_partition_root(l.relid)::oid, l.relid) = l.relid)",
        false => "true",
    };
    let statement = format!(
        "WITH sampled AS (SELECT * FROM ROWS FROM (pg_catalog.unnest($1), pg_catalog.unnest($2)) s(oid, xid)),
              logged AS (SELECT {table} AS oid, l.xid, count(*) AS n FROM walcast.log l
                         WHERE l.xid IN (SELECT xid::text::xid8 FROM sampled) AND l.op::text = ANY ($3) AND {counted}
                         GROUP BY 1, 2)
         SELECT s.oid, s.oid::regclass::text, coalesce(l.n, 0) FROM sampled s
         LEFT JOIN logged l ON l.oid = s.oid AND l.xid = s.xid::text::xid8
         WHERE pg_catalog.pg_visible_in_snapshot(s.xid::text::xid8, pg_catalog.pg_current_snapshot())
           AND EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.oid = s.oid)
           AND EXISTS (SELECT FROM walcast.shapes h WHERE h.captured AND h.xid < s.xid::text::xid8
                       AND (h.relid = s.oid OR (h.shape ->> 'root')::oid = s.oid))"
    );
    let params: [(&(dyn ToSql + Sync), Type); 3] =
        [(&oids, Type::OID_ARRAY), (&xids, Type::INT8_ARRAY), (&ops, Type::TEXT_ARRAY)];
    let mut mismatches = Vec::new();
    for row in sql.query(&statement, &params).await? {
        let oid: u32 = get(&row, 0)?;
        let logged = get::<i64>(&row, 2)?.unsigned_abs();
        let Some((xid, streamed)) = sample.get(&oid).filter(|(_, streamed)| *streamed != logged) else { continue };
        let table: &str = get(&row, 1)?;
        let text = format!("{table}: transaction {xid} changed it {streamed} times, and the log has {logged}");
        mismatches.push(Mismatch { oid, text });
    }
    Ok(mismatches)
}
