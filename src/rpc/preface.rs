//! Whether the peer has begun to speak. hyper waits for a client's preface without a limit, in a graceful
//! shutdown too ([hyper#4170](https://github.com/hyperium/hyper/issues/4170)), and its keepalive begins only behind it. A request of HTTP/1.1 is longer than
//! the preface too, and from there on hyper limits the time for its headers.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes of the client's preface and of an empty SETTINGS frame behind it
/// ([RFC 9113, 3.4](https://www.rfc-editor.org/rfc/rfc9113#section-3.4)).
const PREFACE: u64 = 24 + 9;

/// Counts what was read.
pub struct Counted<IO> {
    io: IO,
    read: Arc<AtomicU64>,
}

/// Tells whether the preface is there.
pub struct Preface(Arc<AtomicU64>);

impl Preface {
    /// Whether as many bytes have arrived as the preface needs.
    pub fn complete(&self) -> bool {
        self.0.load(Ordering::Relaxed) >= PREFACE
    }
}

impl<IO> Counted<IO> {
    /// Wraps a connection.
    pub fn new(io: IO) -> (Self, Preface) {
        let read = Arc::new(AtomicU64::new(0));
        (Counted { io, read: Arc::clone(&read) }, Preface(read))
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Counted<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.io).poll_read(cx, buffer);
        self.read.fetch_add((buffer.filled().len() - before) as u64, Ordering::Relaxed);
        polled
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Counted<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
