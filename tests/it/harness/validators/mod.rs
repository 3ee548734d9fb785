//! The guarantees, one function each, over recorded histories. Each has a test in which a planted violation is caught.
//!
//! | guarantee | function |
//! |---|---|
//! | Complete | [`complete`] |
//! | Ordered | [`ordered`] |
//! | Atomic | [`Parsed::of`](super::parsed::Parsed::of) |
//! | Unique | [`unique`], [`repeats_are_identical`] |
//! | Resumable | [`resumable`] |
//! | Progress-safe | [`progress_safe`] |
//! | Durable | [`durable`], [`acknowledgements_survive`], [`server_was_told_less_than_journaled`] |
//! | Lineage | [`lineage`] |
//! | Loud | [`loud`] |
//! | Isolated | [`isolated`] |

mod complete;
mod durable;
mod isolated;
mod lineage;
mod loud;
mod order;
mod progress;
mod recovered;
mod replica;
mod resumable;
mod unique;

#[cfg(test)]
mod synthetic;

pub use complete::complete;
pub use durable::{acknowledgements_survive, durable, server_was_told_less_than_journaled};
pub use isolated::isolated;
pub use lineage::lineage;
pub use loud::{loud, typed};
pub use order::ordered;
pub use progress::progress_safe;
pub use recovered::{Counts, exact_lsns, recovered};
pub use replica::{Replica, Table, source};
pub use resumable::resumable;
pub use unique::{repeats_are_identical, unique};

pub use super::parsed::Violation as Broken;
use super::{
    history::History,
    parsed::{Parsed, Violation},
    truth::Truth,
};

/// Every guarantee that one history and the truth can be held against.
pub fn all<'a>(history: &'a History, truth: &Truth) -> Result<Parsed<'a>, Violation> {
    let parsed = of_one_course(history, truth)?;
    ordered(&parsed)?;
    Ok(parsed)
}

/// The same without the order of commit records, which a replay need not know.
pub fn of_one_course<'a>(history: &'a History, truth: &Truth) -> Result<Parsed<'a>, Violation> {
    let parsed = Parsed::of(history)?;
    unique(&parsed)?;
    lineage(&parsed, None)?;
    progress_safe(&parsed, truth)?;
    resumable(&parsed, truth)?;
    complete(&parsed, truth)?;
    loud(history)?;
    Ok(parsed)
}

/// Those that need no truth, for histories under filters that the oracle cannot judge.
pub fn formal(history: &History) -> Result<Parsed<'_>, Violation> {
    let parsed = Parsed::of(history)?;
    ordered(&parsed)?;
    unique(&parsed)?;
    lineage(&parsed, None)?;
    progress_safe(&parsed, &Truth::default())?;
    loud(history)?;
    Ok(parsed)
}
