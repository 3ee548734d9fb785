//! Private PostgreSQL clusters, the real binary, recording subscribers, a workload with a known truth, and one
//! validator per guarantee.
#![allow(dead_code, unused_imports)] // each scenario uses a part

pub mod client;
pub mod cluster;
pub mod command;
pub mod follower;
pub mod history;
pub mod hub;
pub mod pair;
pub mod parsed;
pub mod process;
pub mod proxy;
pub mod replays;
pub mod stage;
pub mod truth;
pub mod validators;
pub mod versions;
pub mod wait;
pub mod workload;

pub use cluster::{Cluster, Db, Shutdown};
pub use stage::{Stage, stage};
pub use wait::eventually;

/// For `?` in scenarios.
pub type Result<T, E = Box<dyn std::error::Error + Send + Sync>> = std::result::Result<T, E>;
