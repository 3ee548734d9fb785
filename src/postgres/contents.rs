//! What a publication contains, read from the catalogue and without a lock on any of its tables.
//!
//! PostgreSQL's own answers wait for whoever holds ACCESS EXCLUSIVE on a table: a VACUUM FULL, DDL that is still open or
//! prepared. `pg_partition_tree()` locks every partition
//! ([`find_all_inheritors`](https://doxygen.postgresql.org/partitionfuncs_8c_source.html)) and keeps the locks to the end of
//! the transaction; from 16 on the view
//! [`pg_publication_tables`](https://www.postgresql.org/docs/current/view-pg-publication-tables.html) opens each table that
//! has no column list; `pg_get_expr()` and `pg_relation_size()` lock the table that they are about. What is asked every two seconds, on a session that others use too, must not stand in that queue.
//! Catalogue rows are read with the statement's snapshot instead, like everything else that is joined to them.

/// A subquery: the tables under whose names the publication `$1` publishes changes, as `pg_publication_tables` lists them.
/// Columns: `oid`, `schemaname`, `tablename`, `attrs` (numbers of the columns in its column list; NULL without one) and
/// `stored` (stored generated columns are published). For this version of the server.
pub(super) fn listed(version: u32) -> String {
    let (schemas, attrs) = match version {
        150_000.. => (
            "SELECT s.pnnspid FROM pub JOIN pg_catalog.pg_publication_namespace s ON s.pnpubid = pub.oid",
            "r.prattrs::int2[]",
        ),
        _ => ("SELECT NULL::oid WHERE false", "NULL::int2[]"),
    };
    let stored = if version >= 180_000 { "p.pubgencols::text = 's'" } else { "false" };
    let publishable = "c.relkind IN ('r', 'p') AND c.relpersistence = 'p' AND c.oid >= 16384";
    format!(
        "(WITH RECURSIVE
             pub AS (SELECT p.oid, p.puballtables, p.pubviaroot, {stored} AS stored
                     FROM pg_catalog.pg_publication p WHERE p.pubname = $1),
             schemas(oid) AS ({schemas}),
             named(oid) AS (
                 SELECT r.prrelid FROM pub JOIN pg_catalog.pg_publication_rel r ON r.prpubid = pub.oid
                 UNION
                 SELECT c.oid FROM schemas s JOIN pg_catalog.pg_class c ON c.relnamespace = s.oid WHERE {publishable}),
             below(oid) AS (
                 SELECT i.inhrelid FROM named n {PARTITIONS} n.oid
                 UNION
                 SELECT i.inhrelid FROM below b {PARTITIONS} b.oid),
             listed(oid) AS (
                 SELECT c.oid FROM pub JOIN pg_catalog.pg_class c ON {publishable}
                 WHERE pub.puballtables AND CASE WHEN pub.pubviaroot THEN NOT c.relispartition ELSE c.relkind = 'r' END
                 UNION
                 SELECT n.oid FROM pub, named n WHERE pub.pubviaroot AND n.oid NOT IN (SELECT b.oid FROM below b)
                 UNION
                 SELECT c.oid FROM pub, (SELECT n.oid FROM named n UNION SELECT b.oid FROM below b) x
                 JOIN pg_catalog.pg_class c ON c.oid = x.oid AND c.relkind <> 'p' WHERE NOT pub.pubviaroot)
         SELECT c.oid, n.nspname AS schemaname, c.relname AS tablename, {attrs} AS attrs, pub.stored
         FROM pub CROSS JOIN listed l
         JOIN pg_catalog.pg_class c ON c.oid = l.oid
         JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         LEFT JOIN pg_catalog.pg_publication_rel r ON r.prpubid = pub.oid AND r.prrelid = c.oid
              AND c.relnamespace NOT IN (SELECT s.oid FROM schemas s))"
    )
}

/// Whether the column `a` (`pg_attribute`) is published of the table `t`, which is a row of [`listed`].
pub(super) fn is_published(version: u32) -> &'static str {
    match version {
        // Until 18 generated columns are never sent, although a column list may name them.
        ..=179_999 => "a.attgenerated = '' AND (t.attrs IS NULL OR a.attnum = ANY (t.attrs))",
        _ => {
            "CASE WHEN t.attrs IS NULL THEN a.attgenerated = '' OR a.attgenerated = 's' AND t.stored
                  ELSE a.attnum = ANY (t.attrs) END"
        }
    }
}

/// Behind a table, and before its OID.
const PARTITIONS: &str = "JOIN pg_catalog.pg_inherits i ON NOT i.inhdetachpending
                          JOIN pg_catalog.pg_class p ON p.oid = i.inhrelid AND p.relispartition WHERE i.inhparent =";

/// A subquery: as `pg_partition_tree()`, every partition of these tables at every level and the tables themselves, where they
/// are partitioned ones or partitions. `of`: something to select from, with one column. Columns: `root` (one of those
/// tables), `relid`.
pub(super) fn tree(of: &str) -> String {
    format!(
        "(WITH RECURSIVE tree(root, relid) AS (
              SELECT c.oid, c.oid FROM {of} r(oid)
              JOIN pg_catalog.pg_class c ON c.oid = r.oid AND (c.relkind = 'p' OR c.relispartition)
              UNION ALL
              SELECT t.root, i.inhrelid FROM tree t {PARTITIONS} t.relid)
          SELECT tree.root, tree.relid FROM tree)"
    )
}

/// A subquery with one column: the tables whose rows the publication `$1` publishes, partitions instead of partitioned tables;
/// and the partitioned tables under whose names it publishes them. The hub's own are left out.
pub(super) fn captured(version: u32) -> String {
    let listed = listed(version);
    let tree = tree("(SELECT n.oid FROM named n)");
    format!(
        "(WITH named AS (SELECT t.oid FROM {listed} t JOIN pg_catalog.pg_class c ON c.oid = t.oid AND c.relkind IN ('r', 'p')
                         WHERE t.schemaname <> 'walcast')
          SELECT n.oid FROM named n
          UNION
          SELECT x.relid FROM {tree} x JOIN pg_catalog.pg_class c ON c.oid = x.relid AND c.relkind = 'r')"
    )
}
