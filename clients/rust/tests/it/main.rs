//! The client against scripted streams, and against a real hub where there is one.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod hub;
mod kinds;
mod scripted;
mod stream;
mod values;
