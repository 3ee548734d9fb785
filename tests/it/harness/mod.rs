//! Private PostgreSQL clusters, the real binary, recording subscribers, a workload with a known truth, and one
//! validator per guarantee.
#![allow(dead_code)] // each scenario uses a part

pub mod cluster;
pub mod history;
pub mod parsed;
pub mod process;
pub mod truth;
pub mod validators;
pub mod versions;
pub mod wait;

pub use cluster::{Cluster, Db, Shutdown};
pub use wait::eventually;

/// For `?` in scenarios.
pub type Result<T, E = Box<dyn std::error::Error + Send + Sync>> = std::result::Result<T, E>;
