//! A table state built from the stream, compared with the source's. Catches a missed intermediate change, a wrong key,
//! a wrong value and a wrong order, whatever the cause.

use std::collections::{BTreeMap, BTreeSet};

use super::super::{
    Db,
    parsed::{Cell, Item, Parsed, Unit, Violation, What},
};

const REPLICA: &str = "Complete (replica)";

/// Rows by column name; a multiset for tables without a key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    pub rows: Vec<BTreeMap<String, Cell>>,
}

/// Tables built from committed transactions. Repeats are dropped by position, as clients do.
#[derive(Clone, Debug, Default)]
pub struct Replica {
    pub tables: BTreeMap<String, Table>,
    after: Option<(walcast::lsn::Lsn, u32)>,
    /// Rows come among the changes: those that are not there yet will come, in their newest state.
    pub incremental: bool,
    /// Row positions by key, for tables with one.
    keys: BTreeMap<String, BTreeMap<Vec<Cell>, usize>>,
}

impl Replica {
    /// Applies everything committed in a history that was not applied before.
    pub fn apply(&mut self, parsed: &Parsed<'_>) -> Result<(), Violation> {
        for (stream, units) in parsed.iter() {
            for unit in units {
                if let Unit::Read { item, event } = unit {
                    self.apply_item(item).map_err(|text| Violation::at(REPLICA, stream, *event, text))?;
                    continue;
                }
                let (Some((after, event)), Some((_, items))) = (unit.committed(), unit.content()) else { continue };
                if self.after.is_some_and(|done| after <= done) {
                    continue;
                }
                for item in items {
                    self.apply_item(item).map_err(|text| Violation::at(REPLICA, stream, event, text))?;
                }
                self.after = Some(after);
            }
        }
        Ok(())
    }

    fn apply_item(&mut self, item: &Item) -> Result<(), String> {
        use walcast::wire::pb::Operation;
        match &item.what {
            What::Message { .. } => Ok(()),
            What::Truncate { tables, .. } => {
                for table in tables {
                    self.tables.insert(table.clone(), Table::default());
                    self.keys.remove(table);
                }
                Ok(())
            }
            What::Row { operation, shape, before, after, .. } => {
                let named = |cells: &Vec<Cell>| -> BTreeMap<String, Cell> {
                    shape.columns.iter().map(|(name, _, _)| name.clone()).zip(cells.iter().cloned()).collect()
                };
                let keyed = |row: &BTreeMap<String, Cell>| -> Option<Vec<Cell>> {
                    let full = shape.replica_identity == walcast::wire::pb::ReplicaIdentity::Full as i32;
                    let key: Vec<Cell> = shape
                        .columns
                        .iter()
                        .filter(|(_, _, in_identity)| *in_identity && !full)
                        .map(|(name, _, _)| row[name].clone())
                        .collect();
                    (!key.is_empty()).then_some(key)
                };
                let (old, mut new) = (before.as_ref().map(named), after.as_ref().map(named));
                let table = self.tables.entry(shape.table.clone()).or_default();
                let keys = self.keys.entry(shape.table.clone()).or_default();
                if *operation != Operation::Insert && *operation != Operation::Read {
                    let image = old.as_ref().or(new.as_ref()).ok_or("a change without any image")?;
                    let place = match keyed(image) {
                        Some(key) => keys.remove(&key),
                        None => table.rows.iter().position(|row| row == image),
                    };
                    let partly = |row: &BTreeMap<String, Cell>| row.values().any(|cell| *cell == Cell::Unchanged);
                    if place.is_none() && self.incremental {
                        if let Some(new) = new.filter(|new| !partly(new)) {
                            put(table, keys, keyed(&new), new);
                        }
                        return Ok(());
                    }
                    let place = place.ok_or_else(|| format!("{operation:?} of a row that is not there: {image:?}"))?;
                    let gone = table.rows.swap_remove(place);
                    if let Some(moved) = table.rows.get(place).and_then(keyed) {
                        keys.insert(moved, place);
                    }
                    for (name, cell) in new.iter_mut().flatten().filter(|(_, cell)| **cell == Cell::Unchanged) {
                        *cell = gone.get(name).cloned().ok_or_else(|| format!("no earlier value of {name}"))?;
                    }
                }
                if *operation == Operation::Delete {
                    return Ok(());
                }
                let new = new.ok_or("no new image")?;
                if *operation == Operation::Read && self.incremental {
                    put(table, keys, keyed(&new), new);
                    return Ok(());
                }
                if let Some(key) = keyed(&new)
                    && keys.insert(key.clone(), table.rows.len()).is_some()
                {
                    return Err(format!("{operation:?} of a key that is already there: {key:?}"));
                }
                table.rows.push(new);
                Ok(())
            }
        }
    }

