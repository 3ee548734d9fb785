//! The [publication](https://www.postgresql.org/docs/current/logical-replication-publication.html): what it contains,
//! and how it is made with the rights that the role has.
//!
//! A publication is looked up by name when changes are decoded, at their place in the WAL; one that was dropped and made
//! again is another one there. [`Publication::oid`] is what tells the two apart.

use tokio_postgres::types::Type;

use super::{
    contents,
    error::{Error, Result},
    partitions,
    replication::{identifier, literal},
    sql::{Sql, get, text},
};

use crate::model::{Column, Described, Relation, RelationId, ReplicaIdentity};

/// The hub's own schema (log tables); its tables are never shown to subscribers.
pub const OWN_SCHEMA: &str = "walcast";

/// One publication.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publication {
    /// `pg_publication.oid`: changes when it is dropped and created again.
    pub oid: u32,
    /// Name.
    pub name: String,
    /// FOR ALL TABLES.
    pub all_tables: bool,
    /// INSERT is published.
    pub insert: bool,
    /// UPDATE is published.
    pub update: bool,
    /// DELETE is published.
    pub delete: bool,
    /// TRUNCATE is published.
    pub truncate: bool,
    /// Changes of partitions appear under the partitioned table's name.
    pub via_partition_root: bool,
    /// Stored generated columns are published; always false before PostgreSQL 18.
    pub generated_columns: bool,
}

/// The publication of this name, if there is one in the connection's database.
pub async fn find(sql: &Sql, name: &str) -> Result<Option<Publication>> {
    let generated = if sql.version() >= 180_000 { "p.pubgencols::text = 's'" } else { "false" };
    let statement = format!(
        "SELECT p.oid, p.pubname::text, p.puballtables, p.pubinsert, p.pubupdate, p.pubdelete, p.pubtruncate,
                p.pubviaroot, {generated}
         FROM pg_catalog.pg_publication p WHERE p.pubname = $1"
    );
    let Some(row) = sql.optional(&statement, &[text(&name)]).await? else { return Ok(None) };
    Ok(Some(Publication {
        oid: get(&row, 0)?,
        name: get(&row, 1)?,
        all_tables: get(&row, 2)?,
        insert: get(&row, 3)?,
        update: get(&row, 4)?,
        delete: get(&row, 5)?,
        truncate: get(&row, 6)?,
        via_partition_root: get(&row, 7)?,
        generated_columns: get(&row, 8)?,
    }))
}

/// Schema and name of every table that it publishes, the hub's own left out, by name. Empty if there is no such
/// publication.
pub async fn published_tables(sql: &Sql, name: &str) -> Result<Vec<(String, String)>> {
    let listed = contents::listed(sql.version());
    let statement =
        format!("SELECT t.schemaname::text, t.tablename::text FROM {listed} t WHERE t.schemaname <> $2 ORDER BY 1, 2");
    let rows = sql.query(&statement, &[text(&name), text(&OWN_SCHEMA)]).await?;
    rows.iter().map(|row| Ok((get(row, 0)?, get(row, 1)?))).collect()
}

/// The type of the column `a`; of a domain the type that it is over.
const BASE_TYPE: &str = "WITH RECURSIVE base AS (
        SELECT y.typname, y.typnamespace, y.typtype, y.typbasetype FROM pg_catalog.pg_type y WHERE y.oid = a.atttypid
        UNION ALL
        SELECT y.typname, y.typnamespace, y.typtype, y.typbasetype
        FROM base JOIN pg_catalog.pg_type y ON y.oid = base.typbasetype WHERE base.typtype = 'd')
    SELECT * FROM base WHERE typtype <> 'd'";

/// The name of a type as the stream gives it: pgoutput tells only those of types that initdb did not number by hand, and of
/// a domain, under its OID, the name of the type that it is over.
pub fn type_name(oid: u32, schema: &str, name: &str) -> String {
    match Type::from_oid(oid) {
        Some(builtin) => builtin.name().to_owned(),
        None if oid < 10_000 => format!("oid:{oid}"),
        None => format!("{schema}.{name}"),
    }
}

