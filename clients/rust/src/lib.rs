//! Committed changes of a PostgreSQL database from a walcast hub, as a stream of transactions. Reconnecting, resuming and
//! acknowledging are done right once; nothing is hidden.
//!
//! ```no_run
//! # async fn run() -> Result<(), walcast_client::Error> {
//! use walcast_client::{Client, Start};
//!
//! let client = Client::new("127.0.0.1:50051")?;
//! let mut stream = client.subscription().tables(["public.orders"]).subscriber("billing").start(Start::Earliest).subscribe()?;
//! while let Some(tx) = stream.next().await.transpose()? {
//!     for change in &tx {
//!         println!("{} {} {:?}", change.operation(), change.table(), change.after()?);
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! The behaviour is that of all clients: `clients/README.md` of the repository specifies it.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod acks;
mod assemble;
mod builder;
mod client;
mod connect;
mod core;
mod decode;
mod error;
pub mod filter;
mod model;
mod outbox;
mod position;
mod relation;
mod retracted;
mod retry;
mod subscription;
mod value;
mod wire;

/// The protocol's messages and services, generated from `proto/walcast/v1`.
#[allow(missing_docs, clippy::all, unused_qualifications)]
pub mod pb {
    tonic::include_proto!("walcast.v1");
}

pub use builder::SubscriptionBuilder;
pub use client::{Backfill, BackfillAction, Client, ClientBuilder};
pub use connect::Tls;
pub use decode::Decoder;
pub use error::{Error, HubError, Reason};
pub use model::{
    Begin, Change, Event, Gap, Message, Opened, Operation, Progress, Retracted, SnapshotBegin, SnapshotEvent,
    TimelineChanged, Transaction, Transition, Truncate,
};
pub use position::{Position, Snapshot, SnapshotMode, Start, lsn_to_u64};
pub use relation::{Column, Relation, ReplicaIdentity, Row};
pub use retracted::RetractedTransactions;
pub use retry::Retry;
pub use subscription::{Closer, Subscription};
pub use value::{Interval, Numeric, Range, TimeTz, Value};

pub(crate) use pb::Missing;
