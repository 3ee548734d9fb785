//! Rows as dicts.

use pyo3::{
    exceptions::{PyArithmeticError, PyValueError},
    prelude::*,
    types::{PyBool, PyBytes, PyDict, PyFloat, PyInt, PyNotImplemented, PyString},
};

use crate::wire::{Span, Value, Values};

/// How the rows of a relation version become dicts.
#[pyclass(frozen, module = "walcast_native")]
pub struct Plan {
    columns: Vec<(Py<PyString>, Option<Py<PyAny>>)>,
    unchanged: Py<PyAny>,
}

#[pymethods]
impl Plan {
    /// `columns`: for each its name, and what makes a value of its text, if anything does. `unchanged`: what stands for such values.
    #[new]
    fn new(columns: Vec<(Bound<'_, PyString>, Option<Py<PyAny>>)>, unchanged: Py<PyAny>) -> PyResult<Plan> {
        let intern = |name: &Bound<'_, PyString>| name.to_str().map(|text| PyString::intern(name.py(), text).unbind());
        let columns = columns.into_iter().map(|(name, decoder)| Ok((intern(&name)?, decoder)));
        Ok(Plan { columns: columns.collect::<PyResult<_>>()?, unchanged })
    }
}

impl Plan {
    pub fn decode<'py>(&self, py: Python<'py>, data: &[u8], row: Span) -> PyResult<Bound<'py, PyAny>> {
        let dict = PyDict::new(py);
        let mut columns = self.columns.iter();
        let cannot = || Ok(PyNotImplemented::get(py).to_owned().into_any());
        for value in Values::new(data, row) {
            let (Some(value), Some((name, decoder))) = (value, columns.next()) else { return cannot() };
            let name = name.bind(py);
            match value {
                Value::Null => dict.set_item(name, py.None())?,
                Value::Unchanged => dict.set_item(name, &self.unchanged)?,
                Value::Absent => {}
                Value::Bool(value) => dict.set_item(name, PyBool::new(py, value))?,
                Value::Int(value) => dict.set_item(name, PyInt::new(py, value))?,
                Value::Float(value) => dict.set_item(name, PyFloat::new(py, value))?,
                Value::Bytes(value) | Value::RawText(value) => dict.set_item(name, PyBytes::new(py, value))?,
                Value::Text(text) => match decoder {
                    None => dict.set_item(name, PyString::new(py, text))?,
                    Some(decoder) => match decoder.bind(py).call1((text,)) {
                        Ok(decoded) => dict.set_item(name, decoded)?,
                        Err(error)
                            if error.is_instance_of::<PyValueError>(py)
                                || error.is_instance_of::<PyArithmeticError>(py) =>
                        {
                            return cannot();
                        }
                        Err(error) => return Err(error),
                    },
                },
            }
        }
        if columns.next().is_some() { cannot() } else { Ok(dict.into_any()) }
    }
}