/// These published tables as [Relation messages](https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html)
/// would describe them now, their `id` being 0. Those that are not published are left out.
pub async fn relations(sql: &Sql, name: &str, tables: &[(String, String)]) -> Result<Vec<Relation>> {
    Ok(described(sql, name, tables).await?.into_iter().map(|table| table.relation).collect())
}

/// Partitioned tables that it publishes under their own names and of which partitions carry less of the old rows than the table's
/// replica identity says.
pub async fn uneven(sql: &Sql, publication: &Publication) -> Result<Vec<(String, String)>> {
    if !publication.via_partition_root {
        return Ok(Vec::new());
    }
    let listed = contents::listed(sql.version());
    let statement = format!(
        "SELECT t.schemaname::text, t.tablename::text
         FROM {listed} t JOIN pg_catalog.pg_class c ON c.oid = t.oid AND c.relkind = 'p'
         WHERE t.schemaname <> $2"
    );
    let rows = sql.query(&statement, &[text(&publication.name.as_str()), text(&OWN_SCHEMA)]).await?;
    let roots: Vec<(String, String)> =
        rows.iter().map(|row| Ok((get(row, 0)?, get(row, 1)?))).collect::<Result<_>>()?;
    if roots.is_empty() {
        return Ok(roots);
    }
    let tables = described(sql, &publication.name, &roots).await?.into_iter();
    let uneven = tables.filter(|table| table.carried != table.relation);
    Ok(uneven.map(|table| (table.relation.schema, table.relation.table)).collect())
}

/// The same, with what is to be told of their partitions.
pub async fn described(sql: &Sql, name: &str, tables: &[(String, String)]) -> Result<Vec<Described>> {
    let (listed, published) = (contents::listed(sql.version()), contents::is_published(sql.version()));
    let statement = format!(
        "SELECT c.oid, t.schemaname::text, t.tablename::text, c.relreplident::text, a.attname::text, a.atttypid,
                q.nspname::text, y.typname::text, a.atttypmod,
                c.relreplident = 'f'
                OR coalesce(a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1]), false), c.relkind = 'p'
         FROM {listed} t
         JOIN pg_catalog.pg_class c ON c.oid = t.oid
         JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND {published}
         JOIN LATERAL ({BASE_TYPE}) y ON true
         JOIN pg_catalog.pg_namespace q ON q.oid = y.typnamespace
         LEFT JOIN pg_catalog.pg_index i ON i.indrelid = c.oid
              AND CASE c.relreplident WHEN 'd' THEN i.indisprimary WHEN 'i' THEN i.indisreplident END
         WHERE t.schemaname <> $2 AND (t.schemaname::text, t.tablename::text) IN
               (SELECT * FROM unnest($3::text[], $4::text[]))
         ORDER BY c.oid, a.attnum"
    );
    let (schemas, names): (Vec<&str>, Vec<&str>) = tables.iter().map(|(s, t)| (s.as_str(), t.as_str())).unzip();
    let params = [text(&name), text(&OWN_SCHEMA), (&schemas, Type::TEXT_ARRAY), (&names, Type::TEXT_ARRAY)];
    let mut found: Vec<Relation> = Vec::new();
    let mut roots = Vec::new();
    for row in sql.query(&statement, &params).await? {
        let oid = get(&row, 0)?;
        if found.last().is_none_or(|last| last.oid != oid) {
            roots.extend(get::<bool>(&row, 10)?.then_some(oid));
            found.push(Relation {
                id: RelationId(0),
                oid,
                schema: get(&row, 1)?,
                table: get(&row, 2)?,
                replica_identity: replica_identity(get(&row, 3)?),
                columns: Vec::new(),
            });
        }
        let type_oid = get(&row, 5)?;
        let column = Column {
            name: get(&row, 4)?,
            type_oid,
            type_name: type_name(type_oid, get(&row, 6)?, get(&row, 7)?),
            type_modifier: get(&row, 8)?,
            in_identity: get(&row, 9)?,
        };
        if let Some(relation) = found.last_mut() {
            relation.columns.push(column);
        }
    }
    partitions::described(sql, found, &roots).await
}

/// `pg_class.relreplident`.
pub(super) fn replica_identity(relreplident: &str) -> ReplicaIdentity {
    match relreplident {
        "f" => ReplicaIdentity::Full,
        "i" => ReplicaIdentity::Index,
        "n" => ReplicaIdentity::Nothing,
        _ => ReplicaIdentity::Default,
    }
}

