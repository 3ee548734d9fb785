//! [Row filters](https://www.postgresql.org/docs/current/logical-replication-row-filter.html) of the publication, applied to
//! logged rows as pgoutput applies them to the stream: an insert and a delete come when their row matches, and an update
//! that crosses the filter becomes an insert or a delete. The log has old and new row in full, so both can always be asked;
//! where pgoutput has no old row the identity has not changed, and with it nothing that the filter of a published update may
//! refer to.
//!
//! The condition is PostgreSQL's own and PostgreSQL evaluates it, in the form in which it was noted with the shape that the
//! row was logged under: names of columns change, and so do filters. It may use nothing but immutable functions and types of
//! the server's own, so that neither the time nor the session matters.

use std::collections::{BTreeMap, HashMap, hash_map::Entry};

use tokio_postgres::{
    Statement,
    types::{ToSql, Type},
};

use super::{
    read::{Logged, Shape, Shapes},
    row::{Field, fields},
};
use crate::postgres::{
    conninfo::ConnectOptions,
    error::Result,
    replication::identifier,
    sql::{Sql, get},
};

/// What the condition's constants were printed under.
const SETTINGS: &str = "SET search_path = pg_catalog; SET datestyle = 'ISO, MDY'; SET timezone = 'UTC';
    SET intervalstyle = 'postgres'; SET bytea_output = 'hex'; SET extra_float_digits = 1; SET lc_monetary = 'C'";

/// Evaluates the filters of shapes in a session of its own.
pub struct Filters {
    sql: Sql,
    tests: HashMap<(u32, i64), Test>,
}

/// The filter of one shape.
struct Test {
    statement: Statement,
    /// Where the columns that it may refer to are in a logged row.
    columns: Vec<usize>,
}

impl Filters {
    /// Opens the session.
    pub async fn open(options: &ConnectOptions) -> Result<Filters> {
        let sql = Sql::connect(options).await?;
        sql.batch(SETTINGS).await?;
        Ok(Filters { sql, tests: HashMap::new() })
    }

    /// Says of each row how the publication shows it.
    pub async fn judge(&mut self, shapes: &Shapes, rows: &mut [Logged]) -> Result<()> {
        let mut groups: BTreeMap<(u32, i64), (&Shape, &str, Vec<usize>)> = BTreeMap::new();
        for (at, row) in rows.iter().enumerate().filter(|(_, row)| row.op != b'T') {
            let Some(shape) = shapes.of(row) else { continue };
            let Some(filter) = &shape.filter else { continue };
            groups.entry((shape.relid, shape.id)).or_insert((shape, filter, Vec::new())).2.push(at);
        }
        for (key, (shape, filter, of_shape)) in groups {
            let test = match self.tests.entry(key) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(new) => new.insert(Test::prepare(&self.sql, shape, filter).await?),
            };
            let images: Vec<&str> = of_shape.iter().flat_map(|at| rows[*at].images()).collect();
            let mut matches = test.run(&self.sql, &images).await?.into_iter();
            for at in of_shape {
                let row = &mut rows[at];
                let old = row.old_row.is_some() && matches.next().unwrap_or(false);
                let new = row.new_row.is_some() && matches.next().unwrap_or(false);
                row.shown = shown(row.op, old, new);
            }
        }
        Ok(())
    }
}

fn shown(op: u8, old: bool, new: bool) -> Option<u8> {
    match (op, old, new) {
        (b'U', true, true) => Some(b'U'),
        (b'U' | b'D', true, _) => Some(b'D'),
        (b'U' | b'I', _, true) => Some(b'I'),
        _ => None,
    }
}

impl Logged {
    /// Bytes of its rows' texts.
    pub fn text_len(&self) -> usize {
        self.images().map(str::len).sum()
    }

    /// Old row, new row, as far as they are there.
    fn images(&self) -> impl Iterator<Item = &str> {
        self.old_row.as_deref().into_iter().chain(self.new_row.as_deref())
    }
}

impl Test {
    async fn prepare(sql: &Sql, shape: &Shape, filter: &str) -> Result<Test> {
        let mut columns = Vec::new();
        let (mut arrays, mut names, mut values) = (String::new(), String::new(), String::new());
        for (at, (name, cast)) in shape.casts().enumerate() {
            // One too many costs nothing: what the condition does not name is not evaluated.
            if filter.contains(name) || filter.contains(&identifier(name)) {
                columns.push(at);
                let n = columns.len();
                arrays.push_str(&format!(", pg_catalog.unnest(${}::pg_catalog.text[])", n + 1));
                names.push_str(&format!(", c{n}"));
                let cast = cast.unwrap_or("pg_catalog.text");
                values.push_str(&format!(", (u.c{n})::{cast} AS {}", identifier(name)));
            }
        }
        let statement = format!(
            "SELECT coalesce(({filter}), false) FROM (SELECT u.i AS {position}{values}
             FROM ROWS FROM (pg_catalog.unnest($1::pg_catalog.int4[]){arrays}) u(i{names})) t ORDER BY t.{position}",
            position = position(shape),
        );
        let mut types = vec![Type::INT4_ARRAY];
        types.resize(columns.len() + 1, Type::TEXT_ARRAY);
        Ok(Test { statement: sql.client().prepare_typed(&statement, &types).await?, columns })
    }

    /// Which of these rows match; NULL does not.
    async fn run(&self, sql: &Sql, images: &[&str]) -> Result<Vec<bool>> {
        let mut columns: Vec<Vec<Field<'_>>> = vec![Vec::with_capacity(images.len()); self.columns.len()];
        for image in images {
            let mut all = fields(image)?;
            for (values, at) in columns.iter_mut().zip(&self.columns) {
                values.push(all.get_mut(*at).and_then(Option::take));
            }
        }
        let positions: Vec<i32> = (0..).take(images.len()).collect();
        let mut params: Vec<&(dyn ToSql + Sync)> = vec![&positions];
        params.extend(columns.iter().map(|values| values as &(dyn ToSql + Sync)));
        let rows = sql.client().query(&self.statement, &params).await?;
        rows.iter().map(|row| get(row, 0)).collect()
    }
}

/// A name that no column of the table has.
fn position(shape: &Shape) -> String {
    let mut name = "i".to_owned();
    while shape.casts().any(|(column, _)| column == name) {
        name.push('_');
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_update_that_crosses_the_filter_is_an_insert_or_a_delete() {
        let of =
            |op| [(true, true), (true, false), (false, true), (false, false)].map(|(old, new)| shown(op, old, new));
        assert_eq!(of(b'U'), [Some(b'U'), Some(b'D'), Some(b'I'), None]);
        assert_eq!([shown(b'I', false, true), shown(b'I', false, false)], [Some(b'I'), None]);
        assert_eq!([shown(b'D', true, false), shown(b'D', false, false)], [Some(b'D'), None]);
    }
}
