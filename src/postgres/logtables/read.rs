//! Reading the log: which transactions it holds, the shapes of their tables, and their rows in a given order. All of it
//! runs in one session, whose transaction has the snapshot that a replay ends at.

use std::collections::{HashMap, HashSet};

use futures_util::{Stream, StreamExt};
use serde_json::Value;
use tokio_postgres::types::{ToSql, Type};

use crate::{
    model::{Column, Relation, RelationId, ReplicaIdentity},
    postgres::{
        conninfo::ConnectOptions,
        contents,
        error::{Error, Result},
        publication::{self, Publication},
        replication::{identifier, literal},
        sql::{Sql, get, text},
    },
};

/// What is logged of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pending {
    /// Top-level transaction id with its epoch.
    pub xid: u64,
    /// The greatest id of its rows.
    pub last_id: i64,
    /// When its last row was logged, microseconds since 2000-01-01 UTC.
    pub at: i64,
    /// Its rows may have been logged in another order than they were written: see [`super::order::untangle`].
    pub tangled: bool,
}

/// One logged change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logged {
    /// Which of the asked-for transactions, from 0.
    pub rank: usize,
    /// Orders rows and shapes.
    pub id: i64,
    /// `pg_class.oid` of the table that holds the row.
    pub relid: u32,
    /// `I`, `U`, `D` or `T`.
    pub op: u8,
    /// The same as the publication shows it: a row filter leaves it out, or makes an insert or a delete of an update.
    pub shown: Option<u8>,
    /// Where the old row version was.
    pub old_ctid: Option<String>,
    /// Where the new row version is.
    pub new_ctid: Option<String>,
    /// The old row in composite text form.
    pub old_row: Option<String>,
    /// The new row in composite text form.
    pub new_row: Option<String>,
}

/// A session whose one transaction reads with an exported snapshot.
pub struct Reader {
    sql: Sql,
}

/// The log has no indexes, which every writer would have to pay for. Where the planner takes a grown log for a small one, a
/// nested loop would read it again for each row; read once, a million rows take a fraction of a second.
const READ_ONCE: &str = "SET LOCAL enable_nestloop = off";

const NOT_COVERED: &str = "NOT pg_catalog.pg_visible_in_snapshot(l.xid, $1::text::pg_snapshot)";

impl Reader {
    /// Opens the session. The snapshot's exporter must stay idle for as long as it is to be imported.
    pub async fn open(options: &ConnectOptions, snapshot: &str) -> Result<Reader> {
        let sql = Sql::connect(options).await?;
        let begin =
            format!("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT {}", literal(snapshot));
        sql.batch(&format!("{begin}; {READ_ONCE}")).await?;
        Ok(Reader { sql })
    }

    /// A session with a snapshot of its own.
    pub async fn open_now(options: &ConnectOptions) -> Result<Reader> {
        let sql = Sql::connect(options).await?;
        sql.batch(&format!("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; {READ_ONCE}")).await?;
        Ok(Reader { sql })
    }

    /// The session's snapshot as text.
    pub async fn snapshot(&self) -> Result<String> {
        get(&self.sql.one("SELECT pg_catalog.pg_current_snapshot()::text", &[]).await?, 0)
    }

    /// Transactions in the log that are not visible in `horizon`, as far as they touched these tables.
    pub async fn pending(&self, horizon: &str, tables: &[u32]) -> Result<Vec<Pending>> {
        let params = [text(&horizon), (&tables as &(dyn ToSql + Sync), Type::OID_ARRAY)];
        let statement = format!(
            "SELECT l.xid::text::int8, max(l.id),
                    (extract(epoch FROM max(l.at)) * 1000000)::int8 - 946684800000000
             FROM walcast.log l WHERE {NOT_COVERED} AND l.relid = ANY ($2) GROUP BY l.xid"
        );
        let mut pending: Vec<Pending> = Vec::new();
        for row in self.sql.query(&statement, &params).await? {
            let xid = get::<i64>(&row, 0)?.unsigned_abs();
            pending.push(Pending { xid, last_id: get(&row, 1)?, at: get(&row, 2)?, tangled: false });
        }
        let statement = format!(
            "SELECT DISTINCT l.xid::text::int8 FROM walcast.log l
             JOIN walcast.log m ON m.xid = l.xid AND m.relid = l.relid AND m.old_ctid = l.new_ctid AND m.id < l.id
             WHERE {NOT_COVERED} AND l.relid = ANY ($2)
               AND NOT pg_catalog.pg_visible_in_snapshot(m.xid, $1::text::pg_snapshot)"
        );
        let mut tangled = HashSet::new();
        for row in self.sql.query(&statement, &params).await? {
            tangled.insert(get::<i64>(&row, 0)?.unsigned_abs());
        }
        for transaction in &mut pending {
            transaction.tangled = tangled.contains(&transaction.xid);
        }
        Ok(pending)
    }

