//! The form in which a value is printed that somebody wrote in another one: `{1, 2}` as `{1,2}`, `[,3)` as `(,3)`. Asked
//! with the settings under which changes are printed, which hold for one statement and not for the session.

use std::collections::BTreeMap;

use tokio_postgres::types::Type;

use super::{
    error::Result,
    replication::{PINNED, literal},
    sql::{Sql, get},
};
use crate::model::{Printed, Spelled};

/// What becomes of each literal; `None` where the server does not say.
pub async fn printed(sql: &Sql, literals: &[Spelled]) -> Result<Vec<Option<Printed>>> {
    let mut by_type: BTreeMap<(u32, i32), Vec<usize>> = BTreeMap::new();
    for (number, spelled) in literals.iter().enumerate() {
        by_type.entry((spelled.type_oid, spelled.type_modifier)).or_default().push(number);
    }
    let (oids, modifiers): (Vec<u32>, Vec<i32>) = by_type.keys().copied().unzip();
    let statement = "SELECT y.oid, t.modifier, pg_catalog.format_type(y.oid, t.modifier)
                     FROM ROWS FROM (pg_catalog.unnest($1), pg_catalog.unnest($2)) t(oid, modifier)
                     JOIN pg_catalog.pg_type y ON y.oid = t.oid";
    let mut found = vec![None; literals.len()];
    for row in sql.query(statement, &[(&oids, Type::OID_ARRAY), (&modifiers, Type::INT4_ARRAY)]).await? {
        let numbers = by_type.remove(&(get(&row, 0)?, get(&row, 1)?)).unwrap_or_default();
        let of_type = OfType { sql, statement: statement_for(get(&row, 2)?) };
        let texts: Vec<&str> = numbers.iter().map(|number| literals[*number].text.as_str()).collect();
        let printed = match of_type.ask(&texts).await {
            // One of them; which?
            Err(error) if of_data(error.sqlstate()) => {
                let mut each = Vec::with_capacity(texts.len());
                for text in &texts {
                    each.extend(of_type.ask(&[text]).await.or_else(|error| {
                        let refused = of_data(error.sqlstate()).then(|| Printed::Refused(error.message()));
                        refused.map(|refused| vec![refused]).ok_or(error)
                    })?);
                }
                each
            }
            Err(error) if error.sqlstate().is_some() => continue,
            answer => answer?,
        };
        numbers.into_iter().zip(printed).for_each(|(number, printed)| found[number] = Some(printed));
    }
    Ok(found)
}

/// Data exceptions and violated constraints of domains.
fn of_data(sqlstate: Option<&str>) -> bool {
    sqlstate.is_some_and(|code| code.starts_with("22") || code.starts_with("23"))
}

/// The settings come first, since each row is joined with theirs.
fn statement_for(type_name: &str) -> String {
    let pinned = PINNED.iter().filter(|(name, _)| *name != "client_encoding");
    let settings: Vec<String> = pinned
        .map(|(name, value)| format!("pg_catalog.set_config({}, {}, true)", literal(name), literal(value)))
        .collect();
    format!(
        "SELECT pg_catalog.format('%s', t.text::{type_name})
         FROM (SELECT {} OFFSET 0) s, pg_catalog.unnest($1) WITH ORDINALITY t(text, number) ORDER BY t.number",
        settings.join(", ")
    )
}

struct OfType<'a> {
    sql: &'a Sql,
    statement: String,
}

impl OfType<'_> {
    async fn ask(&self, texts: &[&str]) -> Result<Vec<Printed>> {
        let rows = self.sql.query(&self.statement, &[(&texts, Type::TEXT_ARRAY)]).await?;
        rows.iter().map(|row| Ok(Printed::As(get(row, 0)?))).collect()
    }
}
