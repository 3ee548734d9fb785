//! Whether the role may read what it publishes. Decoding asks for no right on tables; reading rows for a snapshot asks for
//! SELECT.

use super::{Check, Outcome, check};
use crate::postgres::{
    contents,
    error::Result,
    publication::OWN_SCHEMA,
    sql::{Sql, get, text},
};

/// Tables of one schema that one GRANT lists; for more it names the schema.
const LISTED: usize = 20;

/// A published table that the role may not read whole, names quoted.
struct Unreadable {
    schema: String,
    table: String,
    schema_usable: bool,
}

/// SELECT on the published columns of every published table.
pub(super) async fn select(sql: &Sql, publication: &str, exists: bool) -> Result<Check> {
    let name = "read access";
    if !exists {
        return Ok(check(name, Outcome::Skipped, "there is no publication yet", None));
    }
    let (role, tables) = unreadable(sql, publication).await?;
    let Some(first) = tables.first() else {
        return Ok(check(name, Outcome::Ok, "SELECT on every published table, as snapshots need it", None));
    };
    let more = match tables.len() {
        1 => String::new(),
        n => format!(" and {} more", n - 1),
    };
    let detail = format!("{role} may not read {}{more}: needed for snapshots, changes come without it", first.table);
    Ok(check(name, Outcome::Warning, detail, Some(grants(&role, &tables))))
}

async fn unreadable(sql: &Sql, publication: &str) -> Result<(String, Vec<Unreadable>)> {
    let (listed, published) = (contents::listed(sql.version()), contents::is_published(sql.version()));
    let statement = format!(
        "SELECT pg_catalog.quote_ident(n.nspname), pg_catalog.format('%I.%I', n.nspname, c.relname),
                pg_catalog.has_schema_privilege(n.oid, 'USAGE')
         FROM {listed} t
         JOIN pg_catalog.pg_class c ON c.oid = t.oid
         JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         WHERE t.schemaname <> '{OWN_SCHEMA}'
           AND (NOT pg_catalog.has_schema_privilege(n.oid, 'USAGE')
                OR EXISTS (SELECT FROM pg_catalog.pg_attribute a
                           WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND {published}
                             AND NOT pg_catalog.has_column_privilege(c.oid, a.attnum, 'SELECT')))
         ORDER BY 1, 2"
    );
    let rows = sql.query(&statement, &[text(&publication)]).await?;
    let table = |row| Ok(Unreadable { schema: get(row, 0)?, table: get(row, 1)?, schema_usable: get(row, 2)? });
    let tables = rows.iter().map(table).collect::<Result<Vec<_>>>()?;
    let role = get(&sql.one("SELECT pg_catalog.quote_ident(current_user)", &[]).await?, 0)?;
    Ok((role, tables))
}

/// A line for each schema.
fn grants(role: &str, tables: &[Unreadable]) -> String {
    let lines = tables.chunk_by(|a, b| a.schema == b.schema).map(|tables| {
        let schema = tables.first().map(|table| table.schema.as_str()).unwrap_or_default();
        let usage = match tables.iter().all(|table| table.schema_usable) {
            true => String::new(),
            false => format!("GRANT USAGE ON SCHEMA {schema} TO {role}; "),
        };
        let names: Vec<&str> = tables.iter().map(|table| table.table.as_str()).collect();
        match names.len() {
            1..=LISTED => format!("{usage}GRANT SELECT ON {} TO {role};", names.join(", ")),
            _ => format!("{usage}GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO {role};"),
        }
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rights_are_granted_by_schema() {
        let table =
            |schema: &str, table: String, schema_usable| Unreadable { schema: schema.into(), table, schema_usable };
        let mut tables = vec![table("a", "a.t".into(), false), table("a", "a.u".into(), false)];
        tables.extend((0..=LISTED).map(|n| table("b", format!("b.t{n}"), true)));
        assert_eq!(
            grants("hub", &tables),
            "GRANT USAGE ON SCHEMA a TO hub; GRANT SELECT ON a.t, a.u TO hub;\nGRANT SELECT ON ALL TABLES IN SCHEMA b TO hub;"
        );
    }
}
