//! Whether the log has what the slot sent: a count per transaction and table. It shows what looking at triggers cannot: a
//! trigger that was disabled for a moment, or a session that fired none.

use std::collections::HashMap;

use tokio_postgres::types::{ToSql, Type};

use crate::postgres::{
    contents,
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
    // As a replay has it: under the name of the topmost published table, and a TRUNCATE of a partition is not one of that.
    let table = match publication.via_partition_root {
        true => {
            "coalesce((SELECT s.oid FROM sampled s
                       JOIN pg_catalog.pg_partition_ancestors(c.relid) WITH ORDINALITY a(oid, height) ON a.oid = s.oid
                       ORDER BY a.height DESC LIMIT 1), c.relid)"
        }
        false => "c.relid",
    };
    let tree = contents::tree("(SELECT s.oid)");
    let statement = format!(
        "WITH sampled AS (SELECT * FROM ROWS FROM (pg_catalog.unnest($1), pg_catalog.unnest($2)) s(oid, xid)),
              counted AS (SELECT l.relid, l.xid, l.op = 'T' AS truncate, count(*) AS n FROM walcast.log l
                          WHERE l.xid IN (SELECT xid::text::xid8 FROM sampled) AND l.op::text = ANY ($3)
                          GROUP BY 1, 2, 3),
              logged AS (SELECT t.oid, c.xid, sum(c.n)::int8 AS n FROM counted c
                         CROSS JOIN LATERAL (SELECT {table} AS oid) t
                         WHERE NOT c.truncate OR t.oid = c.relid GROUP BY 1, 2)
         SELECT s.oid, s.oid::regclass::text, coalesce(l.n, 0),
                EXISTS (SELECT FROM walcast.shapes h WHERE h.shape ->> 'filter' IS NOT NULL
                        AND h.relid IN (SELECT s.oid UNION SELECT p.relid FROM {tree} p))
         FROM sampled s LEFT JOIN logged l ON l.oid = s.oid AND l.xid = s.xid::text::xid8
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
        // What a row filter keeps from the stream is logged all the same.
        let filtered: bool = get(&row, 3)?;
        let agrees = |streamed: u64| streamed == logged || filtered && streamed < logged;
        let Some((xid, streamed)) = sample.get(&oid).filter(|(_, streamed)| !agrees(*streamed)) else { continue };
        let table: &str = get(&row, 1)?;
        let text = format!("{table}: transaction {xid} changed it {streamed} times, and the log has {logged}");
        mismatches.push(Mismatch { oid, text });
    }
    Ok(mismatches)
}