    /// Rows of these tables and transactions: in the order of `xids`, within each by id. Rows are not collected.
    pub async fn rows<'r>(
        &'r self,
        xids: &[u64],
        tables: &[u32],
    ) -> Result<impl Stream<Item = Result<Logged>> + Send + use<'r>> {
        let statement = self
            .sql
            .client()
            .prepare_typed(
                "SELECT o.rank, l.id, l.relid, l.op::text, l.old_ctid::text, l.new_ctid::text, l.old_row, l.new_row
                 FROM pg_catalog.unnest($1) WITH ORDINALITY o(xid, rank)
                 JOIN walcast.log l ON l.xid = o.xid::text::xid8
                 WHERE l.relid = ANY ($2) ORDER BY o.rank, l.id",
                &[Type::INT8_ARRAY, Type::OID_ARRAY],
            )
            .await?;
        let xids: Vec<i64> = xids.iter().map(|xid| xid.cast_signed()).collect();
        let tables = tables.to_vec();
        let params: [&(dyn ToSql + Sync); 2] = [&xids, &tables];
        let rows = self.sql.client().query_raw(&statement, params).await?;
        Ok(rows.map(|row| {
            let row = row?;
            let op = get::<&str>(&row, 3)?.bytes().next().unwrap_or(0);
            Ok(Logged {
                rank: usize::try_from(get::<i64>(&row, 0)? - 1).unwrap_or(0),
                id: get(&row, 1)?,
                relid: get(&row, 2)?,
                op,
                shown: Some(op),
                old_ctid: get(&row, 4)?,
                new_ctid: get(&row, 5)?,
                old_row: get(&row, 6)?,
                new_row: get(&row, 7)?,
            })
        }))
    }

    /// Every shape that this snapshot sees.
    pub async fn shapes(&self) -> Result<Shapes> {
        let rows =
            self.sql.query("SELECT s.id, s.relid, s.shape::text FROM walcast.shapes s ORDER BY s.id", &[]).await?;
        let mut shapes = Shapes::default();
        for row in rows {
            let shape = Shape::read(get(&row, 0)?, get(&row, 1)?, get(&row, 2)?)?;
            shapes.0.entry(shape.relid).or_default().push(shape);
        }
        Ok(shapes)
    }

    /// Ends the session.
    pub async fn close(self) -> Result<()> {
        self.sql.batch("COMMIT").await
    }
}

/// By table, oldest first.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Shapes(HashMap<u32, Vec<Shape>>);

impl Shapes {
    /// What the table was when this row was logged.
    pub fn of(&self, row: &Logged) -> Option<&Shape> {
        let shapes = self.0.get(&row.relid)?;
        shapes.get(shapes.partition_point(|shape| shape.id < row.id).checked_sub(1)?)
    }

    /// Whether any of them has a row filter.
    pub fn filtered(&self) -> bool {
        self.0.values().flatten().any(|shape| shape.filter.is_some())
    }
}

/// A table as it was from an id on.
#[derive(Clone, Debug, PartialEq)]
pub struct Shape {
    /// Rows with greater ids have this shape, up to the next one of the table.
    pub id: i64,
    /// `pg_class.oid`.
    pub relid: u32,
    /// The partitioned table at the top; `None` for a table that is no partition.
    pub root: Option<u32>,
    /// The publication's row filter, an SQL condition on the columns.
    pub filter: Option<String>,
    /// Whether its rows were published; `None` where an older installation noted it.
    pub published: Option<bool>,
    relation: Relation,
    /// By column, the type to which a text is cast where an expression is to be evaluated; `None` for types that are not
    /// the server's own.
    casts: Vec<Option<String>>,
    /// `pg_attribute.attgenerated` of each column.
    generated: Vec<bool>,
    stored: Vec<bool>,
}

impl Shape {
    /// Columns in the order of logged rows: name, and the type to which its text is cast in an expression.
    pub(super) fn casts(&self) -> impl Iterator<Item = (&str, Option<&str>)> {
        self.relation.columns.iter().zip(&self.casts).map(|(column, cast)| (column.name.as_str(), cast.as_deref()))
    }

    fn read(id: i64, relid: u32, shape: &str) -> Result<Shape> {
        parse(id, relid, shape).ok_or_else(|| Error::Protocol(format!("walcast.shapes: row {id} cannot be read")))
    }
}

fn parse(id: i64, relid: u32, shape: &str) -> Option<Shape> {
    let shape: Value = serde_json::from_str(shape).ok()?;
    let oid = |value: &Value| value.as_u64().and_then(|oid| u32::try_from(oid).ok());
    let string = |value: &Value| value.as_str().map(str::to_owned);
    let mut columns = Vec::new();
    let (mut generated, mut stored, mut casts) = (Vec::new(), Vec::new(), Vec::new());
    for column in shape["columns"].as_array()? {
        let type_oid = oid(&column["type"])?;
        let (schema, name) = (string(&column["type_schema"])?, string(&column["type_name"])?);
        let collation = column["collation"].as_str().map(|name| format!(" COLLATE {name}")).unwrap_or_default();
        casts.push((schema == "pg_catalog").then(|| format!("pg_catalog.{}{collation}", identifier(&name))));
        columns.push(Column {
            name: string(&column["name"])?,
            type_oid,
            type_name: publication::type_name(type_oid, &schema, &name),
            type_modifier: i32::try_from(column["modifier"].as_i64()?).ok()?,
            in_identity: column["key"].as_bool()?,
        });
        generated.push(!column["generated"].as_str()?.is_empty());
        stored.push(column["generated"].as_str()? == "s");
    }
    let relation = Relation {
        id: RelationId(0),
        oid: relid,
        schema: string(&shape["schema"])?,
        table: string(&shape["table"])?,
        replica_identity: match shape["identity"].as_str()? {
            "f" => ReplicaIdentity::Full,
            "i" => ReplicaIdentity::Index,
            "n" => ReplicaIdentity::Nothing,
            _ => ReplicaIdentity::Default,
        },
        columns,
    };
    let (root, filter, published) = (oid(&shape["root"]), string(&shape["filter"]), shape["published"].as_bool());
    Some(Shape { id, relid, root, filter, published, relation, casts, generated, stored })
}

