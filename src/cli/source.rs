//! Connecting to the source, for the commands that look at PostgreSQL without a hub.

use std::path::PathBuf;

use super::{advice, args::SourceArgs, error::Error};
use crate::{
    config::{Config, Dsn, Override},
    postgres::{
        self,
        conninfo::{ConnectOptions, process_env},
        sql::Sql,
    },
};

/// What the settings of `walcast serve` say of the source.
pub struct Settings {
    dsn: Dsn,
    /// Replication slot.
    pub slot: String,
    /// Publication.
    pub publication: String,
    /// Of the hub.
    pub data_dir: PathBuf,
}

impl Settings {
    /// How to connect, completed by libpq's variables.
    pub fn options(&self) -> Result<ConnectOptions, Error> {
        let dsn = Some(self.dsn.expose()).filter(|dsn| !dsn.is_empty());
        ConnectOptions::parse(dsn, &process_env).map_err(|error| Error::Usage(format!("--dsn: {error}")))
    }
}

/// What flags say besides how to connect; `None`: nothing.
#[derive(Clone, Debug, Default)]
pub struct Given {
    /// `--slot`.
    pub slot: Option<String>,
    /// `--publication`.
    pub publication: Option<String>,
    /// `--data-dir`.
    pub data_dir: Option<String>,
}

/// From flags, environment and file, in the precedence of `walcast serve`.
pub fn settings(args: &SourceArgs, given: Given) -> Result<Settings, Error> {
    let flags = [
        ("source.dsn", "--dsn", args.dsn.clone()),
        ("source.dsn_file", "--dsn-file", args.dsn_file.clone()),
        ("source.slot", "--slot", given.slot),
        ("source.publication", "--publication", given.publication),
        ("journal.data_dir", "--data-dir", given.data_dir),
    ];
    let flags: Vec<Override> = flags
        .into_iter()
        .filter_map(|(key, flag, value)| Some(Override { key: key.to_owned(), value: value?, flag: flag.to_owned() }))
        .collect();
    let (source, data_dir) = Config::load_source(args.config.as_deref(), |name| std::env::var(name).ok(), &flags)?;
    Ok(Settings { dsn: source.dsn, slot: source.slot, publication: source.publication, data_dir })
}

/// How to connect, from flags, environment or file, completed by libpq's variables.
pub fn options(args: &SourceArgs) -> Result<ConnectOptions, Error> {
    settings(args, Given::default())?.options()
}

/// One SQL session.
pub async fn connect(options: &ConnectOptions) -> Result<Sql, Error> {
    Sql::connect(options).await.map_err(failed)
}

/// What PostgreSQL said, with what to do about it.
pub fn failed(error: postgres::Error) -> Error {
    advice::source(&error)
}