    /// Compares with the source as it is now. `tables` are those that must be equal; a table that the stream has never
    /// named is empty.
    pub async fn equals_source(&self, db: &Db, tables: &[String]) -> Result<(), Violation> {
        for name in tables {
            let expected = source(db, name).await;
            let mut got: Vec<_> = self.tables.get(name).cloned().unwrap_or_default().rows;
            got.sort();
            if got != expected {
                let all: (BTreeSet<_>, BTreeSet<_>) = (got.iter().collect(), expected.iter().collect());
                let surplus: Vec<_> = all.0.difference(&all.1).take(3).collect();
                let missing: Vec<_> = all.1.difference(&all.0).take(3).collect();
                let text = format!(
                    "{name}: {} rows in the replica, {} in the source; not in the source: {surplus:?}; not in the replica: {missing:?}",
                    got.len(),
                    expected.len()
                );
                return Err(Violation::new(REPLICA, text));
            }
        }
        Ok(())
    }
}

/// Puts a row in place of the one with its key.
fn put(table: &mut Table, keys: &mut BTreeMap<Vec<Cell>, usize>, key: Option<Vec<Cell>>, row: BTreeMap<String, Cell>) {
    match key.as_ref().and_then(|key| keys.get(key)) {
        Some(place) => table.rows[*place] = row,
        None => {
            if let Some(key) = key {
                keys.insert(key, table.rows.len());
            }
            table.rows.push(row);
        }
    }
}

/// A table's rows at the source, sorted, typed as the wire types them.
pub async fn source(db: &Db, table: &str) -> Vec<BTreeMap<String, Cell>> {
    let quoted: Vec<String> = table.splitn(2, '.').map(|part| format!("\"{}\"", part.replace('"', "\"\""))).collect();
    let quoted = quoted.join(".");
    db.run(
        "SET DateStyle = ISO; SET TimeZone = 'UTC'; SET IntervalStyle = postgres; SET bytea_output = hex; \
         SET extra_float_digits = 1; SET search_path = pg_catalog; SET lc_monetary = 'C'",
    )
    .await;
    let columns = db
        .rows(&format!(
            "SELECT a.attname, t.typname FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid \
             WHERE a.attrelid = '{}'::regclass AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '' \
             ORDER BY a.attnum",
            quoted.replace('\'', "''")
        ))
        .await;
    let columns: Vec<(String, String)> = columns
        .into_iter()
        .map(|row| (row[0].clone().unwrap_or_default(), row[1].clone().unwrap_or_default()))
        .collect();
    let list: Vec<String> = columns.iter().map(|(name, _)| format!("\"{}\"", name.replace('"', "\"\""))).collect();
    // Of a partitioned table the rows are its partitions'.
    let kind =
        db.text(&format!("SELECT relkind FROM pg_class WHERE oid = '{}'::regclass", quoted.replace('\'', "''"))).await;
    let only = if kind.as_deref() == Some("p") { "" } else { "ONLY" };
    let mut rows: Vec<BTreeMap<String, Cell>> = db
        .rows(&format!("SELECT {} FROM {only} {quoted}", list.join(", ")))
        .await
        .into_iter()
        .map(|row| {
            row.into_iter()
                .zip(&columns)
                .map(|(text, (name, kind))| (name.clone(), typed(kind, text.as_deref())))
                .collect()
        })
        .collect();
    db.run("RESET ALL").await;
    rows.sort();
    rows
}

/// PostgreSQL's text form as the wire's value kind for a type of pg_catalog.
pub fn typed(kind: &str, text: Option<&str>) -> Cell {
    let Some(text) = text else { return Cell::Null };
    match kind {
        "bool" => Cell::Bool(text == "t"),
        "int2" | "int4" | "int8" | "oid" => Cell::Int(text.parse().expect("an integer")),
        "float4" => Cell::Float(f64::from(text.parse::<f32>().expect("a float")).to_bits()),
        "float8" => Cell::Float(text.parse::<f64>().expect("a float").to_bits()),
        "bytea" => {
            let digits = text.strip_prefix("\\x").expect("hex bytea");
            let byte = |at: usize| u8::from_str_radix(&digits[at..at + 2], 16).expect("hex");
            Cell::Bytes((0..digits.len()).step_by(2).map(byte).collect())
        }
        _ => Cell::Text(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::synthetic::*, *};

    #[test]
    fn repeats_are_dropped_and_a_lost_row_shows() {
        let told = history([stream(0).all([1, 2]), stream(1).all([2, 3])]);
        let mut replica = Replica::default();
        replica.apply(&Parsed::of(&told).unwrap()).unwrap();
        assert_eq!(replica.tables["public.t"].rows.len(), 6);
        let again = history([stream(0).altered(4).altered(5)]);
        let violation = replica.apply(&Parsed::of(&again).unwrap()).unwrap_err();
        assert!(violation.text.contains("already there"), "{violation}");
    }
}
