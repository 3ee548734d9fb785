//! The composition root: builds every part of the hub from the configuration, runs it, and ends it in order. The one
//! place that sees everything.
//!
//! The source has a thread and a runtime of its own: decoding is one steady stream of work, sessions are many short
//! ones, and a burst of wake-ups must not delay the reading of the slot.

use std::{
    io,
    sync::{Arc, OnceLock},
    thread::JoinHandle,
};

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use rustix::process::{Resource, Rlimit};
use serde_json::json;
use tokio::sync::oneshot;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::{
    config::Config,
    feed::{Feed, Source},
    http::{self, Pages, Readiness},
    hub::{Hub, Limits},
    ingest::Ingest,
    journal::{self, Journal},
    metrics,
    postgres::conninfo::{self, ConnectOptions},
    reason::{Classified, Reason},
    rpc::{self, Health, Offer, Origins, Services, Tls, TlsFiles, Tokens},
    shutdown::Drain,
    snapshot::{Exporter, Patience},
    source::{self, SourceState},
};

/// The hub did not start, or did not end well.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The connection string.
    #[error("source.dsn: {0}")]
    Dsn(#[from] conninfo::Error),
    /// The data directory.
    #[error(transparent)]
    Journal(#[from] journal::Error),
    /// The gRPC listener.
    #[error(transparent)]
    Grpc(#[from] rpc::server::Error),
    /// Certificates.
    #[error(transparent)]
    Tls(#[from] rpc::tls::Error),
    /// Tokens.
    #[error(transparent)]
    Tokens(#[from] rpc::tokens::Error),
    /// The HTTP listener.
    #[error(transparent)]
    Http(#[from] http::Error),
    /// The end of streaming could not be made durable.
    #[error(transparent)]
    Ingest(#[from] crate::ingest::Error),
    /// The operating system.
    #[error("{what}: {error}")]
    System {
        /// What was attempted.
        what: &'static str,
        /// What it says.
        error: io::Error,
    },
}

impl Classified for Error {
    fn reason(&self) -> Reason {
        match self {
            Error::Journal(error) => error.reason(),
            Error::Ingest(error) => error.reason(),
            Error::Dsn(_) | Error::Tls(_) | Error::Tokens(_) => Reason::RequestInvalid,
            Error::Grpc(_) | Error::Http(_) | Error::System { .. } => Reason::Internal,
        }
    }
}

/// Runs the hub until `drain` is told or it cannot go on. Returns when every stream has ended, or was cut at the drain
/// limit, and PostgreSQL has been told what is durable.
pub async fn serve(config: Config, drain: Drain) -> Result<(), Error> {
    let connect = ConnectOptions::parse(Some(config.source.dsn.expose()), &|name| std::env::var(name).ok())?;
    rpc::refuse_plaintext(config.grpc.listen, config.grpc.tls.is_some(), config.grpc.insecure)?;
    let options = grpc_options(&config)?;
    let grpc = rpc::bind(config.grpc.listen).await?;
    let pages = match config.http.listen {
        Some(address) => Some(http::bind(address).await?),
        None => None,
    };
    let rendered = recorder();
    allow_files(config.limits.connections);

    let options_of_journal = journal_options(&config);
    let opened = tokio::task::spawn_blocking(|| Journal::open(options_of_journal)).await;
    let (journal, appender, recovered) =
        opened.map_err(|error| Error::System { what: "opening the journal", error: io::Error::other(error) })??;
    // Segments alone tell nothing: a hub that was refused before it founded its journal has them.
    let fresh = recovered.fresh || journal.lineage().is_none();
    tracing::info!(
        tail = (!fresh).then(|| tracing::field::display(recovered.complete)),
        fresh,
        eager = config.journal.eager,
        data_dir = %config.journal.data_dir.display(),
        "journal open"
    );
    let state = SourceState::new(&config.source.slot, &config.source.publication);
    let ingest = Ingest::new(journal.clone(), appender, &recovered);
    let rows = connect.clone();
    let database = config.journal.data_dir.join("database");
    let source = source::Options {
        connect,
        slot: config.source.slot.clone(),
        publication: config.source.publication.clone(),
        create_publication: config.source.create_publication,
        schemas: config.source.schemas.clone(),
        quarantine: config.journal.data_dir.join("quarantine"),
        rebase: config.journal.data_dir.join(source::REBASE),
        database: database.clone(),
        failover_slot: config.source.failover_slot,
        on_slot_lost: match config.source.continue_after_gap {
            true => source::OnSlotLost::Continue,
            false => source::OnSlotLost::Stop,
        },
        gate: config.source.gate.clone(),
    };
    let loop_ = source::run(source, journal.clone(), fresh, ingest, state.clone(), drain.clone());
    let source = on_its_own_thread(loop_)?;

    let feed: Arc<dyn Feed> = Arc::new(journal.clone());
    let limits = Limits {
        streams: config.limits.streams,
        subscribers: config.limits.subscribers,
        catch_up_readers: config.limits.catch_up_readers,
        catch_up_waiting: config.limits.catch_up_waiting,
        snapshots: config.limits.snapshots as usize,
        projection_bytes: config.limits.projection_bytes as usize,
    };
    let hub = Hub::new(feed.clone(), Arc::new(state.clone()), Arc::new(journal.clone()), limits, drain.clone());
    let patience = Patience { idle: config.limits.snapshot_idle, settle: config.limits.snapshot_settle };
    hub.reads_rows_with(Arc::new(Exporter::new(rows, &config.source.publication, database, feed.clone(), patience)));
    let health = Health::new().await;
    let serving = (tell_health(health.clone(), &state), tell_disk_full(&journal, state.clone()));
    let stop_pages = CancellationToken::new();
    let readiness = readiness(journal.clone(), state.clone(), drain.clone(), fresh);
    let pages = pages.map(|listener| {
        tracing::info!(
            address = listener.local_addr().ok().map(tracing::field::display),
            "serving metrics and health over HTTP"
        );
        let lags = hub.clone();
        let pages = Pages { metrics: rendered, refresh: Arc::new(move || lags.record_lags()), readiness };
        AbortOnDropHandle::new(tokio::spawn(http::serve(listener, pages, stop_pages.clone())))
    });
    tracing::info!(
        address = grpc.local_addr().ok().map(tracing::field::display),
        tls = config.grpc.tls.is_some(),
        "serving gRPC"
    );
    let services = Services { backend: hub, feed, source: Arc::new(state), health };
    let ended = drain_when_source_ends(source, drain.clone());
    let served = rpc::serve(grpc, services, options, drain).await;
    drop(serving);
    let source_ended = ended.await;
    stop_pages.cancel();
    if let Some(pages) = pages {
        pages.await.map_err(|error| Error::System { what: "HTTP server", error: io::Error::other(error) })??;
    }
    served?;
    tracing::info!("stopped");
    source_ended
}

fn grpc_options(config: &Config) -> Result<rpc::Options, Error> {
    let web = (!config.grpc.web_origins.is_empty()).then(|| Arc::new(Origins::new(config.grpc.web_origins.clone())));
    let offer = if web.is_some() { Offer::Http2AndHttp1 } else { Offer::Http2 };
    let tls = match &config.grpc.tls {
        Some(files) => {
            let files = TlsFiles {
                certificate: files.cert.clone(),
                key: files.key.clone(),
                client_ca: files.client_ca.clone(),
            };
            Some(Arc::new(Tls::load(files, offer)?))
        }
        None => None,
    };
    let tokens = match &config.grpc.tokens_file {
        Some(path) => Some(Arc::new(Tokens::load(path.clone())?)),
        None => None,
    };
    Ok(rpc::Options {
        tls,
        tokens,
        web,
        reflection: config.grpc.reflection,
        connections: config.limits.connections,
        streams_per_connection: config.limits.streams_per_connection,
        request_bytes: config.limits.request_bytes,
        header_bytes: config.limits.header_bytes,
        pending_resets: config.limits.pending_resets,
        ping_interval: config.limits.keepalive_interval,
        ping_limit: config.limits.keepalive_timeout,
        drain_limit: config.grpc.drain_timeout,
        ..rpc::Options::default()
    })
}

fn journal_options(config: &Config) -> journal::Options {
    journal::Options {
        segment_bytes: config.journal.segment_bytes,
        retain_bytes: config.journal.retain_bytes,
        retain_age: config.journal.retain_age,
        ring_bytes: config.journal.ring_bytes as usize,
        cache_bytes: config.journal.cache_bytes,
        reserve_bytes: config.journal.reserve_bytes,
        eager: config.journal.eager,
        ..journal::Options::new(&config.journal.data_dir)
    }
}

/// Besides connections: segments, the catalogue, listeners, PostgreSQL.
const OTHER_FILES: u64 = 512;

/// A connection is an open file, and the usual soft limit of 1024 is far below what may be configured. Raises it as far
/// as it goes.
fn allow_files(connections: usize) {
    let needed = (connections as u64).saturating_add(OTHER_FILES);
    let limit = rustix::process::getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= needed) {
        return;
    }
    let reachable = limit.maximum.map_or(needed, |maximum| maximum.min(needed));
    let raised = Rlimit { current: Some(reachable), maximum: limit.maximum };
    if let Err(error) = rustix::process::setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "the limit of open files cannot be raised");
    } else if reachable < needed {
        tracing::warn!(
            limit = reachable,
            needed,
            "limits.connections is more than this process may have open files: raise RLIMIT_NOFILE (LimitNOFILE= in systemd)"
        );
    }
}

/// The process's metrics; installed once, however often a hub is started in it.
fn recorder() -> PrometheusHandle {
    static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();
    HANDLE
        .get_or_init(|| {
            let recorder = PrometheusBuilder::new().build_recorder();
            let handle = recorder.handle();
            if ::metrics::set_global_recorder(recorder).is_ok() {
                metrics::describe();
            }
            handle
        })
        .clone()
}

type SourceEnded = oneshot::Receiver<Result<(), crate::ingest::Error>>;

fn on_its_own_thread(
    run: impl Future<Output = Result<(), crate::ingest::Error>> + Send + 'static,
) -> Result<SourceEnded, Error> {
    let failed = |what| move |error| Error::System { what, error };
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed("runtime of the source"))?;
    let (ended, receiver) = oneshot::channel();
    let run = move || {
        let _ = ended.send(runtime.block_on(run));
    };
    let _detached: JoinHandle<()> =
        std::thread::Builder::new().name("source".into()).spawn(run).map_err(failed("thread of the source"))?;
    Ok(receiver)
}

/// The source ends by itself only when draining, or when the journal cannot be written; then everything ends.
async fn source_end(source: SourceEnded) -> Result<(), Error> {
    match source.await {
        Ok(ended) => Ok(ended?),
        Err(_) => Err(Error::System { what: "source", error: io::Error::other("its thread died") }),
    }
}

fn drain_when_source_ends(source: SourceEnded, drain: Drain) -> impl Future<Output = Result<(), Error>> {
    let task = tokio::spawn(async move {
        let ended = source_end(source).await;
        drain.start();
        ended
    });
    async move { task.await.unwrap_or_else(|error| Err(Error::System { what: "source", error: io::Error::other(error) })) }
}

/// Health turns SERVING when the slot first streams, and stays so while the source is away.
fn tell_health(health: Health, state: &SourceState) -> AbortOnDropHandle<()> {
    let mut streamed = state.streamed();
    AbortOnDropHandle::new(tokio::spawn(async move {
        if streamed.wait_for(|streamed| *streamed).await.is_ok() {
            health.serving(true).await;
            std::future::pending().await
        }
    }))
}

/// Status says that reading waits for disk space.
fn tell_disk_full(journal: &Journal, state: SourceState) -> AbortOnDropHandle<()> {
    let mut full = journal.disk_full();
    AbortOnDropHandle::new(tokio::spawn(async move {
        loop {
            state.journal_full(*full.borrow_and_update());
            if full.changed().await.is_err() {
                return;
            }
        }
    }))
}

/// Ready means that a subscriber gets what it asks for. A new journal has nothing before its slot exists: what commits
/// until then would be missing. An old one serves although its source is away.
fn readiness(
    journal: Journal,
    state: SourceState,
    drain: Drain,
    fresh: bool,
) -> Arc<dyn Fn() -> Readiness + Send + Sync> {
    let streamed = state.streamed();
    Arc::new(move || {
        let source = state.status();
        let (ready, state) = match (drain.started(), *streamed.borrow()) {
            (true, _) => (false, "draining"),
            (false, true) => (true, "serving"),
            (false, false) => (!fresh, if fresh { "starting" } else { "serving from the journal" }),
        };
        let details = json!({
            "source_connected": source.connected,
            "source_error": source.last_error,
            "tail": journal.window().tail.lsn.to_string(),
        });
        Readiness { ready, state, details }
    })
}
