//! The floor under every fan-out: a server that writes so many bytes to every connection, in pieces as a hub would, and
//! does nothing else.

use std::{
    io::{IoSlice, Write},
    net::TcpListener,
    process::{Child, Stdio},
};

use super::{harness::process, proc};

/// Of one HTTP/2 DATA frame.
const PIECE: usize = 16 << 10;
const PIECES: usize = 4;

/// The server's process: `PORT BYTES CONNECTIONS`; ends when all connections are served.
pub fn main(orders: &str) {
    let numbers: Vec<u64> = orders.split(' ').map(|text| text.parse().expect("a number")).collect();
    let [port, bytes, connections] = numbers[..] else { panic!("PORT BYTES CONNECTIONS") };
    let listener = TcpListener::bind(("127.0.0.1", port as u16)).expect("listen");
    let threads: Vec<_> = (0..connections)
        .map(|_| {
            let (mut socket, _) = listener.accept().expect("accept");
            socket.set_nodelay(true).expect("nodelay");
            std::thread::spawn(move || {
                let piece = vec![b'x'; PIECE];
                let mut left = bytes as usize;
                while left > 0 {
                    let slices = [IoSlice::new(&piece); PIECES];
                    let n = if left >= PIECE * PIECES {
                        socket.write_vectored(&slices).expect("write")
                    } else {
                        socket.write(&piece[..left.min(PIECE)]).expect("write")
                    };
                    left -= n;
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().expect("connection");
    }
}

/// Starts the server.
pub fn start(port: u16, bytes: u64, connections: usize) -> Child {
    let mut command = process::command(&proc::this_program(), process::Account::Own, "KILL");
    command.args(["raw", &format!("{port} {bytes} {connections}")]).stdin(Stdio::null());
    process::spawn(command).expect("this program")
}
