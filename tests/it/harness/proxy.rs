//! Men in the middle between the hub and PostgreSQL: one spoils a message of the replication stream, one leads to another server.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU16, Ordering},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, tcp},
};

/// Forwards to a server; while it spoils, the pgoutput messages that hold the marker get a type that does not exist.
pub struct Proxy {
    pub port: u16,
    spoils: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<()>,
}

impl Proxy {
    pub async fn start(server: u16, marker: &'static [u8]) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("address").port();
        let spoils = Arc::new(AtomicBool::new(true));
        let flag = spoils.clone();
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = TcpStream::connect(("127.0.0.1", server)).await else { continue };
                let (from_client, to_client) = client.into_split();
                let (from_server, to_server) = server.into_split();
                let (mut from, mut to) = (from_client, to_server);
                tokio::spawn(async move { tokio::io::copy(&mut from, &mut to).await });
                tokio::spawn(answers(from_server, to_client, marker, flag.clone()));
            }
        });
        Proxy { port, spoils, task }
    }

    /// Everything passes untouched from now on.
    pub fn honest(&self) {
        self.spoils.store(false, Ordering::SeqCst);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Message by message, as PostgreSQL frames them: a type, and a length that counts itself.
async fn answers(
    mut from: tcp::OwnedReadHalf,
    mut to: tcp::OwnedWriteHalf,
    marker: &'static [u8],
    spoils: Arc<AtomicBool>,
) -> std::io::Result<()> {
    /// In front of the pgoutput message: `w`, start, end and time.
    const XLOG_DATA: usize = 25;
    loop {
        let kind = from.read_u8().await?;
        let length = from.read_u32().await?;
        let mut body = vec![0; length as usize - 4];
        from.read_exact(&mut body).await?;
        let is_change = kind == b'd' && body.first() == Some(&b'w') && body.len() > XLOG_DATA;
        if is_change && spoils.load(Ordering::SeqCst) && body.windows(marker.len()).any(|part| part == marker) {
            body[XLOG_DATA] = b'?';
        }
        to.write_u8(kind).await?;
        to.write_u32(length).await?;
        to.write_all(&body).await?;
    }
}

/// An address that may come to mean another server, as with a floating IP or a pooler. Connections stay where they are.
pub struct Address {
    pub port: u16,
    server: Arc<AtomicU16>,
    task: tokio::task::JoinHandle<()>,
}

impl Address {
    pub async fn of(server: u16) -> Address {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("address").port();
        let server = Arc::new(AtomicU16::new(server));
        let present = server.clone();
        let task = tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let Ok(mut server) = TcpStream::connect(("127.0.0.1", present.load(Ordering::SeqCst))).await else {
                    continue;
                };
                tokio::spawn(async move { tokio::io::copy_bidirectional(&mut client, &mut server).await });
            }
        });
        Address { port, server, task }
    }

    /// Whoever connects from now on reaches this one.
    pub fn leads_to(&self, server: u16) {
        self.server.store(server, Ordering::SeqCst);
    }
}

impl Drop for Address {
    fn drop(&mut self) {
        self.task.abort();
    }
}
