//! Against a real PostgreSQL, found with `pg_config` or below /usr/lib/postgresql; `WALCAST_TEST_PG_BIN` names another.

mod checks;
mod cluster;
mod logins;
mod streaming;
