//! The command line, as typed. What it means is decided by the commands.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// One PostgreSQL replication slot, many gRPC subscribers.
#[derive(Debug, Parser)]
#[command(
    name = "walcast",
    version,
    about,
    propagate_version = true,
    arg_required_else_help = true,
    max_term_width = 110
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the hub
    Serve(ServeArgs),
    /// See it work: a throwaway PostgreSQL with a live workload, the hub, and a subscriber
    Demo(DemoArgs),
    /// Print changes as they are committed
    Tail(TailArgs),
    /// Copy tables into a file, as of one point
    Snapshot(SnapshotArgs),
    /// Show the source, the journal and the streams of a running hub
    Status(StatusArgs),
    /// Look at or drop the hub's replication slot at the source
    Slot(SlotArgs),
    /// Tables that log every change, from which a lost slot is made good
    Logtables(LogtablesArgs),
    /// List, reset or delete named subscribers
    Subscribers(SubscribersArgs),
    /// List or verify the journal's segment files
    Journal(JournalArgs),
    /// Let the hub go on at another system: after pg_upgrade, or where a dump was restored
    Rebase(RebaseArgs),
    /// Check whether the source meets every precondition, and print what to run where it does not
    Doctor(DoctorArgs),
    /// Ask a running hub whether it is well, for container health checks
    Health(HealthArgs),
    /// Print the completion script of a shell
    Completions(CompletionsArgs),
}

/// `walcast serve`
#[derive(Debug, Default, Args)]
#[command(after_help = "\
Precedence: flag, then environment, then --config FILE, then default. walcast.example.toml documents every setting.

Examples:
  walcast serve --dsn postgres://walcast@localhost/shop --create-publication
  WALCAST_DSN_FILE=/run/secrets/dsn walcast serve --config /etc/walcast.toml
  walcast serve --dsn ... --set limits.streams=500 --set journal.retain_age=2d")]
pub struct ServeArgs {
    /// Read settings from this TOML file
    #[arg(long, value_name = "FILE", env = "WALCAST_CONFIG")]
    pub config: Option<PathBuf>,
    /// How to reach PostgreSQL; prefer WALCAST_DSN or WALCAST_DSN_FILE for passwords [env: WALCAST_DSN=]
    #[arg(long)]
    pub dsn: Option<String>,
    /// Replication slot, created if missing [env: WALCAST_SLOT=] [default: walcast]
    #[arg(long)]
    pub slot: Option<String>,
    /// Publication [env: WALCAST_PUBLICATION=] [default: walcast]
    #[arg(long)]
    pub publication: Option<String>,
    /// Create the publication if it is missing [env: WALCAST_CREATE_PUBLICATION=]
    #[arg(long)]
    pub create_publication: bool,
    /// A schema for a publication that may not be for all tables; repeatable [env: WALCAST_SCHEMAS=]
    #[arg(long = "schema", value_name = "SCHEMA")]
    pub schemas: Vec<String>,
    /// Journal and checkpoints [env: WALCAST_DATA_DIR=] [default: ./walcast-data]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<String>,
    /// Largest size of the journal [env: WALCAST_RETAIN_BYTES=] [default: 10GiB]
    #[arg(long, value_name = "SIZE")]
    pub retain_bytes: Option<String>,
    /// How long data and silent subscribers are kept [env: WALCAST_RETAIN_AGE=] [default: 7d]
    #[arg(long, value_name = "DURATION")]
    pub retain_age: Option<String>,
    /// Deliver before fsync: less latency, weaker promise after a power failure [env: WALCAST_EAGER=]
    #[arg(long)]
    pub eager: bool,
    /// gRPC address [env: WALCAST_LISTEN=] [default: 127.0.0.1:50051]
    #[arg(long, value_name = "HOST:PORT")]
    pub listen: Option<String>,
    /// Address of metrics, health and dashboard, or "off" [env: WALCAST_HTTP=] [default: 127.0.0.1:8080]
    #[arg(long, value_name = "HOST:PORT")]
    pub http: Option<String>,
    /// Server certificate chain, PEM [env: WALCAST_TLS_CERT=]
    #[arg(long, value_name = "FILE")]
    pub tls_cert: Option<String>,
    /// Server key, PEM [env: WALCAST_TLS_KEY=]
    #[arg(long, value_name = "FILE")]
    pub tls_key: Option<String>,
    /// Clients must show a certificate signed by one of these, PEM [env: WALCAST_TLS_CLIENT_CA=]
    #[arg(long, value_name = "FILE")]
    pub tls_client_ca: Option<String>,
    /// Bearer tokens and what each may read [env: WALCAST_TOKENS_FILE=]
    #[arg(long, value_name = "FILE")]
    pub tokens_file: Option<String>,
    /// Serve gRPC-web to web pages of this origin, or "*"; repeatable [env: WALCAST_WEB_ORIGINS=]
    #[arg(long = "web-origin", value_name = "ORIGIN")]
    pub web_origins: Vec<String>,
    /// Let other machines in without authentication [env: WALCAST_INSECURE=]
    #[arg(long)]
    pub insecure: bool,
    /// pretty, compact or json [env: WALCAST_LOG_FORMAT=] [default: pretty]
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<String>,
    /// Log filter, such as info,walcast::postgres=debug [env: WALCAST_LOG=] [default: info]
    #[arg(long, value_name = "FILTER")]
    pub log: Option<String>,
    /// Any other setting by its key in the file; repeatable
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

/// `walcast snapshot`
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
JSON lines: one object per row; of several tables {\"table\": ..., \"row\": {...}}.
CSV: one table, with a header, NULL as an empty field. Parquet: one table, Snappy.
The rows are those of one moment. The file gets its name when it is complete, and replaces one that is \
there; interrupted, nothing is left. Until the last row is read a transaction is open on the primary, which \
holds back vacuum and DDL.

Examples:
  walcast snapshot public.orders --to orders.csv
  walcast snapshot 'sales.*' --to sales.jsonl --max-rows-per-second 20000
  walcast snapshot public.orders --where \"status = 'paid'\" --to paid.jsonl")]
