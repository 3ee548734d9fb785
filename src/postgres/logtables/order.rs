//! The order of what was logged. Within a transaction rows have ids, but a trigger of the application that changes a row
//! of the same statement is logged before the statement's own change of it; row versions (ctids) show the true order.
//! Between transactions the last id orders all that have rows in common: a row is logged only after the transaction
//! that held its lock has ended. Where [pg_walinspect](https://www.postgresql.org/docs/current/pgwalinspect.html) is at
//! hand, the commit records themselves say it.

use std::collections::HashMap;

use super::read::Logged;
use crate::{
    lsn::Lsn,
    postgres::{
        error::Result,
        server::{self, widen},
        sql::{Sql, get, text},
    },
};

/// Rows of one transaction, in the order in which they were written. Only what must move moves.
pub fn untangle(rows: Vec<Logged>) -> Vec<Logged> {
    let mut written: HashMap<(u32, &str), Vec<usize>> = HashMap::new();
    for (at, row) in rows.iter().enumerate() {
        if let Some(ctid) = &row.new_ctid {
            written.entry((row.relid, ctid)).or_default().push(at);
        }
    }
    // The row that made the version which this one replaces, if it was logged later. Behind a TRUNCATE, ctids begin anew.
    let made_by = |at: usize| {
        let row = &rows[at];
        let candidates = written.get(&(row.relid, row.old_ctid.as_deref()?))?;
        let later = candidates.iter().copied().filter(|from| *from > at && rows[*from].new_row == row.old_row);
        later.min().filter(|from| !rows[at..*from].iter().any(|other| other.op == b'T' && other.relid == row.relid))
    };
    let mut order = Vec::with_capacity(rows.len());
    let mut placed = vec![false; rows.len()];
    for first in 0..rows.len() {
        let mut chain = vec![first];
        while let Some(from) = made_by(chain[chain.len() - 1]).filter(|from| !placed[*from] && !chain.contains(from)) {
            chain.push(from);
        }
        for at in chain.into_iter().rev() {
            if !std::mem::replace(&mut placed[at], true) {
                order.push(at);
            }
        }
    }
    let mut rows: Vec<Option<Logged>> = rows.into_iter().map(Some).collect();
    order.into_iter().filter_map(|at| rows[at].take()).collect()
}

/// Where each transaction that committed in a range of WAL has its commit record, by 64-bit id; `None` where the server
/// cannot tell: no extension, no right, or the WAL is gone.
pub async fn commit_records(sql: &Sql, from: Lsn, to: Lsn) -> Result<Option<HashMap<u64, Lsn>>> {
    /// Reading WAL goes at some 100 MB per second; beyond this the order of ids serves.
    const MOST: u64 = 4 << 30;
    let there = "SELECT pg_catalog.format('%I.%I', n.nspname, p.proname)
                 FROM pg_catalog.pg_extension e JOIN pg_catalog.pg_namespace n ON n.oid = e.extnamespace
                 JOIN pg_catalog.pg_proc p ON p.pronamespace = n.oid AND p.proname = 'pg_get_wal_records_info'
                 WHERE e.extname = 'pg_walinspect' AND pg_catalog.has_function_privilege(p.oid, 'EXECUTE')";
    let Some(row) = sql.optional(there, &[]).await? else { return Ok(None) };
    if from == Lsn::ZERO || to.since(from) > MOST {
        return Ok(None);
    }
    let function: &str = get(&row, 0)?;
    let statement = format!(
        "SELECT w.xid::text::int8, w.start_lsn::text, pg_catalog.substring(w.description, '^(\\d+): ')
         FROM {function}($1::text::pg_lsn, $2::text::pg_lsn) w
         WHERE w.resource_manager = 'Transaction' AND w.record_type LIKE 'COMMIT%'"
    );
    let near = server::current_xid8(sql).await?;
    let rows = match sql.query(&statement, &[text(&from.to_string().as_str()), text(&to.to_string().as_str())]).await {
        Ok(rows) => rows,
        Err(error) if error.sqlstate().is_some() => {
            tracing::info!(%error, "the WAL of the gap cannot be inspected; transactions are ordered by their rows");
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let mut records = HashMap::new();
    for row in rows {
        let own: i64 = get(&row, 0)?;
        let prepared: Option<&str> = get(&row, 2)?;
        let xid = prepared.and_then(|xid| xid.parse().ok()).unwrap_or(own.unsigned_abs());
        let at: &str = get(&row, 1)?;
        records.insert(widen(xid as u32, near), server::lsn(at)?);
    }
    Ok(Some(records))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: i64, op: u8, old: &str, new: &str, old_row: &str, new_row: &str) -> Logged {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let (old_ctid, new_ctid) = (some(old), some(new));
        Logged {
            rank: 0,
            id,
            relid: 7,
            op,
            shown: Some(op),
            old_ctid,
            new_ctid,
            old_row: some(old_row),
            new_row: some(new_row),
        }
    }

    fn ids(rows: Vec<Logged>) -> Vec<i64> {
        untangle(rows).iter().map(|row| row.id).collect()
    }

    #[test]
    fn a_nested_change_comes_behind_the_one_that_made_its_row() {
        // Measured: UPDATE of two rows, whose trigger on the first adds 100 to the second.
        let rows = vec![
            row(1, b'U', "(0,1)", "(0,3)", "(1,0)", "(1,1)"),
            row(2, b'U', "(0,4)", "(0,5)", "(2,1)", "(2,101)"),
            row(3, b'U', "(0,2)", "(0,4)", "(2,0)", "(2,1)"),
        ];
        assert_eq!(ids(rows), [1, 3, 2]);
    }

    #[test]
    fn chains_and_what_is_in_order() {
        let rows = vec![
            row(1, b'U', "(0,3)", "(0,4)", "c", "d"),
            row(2, b'U', "(0,2)", "(0,3)", "b", "c"),
            row(3, b'I', "", "(0,2)", "", "b"),
            row(4, b'D', "(0,4)", "", "d", ""),
        ];
        assert_eq!(ids(rows), [3, 2, 1, 4]);
    }

    #[test]
    fn a_ctid_that_comes_again_moves_nothing() {
        let truncated =
            vec![row(1, b'D', "(0,1)", "", "a", ""), row(2, b'T', "", "", "", ""), row(3, b'I', "", "(0,1)", "", "a")];
        assert_eq!(ids(truncated), [1, 2, 3]);
        let rewritten = vec![row(1, b'D', "(0,1)", "", "a", ""), row(2, b'I', "", "(0,1)", "", "other")];
        assert_eq!(ids(rewritten), [1, 2]);
    }
}
