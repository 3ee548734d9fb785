use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Instant,
};

use metrics_exporter_prometheus::PrometheusBuilder;
use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinHandle,
};

use super::*;

struct Running {
    address: SocketAddr,
    state: Arc<Mutex<&'static str>>,
    refreshed: Arc<AtomicUsize>,
    recorder: metrics_exporter_prometheus::PrometheusRecorder,
    stop: CancellationToken,
    task: JoinHandle<Result<(), Error>>,
}

async fn start() -> Running {
    let recorder = PrometheusBuilder::new().build_recorder();
    let state = Arc::new(Mutex::new("starting"));
    let refreshed = Arc::new(AtomicUsize::new(0));
    let pages = Pages {
        metrics: recorder.handle(),
        refresh: Arc::new({
            let refreshed = Arc::clone(&refreshed);
            move || {
                refreshed.fetch_add(1, Ordering::SeqCst);
            }
        }),
        readiness: Arc::new({
            let state = Arc::clone(&state);
            move || {
                let state = *state.lock();
                Readiness { ready: state == "serving", state, details: json!({ "streams": 3 }) }
            }
        }),
    };
    let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let task = tokio::spawn(serve(listener, pages, stop.clone()));
    Running { address, state, refreshed, recorder, stop, task }
}

/// Status code, headers and body.
async fn get(address: SocketAddr, path: &str) -> (u16, String, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).await.unwrap();
    let (head, body) = response.split_once("\r\n\r\n").unwrap();
    (head[9..12].parse().unwrap(), head.to_lowercase(), body.to_owned())
}

#[tokio::test]
async fn readiness_follows_the_hub_and_liveness_does_not() {
    let server = start().await;
    for (state, code) in [("starting", 503), ("serving", 200), ("draining", 503)] {
        *server.state.lock() = state;
        let (got, _, body) = get(server.address, "/readyz").await;
        assert_eq!(got, code, "{state}");
        let body: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(body, json!({ "ready": code == 200, "state": state, "details": { "streams": 3 } }));
        assert_eq!(get(server.address, "/healthz").await.0, 200);
        assert!(get(server.address, "/").await.2.contains(state));
    }
    assert_eq!(get(server.address, "/nothing").await.0, 404);
}

#[tokio::test]
async fn metrics_are_refreshed_before_they_are_rendered() {
    let server = start().await;
    metrics::with_local_recorder(&server.recorder, || metrics::counter!("sample_total").increment(7));
    let (code, head, body) = get(server.address, "/metrics").await;
    assert_eq!(code, 200);
    assert!(head.contains("content-type: text/plain; version=0.0.4"), "{head}");
    assert!(body.contains("sample_total 7"), "{body}");
    assert_eq!(server.refreshed.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn it_stops_in_time_whatever_is_connected() {
    let server = start().await;
    let mut half = TcpStream::connect(server.address).await.unwrap();
    half.write_all(b"GET /readyz HTTP/1.1\r\n").await.unwrap();
    get(server.address, "/healthz").await;
    let begun = Instant::now();
    server.stop.cancel();
    server.task.await.unwrap().unwrap();
    assert!(begun.elapsed() < GRACE * 5);
    assert!(TcpStream::connect(server.address).await.is_err());
}

#[tokio::test]
async fn a_taken_address_is_named_with_what_to_do() {
    let server = start().await;
    let error = bind(server.address).await.unwrap_err().to_string();
    assert!(error.contains(&server.address.to_string()) && error.contains("--http"), "{error}");
}
