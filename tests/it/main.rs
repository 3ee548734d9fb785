//! The integration tests: one binary, so that it links once. `harness` starts real PostgreSQL clusters and the real
//! hub; every other module is one subject. Nothing is mocked and nothing sleeps for a fixed time.

mod harness;

mod checkpoints;
mod connecting;
mod crash;
mod errors;
mod failover;
mod failover_chaos;
mod failover_histories;
mod filters;
mod harness_tests;
mod isolation;
mod layers;
mod operating;
mod outages;
mod predicates;
mod schema;
mod security;
mod storage;
mod streaming;
mod types;
