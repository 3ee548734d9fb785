//! The form in which a value is printed that somebody wrote in another one: `{1, 2}` as `{1,2}`, `[,3)` as `(,3)`. Asked
//! with the settings under which changes are printed, which hold for one statement and not for the session.
//!
//! A subscriber chooses the literal and a table's owner its type, and neither may have code of theirs run with the hub's rights, nor
//! keep a session busy that others wait for:
//!
//! - The CHECK of a [domain](https://www.postgresql.org/docs/current/sql-createdomain.html) may call any function. A value of a
//!   domain is printed as one of the type that it is over, so that is asked for; types with a domain inside (an array of a domain,
//!   a row type) are not asked about.
//! - A [cast from text](https://www.postgresql.org/docs/current/sql-createcast.html) to a type may be any function, too, of whoever
//!   owns the type. Untyped literals in the statement are read by the type's input function instead, which only a superuser makes.

use std::collections::BTreeMap;

use tokio_postgres::types::Type;

use super::{
    error::Result,
    replication::{PINNED, literal},
    sql::{Sql, get},
};
use crate::model::{Printed, Spelled};

/// Literals that are refused before no more are asked about: each one takes several questions to find.
const REFUSED: usize = 10;

/// How long one question may take.
const LONGEST: &str = "2s";

/// The types to read literals as, by type and modifier. With the names that they have where nothing but `pg_catalog` is searched.
const TYPES: &str = "WITH RECURSIVE
    base AS (
        SELECT t.oid AS asked, t.modifier AS asked_modifier, y.oid, t.modifier, y.typtype, y.typbasetype, y.typtypmod
        FROM ROWS FROM (pg_catalog.unnest($1), pg_catalog.unnest($2)) t(oid, modifier)
        JOIN pg_catalog.pg_type y ON y.oid = t.oid
        UNION ALL
        SELECT b.asked, b.asked_modifier, y.oid, b.typtypmod, y.typtype, y.typbasetype, y.typtypmod
        FROM base b JOIN pg_catalog.pg_type y ON y.oid = b.typbasetype WHERE b.typtype = 'd'),
    parts(whole, oid) AS (
        SELECT b.oid, b.oid FROM base b WHERE b.typtype <> 'd'
        UNION
        SELECT p.whole, x.oid
        FROM parts p CROSS JOIN LATERAL (
            SELECT y.typelem FROM pg_catalog.pg_type y WHERE y.oid = p.oid
            UNION ALL
            SELECT a.atttypid FROM pg_catalog.pg_type y JOIN pg_catalog.pg_attribute a ON a.attrelid = y.typrelid
            WHERE y.oid = p.oid AND a.attnum > 0 AND NOT a.attisdropped
            UNION ALL
            SELECT r.rngsubtype FROM pg_catalog.pg_range r WHERE r.rngtypid = p.oid
            UNION ALL
            SELECT r.rngtypid FROM pg_catalog.pg_range r WHERE r.rngmultitypid = p.oid) x(oid))
    SELECT b.asked, b.asked_modifier, pg_catalog.format_type(b.oid, b.modifier)
    FROM (SELECT pg_catalog.set_config('search_path', 'pg_catalog', true) OFFSET 0) s CROSS JOIN base b
    WHERE b.typtype <> 'd' AND NOT EXISTS (SELECT FROM parts p JOIN pg_catalog.pg_type y ON y.oid = p.oid
                                           WHERE p.whole = b.oid AND y.typtype = 'd')";

/// What becomes of each literal; `None` where the server does not say.
pub async fn printed(sql: &Sql, literals: &[Spelled]) -> Result<Vec<Option<Printed>>> {
    let mut by_type: BTreeMap<(u32, i32), Vec<usize>> = BTreeMap::new();
    for (number, spelled) in literals.iter().enumerate() {
        by_type.entry((spelled.type_oid, spelled.type_modifier)).or_default().push(number);
    }
    let (oids, modifiers): (Vec<u32>, Vec<i32>) = by_type.keys().copied().unzip();
    let mut found = vec![None; literals.len()];
    let mut refused = 0;
    for row in sql.query(TYPES, &[(&oids, Type::OID_ARRAY), (&modifiers, Type::INT4_ARRAY)]).await? {
        let numbers = by_type.remove(&(get(&row, 0)?, get(&row, 1)?)).unwrap_or_default();
        let mut groups = vec![&numbers[..]];
        while let Some(group) = groups.pop().filter(|_| refused < REFUSED) {
            let texts: Vec<&str> = group.iter().map(|number| literals[*number].text.as_str()).collect();
            match (ask(sql, get(&row, 2)?, &texts).await, group) {
                (Ok(printed), _) => {
                    group.iter().zip(printed).for_each(|(number, printed)| found[*number] = Some(Printed::As(printed)));
                }
                (Err(error), [number]) if of_data(error.sqlstate()) => {
                    found[*number] = Some(Printed::Refused(error.message()));
                    refused += 1;
                }
                // One of them; which?
                (Err(error), _) if of_data(error.sqlstate()) => {
                    let (first, rest) = group.split_at(group.len() / 2);
                    groups.extend([rest, first]);
                }
                (Err(error), _) if error.sqlstate().is_some() => break,
                (Err(error), _) => return Err(error),
            }
        }
    }
    Ok(found)
}

/// Data exceptions.
fn of_data(sqlstate: Option<&str>) -> bool {
    sqlstate.is_some_and(|code| code.starts_with("22"))
}

/// The settings come first, in statements of their own: constants are read before a statement runs.
async fn ask(sql: &Sql, type_name: &str, texts: &[&str]) -> Result<Vec<String>> {
    let pinned = PINNED.iter().filter(|(name, _)| *name != "client_encoding");
    let settings: String = pinned.map(|(name, value)| format!("SET LOCAL {name} = {}; ", literal(value))).collect();
    let values = texts.iter().enumerate().map(|(number, text)| format!("({number}, {}::{type_name})", constant(text)));
    let values: Vec<String> = values.collect();
    let statement = format!(
        "{settings}SET LOCAL statement_timeout = '{LONGEST}';
         SELECT pg_catalog.format('%s', t.value) FROM (VALUES {}) t(number, value) ORDER BY t.number",
        values.join(", ")
    );
    sql.texts(&statement).await
}

/// The same whatever `standard_conforming_strings` says. No statement can have the character 0, and no value has it either: it
/// becomes one that servers refuse as it is.
fn constant(text: &str) -> String {
    format!("E'{}'", text.replace('\\', r"\\").replace('\'', "''").replace('\0', r"\000"))
}
