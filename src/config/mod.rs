//! Configuration in two steps: what was typed ([`Layers`]), then what it means ([`Config`]). All problems are
//! reported at once, each with its key and the place where it was typed.

mod layers;
mod read;
mod secret;
mod settings;
pub mod units;

use std::{fmt, net::SocketAddr, path::PathBuf, time::Duration};

pub use layers::{Layers, Origin, Override, Problem};
pub use secret::Dsn;
pub use settings::{SETTINGS, Setting};

/// Everything `walcast serve` needs to know, validated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// PostgreSQL.
    pub source: Source,
    /// The data directory.
    pub journal: Journal,
    /// The gRPC endpoint.
    pub grpc: Grpc,
    /// What strangers may use up.
    pub limits: Limits,
    /// Metrics, health and dashboard.
    pub http: Http,
    /// Log output.
    pub log: Log,
}

/// `[source]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// How to connect; empty: libpq's `PG*` variables say it all.
    pub dsn: Dsn,
    /// Slot name, as PostgreSQL allows it: `[a-z0-9_]{1,63}`.
    pub slot: String,
    /// Publication name, unquoted.
    pub publication: String,
    /// Whether a missing publication is created.
    pub create_publication: bool,
    /// Schemas for a publication that may not be for all tables.
    pub schemas: Vec<String>,
    /// Whether standbys are to keep the slot in step, where the server can.
    pub failover_slot: bool,
    /// Whether the hub goes on behind a gap when the slot was lost.
    pub continue_after_gap: bool,
    /// Standbys, by application name, that must have flushed a transaction before it is delivered.
    pub gate: Vec<String>,
}

/// `[journal]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Journal {
    /// Data directory, relative to the working directory.
    pub data_dir: PathBuf,
    /// Bytes of one segment file.
    pub segment_bytes: u64,
    /// Bytes of segments that are kept at most.
    pub retain_bytes: u64,
    /// Age at which segments may go, and after which a silent subscriber no longer counts.
    pub retain_age: Duration,
    /// Bytes of blocks kept in memory for live streams.
    pub ring_bytes: u64,
    /// Bytes read from disk that are kept for readers at the same place.
    pub cache_bytes: u64,
    /// Bytes that are left free on the file system; intake waits below.
    pub reserve_bytes: u64,
    /// Whether changes are delivered before they are durable.
    pub eager: bool,
}

/// `[grpc]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grpc {
    /// Address to listen on.
    pub listen: SocketAddr,
    /// `None`: plaintext.
    pub tls: Option<Tls>,
    /// File with the bearer tokens; `None`: none are asked for.
    pub tokens_file: Option<PathBuf>,
    /// Strangers from other machines are let in without authentication, on purpose.
    pub insecure: bool,
    /// Server reflection, v1 and v1alpha.
    pub reflection: bool,
    /// Origins of the web pages that may subscribe; empty: gRPC-web is off.
    pub web_origins: Vec<String>,
    /// How long streams may take to end when the hub stops.
    pub drain_timeout: Duration,
}

/// PEM files; read again when they change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// Certificate chain.
    pub cert: PathBuf,
    /// Private key.
    pub key: PathBuf,
    /// Clients must show a certificate signed by one of these.
    pub client_ca: Option<PathBuf>,
}

/// `[limits]`; every one at least 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Open streams.
    pub streams: usize,
    /// Named subscribers that may exist.
    pub subscribers: usize,
    /// Streams that read from disk at the same time.
    pub catch_up_readers: usize,
    /// Streams that wait for their turn to read from disk; one more that would begin there is refused.
    pub catch_up_waiting: usize,
    /// Snapshots that are read at the same time; one more is refused.
    pub snapshots: u32,
    /// Bytes of projections that filtered streams share with those behind them.
    pub projection_bytes: u64,
    /// Open connections. Streams over one more are refused.
    pub connections: usize,
    /// Open subscription streams per connection.
    pub streams_per_connection: u32,
    /// Bytes of one request message.
    pub request_bytes: usize,
    /// Bytes of request headers.
    pub header_bytes: u32,
    /// Streams that a peer has reset and that are not yet cleaned up, before its connection is closed.
    pub pending_resets: usize,
    /// Time between HTTP/2 pings.
    pub keepalive_interval: Duration,
    /// Time for the answer to a ping.
    pub keepalive_timeout: Duration,
    /// How long a client may take nothing of a snapshot: then a consistent one ends and an incremental one rests.
    pub snapshot_idle: Duration,
    /// How long a snapshot waits for commits that nobody sees yet.
    pub snapshot_settle: Duration,
}

/// `[http]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Http {
    /// Address to listen on; `None`: no HTTP endpoint.
    pub listen: Option<SocketAddr>,
}

/// `[log]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// Shape of a line.
    pub format: LogFormat,
    /// `tracing` filter directives.
    pub filter: String,
}

/// Shape of a log line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Pretty,
    /// For people with narrow terminals: no timestamps, no targets.
    Compact,
    /// One object per line.
    Json,
}

/// The configuration does not hold; every problem is named.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Error {
    /// At least one.
    pub problems: Vec<Problem>,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the configuration is not valid")?;
        self.problems.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

impl Config {
    /// Defaults, then the file, then `env`, then `flags`.
    pub fn load(
        file: Option<&std::path::Path>,
        env: impl Fn(&str) -> Option<String>,
        flags: &[Override],
    ) -> Result<Config, Error> {
        let mut problems = Vec::new();
        let mut layers = Layers::defaults();
        if let Some(path) = file {
            layers.file(path, &mut problems);
        }
        layers.env(env);
        layers.flags(flags, &mut problems);
        read::config(&layers, problems)
    }
}

#[cfg(test)]
mod tests;
