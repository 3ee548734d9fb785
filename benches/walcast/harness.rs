//! The parts of the integration tests' harness that start clusters and the real hub.
#![allow(dead_code)] // the tests use the rest

#[path = "../../tests/it/harness/cluster.rs"]
pub mod cluster;
#[path = "../../tests/it/harness/hub.rs"]
pub mod hub;
#[path = "../../tests/it/harness/process.rs"]
pub mod process;
#[path = "../../tests/it/harness/versions.rs"]
pub mod versions;
#[path = "../../tests/it/harness/wait.rs"]
pub mod wait;

pub use cluster::{Cluster, Db};
pub use hub::Hub;
