//! Runs of changes in a response.

use std::ops::Range;

use pyo3::{exceptions::PyValueError, prelude::*, types::PyBytes, types::PyList, types::PyNotImplemented};

use crate::{
    rows::Plan,
    wire::{Content, Fields, Malformed, Span},
};

/// Where a change is in the response, and what is small enough to be kept.
#[derive(Clone, Copy, Default)]
pub struct Entry {
    message: Span,
    pub before: Span,
    pub after: Span,
    pub ordinal: u64,
    pub relation: u32,
    pub operation: i32,
    transition: i32,
    /// Whether it has anything that only Python's reader understands.
    odd: bool,
}

impl Entry {
    fn read(data: &[u8], range: Range<usize>) -> Option<Entry> {
        let mut entry = Entry { message: Span::of(&range)?, ..Entry::default() };
        for field in Fields::new(data, range)? {
            match field.ok()? {
                (1, Content::Varint(operation)) => entry.operation = operation as i32,
                (2, Content::Varint(relation)) => entry.relation = relation as u32,
                (3, Content::Varint(ordinal)) => entry.ordinal = ordinal,
                // Twice is legal protobuf and means that both are one.
                (4, Content::Bytes(row)) if !entry.before.is_there() => entry.before = Span::of(&row)?,
                (5, Content::Bytes(row)) if !entry.after.is_there() => entry.after = Span::of(&row)?,
                (11, Content::Varint(transition)) => entry.transition = transition as i32,
                (6..=10, _) => {}
                _ => entry.odd = true,
            }
        }
        Some(entry)
    }
}

/// Consecutive changes of one response.
#[pyclass(frozen, module = "walcast_native")]
pub struct Changes {
    response: Py<PyBytes>,
    entries: Vec<Entry>,
    relations: Vec<u32>,
    operations: Vec<i32>,
}

impl Changes {
    pub fn entries<'a>(&'a self, py: Python<'a>) -> (&'a [u8], &'a [Entry]) {
        (self.response.as_bytes(py), &self.entries)
    }

    /// Whether all of them can be read here.
    pub fn are_plain(&self) -> bool {
        !self.entries.iter().any(|entry| entry.odd)
    }
}

#[pymethods]
impl Changes {
    fn __len__(&self) -> usize {
        self.entries.len()
    }

    /// Numbers of the relation versions that they refer to, each once, in the order in which they come.
    #[getter]
    fn relation_ids(&self) -> Vec<u32> {
        self.relations.clone()
    }

    /// Their operations, each once.
    #[getter]
    fn operations(&self) -> Vec<i32> {
        self.operations.clone()
    }

    /// Each of them.
    fn __iter__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        let all = (0..slf.get().entries.len()).map(|at| Change { run: slf.clone().unbind(), at });
        Ok(PyList::new(slf.py(), all.collect::<Vec<_>>())?.try_iter()?.into_any())
    }

    /// Each of them as a serialized `walcast.v1.Change`.
    fn messages<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let data = self.response.as_bytes(py);
        PyList::new(py, self.entries.iter().map(|entry| PyBytes::new(py, &data[entry.message.range()])))
    }
}

/// One change, with the names of `walcast.v1.Change`.
#[pyclass(frozen, module = "walcast_native")]
pub struct Change {
    run: Py<Changes>,
    at: usize,
}

impl Change {
    fn entry(&self) -> &Entry {
        &self.run.get().entries[self.at]
    }
}

#[pymethods]
impl Change {
    #[getter]
    fn operation(&self) -> i32 {
        self.entry().operation
    }

    #[getter]
    fn relation_id(&self) -> u32 {
        self.entry().relation
    }

    #[getter]
    fn ordinal(&self) -> u64 {
        self.entry().ordinal
    }

    #[getter]
    fn transition(&self) -> i32 {
        self.entry().transition
    }

    /// The row after the change, or the one before it, as a dict; `None` if there is none; `NotImplemented` for what only Python's
    /// reader understands.
    fn row<'py>(&self, py: Python<'py>, after: bool, plan: &Plan) -> PyResult<Bound<'py, PyAny>> {
        let entry = self.entry();
        let span = if after { entry.after } else { entry.before };
        if entry.odd {
            return Ok(PyNotImplemented::get(py).to_owned().into_any());
        }
        if !span.is_there() {
            return Ok(py.None().into_bound(py));
        }
        plan.decode(py, self.run.get().response.as_bytes(py), span)
    }

    /// As a serialized `walcast.v1.Change`.
    fn message<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.run.get().response.as_bytes(py)[self.entry().message.range()])
    }
}

/// A run that is being gathered.
#[derive(Default)]
struct Run {
    entries: Vec<Entry>,
    relations: Vec<u32>,
    operations: Vec<i32>,
}

impl Run {
    fn push(&mut self, entry: Entry) {
        let last = self.entries.last();
        if last.is_none_or(|last| last.relation != entry.relation) && !self.relations.contains(&entry.relation) {
            self.relations.push(entry.relation);
        }
        if last.is_none_or(|last| last.operation != entry.operation) && !self.operations.contains(&entry.operation) {
            self.operations.push(entry.operation);
        }
        self.entries.push(entry);
    }

    fn flush(&mut self, response: &Bound<'_, PyBytes>, into: &Bound<'_, PyList>) -> PyResult<()> {
        let Run { entries, relations, operations } = std::mem::take(self);
        if entries.is_empty() {
            return Ok(());
        }
        let changes = Changes { response: response.clone().unbind(), entries, relations, operations };
        into.append(Bound::new(into.py(), changes)?)
    }
}

/// The change that an event consists of, if it does.
fn change(data: &[u8], event: Range<usize>) -> Option<Entry> {
    let mut fields = Fields::new(data, event)?;
    match (fields.next()?, fields.next()) {
        (Ok((3, Content::Bytes(range))), None) => Entry::read(data, range),
        _ => None,
    }
}

/// The events of a `walcast.v1.ConsumeResponse`: `Changes`, and every other event as a serialized `walcast.v1.Event`.
///
/// Raises ValueError for what is no response.
#[pyfunction]
pub fn split<'py>(response: &Bound<'py, PyBytes>) -> PyResult<Bound<'py, PyList>> {
    let py = response.py();
    let data = response.as_bytes();
    let malformed = || PyValueError::new_err("the response is malformed");
    let events = PyList::empty(py);
    let mut run = Run::default();
    for field in Fields::new(data, 0..data.len()).ok_or_else(malformed)? {
        match field {
            Ok((1, Content::Bytes(event))) => {
                if let Some(entry) = change(data, event.clone()) {
                    run.push(entry);
                } else {
                    run.flush(response, &events)?;
                    events.append(PyBytes::new(py, &data[event]))?;
                }
            }
            Ok((1, _)) | Err(Malformed) => return Err(malformed()),
            Ok(_) => {}
        }
    }
    run.flush(response, &events)?;
    Ok(events)
}