pub struct SnapshotArgs {
    /// Published tables: globs over schema.table
    #[arg(value_name = "TABLE", required = true)]
    pub tables: Vec<String>,
    /// The file, by its ending .jsonl, .csv or .parquet
    #[arg(long, value_name = "FILE")]
    pub to: PathBuf,
    /// Only these columns: globs over schema.table.column; repeatable. Key columns come too, except under
    /// REPLICA IDENTITY FULL
    #[arg(long, value_name = "GLOB", value_delimiter = ',')]
    pub columns: Vec<String>,
    /// Only rows for which this holds; written as in a subscription's filter, over any columns
    #[arg(long = "where", value_name = "CONDITION")]
    pub predicate: Option<String>,
    /// Read no faster than this
    #[arg(long, value_name = "N")]
    pub max_rows_per_second: Option<u32>,
    /// How to reach the hub.
    #[command(flatten)]
    pub hub: HubArgs,
}

/// `walcast demo`
#[derive(Debug, Args)]
#[command(after_help = "\
Needs PostgreSQL's server binaries (found in PATH, /usr/lib/postgresql/*/bin, or by pg_config). \
Everything lives in one temporary directory, which goes when the demo ends, however it ends.

Examples:
  walcast demo
  walcast demo --count 20 --format json
  walcast demo --seconds 10
  walcast demo --failover")]
pub struct DemoArgs {
    /// Show a failover, in less than a minute: the primary is killed, a standby without the slot takes over, and what the
    /// subscriber has is compared with the source
    #[arg(long, conflicts_with_all = ["count", "seconds"])]
    pub failover: bool,
    /// End after this many changes
    #[arg(long, value_name = "N")]
    pub count: Option<u64>,
    /// End after this time
    #[arg(long, value_name = "N")]
    pub seconds: Option<u64>,
    /// How to print changes
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
    /// Directory of initdb and postgres
    #[arg(long, value_name = "DIR")]
    pub bin_dir: Option<PathBuf>,
    /// Log filter of the hub
    #[arg(long, value_name = "FILTER", default_value = "warn")]
    pub log: String,
    /// End when the process that started the demo ends
    #[arg(long)]
    pub with_parent: bool,
}

