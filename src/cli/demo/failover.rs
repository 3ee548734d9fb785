//! `walcast demo --failover`: the primary dies, a standby without the replication slot takes its place, and the
//! subscriber's stream goes on. At the end the rows that were built from the stream are compared with the source's.

use std::{path::PathBuf, time::Duration};

use parking_lot::Mutex;
use tokio::time::{Instant, sleep, timeout};
use tokio_postgres::Client;

use super::{
    built::{self, Built},
    postgres::Cluster,
    workload,
};
use crate::{
    cli::{
        args::Format,
        error::Error,
        output::Output,
        source::failed,
        text::{plural, table},
    },
    journal::inspect,
    lsn::Lsn,
    postgres::{
        conninfo::{ConnectOptions, process_env},
        logtables,
        sql::Sql,
    },
};

/// Time between two transactions.
const PACE: Duration = Duration::from_millis(250);
/// Time for any one thing that the story waits for.
const PATIENCE: Duration = Duration::from_secs(60);
/// Transactions that only the old primary has.
const LOST: usize = 4;
/// Transactions that the new primary has before the hub finds it.
const BEFORE_THE_HUB: usize = 8;
/// Transactions that the new slot has brought before the story ends.
const STREAMED: usize = 8;

/// The failover, told to a person.
pub struct Story<'a> {
    pub output: &'a Output,
    pub format: Format,
    pub begun: Instant,
    pub hub_dir: PathBuf,
    /// What the subscriber that prints has built so far.
    pub built: &'a Mutex<Built>,
}

/// What there is before the hub: tables, a publication of them, log tables.
pub async fn prepare(cluster: &Cluster) -> Result<(), Error> {
    let client = cluster.connect().await.map_err(trouble)?;
    workload::create_with_ledger(&client).await.map_err(trouble)?;
    let publication = format!("CREATE PUBLICATION walcast FOR TABLE {}", workload::TABLES.join(", "));
    client.batch_execute(&publication).await.map_err(trouble)?;
    let options = ConnectOptions::parse(Some(&cluster.dsn()), &process_env);
    let mut options = options.map_err(|error| Error::Failed(error.to_string()))?;
    options.hosts.truncate(1);
    let sql = Sql::connect(&options).await.map_err(failed)?;
    logtables::install(&sql, "walcast", None).await.map_err(failed)?;
    Ok(())
}

