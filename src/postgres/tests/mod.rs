//! Against a real PostgreSQL, found with `pg_config` or below /usr/lib/postgresql; `WALCAST_TEST_PG_BIN` names another
//! (only the test with a standby needs pg_basebackup there).

mod checks;
mod cluster;
mod logins;
mod printed;
mod streaming;