/// How to reach the hub.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Connection")]
pub struct HubArgs {
    /// The hub
    #[arg(long, value_name = "URL", env = "WALCAST_HUB", default_value = "http://127.0.0.1:50051")]
    pub hub: String,
    /// Bearer token [env: WALCAST_TOKEN=]
    #[arg(long, conflicts_with = "token_file")]
    pub token: Option<String>,
    /// File with the bearer token [env: WALCAST_TOKEN_FILE=]
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Trust these authorities instead of the system's, PEM
    #[arg(long, value_name = "FILE", env = "WALCAST_CA")]
    pub ca: Option<PathBuf>,
    /// Client certificate chain, PEM
    #[arg(long, value_name = "FILE", env = "WALCAST_CERT", requires = "key")]
    pub cert: Option<PathBuf>,
    /// Client key, PEM
    #[arg(long, value_name = "FILE", env = "WALCAST_KEY", requires = "cert")]
    pub key: Option<PathBuf>,
    /// Name to expect in the hub's certificate, if not the URL's
    #[arg(long, value_name = "NAME", env = "WALCAST_TLS_NAME")]
    pub tls_name: Option<String>,
}

/// `walcast tail`
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
JSON lines: op, table, lineage, commit_lsn, sequence, ordinal (these four identify a change), xid, \
commit_time, before, after, unchanged, transition. Every integer is a JSON number, exact up to 64 bits; \
numeric and every type without a JSON kind of its own is text as PostgreSQL prints it.

Exit code 1, when interrupted before what --count or --stop-at-tail asks for has come.

Examples:
  walcast tail
  walcast tail public.orders 'sales.*' --exclude '*.audit_*' --op insert --op update
  walcast tail public.orders --where \"status = 'paid'\" --from 10m
  walcast tail --from earliest --stop-at-tail --format json | jq .after
  walcast tail --subscriber billing --from earliest --ack    # the first time
  walcast tail --subscriber billing --ack                    # goes on where it was")]
pub struct TailArgs {
    /// Tables: globs over schema.table; none: all
    #[arg(value_name = "TABLE")]
    pub tables: Vec<String>,
    /// Leave these tables out; repeatable
    #[arg(long, value_name = "GLOB")]
    pub exclude: Vec<String>,
    /// Only these operations; repeatable
    #[arg(long = "op", value_enum, value_name = "OP")]
    pub operations: Vec<Op>,
    /// Only these columns: globs over schema.table.column; repeatable. Key columns come too, except under
    /// REPLICA IDENTITY FULL
    #[arg(long, value_name = "GLOB", value_delimiter = ',')]
    pub columns: Vec<String>,
    /// Only rows for which this holds, such as "amount > 100 AND status = 'paid'"
    #[arg(long = "where", value_name = "PREDICATE")]
    pub predicate: Option<String>,
    /// Logical messages with these prefixes (globs) too; repeatable. Without any filter all come
    #[arg(long, value_name = "PREFIX")]
    pub messages: Vec<String>,
    /// earliest, latest, snapshot (the rows that are there first), checkpoint, an LSN (X/Y), a time (RFC 3339), or how long
    /// ago (5m)
    #[arg(long, value_name = "START", value_parser = super::start::parse)]
    pub from: Option<super::start::From>,
    /// Durable name: the hub remembers what was acknowledged under it
    #[arg(long, value_name = "NAME")]
    pub subscriber: Option<String>,
    /// Acknowledge what has been printed
    #[arg(long, requires = "subscriber")]
    pub ack: bool,
    /// End after this many changes
    #[arg(long, value_name = "N")]
    pub count: Option<u64>,
    /// End at the place where the source is now
    #[arg(long)]
    pub stop_at_tail: bool,
    /// How to print changes
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
    /// JSON: begin, commit, progress and every other event too
    #[arg(long)]
    pub envelope: bool,
    /// How to reach the hub.
    #[command(flatten)]
    pub hub: HubArgs,
}

/// How changes are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    #[default]
    Pretty,
    /// One JSON object per line
    Json,
}

/// An operation to select.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Op {
    /// New rows
    Insert,
    /// Changed rows
    Update,
    /// Removed rows
    Delete,
    /// Emptied tables
    Truncate,
}

