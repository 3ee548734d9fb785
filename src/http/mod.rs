//! The second port: metrics, liveness, readiness. Plain HTTP, on loopback by default, and nothing on it changes
//! anything.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header},
    response::{Html, IntoResponse},
    routing::get,
};
use metrics_exporter_prometheus::PrometheusHandle;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Media type of Prometheus' text form.
const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// How long requests that are being answered may take once the server stops.
const GRACE: Duration = Duration::from_secs(1);

/// Whether streams are served, and why (not).
#[derive(Clone, Debug)]
pub struct Readiness {
    /// Streams are served, and the hub is not draining.
    pub ready: bool,
    /// One word for people: `starting`, `serving`, `draining`.
    pub state: &'static str,
    /// Whatever helps to understand it.
    pub details: Value,
}

/// What the pages show.
#[derive(Clone)]
pub struct Pages {
    /// Renders the metrics.
    pub metrics: PrometheusHandle,
    /// Called before every rendering, for gauges that nobody keeps up to date in between.
    pub refresh: Arc<dyn Fn() + Send + Sync>,
    /// Asked for every `/readyz`.
    pub readiness: Arc<dyn Fn() -> Readiness + Send + Sync>,
}

/// Why there is no HTTP server.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address cannot be had.
    #[error("cannot listen on {address} for HTTP: {source}{}", hint(source))]
    Bind {
        /// As configured.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// The listener broke.
    #[error("the HTTP server ended: {0}")]
    Serve(io::Error),
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "; another process listens there: stop it, or choose another address with --http",
        io::ErrorKind::PermissionDenied => "; ports below 1024 need a privilege: choose another with --http",
        io::ErrorKind::AddrNotAvailable => "; this machine has no such address",
        _ => "",
    }
}

/// Takes the address. Port 0: any free one.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, Error> {
    TcpListener::bind(address).await.map_err(|source| Error::Bind { address, source })
}

/// Serves until `stop`, which is not the drain: `/readyz` says that the hub drains for as long as it does. Returns at
/// most a second after.
pub async fn serve(listener: TcpListener, pages: Pages, stop: CancellationToken) -> Result<(), Error> {
    let stopped = stop.clone().cancelled_owned();
    let server = axum::serve(listener, router(pages)).with_graceful_shutdown(stopped);
    tokio::select! {
        ended = async { server.await } => ended.map_err(Error::Serve),
        () = async { stop.cancelled().await; tokio::time::sleep(GRACE).await } => Ok(()),
    }
}

fn router(pages: Pages) -> Router {
    Router::new()
        .route("/", get(index))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(pages)
}

async fn metrics(State(pages): State<Pages>) -> impl IntoResponse {
    (pages.refresh)();
    ([(header::CONTENT_TYPE, METRICS_TYPE)], without_retired(pages.metrics.render()))
}

/// Gauges that are NaN belong to nothing any more (`crate::metrics::retire`): shown, they would make every sum over them NaN, and an
/// alert on that sum silent.
fn without_retired(page: String) -> String {
    if !page.contains(" NaN\n") {
        return page;
    }
    page.split_inclusive('\n').filter(|line| line.starts_with('#') || !line.ends_with(" NaN\n")).collect()
}

async fn ready(State(pages): State<Pages>) -> impl IntoResponse {
    let Readiness { ready, state, details } = (pages.readiness)();
    let code = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, [(header::CACHE_CONTROL, "no-store")], Json(json!({ "ready": ready, "state": state, "details": details })))
}

async fn index(State(pages): State<Pages>) -> impl IntoResponse {
    let state = (pages.readiness)().state;
    let version = env!("CARGO_PKG_VERSION");
    Html(format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>walcast</title>\n\
         <h1>walcast {version}</h1>\n<p>{state}</p>\n<ul>\n\
         <li><a href=\"/readyz\">/readyz</a>: 200 once streams are served</li>\n\
         <li><a href=\"/healthz\">/healthz</a>: 200 while the process lives</li>\n\
         <li><a href=\"/metrics\">/metrics</a>: for Prometheus</li>\n</ul>\n</html>\n"
    ))
}

#[cfg(test)]
mod tests;
