//! A hub, and its unary calls.

use std::{future::Future, sync::Arc};

use tonic::{Request, Response, Status, transport::Channel};

use crate::{
    Error, Position, Relation, Start, SubscriptionBuilder,
    connect::{DEADLINE, Target, Tls, Token},
    decode::Decoders,
    pb::{self, admin_service_client::AdminServiceClient, change_stream_service_client::ChangeStreamServiceClient},
};

/// A walcast hub. Cheap to make and to clone: connections are opened by calls, one for each subscription.
#[derive(Clone)]
pub struct Client {
    target: Target,
}

/// How to reach a hub.
#[must_use]
pub struct ClientBuilder {
    address: String,
    tls: Option<Tls>,
    token: Option<Token>,
    max_message_bytes: u32,
}

impl ClientBuilder {
    /// Connects with TLS.
    pub fn tls(mut self, tls: Tls) -> Self {
        self.tls = Some(tls);
        self
    }

    /// A bearer token.
    pub fn token(self, token: impl Into<String>) -> Self {
        let token = token.into();
        self.token_from(move || token.clone())
    }

    /// A bearer token that is asked for at each connection and call.
    pub fn token_from(mut self, token: impl Fn() -> String + Send + Sync + 'static) -> Self {
        self.token = Some(Arc::new(token));
        self
    }

    /// The largest response message that is accepted; default 64 MiB.
    pub fn max_message_bytes(mut self, bytes: u32) -> Self {
        self.max_message_bytes = bytes;
        self
    }

    /// Makes the client. Does not connect yet.
    ///
    /// # Errors
    /// [`Error::Argument`] if the address is none.
    pub fn build(self) -> Result<Client, Error> {
        Ok(Client { target: Target::parse(&self.address, self.tls, self.token, self.max_message_bytes)? })
    }
}

impl Client {
    /// A client for `host:port`, or `https://host:port` for TLS. Does not connect yet.
    ///
    /// # Errors
    /// [`Error::Argument`] if the address is none.
    pub fn new(address: impl Into<String>) -> Result<Client, Error> {
        Client::builder(address).build()
    }

    /// A client with certificates or a token.
    pub fn builder(address: impl Into<String>) -> ClientBuilder {
        ClientBuilder { address: address.into(), tls: None, token: None, max_message_bytes: 64 << 20 }
    }

    /// Begins a subscription.
    pub fn subscription(&self) -> SubscriptionBuilder {
        SubscriptionBuilder::new(self.target.clone())
    }

    async fn call<M, R, F>(&self, message: M, call: impl FnOnce(Channel, Request<M>) -> F) -> Result<R, Error>
    where
        F: Future<Output = Result<Response<R>, Status>>,
    {
        let answer = async {
            let channel = self.target.connect().await?;
            Ok(call(channel, self.target.request(message)?).await?.into_inner())
        };
        let late = |_| Status::deadline_exceeded(format!("no answer within {} s", DEADLINE.as_secs()));
        tokio::time::timeout(DEADLINE, answer).await.map_err(late)?
    }

    /// The state of the source, the journal and the streams.
    ///
    /// # Errors
    /// If the hub refuses or does not answer; so do all calls below.
    pub async fn status(&self) -> Result<pb::GetStatusResponse, Error> {
        let call = |channel, request| async move { AdminServiceClient::new(channel).get_status(request).await };
        self.call(pb::GetStatusRequest {}, call).await
    }

    /// Every named subscriber with its checkpoint and lag.
    #[allow(clippy::missing_errors_doc)]
    pub async fn subscribers(&self) -> Result<Vec<pb::Subscriber>, Error> {
        let call = |channel, request| async move { AdminServiceClient::new(channel).list_subscribers(request).await };
        Ok(self.call(pb::ListSubscribersRequest {}, call).await?.subscribers)
    }