/// `walcast status`
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  walcast status --format json | jq .source.retained_wal_bytes")]
pub struct StatusArgs {
    /// How to print
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
    /// How to reach the hub.
    #[command(flatten)]
    pub hub: HubArgs,
}

/// How to reach the source.
#[derive(Debug, Args)]
pub struct SourceArgs {
    /// Read what is not given here from this file of `walcast serve`
    #[arg(long, value_name = "FILE", env = "WALCAST_CONFIG")]
    pub config: Option<PathBuf>,
    /// How to reach PostgreSQL [env: WALCAST_DSN=]
    #[arg(long)]
    pub dsn: Option<String>,
    /// File with the connection string [env: WALCAST_DSN_FILE=]
    #[arg(long, value_name = "FILE", conflicts_with = "dsn")]
    pub dsn_file: Option<String>,
}

/// `walcast slot`
#[derive(Debug, Args)]
pub struct SlotArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: SlotCommand,
}

/// What to do with slots.
#[derive(Debug, Subcommand)]
pub enum SlotCommand {
    /// List the logical slots of the source and the WAL that they hold back
    #[command(after_help = "Example:\n  walcast slot list --dsn postgres://walcast@localhost/shop")]
    List {
        /// How to reach the source.
        #[command(flatten)]
        source: SourceArgs,
    },
    /// Drop a slot; what the hub has not read by then is lost to it
    #[command(after_help = "Example:\n  walcast slot drop walcast --yes --dsn postgres://walcast@localhost/shop")]
    Drop {
        /// Slot name [env: WALCAST_SLOT=] [default: walcast]
        slot: Option<String>,
        /// Do not ask
        #[arg(long)]
        yes: bool,
        /// How to reach the source.
        #[command(flatten)]
        source: SourceArgs,
    },
}

/// `walcast logtables`
#[derive(Debug, Args)]
pub struct LogtablesArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: LogtablesCommand,
}

/// What to do with the log tables.
#[derive(Debug, Subcommand)]
pub enum LogtablesCommand {
    /// Log every change of the published tables from now on; again, to complete an installation
    #[command(after_help = "\
Each published table is locked against writes for a moment while its triggers are made. A superuser's \
installation also follows later DDL.

Examples:
  walcast logtables install --dsn postgres://postgres@localhost/shop --hub-role walcast
  walcast logtables install --print-sql > logtables.sql    # to be read, then run with psql")]
    Install {
        /// Publication [env: WALCAST_PUBLICATION=] [default: walcast]
        #[arg(long)]
        publication: Option<String>,
        /// The role that the hub connects as, if it is another one: may read and prune the log
        #[arg(long, value_name = "ROLE")]
        hub_role: Option<String>,
        /// Print the script and change nothing
        #[arg(long)]
        print_sql: bool,
        /// How to reach the source.
        #[command(flatten)]
        source: SourceArgs,
    },
    /// Show what is logged, how large the log is, and which tables a lost slot would lose changes of
    #[command(after_help = "Example:\n  walcast logtables status --dsn postgres://walcast@localhost/shop")]
    Status {
        /// How to reach the source.
        #[command(flatten)]
        source: SourceArgs,
    },
    /// Empty the leaves of which the journal has everything; the hub does so by itself while it streams
    #[command(
        after_help = "Example:\n  walcast logtables prune --data-dir /var/lib/walcast --dsn postgres://walcast@localhost/shop"
    )]
    Prune {
        /// The hub's data directory, which says what the journal has [env: WALCAST_DATA_DIR=] [default: ./walcast-data]
        #[arg(long, value_name = "DIR")]
        data_dir: Option<String>,
        /// How to reach the source.
        #[command(flatten)]
        source: SourceArgs,
    },
    /// Remove the triggers and the log
    #[command(after_help = "Example:\n  walcast logtables uninstall --yes --dsn postgres://postgres@localhost/shop")]
    Uninstall {
        /// Do not ask
        #[arg(long)]
        yes: bool,
        /// How to reach the source.
        #[command(flatten)]
        source: SourceArgs,
    },
}

/// `walcast subscribers`
#[derive(Debug, Args)]
pub struct SubscribersArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: SubscribersCommand,
}

