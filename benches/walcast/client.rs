//! Subscribers, in a process of their own so that their CPU time is theirs. Orders come as one JSON argument; reports go
//! out as JSON lines.

use std::{
    io::{Read, Write},
    time::{Duration, Instant},
};

use prost::Message;
use serde::{Deserialize, Serialize};
use walcast::{lsn::Lsn, wire::pb};

use super::{
    events::Events,
    h2::{Call, Dial, Step},
    proc::now_us,
    rawtcp,
};

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Orders {
    pub port: u16,
    /// Streams, each with a connection of its own.
    pub streams: usize,
    pub start: From,
    pub until: Until,
    /// Streams that open and then never read.
    pub stalled: usize,
    /// Predicate of each stream, `{}` standing for its number; empty for none.
    pub predicate: String,
    /// Seconds between two progress events; 0 for the hub's default.
    pub progress: i64,
    /// Tables that the streams select; empty for all.
    pub tables: Vec<String>,
    /// See [`Dial::ca`].
    pub ca: String,
    /// See [`Dial::frame`].
    pub frame: u32,
    /// Compress each message once more, to know what that would save.
    pub compress: bool,
    /// Every stream looks at changes, where otherwise the others count bytes.
    pub all_look: bool,
    /// With [`Until::Again`]: changes with which each pass of the first stream begins, and their hash.
    pub expected: Option<(u64, u64)>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub enum From {
    #[default]
    Earliest,
    Latest,
    /// Exclusive, as text.
    AfterLsn(String),
    /// LSNs at even distances between these, one for each stream.
    Spread(u64, u64),
    /// With the rows that are there.
    Snapshot {
        incremental: bool,
        /// 0: as fast as it goes.
        max_rows_per_second: u32,
    },
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub enum Until {
    /// Every stream has seen so many changes; each is looked at.
    Changes(u64),
    /// The server ends the streams at its tail; the first looks at changes, the others count bytes, of which there must be as
    /// many.
    Tail,
    /// For ever; reports once all streams are open. There must not be any change.
    #[default]
    Killed,
    /// As [`Until::Tail`], each stream again and again, for ever; reports once all streams are open.
    Again,
    /// As [`Until::Changes`], and each stream reports first when it is open.
    Following(u64),
    /// Measures column 2, microseconds of the server's clock, against arrival, for so many changes.
    Latency(u64),
    /// Plain TCP until the server closes it.
    Raw,
    /// As [`Until::Latency`], over plain TCP.
    RawLatency(u64),
    /// Reconnects whenever the stream breaks, and reports the first change of each stream; for ever.
    Reconnect,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// Wall clock, microseconds, when the first data and the end came.
    pub first_us: u64,
    pub end_us: u64,
    pub changes: u64,
    pub transactions: u64,
    pub hash: u64,
    /// Sum of the ids.
    pub ids: i64,
    /// Of all streams, as their sockets received them.
    pub bytes: u64,
    /// gRPC messages with their framing; of one stream.
    pub payload: u64,
    /// Of the first stream's messages, each compressed by itself, with [`Orders::compress`].
    pub compressed: u64,
    pub latencies_us: Vec<u32>,
    /// Number of the stream, for [`Until::Reconnect`].
    pub stream: u32,
    /// First column of the last change.
    pub id: i64,
    /// Changes whose id is not the successor of the one before.
    pub holes: u64,
}

fn request(orders: &Orders, number: usize, after: Option<&[u8]>) -> Vec<u8> {
    use pb::start::At;
    let at = match (&orders.start, after) {
        (_, Some(position)) => At::After(pb::Position::decode(position).expect("a position")),
        (From::Earliest, None) => At::Earliest(()),
        (From::Latest, None) => At::Latest(()),
        (From::AfterLsn(lsn), None) => At::AfterLsn(lsn.clone()),
        (From::Spread(from, to), None) => {
            let streams = (orders.streams + orders.stalled) as u64;
            At::AfterLsn(Lsn(from + (to - from) / streams * number as u64).to_string())
        }
        (From::Snapshot { incremental, max_rows_per_second }, None) => {
            let mode = if *incremental { pb::SnapshotMode::Incremental } else { pb::SnapshotMode::Consistent };
            At::Snapshot(pb::SnapshotOptions { mode: mode as i32, max_rows_per_second: *max_rows_per_second })
        }
    };
    let request = pb::SubscribeRequest {
        start: Some(pb::Start { at: Some(at) }),
        stop_at_tail: matches!(orders.until, Until::Tail | Until::Again),
        filter: (!orders.predicate.is_empty() || !orders.tables.is_empty()).then(|| pb::Filter {
            tables: orders.tables.clone(),
            r#where: orders.predicate.replace("{}", &number.to_string()),
            ..pb::Filter::default()
        }),
        progress_interval: (orders.progress > 0)
            .then_some(prost_types::Duration { seconds: orders.progress, nanos: 0 }),
        ..Default::default()
    };
    request.encode_to_vec()
}

const PATH: &str = "/walcast.v1.ChangeStreamService/Subscribe";

/// Opens a stream and waits for its first data: until then the hub may still be starting.
fn open(orders: &Orders, number: usize, after: Option<&[u8]>, mut data: impl FnMut(&[u8])) -> (Call, Step) {
    let deadline = Instant::now() + Duration::from_secs(120);
    let dial = Dial { port: orders.port, ca: &orders.ca, frame: orders.frame };
    loop {
        if let Ok(mut call) = Call::open(&dial, PATH, &request(orders, number, after)) {
            let mut any = false;
            loop {
                match call.read(|bytes| {
                    any = true;
                    data(bytes);
                }) {
                    Ok(step) if any => return (call, step),
                    Ok(Step::Open) => {}
                    Ok(Step::Ended) | Err(_) => break,
                }
            }
        }
        assert!(Instant::now() < deadline, "no stream within 120 s");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn say(report: &Report) {
    let mut out = std::io::stdout().lock();
    let line = serde_json::to_string(report).expect("JSON");
    writeln!(out, "{line}").and_then(|()| out.flush()).expect("stdout");
}

/// Carries out the orders and ends the process.
pub fn main(orders: &str) {
    let orders: Orders = serde_json::from_str(orders).expect("orders");
    // What one stream finds wrong is the end of all.
    let say_where = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        say_where(panic);
        std::process::exit(101);
    }));
    match orders.until {
        Until::Reconnect => reconnect(&orders),
        Until::Latency(changes) | Until::RawLatency(changes) => say(&latency(&orders, changes)),
        Until::Killed | Until::Again => idle(&orders),
        Until::Changes(_) | Until::Following(_) | Until::Tail | Until::Raw => drain(&orders),
    }
}

fn drain(orders: &Orders) {
    let streams: Vec<_> = (0..orders.streams)
        .map(|number| {
            let orders = orders.clone();
            std::thread::Builder::new().stack_size(256 << 10).spawn(move || one(&orders, number)).expect("thread")
        })
        .collect();
    let mut sum = Report::default();
    for (number, stream) in streams.into_iter().enumerate() {
        let report = stream.join().expect("stream");
        if number == 0 {
            sum = report;
        } else {
            check_same(orders, number, &sum, &report);
            sum.first_us = sum.first_us.min(report.first_us);
            sum.end_us = sum.end_us.max(report.end_us);
            sum.bytes += report.bytes;
        }
    }
    say(&sum);
}

/// Bytes of the messages by which two streams of the same changes may differ: `progress`, which goes by time.
const PROGRESS: u64 = 16 << 10;

/// Every stream has what the first one has.
fn check_same(orders: &Orders, number: usize, first: &Report, other: &Report) {
    let looked = !matches!(orders.until, Until::Raw) && (orders.all_look || !matches!(orders.until, Until::Tail));
    if looked {
        let (first, other) = ((first.changes, first.hash), (other.changes, other.hash));
        assert_eq!(other, first, "changes and hash of stream {number} and of the first one");
    }
    let apart = other.payload.abs_diff(first.payload);
    assert!(apart <= PROGRESS, "stream {number} has {} bytes, the first one {}", other.payload, first.payload);
}

fn one(orders: &Orders, number: usize) -> Report {
    if let Until::Raw = orders.until {
        return raw(orders);
    }
    let target = match orders.until {
        Until::Changes(changes) | Until::Following(changes) => changes,
        _ => u64::MAX,
    };
    let looks = number == 0 || target != u64::MAX || orders.all_look;
    let mut seen = Events::default();
    seen.compress = orders.compress;
    let mut bytes = 0;
    let mut take = |data: &[u8]| {
        bytes += data.len() as u64;
        if looks {
            seen.take(data, |_| {});
        }
        seen.changes
    };
    let mut changes = 0;
    let (mut call, mut step) = open(orders, number, None, |data| changes = take(data));
    let first_us = now_us();
    if let Until::Following(_) = orders.until {
        say(&Report::default());
    }
    while changes < target && step == Step::Open {
        step = call.read(|data| changes = take(data)).expect("the stream breaks");
    }
    Report {
        first_us,
        end_us: now_us(),
        changes: seen.changes,
        transactions: seen.transactions,
        hash: seen.hash,
        ids: seen.ids,
        bytes: call.wire_bytes.max(bytes),
        payload: if target == u64::MAX { bytes } else { 0 },
        compressed: seen.compressed,
        ..Report::default()
    }
}

fn raw(orders: &Orders) -> Report {
    let mut socket = std::net::TcpStream::connect(("127.0.0.1", orders.port)).expect("connect");
    let mut buffer = vec![0; 256 << 10];
    let mut report = Report { first_us: now_us(), ..Report::default() };
    loop {
        match socket.read(&mut buffer).expect("read") {
            0 => break,
            n => report.bytes += n as u64,
        }
    }
    report.end_us = now_us();
    report
}

fn idle(orders: &Orders) {
    let (opened, all_open) = std::sync::mpsc::channel();
    for number in 0..orders.streams + orders.stalled {
        let (orders, opened) = (orders.clone(), opened.clone());
        let stream = move || {
            let again = matches!(orders.until, Until::Again);
            let stalls = number >= orders.streams;
            let looks = !stalls && (number == 0 || !again);
            let mut first_pass = None;
            loop {
                let (mut seen, mut bytes) = (Events::default(), 0);
                let mut take = |data: &[u8]| {
                    bytes += data.len() as u64;
                    if looks {
                        seen.take(data, |seen| match orders.expected {
                            Some((changes, hash)) if seen.changes == changes => {
                                assert_eq!(seen.hash, hash, "the order")
                            }
                            _ => {}
                        });
                    }
                    assert!(again || seen.changes == 0, "a change in a stream that selects none");
                };
                let (mut call, mut step) = open(&orders, number, None, &mut take);
                if first_pass.is_none() {
                    opened.send(()).expect("main");
                }
                if stalls {
                    panic!("a stalled stream ended: {}", call.stall());
                }
                while step == Step::Open {
                    step = call.read(&mut take).expect("the stream breaks");
                }
                assert!(again, "the stream ended");
                assert!(
                    !looks || orders.expected.is_none_or(|(changes, _)| seen.changes >= changes),
                    "a pass is too short"
                );
                let first: u64 = *first_pass.get_or_insert(bytes);
                assert!(bytes + PROGRESS >= first, "{bytes} bytes in a pass, {first} in the first one");
            }
        };
        std::thread::Builder::new().stack_size(256 << 10).spawn(stream).expect("thread");
    }
    for _ in 0..orders.streams + orders.stalled {
        all_open.recv().expect("streams");
    }
    say(&Report::default());
    loop {
        std::thread::park();
    }
}

/// Of the last stream that hears of each change.
fn latency(orders: &Orders, changes: u64) -> Report {
    let (opened, all_open) = std::sync::mpsc::channel();
    let streams: Vec<_> = (0..orders.streams)
        .map(|number| {
            let (orders, opened) = (orders.clone(), opened.clone());
            let follow = move || match orders.until {
                Until::RawLatency(_) => follow_raw(&orders, changes, &opened),
                _ => follow(&orders, number, changes, &opened),
            };
            std::thread::Builder::new().stack_size(256 << 10).spawn(follow).expect("thread")
        })
        .collect();
    for _ in 0..orders.streams {
        all_open.recv().expect("streams");
    }
    say(&Report::default());
    let mut last: Option<Report> = None;
    for stream in streams {
        let report = stream.join().expect("stream");
        match &mut last {
            None => last = Some(report),
            Some(last) => {
                for (slowest, latency) in last.latencies_us.iter_mut().zip(report.latencies_us) {
                    *slowest = latency.max(*slowest);
                }
            }
        }
    }
    last.expect("a stream")
}

/// Ids that may be taken and not committed yet: of each writer one, when the last change is seen and before the first is.
const WRITERS: u64 = 8;

fn follow(orders: &Orders, number: usize, changes: u64, opened: &std::sync::mpsc::Sender<()>) -> Report {
    let mut seen = Events::default();
    let mut latencies = Vec::with_capacity(changes as usize);
    let (mut first, mut last) = (i64::MAX, i64::MIN);
    let (mut call, _) = open(orders, number, None, |data| seen.take(data, |_| {}));
    opened.send(()).expect("main");
    while (latencies.len() as u64) < changes {
        let mut take = |data: &[u8]| {
            let now = now_us() as i64;
            seen.take(data, |seen| {
                latencies.push((now - seen.values[1]).max(0) as u32);
                (first, last) = (first.min(seen.values[0]), last.max(seen.values[0]));
            });
        };
        call.read(&mut take).expect("the stream breaks");
    }
    let missing = (last - first + 1).abs_diff(latencies.len() as i64);
    assert!(missing <= WRITERS, "{missing} of the ids {first} to {last} are missing, or came twice");
    Report { end_us: now_us(), changes: seen.changes, latencies_us: latencies, hash: seen.hash, ..Report::default() }
}

fn follow_raw(orders: &Orders, changes: u64, opened: &std::sync::mpsc::Sender<()>) -> Report {
    let mut socket = std::net::TcpStream::connect(("127.0.0.1", orders.port)).expect("connect");
    opened.send(()).expect("main");
    let mut latencies = Vec::with_capacity(changes as usize);
    let mut message = [0; rawtcp::STAMPED];
    while (latencies.len() as u64) < changes {
        socket.read_exact(&mut message).expect("the connection breaks");
        let sent = message.first_chunk().map_or(0, |stamp| i64::from_le_bytes(*stamp));
        latencies.push((now_us() as i64 - sent).max(0) as u32);
    }
    Report { end_us: now_us(), changes, latencies_us: latencies, ..Report::default() }
}

fn reconnect(orders: &Orders) {
    let mut position: Option<Vec<u8>> = None;
    let mut id = 0;
    let mut holes = 0;
    for stream in 0.. {
        // Ids of a transaction that was cut off come again.
        let mut settled = id;
        let mut first = true;
        let mut seen = Events::default();
        let mut take = |seen: &mut Events, data: &[u8]| {
            let transactions = seen.transactions;
            seen.take(data, |seen| {
                let next = seen.values[0];
                if settled != 0 && next != settled + 1 {
                    holes += 1;
                }
                settled = next;
                if std::mem::take(&mut first) {
                    let now = now_us();
                    say(&Report { first_us: now, stream, id: next, holes, ..Report::default() });
                }
            });
            if seen.transactions > transactions {
                id = settled;
            }
        };
        let (mut call, _) = open(orders, 0, position.as_deref(), |data| take(&mut seen, data));
        while call.read(|data| take(&mut seen, data)).is_ok_and(|step| step == Step::Open) {}
        if !seen.position.is_empty() {
            position = Some(seen.position);
        }
        say(&Report { end_us: now_us(), stream, id: settled, holes, changes: seen.changes, ..Report::default() });
    }
}
