//! What one would write first: changes as messages in a broadcast channel, which tonic encodes for each subscriber.

use std::{
    pin::Pin,
    process::{Child, Stdio},
};

use bytes::Bytes;
use prost::Message;
use prost_types::Timestamp;
use tokio::sync::{Semaphore, broadcast};
use tokio_stream::{Stream, StreamExt, wrappers::BroadcastStream};
use tonic::{Request, Response, Status, Streaming, transport::Server};
use walcast::wire::pb::{
    self,
    change_stream_service_server::{ChangeStreamService, ChangeStreamServiceServer},
    event, value,
};

use super::{harness::process, proc, shared::Shared};

/// Rows per transaction, as in the hub's backlog.
const TRANSACTION: u64 = 1000;

type Responses<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

struct Naive {
    changes: broadcast::Sender<pb::SubscribeResponse>,
    subscribed: &'static Semaphore,
}

#[tonic::async_trait]
impl ChangeStreamService for Naive {
    type SubscribeStream = Responses<pb::SubscribeResponse>;
    type ConsumeStream = Responses<pb::ConsumeResponse>;
    type ReadRetractedStream = Responses<pb::ReadRetractedResponse>;

    async fn subscribe(&self, _: Request<pb::SubscribeRequest>) -> Result<Response<Self::SubscribeStream>, Status> {
        let changes = BroadcastStream::new(self.changes.subscribe());
        self.subscribed.add_permits(1);
        Ok(Response::new(Box::pin(changes.map(|item| item.map_err(|lagged| Status::data_loss(lagged.to_string()))))))
    }

    async fn consume(
        &self,
        _: Request<Streaming<pb::ConsumeRequest>>,
    ) -> Result<Response<Self::ConsumeStream>, Status> {
        Err(Status::unimplemented("naive"))
    }

    async fn acknowledge(
        &self,
        _: Request<pb::AcknowledgeRequest>,
    ) -> Result<Response<pb::AcknowledgeResponse>, Status> {
        Err(Status::unimplemented("naive"))
    }

    async fn backfill(&self, _: Request<pb::BackfillRequest>) -> Result<Response<pb::BackfillResponse>, Status> {
        Err(Status::unimplemented("naive"))
    }

    async fn list_relations(
        &self,
        _: Request<pb::ListRelationsRequest>,
    ) -> Result<Response<pb::ListRelationsResponse>, Status> {
        Err(Status::unimplemented("naive"))
    }

    async fn read_retracted(
        &self,
        _: Request<pb::ReadRetractedRequest>,
    ) -> Result<Response<Self::ReadRetractedStream>, Status> {
        Err(Status::unimplemented("naive"))
    }
}

fn event(kind: event::Kind) -> pb::Event {
    pb::Event { kind: Some(kind) }
}

/// The transaction with the rows from `first`, as the hub sends it.
fn transaction(first: u64, rows: u64) -> pb::SubscribeResponse {
    let value = |kind| pb::Value { kind: Some(kind) };
    let mut events = vec![event(event::Kind::Begin(pb::Begin {
        commit_lsn: format!("0/{:X}", first * 200),
        xid: first,
        commit_time: Some(Timestamp { seconds: 1_800_000_000, nanos: 0 }),
        ..pb::Begin::default()
    }))];
    events.extend((first..first + rows).zip(1..).map(|(id, ordinal)| {
        let filler = format!("{:x<128}", format!("{:032x}", id.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
        let values = vec![
            value(value::Kind::IntValue(id as i64)),
            value(value::Kind::IntValue((id % 1000) as i64)),
            value(value::Kind::IntValue((id % 7) as i64)),
            value(value::Kind::Text(filler)),
        ];
        event(event::Kind::Change(pb::Change {
            operation: pb::Operation::Insert as i32,
            relation_id: 1,
            ordinal,
            after_row: Some(pb::Row { values }),
            ..pb::Change::default()
        }))
    }));
    events.push(event(event::Kind::Commit(pb::Commit {
        position: Some(pb::Position { lsn: format!("0/{:X}", first * 200), ..pb::Position::default() }),
        changes: rows,
        total_changes: rows,
    })));
    pb::SubscribeResponse { events }
}

/// How often a transaction is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoded {
    /// For each subscriber.
    Each,
    /// Once, and copied for each subscriber by tonic's codec.
    Once,
}

/// The server's process: `PORT ROWS SUBSCRIBERS ENCODED`. Sends everything once all have subscribed.
pub fn main(orders: &str) {
    let numbers: Vec<u64> = orders.split(' ').map(|text| text.parse().expect("a number")).collect();
    let [port, rows, subscribers, once] = numbers[..] else { panic!("PORT ROWS SUBSCRIBERS ENCODED") };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("runtime");
    runtime.block_on(async {
        let subscribed: &'static Semaphore = Box::leak(Box::new(Semaphore::new(0)));
        let transactions = rows.div_ceil(TRANSACTION) as usize;
        let (changes, _) = broadcast::channel(transactions);
        let (encoded, _) = broadcast::channel(transactions);
        let address = ([127, 0, 0, 1], port as u16).into();
        let serving = if once == Encoded::Once as u64 {
            let service = Shared { changes: encoded.clone(), subscribed };
            tokio::spawn(Server::builder().add_service(service).serve(address))
        } else {
            let service = ChangeStreamServiceServer::new(Naive { changes: changes.clone(), subscribed });
            tokio::spawn(Server::builder().add_service(service).serve(address))
        };
        let _all = subscribed.acquire_many(subscribers as u32).await.expect("subscribers");
        for first in (1..=rows).step_by(TRANSACTION as usize) {
            let transaction = transaction(first, TRANSACTION.min(rows + 1 - first));
            if once == Encoded::Once as u64 {
                let _ = encoded.send(Bytes::from(transaction.encode_to_vec()));
            } else {
                let _ = changes.send(transaction);
            }
        }
        serving.await.expect("server").expect("served");
    });
}

/// Starts the server.
pub fn start(port: u16, rows: u64, subscribers: usize, encoded: Encoded) -> Child {
    let mut command = process::command(&proc::this_program(), process::Account::Own, "KILL");
    command.args(["naive", &format!("{port} {rows} {subscribers} {}", encoded as u64)]).stdin(Stdio::null());
    process::spawn(command).expect("this program")
}
