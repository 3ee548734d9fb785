//! walcast: one PostgreSQL replication slot, many gRPC subscribers. ARCHITECTURE.md has the map.

pub mod app;
pub mod cli;
pub mod config;
pub mod failover;
pub mod failpoint;
pub mod feed;
pub mod http;
pub mod hub;
pub mod ingest;
pub mod journal;
pub mod lsn;
pub mod metrics;
pub mod model;
pub mod pgoutput;
pub mod postgres;
pub mod reason;
pub mod rpc;
pub mod selection;
pub mod shutdown;
pub mod snapshot;
pub mod source;
pub mod wire;