/// A table whose application gets errors on UPDATE or DELETE once these are published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentityGap {
    /// `schema.table`, quoted where needed.
    pub table: String,
    /// What is wrong.
    pub problem: &'static str,
    /// The statement to run, or what else to do.
    pub fix: String,
}

/// Which tables a look at replica identities covers.
#[derive(Clone, Copy, Debug)]
pub enum Scope<'a> {
    /// Those that this publication publishes.
    Publication(&'a str),
    /// Those that a FOR ALL TABLES publication would publish.
    AllTables,
}

/// Tables without a usable replica identity, those of the hub's own schema aside. With a partitioned table, its partitions are looked at.
///
/// From PostgreSQL 18 on, REPLICA IDENTITY FULL makes UPDATE and DELETE fail (42P10) too if the table has a generated
/// column that is not published.
pub async fn identity_gaps(sql: &Sql, scope: Scope<'_>) -> Result<Vec<IdentityGap>> {
    let (tables, param) = match scope {
        Scope::Publication(name) => {
            let (listed, published) = (contents::listed(sql.version()), contents::is_published(sql.version()));
            let tables = format!(
                "SELECT t.oid, ARRAY(SELECT a.attname FROM pg_catalog.pg_attribute a
                                     WHERE a.attrelid = t.oid AND a.attnum > 0 AND NOT a.attisdropped
                                       AND {published}) AS published
                 FROM {listed} t"
            );
            (tables, name)
        }
        Scope::AllTables => {
            let tables = "SELECT c.oid, ARRAY(SELECT a.attname FROM pg_catalog.pg_attribute a
                                              WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
                                                AND a.attgenerated = '') AS published
                          FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                          WHERE c.relkind = 'r' AND c.relpersistence = 'p' AND c.oid >= 16384
                            AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' AND $1 = ''";
            (tables.to_owned(), "")
        }
    };
    let tree = contents::tree("(SELECT l.oid FROM listed l)");
    let statement = format!(
        "WITH listed AS ({tables}),
              leaves AS (SELECT oid, published FROM listed
                         UNION ALL
                         SELECT p.relid, l.published FROM listed l JOIN {tree} p ON p.root = l.oid AND p.relid <> l.oid)
         SELECT DISTINCT pg_catalog.format('%I.%I', n.nspname, c.relname),
                CASE c.relreplident::text
                    WHEN 'd' THEN EXISTS (SELECT FROM pg_catalog.pg_index i
                                          WHERE i.indrelid = c.oid AND i.indisprimary AND i.indisvalid)
                    WHEN 'i' THEN EXISTS (SELECT FROM pg_catalog.pg_index i
                                          WHERE i.indrelid = c.oid AND i.indisreplident AND i.indisvalid)
                    ELSE c.relreplident::text = 'f' END,
                (SELECT pg_catalog.min(g.attgenerated::text COLLATE \"C\") || pg_catalog.max(g.attgenerated::text COLLATE \"C\")
                 FROM pg_catalog.pg_attribute g
                 WHERE c.relreplident = 'f' AND g.attrelid = c.oid AND g.attnum > 0 AND NOT g.attisdropped
                   AND g.attgenerated <> '' AND NOT (g.attname = ANY (l.published)))
         FROM leaves l
         JOIN pg_catalog.pg_class c ON c.oid = l.oid AND c.relkind = 'r'
         JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace AND n.nspname <> '{OWN_SCHEMA}'
         ORDER BY 1"
    );
    let mut gaps = Vec::new();
    for row in sql.query(&statement, &[text(&param)]).await? {
        let table: String = get(&row, 0)?;
        let generated: Option<&str> = get(&row, 2)?;
        match (get::<bool>(&row, 1)?, generated) {
            (false, _) => gaps.push(IdentityGap {
                problem: "has no replica identity",
                fix: format!("ALTER TABLE {table} REPLICA IDENTITY FULL; -- or add a primary key"),
                table,
            }),
            (true, Some(kinds)) if sql.version() >= 180_000 => gaps.push(IdentityGap {
                problem: "has REPLICA IDENTITY FULL and a generated column that is not published",
                fix: match kinds.contains('v') {
                    true => format!("ALTER TABLE {table} REPLICA IDENTITY DEFAULT; -- virtual columns cannot be published"),
                    false => {
                        format!("ALTER TABLE {table} REPLICA IDENTITY DEFAULT; -- or SET (publish_generated_columns = stored)")
                    }
                },
                table,
            }),
            _ => {}
        }
    }
    Ok(gaps)
}

