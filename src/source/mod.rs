//! The one loop over the source: connect, compare histories, prepare slot and publication, stream, and when that ends,
//! back off and begin again. Subscribers' streams stay open meanwhile and learn from `progress` that the source is away.
//!
//! PostgreSQL would rather go on than complain: START_REPLICATION moves a start below confirmed_flush silently forward,
//! and accepts one beyond its own WAL (see the [replication
//! protocol](https://www.postgresql.org/docs/current/protocol-replication.html)). So everything is compared here first,
//! and what would be a silent gap is refused with a typed reason.

mod complaints;
mod course;
mod gate;
mod guard;
mod orphan;
mod prepare;
mod reach;
mod recover;
mod slots;
mod standbys;
mod state;
mod undecodable;
mod watch;

use std::{
    path::PathBuf,
    pin::pin,
    time::{Duration, Instant},
};

pub use course::REBASE;
pub use state::SourceState;

use crate::{
    ingest::{self, Ingest},
    journal::Journal,
    lsn::Lsn,
    metrics,
    postgres::{self, conninfo::ConnectOptions},
    reason::{Classified, Reason},
    shutdown::Drain,
};

/// Which slot of which server, and what may be created there.
#[derive(Clone, Debug)]
pub struct Options {
    /// The server.
    pub connect: ConnectOptions,
    /// Slot name; created when missing.
    pub slot: String,
    /// Publication name.
    pub publication: String,
    /// Create the publication when missing.
    pub create_publication: bool,
    /// For these schemas where FOR ALL TABLES is not permitted.
    pub schemas: Vec<String>,
    /// Messages that cannot be decoded are kept here.
    pub quarantine: PathBuf,
    /// File in which an operator names the system to go on with.
    pub rebase: PathBuf,
    /// File that says which database the journal is of.
    pub database: PathBuf,
    /// Have standbys keep the slot in step (PostgreSQL 17 and later).
    pub failover_slot: bool,
    /// What to do when the slot does not have what the journal lacks.
    pub on_slot_lost: OnSlotLost,
    /// Application names of standbys that must have flushed a transaction before it is delivered.
    pub gate: Vec<String>,
}

/// What to do when the slot does not have what the journal lacks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnSlotLost {
    /// Streams end with SLOT_LOST where the journal ends.
    #[default]
    Stop,
    /// A new slot; streams get a `gap` event and go on behind it.
    Continue,
}

