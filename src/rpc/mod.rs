//! gRPC: the services, what stands in front of them, and the server that carries them. Decides nothing that the hub
//! or the feed can decide.
//!
//! ```text
//! accept, TLS, HTTP/2 limits        server, tls, preface
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
pub mod tokens;
pub mod web;

use std::{fmt, net::SocketAddr};

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

#[cfg(test)]
mod tests;
