//! The parts of the integration tests' harness that start clusters and the real hub, record what it sends, and hold that
//! against the guarantees.
#![allow(dead_code, unused_imports)] // the tests use the rest

#[path = "../../tests/it/harness/client.rs"]
pub mod client;
#[path = "../../tests/it/harness/cluster.rs"]
pub mod cluster;
#[path = "../../tests/it/harness/history.rs"]
pub mod history;
#[path = "../../tests/it/harness/hub.rs"]
pub mod hub;
#[path = "../../tests/it/harness/parsed.rs"]
pub mod parsed;
#[path = "../../tests/it/harness/process.rs"]
pub mod process;
#[path = "../../tests/it/harness/truth.rs"]
pub mod truth;
#[path = "../../tests/it/harness/validators/mod.rs"]
pub mod validators;
#[path = "../../tests/it/harness/versions.rs"]
pub mod versions;
#[path = "../../tests/it/harness/wait.rs"]
pub mod wait;

pub use cluster::{Cluster, Db};
pub use hub::Hub;
pub use wait::eventually;