/// Why the source does not stream.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Connecting, asking or preparing failed.
    #[error(transparent)]
    Postgres(#[from] postgres::Error),
    /// Streaming ended.
    #[error(transparent)]
    Ingest(#[from] ingest::Error),
    /// The slot's stream would leave something out.
    #[error("the slot {0}")]
    Untrusted(String),
    /// The server, the slot or the publication is not what the journal needs.
    #[error("{message}")]
    Refused {
        /// Documented reason.
        reason: Reason,
        /// What was found, and what to do.
        message: String,
    },
}

impl Error {
    /// What to run, where that is known and the message does not say so itself.
    fn hint(&self) -> Option<String> {
        match self {
            Error::Postgres(error) | Error::Ingest(ingest::Error::Replication(error)) => error.hint(),
            Error::Ingest(_) | Error::Refused { .. } | Error::Untrusted(_) => None,
        }
    }

    /// The message and what to do about it, on one line.
    fn told(&self) -> String {
        match self.hint() {
            Some(hint) => format!("{self}. {hint}"),
            None => self.to_string(),
        }
    }
}

impl Classified for Error {
    fn reason(&self) -> Reason {
        match self {
            Error::Postgres(error) => error.reason(),
            Error::Ingest(error) => error.reason(),
            Error::Refused { reason, .. } => *reason,
            Error::Untrusted(_) => Reason::SlotLost,
        }
    }
}

/// The answer, unless it cannot be had because somebody holds a lock: then what was known before holds until it is asked
/// again.
fn unless_locked<T, E: Into<Error>>(answer: Result<T, E>) -> Result<Option<T>, Error> {
    match answer.map_err(Into::into) {
        Ok(answer) => Ok(Some(answer)),
        Err(Error::Postgres(error)) if error.is_locked() => {
            tracing::debug!(%error, "asked again later");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn refused(reason: Reason, message: impl Into<String>) -> Error {
    Error::Refused { reason, message: message.into() }
}

/// First pause after a failure; doubles up to [`LONGEST_PAUSE`], with full jitter.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Longest pause while the server says that it is starting up.
const STARTING_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A stream that holds as long as this was worth connecting for, although nothing came: pauses begin anew behind it.
const HELD: Duration = Duration::from_secs(30);

/// Runs until draining starts, then leaves the journal flushed and PostgreSQL told.
pub async fn run(
    options: Options,
    journal: Journal,
    fresh: bool,
    ingest: Ingest,
    state: SourceState,
    drain: Drain,
) -> Result<(), ingest::Error> {
    let (mut keeper, gate) = gate::gate(&options.gate);
    let mut ingest = ingest.behind(gate);
    let mut pause = FIRST_PAUSE;
    let failures = undecodable::Failures::default();
    let mut carried = Carried { fresh, stuck: None, untrusted: None, failures };
    let mut complaints = complaints::Complaints::default();
    let mut reached = *journal.complete().borrow();
    metrics::set(metrics::SOURCE_UNDECODABLE, 0.0);
    metrics::add(metrics::SLOT_DECODE_FAILURES, 0); // an alert on a rise sees the first one, too
    while !drain.started() {
        let (begun, began) = (state.streams_begun(), Instant::now());
        let keeper = keeper.as_mut();
        let attempt = stream_once(&options, &journal, &mut ingest, keeper, &mut carried, &state, &drain).await;
        let Err(error) = attempt else { continue };
        if let Error::Ingest(error @ ingest::Error::HalfReplayed) = error {
            tracing::error!("{error}");
            return Err(error);
        }
        let reason = error.reason();
        let told = error.told();
        state.away(&format!("{}: {told}", reason.as_str()));
        metrics::add(metrics::SOURCE_RECONNECTS, 1);
        let complete = *journal.complete().borrow();
        let came_further = std::mem::replace(&mut reached, complete) != complete;
        if state.streams_begun() > begun && (came_further || began.elapsed() >= HELD) {
            pause = FIRST_PAUSE;
            complaints.settled();
        }
        if let Error::Untrusted(why) = &error {
            tracing::warn!(reason = reason.as_str(), slot = options.slot, "the slot {why}");
            continue;
        }
        if let Error::Ingest(ingest::Error::Resent { .. }) = &error {
            tracing::warn!(reason = reason.as_str(), "{error}");
            continue;
        }
        if let Error::Ingest(ingest::Error::Undecodable { lsn, bytes, .. }) = &error {
            quarantine(&options.quarantine, *lsn, bytes);
            metrics::set(metrics::SOURCE_UNDECODABLE, 1.0);
            carried.stuck = Some(*lsn);
            pause = LONGEST_PAUSE;
        }
        if starting_up(&error) {
            pause = pause.min(STARTING_PAUSE);
        }
        let wait = pause.mul_f64(fastrand::f64());
        complaints.failed(reason, &told, wait);
        tokio::select! {
            () = drain.wait() => {}
            () = tokio::time::sleep(wait) => {}
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
    state.away("the hub is shutting down");
    ingest.close().await
}

/// The server answers, and will serve as soon as its crash recovery ends (57P03, cannot_connect_now).
fn starting_up(error: &Error) -> bool {
    matches!(error, Error::Postgres(error) if error.sqlstate() == Some("57P03"))
}

/// What one connection leaves to the next.
struct Carried {
    /// The journal has not begun yet.
    fresh: bool,
    /// A message that cannot be decoded.
    stuck: Option<Lsn>,
    /// A slot whose stream would leave something out, found out by beginning it.
    untrusted: Option<Untrusted>,
    /// How often the server could not decode the slot, or only without its publication.
    failures: undecodable::Failures,
}

/// A slot whose stream would leave something out.
struct Untrusted {
    /// Where: a slot of the same name on another server is another one.
    at: reach::At,
    why: String,
}

/// Waits for something that the server may never do, unless another one has gone on meanwhile.
async fn unless_left<T>(leave: &Drain, waiting: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    tokio::select! {
        waited = waiting => waited,
        () = leave.wait() => Err(refused(Reason::SourceStalePrimary, "another server has gone on meanwhile")),
    }
}

/// One connection, from the first packet to its end.
async fn stream_once(
    options: &Options,
    journal: &Journal,
    ingest: &mut Ingest,
    keeper: Option<&mut gate::Keeper>,
    carried: &mut Carried,
    state: &SourceState,
    drain: &Drain,
) -> Result<(), Error> {
    ingest.settle().await?;
    carried.failures.count(ingest.complete());
    let mut reached = tokio::select! {
        () = drain.wait() => return Ok(()),
        reached = reach::reach(options, journal) => reached?,
    };
    state.update(|status| {
        status.system_identifier = reached.identity.system_identifier;
        status.timeline = reached.identity.timeline;
        status.confirmed_flush = Lsn::ZERO; // what another server's slot has says nothing of this history
    });
    let sql = reached.sql.clone();
    let at = reach::reached_at(&sql, &reached.identity);
    // Preparing may wait for ever on a server that has been overtaken meanwhile. It is told to stop waiting, and ends by
    // itself: what it writes must not be cut short.
    let leave = Drain::new();
    let mut overtaken = None;
    let around = standbys::Around { sql: &sql, at: &at, options, state, journal };
    let mut around = pin!(around.look());
    let opened = async {
        let prepared = prepare::prepare(options, journal, ingest, carried, &mut reached, state, &leave).await?;
        carried.failures.prepared();
        state.reached(sql.clone());
        if let Some(keeper) = &keeper {
            keeper.close();
        }
        let stream = async {
            let stream = reached.replication.start(&options.slot, prepared.start, &options.publication).await?;
            prepared.examined(stream, &sql, &options.slot).await
        };
        let stream = unless_left(&leave, stream).await.inspect_err(|error| carried.failures.note(error))?;
        Ok((stream, prepared))
    };
    let opened = {
        let mut opened = pin!(opened);
        loop {
            tokio::select! {
                () = drain.wait() => return Ok(()), // a new slot may wait for others for ever
                opened = &mut opened => break opened,
                error = &mut around, if overtaken.is_none() => {
                    leave.start();
                    overtaken = Some(error);
                }
            }
        }
    };
    let (mut stream, prepared) = match (opened, overtaken) {
        (_, Some(error)) => return Err(error),
        (Ok(opened), None) => opened,
        (Err(error), None) => {
            if let Error::Untrusted(why) = &error {
                carried.untrusted = Some(Untrusted { at: at.clone(), why: why.clone() });
            }
            return Err(prepare::explain(options, &sql, error).await);
        }
    };
    tracing::info!(slot = options.slot, start = %prepared.start, "streaming");
    let proven = async {
        if let Some(stuck) = carried.failures.given_up() {
            // What does not come further than the last time does not count as streaming.
            let mut complete = journal.complete();
            if complete.wait_for(|complete| *complete != stuck).await.is_err() {
                std::future::pending::<()>().await;
            }
        }
        state.streams();
        std::future::pending().await
    };
    let guard = guard::Guard::new(journal.clone(), ingest.desk());
    let (publication_oid, stuck) = (prepared.publication_oid, carried.stuck);
    let watched = watch::Watch { sql: &sql, options, publication_oid, state, journal, stuck };
    let gate = async {
        match keeper {
            Some(keeper) => keeper.run(&sql).await,
            None => std::future::pending().await,
        }
    };
    let ended = tokio::select! {
        ended = ingest.run(&mut stream, prepared.status_interval, state.nudged(), drain) => ended.map_err(Error::from),
        error = watched.run(guard) => Err(error),
        error = &mut around => Err(error),
        error = gate => Err(error),
        error = proven => Err(error),
    };
    if let Err(error) = &ended {
        carried.failures.note(error);
    }
    if ended.is_ok() {
        stream.stop().await?;
    }
    ended
}

/// Keeps a message that cannot be decoded, once, under its LSN.
fn quarantine(directory: &std::path::Path, lsn: Lsn, bytes: &[u8]) {
    let file = directory.join(format!("{:016X}.pgoutput", lsn.0));
    let kept = std::fs::create_dir_all(directory).and_then(|()| std::fs::write(&file, bytes));
    match kept {
        Ok(()) => tracing::error!(%lsn, file = %file.display(), "message quarantined"),
        Err(error) => tracing::error!(%lsn, %error, "message cannot be quarantined"),
    }
}