/// Before a statement: it waits for locks as long as it takes, be it a lock that vacuum gives up after `deadlock_timeout`.
const UNHURRIED: &str = "SET LOCAL lock_timeout = 0; ";

/// Creates a publication of everything that the role may publish, and says in one sentence what that is: all tables,
/// otherwise the schemas named, otherwise the tables that the role owns (in these schemas; with none named, anywhere).
/// The last needs `CREATE` on the database. With it come the tables in which UPDATE or DELETE fail from now on.
pub async fn create(sql: &Sql, name: &str, schemas: &[String]) -> Result<(String, Vec<IdentityGap>)> {
    let quoted = identifier(name);
    let shown = schemas.join(", ");
    let done = match sql.batch(&format!("{UNHURRIED}CREATE PUBLICATION {quoted} FOR ALL TABLES")).await {
        Ok(()) => "all tables".to_owned(),
        Err(error) if !error.is("42501") => return Err(error),
        Err(_) => match for_schemas(sql, &quoted, schemas).await {
            Some(Ok(())) => format!("all tables in schema {shown}"),
            Some(Err(error)) if !error.is("42501") => return Err(error),
            _ => {
                let tables = owned_tables(sql, schemas).await?;
                if tables.is_empty() {
                    let problem = match schemas.is_empty() {
                        true => "the role owns no table, and FOR ALL TABLES needs a superuser".to_owned(),
                        false => format!("the role owns no table in schema {shown}, and more needs a superuser"),
                    };
                    return Err(Error::NothingToPublish { publication: name.to_owned(), problem });
                }
                let list = tables.iter().map(|table| format!("ONLY {table}")).collect::<Vec<_>>().join(", ");
                sql.batch(&format!("{UNHURRIED}CREATE PUBLICATION {quoted} FOR TABLE {list}")).await?;
                format!(
                    "the {} tables that the role owns{}{shown} (all tables need a superuser; ALTER PUBLICATION adds later ones)",
                    tables.len(),
                    if schemas.is_empty() { "" } else { " in schema " },
                )
            }
        },
    };
    let gaps = identity_gaps(sql, Scope::Publication(name)).await?;
    Ok((format!("created publication {name:?} for {done}"), gaps))
}

async fn for_schemas(sql: &Sql, quoted: &str, schemas: &[String]) -> Option<Result<()>> {
    if schemas.is_empty() || sql.version() < 150_000 {
        return None;
    }
    let list = schemas.iter().map(|schema| identifier(schema)).collect::<Vec<_>>().join(", ");
    Some(sql.batch(&format!("{UNHURRIED}CREATE PUBLICATION {quoted} FOR TABLES IN SCHEMA {list}")).await)
}

/// Permanent tables that the role owns, quoted; partitions come with their table.
async fn owned_tables(sql: &Sql, schemas: &[String]) -> Result<Vec<String>> {
    let only = match schemas.is_empty() {
        true => String::new(),
        false => {
            let list = schemas.iter().map(|schema| literal(schema)).collect::<Vec<_>>().join(", ");
            format!("AND n.nspname IN ({list})")
        }
    };
    let statement = format!(
        "SELECT pg_catalog.format('%I.%I', n.nspname, c.relname)
         FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         WHERE c.relkind IN ('r', 'p') AND c.relpersistence = 'p' AND NOT c.relispartition AND c.oid >= 16384
           AND pg_catalog.pg_has_role(c.relowner, 'USAGE') AND n.nspname !~ '^pg_'
           AND n.nspname NOT IN ('information_schema', '{OWN_SCHEMA}') {only}
         ORDER BY 1"
    );
    sql.query(&statement, &[]).await?.iter().map(|row| get(row, 0)).collect()
}
