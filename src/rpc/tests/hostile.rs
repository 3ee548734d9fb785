//! Peers that speak HTTP/2 by hand, and badly ([RFC 9113](https://www.rfc-editor.org/rfc/rfc9113)).

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{
    super::Options,
    DEADLINE,
    fake::{Running, frame, start},
    within,
};
use crate::wire::pb;

const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

const ENHANCE_YOUR_CALM: u32 = 11;

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// `:method: POST`, `:scheme: http`, `:path: /` from HPACK's static table.
const REQUEST: &[u8] = &[0x83, 0x86, 0x84];

/// A CONNECT with content, which hyper closes the connection for: `:method`, `:authority` and `content-length` as literals.
const CONNECT: &[u8] = b"\x02\x07CONNECT\x01\x01x\x0f\x0d\x015";

fn write_frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    out.extend_from_slice(&(payload.len() as u32).to_be_bytes()[1..]);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
}

fn preface() -> Vec<u8> {
    let mut out = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    write_frame(&mut out, SETTINGS, 0, 0, &[]);
    out
}

/// Error code of the GOAWAY that the server answers with before it closes; `None` if it just closes.
async fn goaway(stream: &mut (impl AsyncRead + Unpin)) -> Option<u32> {
    let mut code = None;
    loop {
        let mut head = [0; 9];
        if stream.read_exact(&mut head).await.is_err() {
            return code;
        }
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        if stream.read_exact(&mut payload).await.is_err() {
            return code;
        }
        if head[3] == GOAWAY {
            code = Some(u32::from_be_bytes(payload[4..8].try_into().unwrap()));
        }
    }
}

async fn answer_to(server: &Running, frames: &[u8]) -> Option<u32> {
    let (mut read, mut write) = TcpStream::connect(server.address).await.unwrap().into_split();
    let frames = frames.to_vec();
    // What the server no longer reads cannot be written either.
    let writing = tokio::spawn(async move {
        write.write_all(&frames).await.unwrap_or_default();
        write
    });
    let code = within(goaway(&mut read)).await;
    drop(writing);
    code
}

async fn still_serves(server: &Running) {
    within(server.changes().await.list_relations(pb::ListRelationsRequest::default())).await.unwrap();
}

#[tokio::test]
async fn a_rapid_reset_closes_the_connection() {
    let server = start(Options::default()).await;
    let mut frames = preface();
    for stream in (1..2000).step_by(2) {
        write_frame(&mut frames, HEADERS, END_HEADERS | END_STREAM, stream, REQUEST);
        write_frame(&mut frames, RST_STREAM, 0, stream, &8_u32.to_be_bytes());
    }
    assert_eq!(answer_to(&server, &frames).await, Some(ENHANCE_YOUR_CALM));
    still_serves(&server).await;
}

#[tokio::test]
async fn making_the_server_reset_its_streams_closes_the_connection() {
    let server = start(Options { streams_per_connection: 5000, ..Options::default() }).await;
    let mut frames = preface();
    for stream in (1..4000).step_by(2) {
        write_frame(&mut frames, HEADERS, END_HEADERS, stream, REQUEST);
        // The window overflows, which is an error of the stream.
        write_frame(&mut frames, WINDOW_UPDATE, 0, stream, &0x7fff_ffff_u32.to_be_bytes());
    }
    assert_eq!(answer_to(&server, &frames).await, Some(ENHANCE_YOUR_CALM));
    still_serves(&server).await;
}

#[tokio::test]
async fn requests_of_a_connection_that_ends_as_they_arrive_are_let_go_of() {
    const REQUESTS: u32 = 200;
    let server = start(Options::default()).await;
    let mut frames = preface();
    for stream in (1..2 * REQUESTS).step_by(2) {
        write_frame(&mut frames, HEADERS, END_HEADERS | END_STREAM, stream, REQUEST);
    }
    write_frame(&mut frames, HEADERS, END_HEADERS, 2 * REQUESTS + 1, CONNECT);
    answer_to(&server, &frames).await;
    // Each of them holds the service, and that the hub.
    let held = || Arc::strong_count(&server.hub);
    let gone = async {
        while held() > REQUESTS as usize {
            tokio::task::yield_now().await;
        }
    };
    assert!(tokio::time::timeout(DEADLINE, gone).await.is_ok(), "{} are held", held());
    still_serves(&server).await;
}

#[tokio::test]
async fn headers_without_an_end_close_the_connection() {
    let server = start(Options::default()).await;
    let mut frames = preface();
    write_frame(&mut frames, HEADERS, END_STREAM, 1, REQUEST);
    // A literal header without indexing, "a: xxxx...", again and again.
    let mut field = vec![0x00, 0x01, b'a', 0x7f, 0x81, 0x07];
    field.extend(vec![b'x'; 1024]);
    for _ in 0..2000 {
        write_frame(&mut frames, CONTINUATION, 0, 1, &field);
    }
    answer_to(&server, &frames).await;
    still_serves(&server).await;
}

#[tokio::test]
async fn what_is_not_http2_is_hung_up_on() {
    let server = start(Options::default()).await;
    answer_to(&server, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    answer_to(&server, &[0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01, 0xfc, 0x03, 0x03].repeat(10)).await;
    still_serves(&server).await;
}

#[tokio::test]
async fn a_peer_that_says_nothing_is_hung_up_on() {
    let handshake_limit = Duration::from_millis(200);
    let server = start(Options { handshake_limit, ..Options::default() }).await;
    let mut silent = TcpStream::connect(server.address).await.unwrap();
    let mut slow = TcpStream::connect(server.address).await.unwrap();
    slow.write_all(&preface()[..30]).await.unwrap();
    let begun = Instant::now();
    assert_eq!(within(goaway(&mut silent)).await, None);
    within(goaway(&mut slow)).await;
    assert!(begun.elapsed() >= handshake_limit / 2, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_peer_that_answers_no_ping_is_hung_up_on_and_one_that_does_is_not() {
    let (ping_interval, ping_limit) = (Duration::from_millis(100), Duration::from_millis(200));
    let server = start(Options { ping_interval, ping_limit, ..Options::default() }).await;
    let steps = server.script();
    let mut alive = within(server.changes().await.subscribe(pb::SubscribeRequest::default())).await.unwrap();
    let mut dead = TcpStream::connect(server.address).await.unwrap();
    dead.write_all(&preface()).await.unwrap();
    let begun = Instant::now();
    within(goaway(&mut dead)).await;
    assert!(begun.elapsed() >= ping_limit, "{:?}", begun.elapsed());
    steps.send(Ok(frame(1, 10))).await.unwrap();
    within(alive.get_mut().message()).await.unwrap().unwrap();
}
