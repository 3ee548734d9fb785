//! The floor under every fan-out: a server that writes as many bytes to every connection, all out of one buffer as large
//! as a hub's backlog, and does nothing else; and one that writes as many as a transaction takes to every connection,
//! whenever pg_recvlogical has printed an insert.

use std::{
    io::{IoSlice, Write},
    net::{TcpListener, TcpStream},
    process::{Child, Stdio},
    sync::Arc,
};

use super::{harness::process, pgoutput, proc};

/// Of one HTTP/2 DATA frame.
const PIECE: usize = 16 << 10;

/// The server's process: `PORT BYTES CONNECTIONS PIECES`, so many pieces in each writev; ends when all connections are
/// served.
pub fn main(orders: &str) {
    let numbers: Vec<u64> = orders.split(' ').map(|text| text.parse().expect("a number")).collect();
    let [port, bytes, connections, pieces] = numbers[..] else { panic!("PORT BYTES CONNECTIONS PIECES") };
    let backlog: Arc<[u8]> = (0..bytes).map(|n| n as u8).collect();
    let listener = TcpListener::bind(("127.0.0.1", port as u16)).expect("listen");
    let threads: Vec<_> = (0..connections)
        .map(|_| {
            let (mut socket, _) = listener.accept().expect("accept");
            socket.set_nodelay(true).expect("nodelay");
            let backlog = backlog.clone();
            std::thread::spawn(move || {
                let mut left = &backlog[..];
                while !left.is_empty() {
                    let slices: Vec<IoSlice> = left.chunks(PIECE).take(pieces as usize).map(IoSlice::new).collect();
                    left = &left[socket.write_vectored(&slices).expect("write")..];
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().expect("connection");
    }
}

/// Starts the server.
pub fn start(port: u16, bytes: u64, connections: usize, pieces: usize) -> Child {
    let mut command = process::command(&proc::this_program(), process::Account::Own, "KILL");
    command.args(["raw", &format!("{port} {bytes} {connections} {pieces}")]).stdin(Stdio::null());
    process::spawn(command).expect("this program")
}

/// Of a message that tells the latency: as much as a transaction of one small row takes in a subscriber's stream. It
/// begins with the stamp, little-endian.
pub const STAMPED: usize = 250;

/// The server's process: `PORT CONNECTIONS INSERTS`, pg_recvlogical's output at stdin.
pub fn stamps(orders: &str) {
    let numbers: Vec<u64> = orders.split(' ').map(|text| text.parse().expect("a number")).collect();
    let [port, connections, inserts] = numbers[..] else { panic!("PORT CONNECTIONS INSERTS") };
    let listener = TcpListener::bind(("127.0.0.1", port as u16)).expect("listen");
    let mut sockets: Vec<TcpStream> = (0..connections)
        .map(|_| {
            let (socket, _) = listener.accept().expect("accept");
            socket.set_nodelay(true).expect("nodelay");
            socket
        })
        .collect();
    pgoutput::follow(std::io::stdin().lock(), inserts, |sent| {
        let mut message = [0; STAMPED];
        message[..8].copy_from_slice(&sent.to_le_bytes());
        // Who has seen what it wanted is gone.
        sockets.retain_mut(|socket| socket.write_all(&message).is_ok());
    });
}

/// Starts the server that hands on what this pg_recvlogical prints.
pub fn start_stamps(port: u16, connections: usize, inserts: u64, reader: &mut Child) -> Child {
    let mut command = process::command(&proc::this_program(), process::Account::Own, "KILL");
    let pipe = reader.stdout.take().expect("stdout");
    command.args(["stamps", &format!("{port} {connections} {inserts}")]).stdin(pipe);
    process::spawn(command).expect("this program")
}
