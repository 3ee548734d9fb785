//! walcast: one PostgreSQL replication slot, many gRPC subscribers. ARCHITECTURE.md has the map.

pub mod feed;
pub mod hub;
pub mod journal;
pub mod lsn;
pub mod metrics;
pub mod model;
pub mod pgoutput;
pub mod reason;
pub mod selection;
pub mod shutdown;
pub mod wire;
