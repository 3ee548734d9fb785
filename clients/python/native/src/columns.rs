//! Columns as [Arrow's buffers](https://arrow.apache.org/docs/format/Columnar.html#physical-memory-layout).

use pyo3::{exceptions::PyValueError, prelude::*, types::PyBytes};

use crate::{
    changes::Changes,
    wire::{Span, Value, Values},
};

const OPERATION_DELETE: i32 = 3;

fn operation(number: i32) -> Option<&'static str> {
    Some(match number {
        1 => "insert",
        2 => "update",
        OPERATION_DELETE => "delete",
        5 => "read",
        _ => return None,
    })
}

#[derive(Default)]
struct Bits {
    bytes: Vec<u8>,
    len: usize,
}

impl Bits {
    #[inline]
    fn push(&mut self, bit: bool) {
        if self.len.is_multiple_of(8) {
            self.bytes.push(0);
        }
        if let Some(last) = self.bytes.last_mut() {
            *last |= u8::from(bit) << (self.len % 8);
        }
        self.len += 1;
    }
}

enum Data {
    Bool(Bits),
    Int(Vec<u8>),
    Float(Vec<u8>),
    Bytes(Variable),
    Text(Variable),
}

/// Values of different lengths: where each ends, from 0 on, and all of them.
struct Variable {
    offsets: Vec<u8>,
    bytes: Vec<u8>,
}

impl Variable {
    fn new() -> Variable {
        Variable { offsets: 0i32.to_le_bytes().to_vec(), bytes: Vec::new() }
    }

    /// `None` if it would be longer than Arrow's offsets reach.
    #[inline]
    fn push(&mut self, value: &[u8]) -> Option<()> {
        self.bytes.extend_from_slice(value);
        let end = i32::try_from(self.bytes.len()).ok()?;
        self.offsets.extend_from_slice(&end.to_le_bytes());
        Some(())
    }
}

struct Column {
    valid: Bits,
    nulls: usize,
    data: Data,
}

impl Column {
    fn new(data: Data) -> Column {
        Column { valid: Bits::default(), nulls: 0, data }
    }

    /// `None` if the value is not of the column's kind.
    #[inline]
    fn push(&mut self, value: &Value<'_>) -> Option<()> {
        let there = match (&mut self.data, value) {
            (_, Value::Null | Value::Unchanged | Value::Absent) => false,
            (Data::Bool(bits), Value::Bool(value)) => {
                bits.push(*value);
                true
            }
            (Data::Int(bytes), Value::Int(value)) => {
                bytes.extend_from_slice(&value.to_le_bytes());
                true
            }
            (Data::Float(bytes), Value::Float(value)) => {
                bytes.extend_from_slice(&value.to_le_bytes());
                true
            }
            (Data::Bytes(variable), Value::Bytes(value)) => {
                variable.push(value)?;
                true
            }
            (Data::Text(variable), Value::Text(value)) => {
                variable.push(value.as_bytes())?;
                true
            }
            _ => return None,
        };
        if !there {
            match &mut self.data {
                Data::Bool(bits) => bits.push(false),
                Data::Int(bytes) | Data::Float(bytes) => bytes.extend_from_slice(&[0; 8]),
                Data::Bytes(variable) | Data::Text(variable) => variable.push(&[])?,
            }
            self.nulls += 1;
        }
        self.valid.push(there);
        Some(())
    }
}

/// Length, nulls, and the buffers: which are valid, and one or two for the values.
type Buffers<'py> = (usize, usize, Vec<Option<Bound<'py, PyBytes>>>);

fn buffers<'py>(py: Python<'py>, column: &Column) -> Buffers<'py> {
    let mut buffers = vec![(column.nulls > 0).then(|| PyBytes::new(py, &column.valid.bytes))];
    match &column.data {
        Data::Bool(bits) => buffers.push(Some(PyBytes::new(py, &bits.bytes))),
        Data::Int(bytes) | Data::Float(bytes) => buffers.push(Some(PyBytes::new(py, bytes))),
        Data::Bytes(variable) | Data::Text(variable) => {
            buffers.push(Some(PyBytes::new(py, &variable.offsets)));
            buffers.push(Some(PyBytes::new(py, &variable.bytes)));
        }
    }
    (column.valid.len, column.nulls, buffers)
}

/// The columns of a relation version, to which changes are added.
#[pyclass(module = "walcast_native")]
pub struct Columns {
    names: Vec<String>,
    columns: Vec<Column>,
    operations: Column,
    lsns: Column,
    times: Column,
    xids: Column,
    ordinals: Column,
    /// Of lists of text: which are there, and where each ends in `unchanged`.
    lists: Column,
    unchanged: Column,
    rows: usize,
}

impl Columns {
    fn operation(&mut self, operation: &str, ordinal: u64) -> Option<()> {
        self.operations.push(&Value::Text(operation))?;
        // Its bits are those of an unsigned number.
        self.ordinals.push(&Value::Int(ordinal as i64))
    }

