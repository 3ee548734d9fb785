//! What a failover took back.

use std::collections::VecDeque;

use bytes::Bytes;
use tonic::{Streaming, transport::Channel};

use crate::{
    Error,
    assemble::{Assembler, Item},
    builder::Options,
    connect::{READ_RETRACTED, RawCodec, Target},
    error::HubError,
    model::Transaction,
    pb,
};

/// The transactions that a failover took back: the end of a lineage that never happened on the next one. Ends by itself, and
/// is not resumed when the connection breaks.
pub struct RetractedTransactions {
    assembler: Assembler,
    ready: VecDeque<Transaction>,
    /// `None` behind the end.
    responses: Option<Streaming<Bytes>>,
    // The last handle of a connection closes it.
    _channel: Channel,
}

impl RetractedTransactions {
    pub(crate) async fn open(target: &Target, lineage: &str, options: Options) -> Result<Self, Error> {
        let filter = Some(options.filter).filter(|filter| *filter != pb::Filter::default());
        let message =
            pb::ReadRetractedRequest { old_lineage: lineage.to_owned(), filter, ..pb::ReadRetractedRequest::default() };
        let channel = target.connect().await?;
        let limit = usize::try_from(target.max_message_bytes).unwrap_or(usize::MAX);
        let mut grpc = tonic::client::Grpc::new(channel.clone()).max_decoding_message_size(limit);
        grpc.ready().await.map_err(HubError::from)?;
        let path = http::uri::PathAndQuery::from_static(READ_RETRACTED);
        let responses = grpc.server_streaming(target.request(message)?, path, RawCodec::default()).await?.into_inner();
        let assembler = Assembler::new(options.decoders, options.max_transaction_bytes);
        Ok(RetractedTransactions { assembler, ready: VecDeque::new(), responses: Some(responses), _channel: channel })
    }

    /// The next transaction; `None` at the end, and behind an error.
    ///
    /// # Errors
    /// If the hub ends it early or the connection breaks.
    pub async fn next(&mut self) -> Option<Result<Transaction, Error>> {
        loop {
            if let Some(transaction) = self.ready.pop_front() {
                return Some(Ok(transaction));
            }
            match self.receive().await {
                Ok(true) => {}
                Ok(false) => return None,
                Err(error) => {
                    self.responses = None;
                    return Some(Err(error));
                }
            }
        }
    }

    /// Whether there was another response.
    async fn receive(&mut self) -> Result<bool, Error> {
        let Some(responses) = &mut self.responses else { return Ok(false) };
        let Some(response) = responses.message().await? else {
            self.responses = None;
            return match self.assembler.is_within_transaction() {
                true => Err(Error::Protocol("the stream ended inside a transaction".into())),
                false => Ok(false),
            };
        };
        self.assembler.receive(&response)?;
        let items = self.assembler.ready.drain(..);
        self.ready.extend(items.filter_map(|item| match item {
            Item::Transaction(transaction) => Some(transaction),
            Item::Event(_) => None,
        }));
        Ok(true)
    }
}