/// What to do with subscribers.
#[derive(Debug, Subcommand)]
pub enum SubscribersCommand {
    /// List named subscribers, their checkpoints and how far behind they are
    #[command(after_help = "Example:\n  walcast subscribers list --format json | jq -r .name")]
    List {
        /// How to print
        #[arg(long, value_enum, default_value_t)]
        format: Format,
        /// How to reach the hub.
        #[command(flatten)]
        hub: HubArgs,
    },
    /// Move a checkpoint, back too; an open stream of the subscriber ends
    #[command(after_help = "Example:\n  walcast subscribers reset billing --to earliest")]
    Reset {
        /// Subscriber name
        name: String,
        /// earliest, latest, an LSN (X/Y), a time (RFC 3339), or how long ago (5m)
        #[arg(long, value_name = "START", value_parser = super::start::parse_reset)]
        to: super::start::From,
        /// How to reach the hub.
        #[command(flatten)]
        hub: HubArgs,
    },
    /// Forget a subscriber and its checkpoint; an open stream of it ends
    #[command(after_help = "Example:\n  walcast subscribers delete billing")]
    Delete {
        /// Subscriber name
        name: String,
        /// How to reach the hub.
        #[command(flatten)]
        hub: HubArgs,
    },
}

/// `walcast journal`
#[derive(Debug, Args)]
pub struct JournalArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: JournalCommand,
}

/// What to do with the journal.
#[derive(Debug, Subcommand)]
pub enum JournalCommand {
    /// List the segment files
    #[command(after_help = "Example:\n  walcast journal list --data-dir /var/lib/walcast")]
    List {
        /// The hub's data directory
        #[arg(long, value_name = "DIR", env = "WALCAST_DATA_DIR", default_value = "./walcast-data")]
        data_dir: PathBuf,
    },
    /// Read every record and check its CRC
    #[command(after_help = "Example:\n  walcast journal verify --data-dir /var/lib/walcast")]
    Verify {
        /// The hub's data directory
        #[arg(long, value_name = "DIR", env = "WALCAST_DATA_DIR", default_value = "./walcast-data")]
        data_dir: PathBuf,
    },
}

/// `walcast rebase`
#[derive(Debug, Args)]
#[command(after_help = "\
The refusal in `walcast status` (SOURCE_CHANGED) names the system. The hub need not run.

Example:
  walcast rebase --system-identifier 7401234567890123456 --data-dir /var/lib/walcast")]
pub struct RebaseArgs {
    /// The system to go on at, as IDENTIFY_SYSTEM and pg_control_system() print it
    #[arg(long, value_name = "N")]
    pub system_identifier: u64,
    /// The hub's data directory
    #[arg(long, value_name = "DIR", env = "WALCAST_DATA_DIR", default_value = "./walcast-data")]
    pub data_dir: PathBuf,
}

/// `walcast doctor`
#[derive(Debug, Args)]
#[command(after_help = "\
Takes the settings of `walcast serve`, in the same precedence.

Examples:
  walcast doctor --dsn postgres://walcast@localhost/shop
  walcast doctor --config /etc/walcast.toml")]
pub struct DoctorArgs {
    /// How to reach the source.
    #[command(flatten)]
    pub source: SourceArgs,
    /// Replication slot [env: WALCAST_SLOT=] [default: walcast]
    #[arg(long)]
    pub slot: Option<String>,
    /// Publication [env: WALCAST_PUBLICATION=] [default: walcast]
    #[arg(long)]
    pub publication: Option<String>,
}

/// `walcast health`
#[derive(Debug, Args)]
#[command(after_help = "\
Exit code 0: well. In an image: HEALTHCHECK CMD [\"walcast\", \"health\"]

Examples:
  walcast health
  walcast health --ready --http 127.0.0.1:8080")]
pub struct HealthArgs {
    /// The hub's HTTP address
    #[arg(long, value_name = "HOST:PORT", env = "WALCAST_HTTP", default_value = "127.0.0.1:8080")]
    pub http: String,
    /// Ask whether streams are served, not just whether the process lives
    #[arg(long)]
    pub ready: bool,
}

/// `walcast completions`
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  walcast completions bash > /etc/bash_completion.d/walcast")]
pub struct CompletionsArgs {
    /// The shell
    pub shell: clap_complete::Shell,
}
