//! A socket that is told when more is to come. h2 writes each DATA frame by itself and flushes behind it
//! ([h2#902](https://github.com/hyperium/h2/issues/902)), and with TCP_NODELAY, which live events need, each becomes a
//! segment of its own and wakes its reader: over half of what it costs to send 16 KiB. `MSG_MORE` with a good part of a frame lets the
//! kernel join it with the next ([send(2)](https://man7.org/linux/man-pages/man2/send.2.html)), without a copy; and when
//! the task of the connection has nothing more to write, whatever still waits is pushed: setting TCP_NODELAY does that
//! ([tcp(7)](https://man7.org/linux/man-pages/man7/tcp.7.html)). What is smaller goes at once, as always, and takes along what
//! waits.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
};

use rustix::net::{SendAncillaryBuffer, SendFlags, Shutdown, send, sendmsg, shutdown, sockopt::set_tcp_nodelay};
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
};

/// A write of so many bytes is a piece of a block, behind which another is likely: SETTINGS_MAX_FRAME_SIZE is at least twice
/// this ([RFC 9113, 6.5.2](https://www.rfc-editor.org/rfc/rfc9113#section-6.5.2)), and a block's last frame is seldom less.
const BULK: usize = 8 << 10;

/// A connection whose bulk is joined to large segments.
pub struct Corked {
    read: OwnedReadHalf,
    shared: Arc<Shared>,
}

/// Pushes what waits.
pub struct Cork(Arc<Shared>);

struct Shared {
    write: OwnedWriteHalf,
    /// The last write said that more is to come.
    waits: AtomicBool,
}

impl Cork {
    /// To be called when nothing more will be written for now: what was held back goes. That the peer is gone is told by
    /// the next read or write.
    pub fn push(&self) {
        if self.0.waits.swap(false, Ordering::Relaxed) {
            let _ = set_tcp_nodelay(self.0.write.as_ref(), true);
        }
    }
}

impl Corked {
    /// Wraps a connection that has TCP_NODELAY set.
    pub fn new(socket: TcpStream) -> (Self, Cork) {
        let (read, write) = socket.into_split();
        let shared = Arc::new(Shared { write, waits: AtomicBool::new(false) });
        (Corked { read, shared: Arc::clone(&shared) }, Cork(shared))
    }
}

impl Shared {
    fn poll_send(&self, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let socket: &TcpStream = self.write.as_ref();
        let bulk = slices.iter().map(|slice| slice.len()).sum::<usize>() >= BULK;
        let flags = if bulk { SendFlags::NOSIGNAL | SendFlags::MORE } else { SendFlags::NOSIGNAL };
        loop {
            ready!(socket.poll_write_ready(cx))?;
            let sent = socket.try_io(Interest::WRITABLE, || match slices {
                [only] => Ok(send(socket, only, flags)?),
                _ => Ok(sendmsg(socket, slices, &mut SendAncillaryBuffer::default(), flags)?),
            });
            match sent {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                sent => {
                    self.waits.store(bulk, Ordering::Relaxed);
                    return Poll::Ready(sent);
                }
            }
        }
    }
}

impl AsyncRead for Corked {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.read).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Corked {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.shared.poll_send(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.shared.poll_send(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(shutdown(self.shared.write.as_ref() as &TcpStream, Shutdown::Write)?))
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    /// Segments of loopback hold four times as much as a frame.
    async fn connection() -> (Corked, Cork, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listen");
        let address = listener.local_addr().expect("address");
        let (peer, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
        let (socket, _) = accepted.expect("accept");
        socket.set_nodelay(true).expect("nodelay");
        let (corked, cork) = Corked::new(socket);
        (corked, cork, peer.expect("connect"))
    }

    fn arrived(peer: &TcpStream) -> usize {
        rustix::io::ioctl_fionread(peer).expect("FIONREAD") as usize
    }

    /// The kernel itself sends what waits after 200 ms, so an attempt tells something only if it took less; and one that does
    /// is enough, since what is not pushed always takes as long.
    #[tokio::test]
    async fn bulk_waits_until_it_is_pushed() {
        const KERNEL: Duration = Duration::from_millis(150);
        for _ in 0..40 {
            let (mut corked, cork, mut peer) = connection().await;
            let began = Instant::now();
            corked.write_all(&[7; BULK]).await.expect("write");
            let waiting = arrived(&peer);
            if began.elapsed() > KERNEL {
                continue;
            }
            assert_eq!(waiting, 0, "it did not wait");
            cork.push();
            let mut bytes = vec![0; BULK];
            peer.read_exact(&mut bytes).await.expect("read");
            let took = began.elapsed();
            assert_eq!(bytes, vec![7; BULK]);
            if took <= KERNEL {
                return;
            }
        }
        panic!("not pushed");
    }

    #[tokio::test]
    async fn what_is_small_goes_at_once_and_takes_along_what_waits() {
        let (mut corked, _cork, mut peer) = connection().await;
        corked.write_all(b"live").await.expect("write");
        let mut bytes = vec![0; 4];
        peer.read_exact(&mut bytes).await.expect("read");
        corked.write_all(&[7; BULK]).await.expect("write");
        corked.write_all(b"end").await.expect("write");
        let mut bytes = vec![0; BULK + 3];
        peer.read_exact(&mut bytes).await.expect("read");
        assert_eq!(&bytes[BULK..], b"end");
    }

    #[tokio::test]
    async fn a_peer_that_does_not_read_stops_the_writer_and_misses_nothing() {
        let (mut corked, cork, mut peer) = connection().await;
        let sent: Vec<u8> = (0..64 * BULK).map(|n| (n / 251) as u8).collect();
        let expected = sent.clone();
        let writing = tokio::spawn(async move {
            corked.write_all(&sent).await.expect("write");
            cork.push();
            corked.shutdown().await.expect("shutdown");
        });
        let mut bytes = Vec::new();
        peer.read_to_end(&mut bytes).await.expect("read");
        writing.await.expect("writer");
        assert_eq!(bytes, expected);
    }
}