    /// Moves a checkpoint anywhere, and ends an open stream of the subscriber. Where it stands now.
    #[allow(clippy::missing_errors_doc)]
    pub async fn reset_subscriber(&self, subscriber: &str, start: impl Into<Start>) -> Result<Position, Error> {
        let start = Some(start.into().into());
        let request = pb::ResetSubscriberRequest { subscriber: subscriber.into(), start };
        let call = |channel, request| async move { AdminServiceClient::new(channel).reset_subscriber(request).await };
        let checkpoint = self.call(request, call).await?.checkpoint;
        checkpoint.ok_or_else(|| Error::Protocol("a reset without checkpoint".into()))?.try_into()
    }

    /// Forgets a subscriber, and ends its open stream.
    #[allow(clippy::missing_errors_doc)]
    pub async fn delete_subscriber(&self, subscriber: &str) -> Result<(), Error> {
        let request = pb::DeleteSubscriberRequest { subscriber: subscriber.into() };
        let call = |channel, request| async move { AdminServiceClient::new(channel).delete_subscriber(request).await };
        self.call(request, call).await.map(|_| ())
    }

    /// The relations that the hub knows, the newest version of each table or all of them. No globs is all tables.
    #[allow(clippy::missing_errors_doc)]
    pub async fn relations(&self, tables: &[&str], all_versions: bool) -> Result<Vec<Relation>, Error> {
        let tables = tables.iter().map(|glob| (*glob).to_owned()).collect();
        let request = pb::ListRelationsRequest { tables, all_versions };
        let call =
            |channel, request| async move { ChangeStreamServiceClient::new(channel).list_relations(request).await };
        let relations = self.call(request, call).await?.relations;
        Ok(relations.into_iter().map(|relation| Relation::new(relation, &Decoders::default())).collect())
    }

    /// Starts a snapshot of tables into the open stream of a subscriber, in incremental mode; its identifier.
    #[allow(clippy::missing_errors_doc)]
    pub async fn start_backfill(&self, subscriber: &str, rows: Backfill) -> Result<String, Error> {
        let Backfill { tables, r#where, max_rows_per_second } = rows;
        let request = pb::BackfillRequest {
            subscriber: subscriber.into(),
            action: pb::BackfillAction::Start.into(),
            filter: Some(pb::Filter { tables, r#where, ..Default::default() }),
            options: Some(pb::SnapshotOptions { max_rows_per_second, ..Default::default() }),
            ..Default::default()
        };
        Ok(self.backfill_call(request).await?.snapshot_id)
    }

    /// Pauses, resumes or cancels a backfill.
    #[allow(clippy::missing_errors_doc)]
    pub async fn backfill(&self, subscriber: &str, snapshot_id: &str, action: BackfillAction) -> Result<(), Error> {
        let action = match action {
            BackfillAction::Pause => pb::BackfillAction::Pause,
            BackfillAction::Resume => pb::BackfillAction::Resume,
            BackfillAction::Cancel => pb::BackfillAction::Cancel,
        };
        let (subscriber, snapshot_id) = (subscriber.into(), snapshot_id.into());
        let request =
            pb::BackfillRequest { subscriber, snapshot_id, action: action.into(), filter: None, options: None };
        self.backfill_call(request).await.map(|_| ())
    }

    async fn backfill_call(&self, request: pb::BackfillRequest) -> Result<pb::BackfillResponse, Error> {
        let call = |channel, request| async move { ChangeStreamServiceClient::new(channel).backfill(request).await };
        self.call(request, call).await
    }
}

/// Which rows go into an open stream, and how fast.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Backfill {
    /// Globs over `schema.table`; none is all that the subscription has.
    pub tables: Vec<String>,
    /// A predicate over columns; empty is all rows.
    pub r#where: String,
    /// Bound on the load on the source; 0 is unlimited.
    pub max_rows_per_second: u32,
}

/// What to do with a backfill that was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackfillAction {
    /// Stop reading for now.
    Pause,
    /// Go on where it was paused.
    Resume,
    /// Give it up.
    Cancel,
}
