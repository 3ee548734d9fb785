//! Some columns of a change, read once for any number of predicates. Values behind the last of them are not looked at.

use smallvec::SmallVec;

use super::{InvalidEvent, Parts, read, take_value, value_of};
use crate::model::{Operation, RowAccess, Value};

const NONE: u16 = u16::MAX;

/// Which columns of a relation version are read.
#[derive(Clone, Debug, Default)]
pub struct Pick {
    /// For each column, up to the last that is read, the place of its value.
    places: Vec<u16>,
    count: u16,
}

impl Pick {
    /// These columns, numbered from 0 (PostgreSQL has at most 1,600).
    pub fn of(columns: impl IntoIterator<Item = usize>) -> Self {
        let mut pick = Pick::default();
        columns.into_iter().for_each(|column| pick.add(column));
        pick
    }

    /// One more column.
    pub fn add(&mut self, column: usize) {
        if self.places.len() <= column {
            self.places.resize(column + 1, NONE);
        }
        if self.places[column] == NONE {
            self.places[column] = self.count;
            self.count += 1;
        }
    }

    /// Reads the columns of one framed change in compact form.
    pub fn read<'a>(&'a self, framed: &'a [u8]) -> Result<Picked<'a>, InvalidEvent> {
        let parts = Parts::take(framed)?;
        Ok(Picked {
            operation: parts.operation,
            pick: self,
            before: self.row(parts.before)?,
            after: self.row(parts.after)?,
        })
    }

    fn row<'a>(&self, row: Option<&'a [u8]>) -> Result<Row<'a>, InvalidEvent> {
        let mut values = SmallVec::from_elem(Value::Absent, usize::from(self.count));
        let Some(mut rest) = row else { return Ok(values) };
        for place in &self.places {
            let content = take_value(&mut rest).ok_or(InvalidEvent("value"))?;
            if *place != NONE {
                values[usize::from(*place)] = value_of(read(content).ok_or(InvalidEvent("value"))?);
            }
        }
        Ok(values)
    }
}

type Row<'a> = SmallVec<[Value<'a>; 4]>;

/// The picked columns of one change; any other column is [`Value::Absent`].
#[derive(Debug)]
pub struct Picked<'a> {
    /// What happened to the row.
    pub operation: Operation,
    pick: &'a Pick,
    before: Row<'a>,
    after: Row<'a>,
}

impl Picked<'_> {
    fn value<'v>(&self, row: &[Value<'v>], column: usize) -> Value<'v> {
        let place = self.pick.places.get(column).copied().unwrap_or(NONE);
        row.get(usize::from(place)).copied().unwrap_or(Value::Absent)
    }
}

impl RowAccess for Picked<'_> {
    fn before(&self, column: usize) -> Value<'_> {
        self.value(&self.before, column)
    }

    fn after(&self, column: usize) -> Value<'_> {
        self.value(&self.after, column)
    }
}
