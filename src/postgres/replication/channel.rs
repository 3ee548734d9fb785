//! Messages over a byte stream: framing, and output that survives a cancelled future.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::BytesMut;
use postgres_protocol::message::backend::Message;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{buffer::Buffer, frame};
use crate::postgres::{
    connect::Stream,
    error::{Error, Notice, Phase, Result},
};

/// A message outside of the stream of changes.
pub(in crate::postgres) enum Answer {
    /// Anything that postgres-protocol knows.
    Message(Message),
    /// ErrorResponse.
    Error(Notice),
    /// CopyBothResponse: the stream begins.
    CopyBoth,
}

pub(in crate::postgres) struct Channel {
    stream: Stream,
    input: Buffer,
    /// Messages that are not sent yet are `output[sent..]`: a future dropped half way leaves the rest here, and the
    /// next call, reading or writing, goes on with it.
    output: Vec<u8>,
    sent: usize,
    received: u64,
}

impl Channel {
    pub(in crate::postgres) fn new(stream: Stream) -> Self {
        Channel { stream, input: Buffer::new(), output: Vec::new(), sent: 0, received: 0 }
    }

    pub(in crate::postgres) fn end_point(&self) -> Option<Vec<u8>> {
        self.stream.end_point()
    }

    /// Appends messages to the output; [`flush`](Self::flush) sends them.
    pub(in crate::postgres) fn queue(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        write(&mut self.output);
    }

    /// Appends a message that postgres-protocol writes.
    pub(in crate::postgres) fn queue_message(
        &mut self,
        write: impl FnOnce(&mut BytesMut) -> io::Result<()>,
    ) -> Result<()> {
        let mut message = BytesMut::new();
        write(&mut message).map_err(|error| Error::Protocol(error.to_string()))?;
        self.output.extend_from_slice(&message);
        Ok(())
    }

    /// Sends everything queued. Cancel-safe.
    pub(in crate::postgres) async fn flush(&mut self) -> Result<()> {
        Ok(poll_fn(|cx| self.poll_flush(cx)).await?)
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.output.is_empty() {
            return Poll::Ready(Ok(()));
        }
        while self.sent < self.output.len() {
            match ready!(Pin::new(&mut self.stream).poll_write(cx, &self.output[self.sent..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                n => self.sent += n,
            }
        }
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        self.output.clear();
        self.sent = 0;
        Poll::Ready(Ok(()))
    }

    /// Reads what the socket has, at least something. Returns at once if a whole frame is there already. Cancel-safe.
    pub(in crate::postgres) async fn fill(&mut self) -> Result<()> {
        if self.input.has_frame()? {
            return Ok(());
        }
        poll_fn(|cx| {
            // Whether the output could be sent does not matter here; if not, its waker is registered as well.
            if let Poll::Ready(Err(error)) = self.poll_flush(cx) {
                return Poll::Ready(Err(error.into()));
            }
            self.poll_read(cx)
        })
        .await
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let mut any = false;
        loop {
            let mut room = ReadBuf::new(self.input.room()?);
            match Pin::new(&mut self.stream).poll_read(cx, &mut room) {
                Poll::Pending if any => return Poll::Ready(Ok(())),
                Poll::Pending => return Poll::Pending,
                Poll::Ready(outcome) => outcome?,
            }
            let (n, left) = (room.filled().len(), room.remaining());
            if n == 0 {
                return Poll::Ready(if any { Ok(()) } else { Err(Error::Closed) });
            }
            self.input.filled(n);
            self.received += n as u64;
            any = true;
            // A TLS session gives one record at a time and has often more decrypted; a short read of a socket has
            // emptied it.
            if left == 0 || !self.stream.encrypted() {
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// Bytes received since the connection began.
    pub(in crate::postgres) fn received(&self) -> u64 {
        self.received
    }

    /// Whether [`next`](Self::next) has something to give.
    pub(in crate::postgres) fn has_frame(&self) -> Result<bool> {
        self.input.has_frame()
    }

    /// The next frame that is complete in the buffer: tag and body.
    pub(in crate::postgres) fn next(&mut self) -> Result<Option<(u8, &[u8])>> {
        self.input.next()
    }

    /// The tag of the frame at the front, as soon as it is known.
    pub(in crate::postgres) fn peek(&self) -> Option<u8> {
        self.input.tag()
    }

    /// The same with the first byte of its body.
    pub(in crate::postgres) fn peek_inside(&self) -> Option<(u8, u8)> {
        self.input.tag_and_kind()
    }

    /// The next message, notices logged and left out. For everything but the stream of changes.
    pub(in crate::postgres) async fn answer(&mut self) -> Result<Answer> {
        loop {
            let Some((tag, body)) = self.input.next()? else {
                self.fill().await?;
                continue;
            };
            match tag {
                b'E' => return Ok(Answer::Error(frame::notice(body))),
                b'W' => return Ok(Answer::CopyBoth),
                b'N' => match frame::notice(body) {
                    notice if notice.severity == "LOG" => tracing::debug!(%notice, "from the source"),
                    notice => tracing::info!(%notice, "notice from the source"),
                },
                // NegotiateProtocolVersion and whatever a later server adds cannot follow a start-up with 3.0.
                _ => {
                    let mut whole = BytesMut::with_capacity(body.len() + 5);
                    whole.extend_from_slice(&[tag]);
                    whole.extend_from_slice(&(body.len() as u32 + 4).to_be_bytes());
                    whole.extend_from_slice(body);
                    let message = Message::parse(&mut whole).map_err(|error| Error::Protocol(error.to_string()))?;
                    return message
                        .map(Answer::Message)
                        .ok_or_else(|| Error::Protocol("a message shorter than its length".into()));
                }
            }
        }
    }

    /// The next message, an ErrorResponse being an error of this phase.
    pub(in crate::postgres) async fn expect(&mut self, phase: Phase) -> Result<Message> {
        match self.answer().await? {
            Answer::Message(message) => Ok(message),
            Answer::Error(notice) => Err(Error::Server { phase, notice }),
            Answer::CopyBoth => Err(Error::Protocol("CopyBothResponse out of place".into())),
        }
    }

    /// Closes the sending side.
    pub(in crate::postgres) async fn shutdown(&mut self) -> Result<()> {
        Ok(poll_fn(|cx| Pin::new(&mut self.stream).poll_shutdown(cx)).await?)
    }
}