    /// What is the same for all rows that have been added since the last time.
    fn origin(&mut self, origin: &Origin<'_>) -> Option<()> {
        let time = origin.time.map_or(Value::Null, Value::Int);
        for _ in self.rows..self.operations.valid.len {
            self.lsns.push(&Value::Text(origin.lsn))?;
        }
        for _ in self.rows..self.operations.valid.len {
            self.times.push(&time)?;
        }
        for _ in self.rows..self.operations.valid.len {
            self.xids.push(&Value::Int(origin.xid as i64))?;
        }
        self.rows = self.operations.valid.len;
        Some(())
    }

    fn row(&mut self, data: &[u8], row: Span) -> Option<()> {
        let mut columns = self.columns.iter_mut().zip(&self.names);
        let before = self.unchanged.valid.len;
        for value in Values::new(data, row) {
            let (value, (column, name)) = (value?, columns.next()?);
            if value == Value::Unchanged {
                self.unchanged.push(&Value::Text(name))?;
            }
            column.push(&value)?;
        }
        if columns.next().is_some() {
            return None;
        }
        let any = self.unchanged.valid.len > before;
        self.list(any)
    }

    fn list(&mut self, any: bool) -> Option<()> {
        let end = i32::try_from(self.unchanged.valid.len).ok()?;
        if let Data::Bytes(variable) = &mut self.lists.data {
            variable.offsets.extend_from_slice(&end.to_le_bytes());
        }
        self.lists.nulls += usize::from(!any);
        self.lists.valid.push(any);
        Some(())
    }

    fn add(
        &mut self,
        data: &[u8],
        changes: &Changes,
        py: Python<'_>,
        relation: u32,
        origin: &Origin<'_>,
    ) -> Option<()> {
        for entry in changes.entries(py).1.iter().filter(|entry| entry.relation == relation) {
            self.operation(operation(entry.operation)?, entry.ordinal)?;
            let row = if entry.operation == OPERATION_DELETE { entry.before } else { entry.after };
            self.row(data, row)?;
        }
        self.origin(origin)
    }
}

/// The transaction.
struct Origin<'a> {
    lsn: &'a str,
    /// Microseconds since 1970.
    time: Option<i64>,
    xid: u64,
}

#[pymethods]
impl Columns {
    /// `columns`: for each its name, and the kind of its values: "bool", "int", "float", "bytes" or "text".
    #[new]
    fn new(columns: Vec<(String, String)>) -> PyResult<Columns> {
        let kind = |kind: &str| {
            Ok(Column::new(match kind {
                "bool" => Data::Bool(Bits::default()),
                "int" => Data::Int(Vec::new()),
                "float" => Data::Float(Vec::new()),
                "bytes" => Data::Bytes(Variable::new()),
                "text" => Data::Text(Variable::new()),
                other => return Err(PyValueError::new_err(format!("no kind {other}"))),
            }))
        };
        let text = || Column::new(Data::Text(Variable::new()));
        let int = || Column::new(Data::Int(Vec::new()));
        Ok(Columns {
            columns: columns.iter().map(|(_, name)| kind(name)).collect::<PyResult<_>>()?,
            names: columns.into_iter().map(|(name, _)| name).collect(),
            operations: text(),
            lsns: text(),
            times: int(),
            xids: int(),
            ordinals: int(),
            lists: Column::new(Data::Bytes(Variable::new())),
            unchanged: text(),
            rows: 0,
        })
    }

    fn __len__(&self) -> usize {
        self.rows
    }

    /// Adds those of the changes that are of this relation version; `time` is in microseconds since 1970. False for what only Python's
    /// reader understands, after which the columns are of no use.
    #[pyo3(signature = (changes, relation_id, lsn, time, xid))]
    fn extend(
        &mut self,
        changes: &Bound<'_, Changes>,
        relation_id: u32,
        lsn: &str,
        time: Option<i64>,
        xid: u64,
    ) -> bool {
        let py = changes.py();
        let changes = changes.get();
        let (data, _) = changes.entries(py);
        changes.are_plain() && self.add(data, changes, py, relation_id, &Origin { lsn, time, xid }).is_some()
    }

    /// Adds a truncate, which has no row. As `extend`.
    #[pyo3(signature = (ordinal, lsn, time, xid))]
    fn truncate(&mut self, ordinal: u64, lsn: &str, time: Option<i64>, xid: u64) -> bool {
        let mut add = || {
            self.operation("truncate", ordinal)?;
            self.origin(&Origin { lsn, time, xid })?;
            self.list(false)?;
            self.columns.iter_mut().try_for_each(|column| column.push(&Value::Null))
        };
        add().is_some()
    }

    /// The buffers of each column: operation, LSN, time, xid, ordinal, the lists of unchanged columns, their names, and those of the
    /// relation.
    fn finish<'py>(&self, py: Python<'py>) -> Vec<Buffers<'py>> {
        let mut lists = buffers(py, &self.lists);
        lists.2.truncate(2); // the values are a column
        let envelope = [&self.operations, &self.lsns, &self.times, &self.xids, &self.ordinals];
        let mut all: Vec<_> = envelope.into_iter().map(|column| buffers(py, column)).collect();
        all.push(lists);
        all.push(buffers(py, &self.unchanged));
        all.extend(self.columns.iter().map(|column| buffers(py, column)));
        all
    }
}