impl Story<'_> {
    /// Plays it, until the subscriber has everything.
    pub async fn play(&self, cluster: &mut Cluster) -> Result<(), Error> {
        let mut shop = cluster.connect().await.map_err(trouble)?;
        let mut heir = cluster.connect_standby().await.map_err(trouble)?;
        let slots = "SELECT count(*) FROM pg_replication_slots WHERE active";
        self.wait(async || Ok(number(&shop, slots).await? == 1)).await?;
        workload::open(&mut shop).await.map_err(trouble)?;
        let mut round = 0;
        self.tell("The shop is open. Every change is streamed, and logged in the same transaction.")?;
        self.wait(async || {
            trade(&mut shop, &mut round, 1).await?;
            sleep(PACE).await;
            self.is_protected(&heir).await
        })
        .await?;

        self.tell("The standby falls behind: what commits from here on, only the primary and the subscriber know.")?;
        let cut = "ALTER SYSTEM SET primary_conninfo = ''";
        heir.batch_execute(cut).await.map_err(trouble)?;
        heir.batch_execute("SELECT pg_reload_conf()").await.map_err(trouble)?;
        let receivers = "SELECT count(*) FROM pg_stat_wal_receiver";
        self.wait(async || Ok(number(&heir, receivers).await? == 0)).await?;
        for _ in 0..LOST {
            trade(&mut shop, &mut round, 1).await?;
            sleep(PACE).await;
        }
        let shown = end_of_wal(&shop).await?;
        self.wait(async || Ok(self.built.lock().has_reached(shown))).await?;

        self.tell("kill -9 for the primary. The standby is promoted; it has no replication slot.")?;
        drop(shop);
        cluster.kill_primary().await?;
        heir.batch_execute("SELECT pg_promote(false)").await.map_err(trouble)?;
        let promoted = Instant::now();
        while number(&heir, "SELECT pg_is_in_recovery()::int").await? == 1 {
            if promoted.elapsed() > PATIENCE {
                return Err(Error::Failed("the standby was not promoted".to_owned()));
            }
            sleep(Duration::from_millis(2)).await;
        }
        trade(&mut heir, &mut round, BEFORE_THE_HUB).await?;
        self.tell(&format!(
            "The shop goes on at the new primary: {BEFORE_THE_HUB} transactions before the hub is there."
        ))?;
        self.wait(async || {
            trade(&mut heir, &mut round, 1).await?;
            sleep(PACE).await;
            let built = self.built.lock();
            Ok(built.switched_to.is_some() && built.streamed_since_switch() >= STREAMED)
        })
        .await?;

        self.tell("The shop closes. Is everything there?")?;
        let end = end_of_wal(&heir).await?;
        self.wait(async || Ok(self.built.lock().has_reached(end))).await
    }

    /// A heading: when, and what happens.
    fn tell(&self, text: &str) -> Result<(), Error> {
        let bold = anstyle::Style::new().bold().invert();
        let heading = format!("\n{bold} {:5.1} s {bold:#} {text}\n\n", self.begun.elapsed().as_secs_f64());
        match self.format {
            Format::Pretty => self.output.print(&heading),
            Format::Json => {
                self.output.note(heading.trim());
                Ok(())
            }
        }
    }

    async fn wait(&self, mut holds: impl AsyncFnMut() -> Result<bool, Error>) -> Result<(), Error> {
        let waiting = async {
            while !holds().await? {
                sleep(Duration::from_millis(20)).await;
            }
            Ok(())
        };
        let late = |_| Error::Failed(format!("the demo waited for more than {} s", PATIENCE.as_secs()));
        timeout(PATIENCE, waiting).await.map_err(late)?
    }

    /// Whether the standby has what a recovery from the log tables begins with.
    async fn is_protected(&self, standby: &Client) -> Result<bool, Error> {
        let horizon = inspect::horizon(&self.hub_dir).map_err(|error| crate::cli::advice::journal(&error))?;
        let Some(horizon) = horizon else { return Ok(false) };
        let replayed = "SELECT (pg_last_wal_replay_lsn() - '0/0'::pg_lsn)::int8";
        Ok(number(standby, replayed).await?.unsigned_abs() >= horizon.high.0)
    }

    /// The comparison; the last line says how it ended.
    pub async fn compare(&self, cluster: &Cluster) -> Result<(), Error> {
        let source = cluster.connect_standby().await.map_err(trouble)?;
        let mut lines = Vec::new();
        let mut problems = Vec::new();
        for name in workload::TABLES {
            let there = built::source(&source, name).await.map_err(trouble)?;
            let rows = self.built.lock().rows(&format!("public.{name}"));
            let here = rows.unwrap_or_else(|problem| {
                problems.push(problem);
                Vec::new()
            });
            let (ours, theirs) = (built::checksum(&here), built::checksum(&there));
            let equal = ours == theirs && here.len() == there.len();
            if !equal {
                problems.push(format!("{name} differs"));
            }
            let count = |rows: &[_]| rows.len().to_string();
            let verdict = if equal { "equal" } else { "DIFFERENT" };
            lines.push(
                [name, &count(&there), &format!("{theirs:08x}"), &count(&here), &format!("{ours:08x}"), verdict]
                    .map(str::to_owned)
                    .to_vec(),
            );
        }
        let headers = ["TABLE", "AT THE SOURCE", "CHECKSUM", "FROM THE STREAM", "CHECKSUM", ""];
        let (transactions, replayed, retracted) = self.built.lock().counts();
        let shown = table(&headers, &lines);
        let report = |text: &str| match self.format {
            Format::Pretty => self.output.print(text),
            Format::Json => {
                self.output.note(text.trim_end());
                Ok(())
            }
        };
        report(&shown)?;
        if !problems.is_empty() {
            return Err(Error::Failed(format!("the subscriber is not where the source is: {}", problems.join("; "))));
        }
        let good = anstyle::AnsiColor::Green.on_default().bold();
        report(&format!(
            "\n{good}Nothing is missing and nothing came twice{good:#}: {}, {replayed} of them from the log tables; \
             {retracted} that the new primary never had were taken back.\n",
            plural(transactions as u64, "transaction"),
        ))
    }
}

fn trouble(error: tokio_postgres::Error) -> Error {
    let detail = error.as_db_error().map_or_else(|| error.to_string(), |db| db.message().to_owned());
    Error::Failed(format!("the demo's PostgreSQL: {detail}"))
}

async fn trade(client: &mut Client, round: &mut i32, times: usize) -> Result<(), Error> {
    for _ in 0..times {
        workload::trade(client, *round).await.map_err(trouble)?;
        *round += 1;
    }
    Ok(())
}

async fn number(client: &Client, sql: &str) -> Result<i64, Error> {
    let row = client.query_one(&format!("SELECT ({sql})::int8"), &[]).await.map_err(trouble)?;
    row.try_get(0).map_err(trouble)
}

async fn end_of_wal(client: &Client) -> Result<Lsn, Error> {
    let lsn = number(client, "SELECT (pg_current_wal_flush_lsn() - '0/0'::pg_lsn)::int8").await?;
    Ok(Lsn(lsn.unsigned_abs()))
}
