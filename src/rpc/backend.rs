//! The hub as the services see it. [`Hub`] is the one implementation outside of tests; the seam exists so that the
//! transport can be driven over a real socket by a session whose every step the test decides.

use std::future::Future;

use crate::{
    feed::{Frame, Resume},
    hub::{self, Backfill, Hub, Principal, Retracted, StartAt, SubscriberInfo, Subscription},
    model::Position,
    reason::Classified,
};

/// What the services ask of the hub. Cheap to clone.
pub trait Backend: Clone + Send + Sync + 'static {
    /// Why a call was refused or a stream ended.
    type Error: Classified + Send + Sync + 'static;
    /// One open stream.
    type Session: Session<Error = Self::Error>;

    /// As [`Hub::subscribe`].
    fn subscribe(
        &self,
        principal: &Principal,
        request: Subscription,
    ) -> impl Future<Output = Result<Self::Session, Self::Error>> + Send;

    /// As [`Hub::read_retracted`].
    fn read_retracted(
        &self,
        principal: &Principal,
        request: Retracted,
    ) -> impl Future<Output = Result<Self::Session, Self::Error>> + Send;

    /// As [`Hub::acknowledge`].
    fn acknowledge(
        &self,
        principal: &Principal,
        subscriber: &str,
        resume: Resume,
        session: u64,
    ) -> impl Future<Output = Result<Resume, Self::Error>> + Send;

    /// As [`Hub::backfill`].
    fn backfill(
        &self,
        principal: &Principal,
        subscriber: &str,
        id: &str,
        backfill: Backfill,
    ) -> impl Future<Output = Result<String, Self::Error>> + Send;

    /// As [`Hub::subscribers`].
    fn subscribers(&self, principal: &Principal) -> Vec<SubscriberInfo>;

    /// As [`Hub::reset_subscriber`].
    fn reset_subscriber(
        &self,
        principal: &Principal,
        subscriber: &str,
        start: StartAt,
    ) -> impl Future<Output = Result<Position, Self::Error>> + Send;

    /// As [`Hub::delete_subscriber`].
    fn delete_subscriber(
        &self,
        principal: &Principal,
        subscriber: &str,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// As [`Hub::streams`].
    fn streams(&self) -> usize;
}

/// As [`hub::Session`]: pulled by the response body, closed by dropping it.
pub trait Session: Send + 'static {
    /// As [`Backend::Error`].
    type Error;
    /// The other direction of Consume.
    type Control: Control<Error = Self::Error>;

    /// As [`hub::Session::next`].
    fn next(&mut self) -> impl Future<Output = Option<Result<Frame, Self::Error>>> + Send;

    /// As [`hub::Session::handle`].
    fn control(&self) -> Self::Control;
}

/// As [`hub::SessionHandle`].
pub trait Control: Send + Sync + 'static {
    /// As [`Backend::Error`].
    type Error;

    /// As [`hub::SessionHandle::grant`].
    fn grant(&self, events: u64, bytes: u64);

    /// As [`hub::SessionHandle::acknowledge`].
    fn acknowledge(&self, resume: Resume) -> Result<(), Self::Error>;

    /// As [`hub::SessionHandle::fail`].
    fn fail(&self, error: Self::Error);
}

impl Backend for Hub {
    type Error = hub::Error;
    type Session = hub::Session;

    async fn subscribe(&self, principal: &Principal, request: Subscription) -> Result<hub::Session, hub::Error> {
        Hub::subscribe(self, principal, request).await
    }

    async fn read_retracted(&self, principal: &Principal, request: Retracted) -> Result<hub::Session, hub::Error> {
        Hub::read_retracted(self, principal, request).await
    }

    async fn acknowledge(
        &self,
        principal: &Principal,
        subscriber: &str,
        resume: Resume,
        session: u64,
    ) -> Result<Resume, hub::Error> {
        Hub::acknowledge(self, principal, subscriber, resume, session).await
    }

    async fn backfill(
        &self,
        principal: &Principal,
        subscriber: &str,
        id: &str,
        backfill: Backfill,
    ) -> Result<String, hub::Error> {
        Hub::backfill(self, principal, subscriber, id, backfill).await
    }

    fn subscribers(&self, principal: &Principal) -> Vec<SubscriberInfo> {
        Hub::subscribers(self, principal)
    }

    async fn reset_subscriber(
        &self,
        principal: &Principal,
        subscriber: &str,
        start: StartAt,
    ) -> Result<Position, hub::Error> {
        Hub::reset_subscriber(self, principal, subscriber, start).await
    }

    async fn delete_subscriber(&self, principal: &Principal, subscriber: &str) -> Result<(), hub::Error> {
        Hub::delete_subscriber(self, principal, subscriber).await
    }

    fn streams(&self) -> usize {
        Hub::streams(self)
    }
}

impl Session for hub::Session {
    type Error = hub::Error;
    type Control = hub::SessionHandle;

    async fn next(&mut self) -> Option<Result<Frame, hub::Error>> {
        hub::Session::next(self).await
    }

    fn control(&self) -> hub::SessionHandle {
        self.handle()
    }
}

impl Control for hub::SessionHandle {
    type Error = hub::Error;

    fn grant(&self, events: u64, bytes: u64) {
        hub::SessionHandle::grant(self, events, bytes);
    }

    fn acknowledge(&self, resume: Resume) -> Result<(), hub::Error> {
        hub::SessionHandle::acknowledge(self, resume)
    }

    fn fail(&self, error: hub::Error) {
        hub::SessionHandle::fail(self, error);
    }
}
