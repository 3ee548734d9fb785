//! The integration tests: one binary, so that it links once. `harness` starts real PostgreSQL clusters and the real
//! hub; every other module is one subject. Nothing is mocked and nothing sleeps for a fixed time.

mod harness;

mod chaos;
mod chaos_seeds;
mod checkpoints;
mod connecting;
mod crash;
mod demo;
mod eager;
mod errors;
mod failover;
mod failover_histories;
mod failover_readiness;
mod failover_trust;
mod filters;
mod harness_tests;
mod isolation;
mod layers;
mod logtables;
mod logtables_care;
mod logtables_causes;
mod logtables_failover;
mod logtables_filters;
mod logtables_install;
mod logtables_live;
mod operating;
mod oracle;
mod outages;
mod planted;
mod predicates;
mod reconnecting;
mod schema;
mod security;
mod snapshot;
mod snapshot_backfill;
mod snapshot_breaks;
mod snapshot_slot;
mod snapshot_states;
mod snapshot_tables;
mod storage;
mod streaming;
mod types;
mod undecodable;