/// What the publication publishes of the logged tables.
#[derive(Clone, Debug)]
pub struct Published {
    /// What it publishes, and how.
    pub publication: Publication,
    /// Tables whose rows are to be delivered.
    pub tables: Vec<u32>,
    /// Column list by the OID of the published table, where it has one.
    columns: HashMap<u32, HashSet<String>>,
    /// Partitioned tables under whose names changes appear.
    roots: HashMap<u32, Relation>,
    /// Which of those a partition belongs to.
    root_of: HashMap<u32, u32>,
}

impl Published {
    /// As it is now. Tables that have been dropped since they were logged count as published, and those that have left the
    /// publication are among them: [`Shape::published`] tells which of their rows were.
    pub async fn read(sql: &Sql, publication: Publication) -> Result<Published> {
        let statement = format!(
            "SELECT p.oid FROM {} p(oid)
             UNION SELECT s.relid FROM walcast.shapes s
             WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.oid = s.relid)
                OR (s.shape ->> 'published')::bool",
            contents::captured(sql.version())
        );
        let rows = sql.query(&statement, &[text(&publication.name.as_str())]).await?;
        let tables = rows.iter().map(|row| get(row, 0)).collect::<Result<_>>()?;
        let mut columns: HashMap<u32, HashSet<String>> = HashMap::new();
        if sql.version() >= 150_000 {
            let statement = "SELECT r.prrelid, a.attname::text FROM pg_catalog.pg_publication_rel r
                             JOIN pg_catalog.pg_attribute a ON a.attrelid = r.prrelid AND a.attnum = ANY (r.prattrs::int2[])
                             WHERE r.prpubid = $1 AND r.prattrs IS NOT NULL";
            for row in sql.query(statement, &[(&publication.oid, Type::OID)]).await? {
                columns.entry(get(&row, 0)?).or_default().insert(get(&row, 1)?);
            }
        }
        let (mut roots, mut root_of) = (HashMap::new(), HashMap::new());
        if publication.via_partition_root {
            let named = publication::published_tables(sql, &publication.name).await?;
            let relations = publication::relations(sql, &publication.name, &named).await?;
            roots.extend(relations.into_iter().map(|relation| (relation.oid, relation)));
            let oids: Vec<u32> = roots.keys().copied().collect();
            let statement = format!("SELECT p.relid, p.root FROM {} p", contents::tree("pg_catalog.unnest($1)"));
            for row in sql.query(&statement, &[(&oids, Type::OID_ARRAY)]).await? {
                root_of.insert(get(&row, 0)?, get(&row, 1)?);
            }
        }
        Ok(Published { publication, tables, columns, roots, root_of })
    }

    /// The relation that rows of this shape appear under, and which of their columns it has, in its order.
    pub fn project(&self, shape: &Shape) -> (Relation, Vec<usize>) {
        let of = |name: &str| shape.relation.columns.iter().position(|column| column.name == name);
        let root = self.root_of.get(&shape.relid).copied().or(shape.root);
        if let Some(root) = root.and_then(|root| self.roots.get(&root)) {
            let mut relation = root.clone();
            let taken: Vec<Option<usize>> = root.columns.iter().map(|column| of(&column.name)).collect();
            let mut present = taken.iter().map(Option::is_some);
            relation.columns.retain(|_| present.next().unwrap_or(false));
            return (relation, taken.into_iter().flatten().collect());
        }
        let listed = self.columns.get(&shape.relid).or_else(|| self.columns.get(&root?));
        let wanted = |at: &usize| match listed {
            Some(listed) => listed.contains(&shape.relation.columns[*at].name),
            None => !shape.generated[*at] || self.publication.generated_columns && shape.stored[*at],
        };
        let taken: Vec<usize> = (0..shape.relation.columns.len()).filter(wanted).collect();
        let mut relation = shape.relation.clone();
        relation.columns = taken.iter().map(|at| shape.relation.columns[*at].clone()).collect();
        (relation, taken)
    }

    /// Whether it publishes this operation.
    pub fn publishes(&self, op: u8) -> bool {
        let publication = &self.publication;
        match op {
            b'I' => publication.insert,
            b'U' => publication.update,
            b'D' => publication.delete,
            _ => publication.truncate,
        }
    }
}
