//! gRPC: the services, what stands in front of them, and the server that carries them. Decides nothing that the hub
//! or the feed can decide.
//!
//! ```text
//! accept, TLS, HTTP/2 limits        server, tls, preface, cork
//!   browsers, if configured         web
//!   count, complete errors          observe, status
//!     who calls                     auth, tokens
//!       Subscribe, Consume          streams, request, body
//!       the other methods           service, admin
//!       health, reflection
//! ```

pub mod admin;
pub mod auth;
pub mod backend;
pub mod body;
mod cork;
pub mod health;
pub mod observe;
mod preface;
pub mod request;
pub mod server;
pub mod service;
pub mod status;
pub mod streams;
mod throttle;
pub mod tls;
mod together;
pub mod tokens;
pub mod web;

use std::{fmt, net::SocketAddr, sync::Arc};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::Status;

use crate::shutdown::Drain;

pub use health::Health;
pub use server::{Options, Services, bind, refuse_plaintext, serve};
pub use tls::{Offer, Tls, TlsFiles};
pub use tokens::Tokens;
pub use web::Origins;

/// Remote address of a connection; in the extensions of each of its requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer(pub SocketAddr);

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What one connection may still open; in the extensions of each of its requests.
#[derive(Clone, Debug)]
struct Places {
    free: Arc<Semaphore>,
    refusal: Refusal,
}

/// Why a connection may open nothing more.
#[derive(Clone, Debug)]
enum Refusal {
    /// It has so many streams.
    Streams(u32),
    /// There are so many other connections. Who has been told so comes back over another connection: this one closes.
    Connections(usize, Drain),
}

impl Places {
    fn new(limit: u32) -> Self {
        Places { free: Arc::new(Semaphore::new(limit as usize)), refusal: Refusal::Streams(limit) }
    }

    /// Of a connection beyond the limit. `told` starts when its client has been refused.
    fn none(connections: usize, told: Drain) -> Self {
        Places { free: Arc::new(Semaphore::new(0)), refusal: Refusal::Connections(connections, told) }
    }

    /// A place for one subscription stream, for as long as it is held.
    fn take(&self) -> Result<OwnedSemaphorePermit, Status> {
        self.free.clone().try_acquire_owned().map_err(|_| {
            let text = match &self.refusal {
                Refusal::Streams(limit) => {
                    let key = "limits.streams_per_connection";
                    format!("{limit} streams are open on this connection, which is the limit ({key})")
                }
                Refusal::Connections(limit, told) => {
                    told.start();
                    format!("{limit} connections are open, which is the limit (limits.connections)")
                }
            };
            status::refuse(crate::reason::Reason::TooManyStreams, &text)
        })
    }
}

#[cfg(test)]
mod tests;
