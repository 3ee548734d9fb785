//! Changes off the wire, for `walcast` in Python: it hands over responses, and gets rows as dicts or columns as Arrow's buffers.
//!
//! Only changes are read here, because there are as many of them as there are rows; everything else in a response goes back as
//! bytes. What is out of the ordinary goes back too, so that one place, in Python, knows what it means and how to say so.

mod changes;
mod columns;
mod rows;
mod wire;

/// Python's module.
#[pyo3::pymodule]
mod walcast_native {
    use pyo3::{Bound, PyResult, types::PyModule, types::PyModuleMethods};

    #[pymodule_export]
    use crate::{
        changes::{Change, Changes, split},
        columns::Columns,
        rows::Plan,
    };

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
