//! Connecting to the source, for the commands that look at PostgreSQL without a hub.

use super::{args::SourceArgs, error::Error};
use crate::postgres::{
    self,
    conninfo::{ConnectOptions, process_env},
    sql::Sql,
};

/// How to connect, from flag, environment or file, completed by libpq's variables.
pub fn options(args: &SourceArgs) -> Result<ConnectOptions, Error> {
    let dsn = match (&args.dsn, &args.dsn_file) {
        (Some(dsn), _) => Some(dsn.clone()),
        (None, Some(path)) => Some(std::fs::read_to_string(path).map_err(Error::io(path.display().to_string()))?),
        (None, None) => None,
    };
    let dsn = dsn.as_deref().map(str::trim);
    ConnectOptions::parse(dsn, &process_env).map_err(|error| Error::Usage(format!("--dsn: {error}")))
}

/// One SQL session.
pub async fn connect(options: &ConnectOptions) -> Result<Sql, Error> {
    Sql::connect(options).await.map_err(failed)
}

/// What PostgreSQL said, with its documented reason.
pub fn failed(error: postgres::Error) -> Error {
    Error::classified(&error)
}
