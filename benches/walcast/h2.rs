//! As much of an HTTP/2 client as one server-streaming call needs, so that a subscriber in the benchmarks
//! costs little more than its reads of the socket ([RFC 9113](https://www.rfc-editor.org/rfc/rfc9113)). Blocking; flow
//! control windows have the size that a tuned client would choose, and are kept open as the bytes come.

use std::{
    io::{self, Read, Write},
    net::TcpStream,
    sync::Arc,
    time::Duration,
};

use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned, pki_types::pem::PemObject};

const WINDOW: u32 = 4 << 20;
const READ: usize = 256 << 10;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const END_STREAM: u8 = 1;
const ACK: u8 = 1;

trait Socket: Read + Write + Send {}
impl<T: Read + Write + Send> Socket for T {}

/// How a client connects.
pub struct Dial<'a> {
    pub port: u16,
    /// Authority of the server's certificate, a PEM file; empty for plaintext.
    pub ca: &'a str,
    /// SETTINGS_MAX_FRAME_SIZE; 0 for HTTP/2's default of 16 KiB.
    pub frame: u32,
}

impl Dial<'_> {
    fn connect(&self) -> io::Result<Box<dyn Socket>> {
        let socket = TcpStream::connect(("127.0.0.1", self.port))?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(Duration::from_secs(900)))?;
        if self.ca.is_empty() {
            return Ok(Box::new(socket));
        }
        let mut roots = RootCertStore::empty();
        let ca = rustls::pki_types::CertificateDer::from_pem_file(self.ca).map_err(io::Error::other)?;
        roots.add(ca).map_err(io::Error::other)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let mut config = builder.map_err(io::Error::other)?.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let name = "localhost".try_into().map_err(io::Error::other)?;
        let session = ClientConnection::new(Arc::new(config), name).map_err(io::Error::other)?;
        Ok(Box::new(StreamOwned::new(session, socket)))
    }
}

/// One connection with one call on it.
pub struct Call {
    socket: Box<dyn Socket>,
    buffer: Box<[u8]>,
    filled: usize,
    /// Bytes of DATA since the windows were last opened.
    taken: u32,
    /// Opens no more windows.
    stalled: bool,
    /// Bytes read from the socket.
    pub wire_bytes: u64,
}

/// What one read of the socket brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Open,
    /// The server ended the stream.
    Ended,
}

impl Call {
    /// Connects and sends the whole request.
    pub fn open(dial: &Dial, path: &str, request: &[u8]) -> io::Result<Call> {
        let socket = dial.connect()?;
        let mut out = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        let mut settings = [&[0, 4][..], &WINDOW.to_be_bytes()].concat();
        if dial.frame > 0 {
            settings.extend_from_slice(&[0, 5]);
            settings.extend_from_slice(&dial.frame.to_be_bytes());
        }
        frame(&mut out, SETTINGS, 0, 0, &settings);
        frame(&mut out, 8, 0, 0, &(WINDOW - 65_535).to_be_bytes());
        let mut headers = vec![0x83, 0x86];
        for (name, value) in [(&[0x04][..], path), (&[0x01], "localhost"), (&[0x0f, 0x10], "application/grpc")] {
            headers.extend_from_slice(name);
            headers.push(value.len() as u8);
            headers.extend_from_slice(value.as_bytes());
        }
        headers.extend_from_slice(b"\x00\x02te\x08trailers");
        frame(&mut out, HEADERS, 0x4, 1, &headers);
        let mut message = vec![0];
        message.extend_from_slice(&(request.len() as u32).to_be_bytes());
        message.extend_from_slice(request);
        frame(&mut out, DATA, END_STREAM, 1, &message);
        let mut call = Call {
            socket,
            buffer: vec![0; READ.max(2 * dial.frame as usize)].into_boxed_slice(),
            filled: 0,
            taken: 0,
            stalled: false,
            wire_bytes: 0,
        };
        call.socket.write_all(&out)?;
        Ok(call)
    }

    /// As a gRPC client whose program takes nothing: it answers pings, and the windows stay as they are.
    pub fn stall(mut self) -> io::Error {
        self.stalled = true;
        loop {
            match self.read(|_| ()) {
                Ok(Step::Open) => {}
                Ok(Step::Ended) => return io::ErrorKind::UnexpectedEof.into(),
                Err(error) => return error,
            }
        }
    }

    /// Reads once and hands on what the stream carries.
    pub fn read(&mut self, mut data: impl FnMut(&[u8])) -> io::Result<Step> {
        let n = self.socket.read(&mut self.buffer[self.filled..])?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.wire_bytes += n as u64;
        self.filled += n;
        let mut answer = Vec::new();
        let mut step = Step::Open;
        let mut at = 0;
        while let Some((head, rest)) = self.buffer[at..self.filled].split_first_chunk::<9>() {
            let len = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            let Some(payload) = rest.get(..len) else { break };
            let (kind, flags) = (head[3], head[4]);
            match kind {
                DATA => {
                    data(payload);
                    self.taken += len as u32;
                }
                SETTINGS if flags & ACK == 0 => frame(&mut answer, SETTINGS, ACK, 0, &[]),
                PING if flags & ACK == 0 => frame(&mut answer, PING, ACK, 0, payload),
                RST_STREAM | GOAWAY => return Err(io::Error::other(format!("HTTP/2 frame {kind}: {payload:?}"))),
                _ => {}
            }
            if matches!(kind, DATA | HEADERS) && flags & END_STREAM != 0 {
                step = Step::Ended;
            }
            at += 9 + len;
        }
        self.buffer.copy_within(at..self.filled, 0);
        self.filled -= at;
        if self.taken >= WINDOW / 2 && !self.stalled {
            frame(&mut answer, 8, 0, 0, &self.taken.to_be_bytes());
            frame(&mut answer, 8, 0, 1, &self.taken.to_be_bytes());
            self.taken = 0;
        }
        if !answer.is_empty() && step == Step::Open {
            self.socket.write_all(&answer)?;
        }
        Ok(step)
    }
}

fn frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    out.extend_from_slice(&(payload.len() as u32).to_be_bytes()[1..]);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
}
