//! The floor under every fan-out: a server that writes as many bytes to every connection, all out of one buffer as large
//! as a hub's backlog, and does nothing else.

use std::{
    io::{IoSlice, Write},
    net::TcpListener,
    process::{Child, Stdio},
    sync::Arc,
};

use super::{harness::process, proc};

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
