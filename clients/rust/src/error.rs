//! What can go wrong. What to do about an error of the hub is decided by its reason, never by the gRPC code alone.

use std::{collections::BTreeMap, fmt, time::Duration};

use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::model::{Gap, SnapshotBegin, TimelineChanged};

const DOMAIN: &str = "walcast";

/// What this crate returns as errors.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The hub refused or ended it, and trying again does not help.
    #[error(transparent)]
    Hub(Box<HubError>),
    /// The hub sent something that this version does not know. Skipping it would lose data, so the subscription ends.
    #[error("{0}")]
    Protocol(String),
    /// An argument is wrong: an address, an LSN, a file of TLS.
    #[error("{0}")]
    Argument(String),
    /// The call does not fit the subscription: acknowledging an anonymous one, for instance.
    #[error("{0}")]
    Misuse(String),
    /// A transaction exceeds `max_transaction_bytes`. [`Subscription::next_event`](crate::Subscription::next_event) streams it
    /// without holding it.
    #[error("the transaction at {commit_lsn} exceeds max_transaction_bytes; stream it with next_event()")]
    TransactionTooLarge {
        /// Where its commit record starts, `X/Y`.
        commit_lsn: String,
    },
    /// The source failed over. Undo what was retracted, then go on with the same subscription.
    #[error("history forked at {}: lineage {} ended, {} goes on; {} transactions were taken back",
        .0.switch_lsn, .0.old_lineage, .0.new_lineage, .0.retracted.len())]
    TimelineChanged(Box<TimelineChanged>),
    /// Changes are missing by the hub's policy. Go on with the same subscription, behind `up_to`.
    #[error("changes are missing from {} to {}: {}", .0.after.lsn, .0.up_to.lsn, .0.reason)]
    Gap(Box<Gap>),
    /// A snapshot starts over: drop the rows that an earlier attempt delivered, then go on with the same subscription.
    #[error("snapshot {} starts over: drop the rows that it delivered before", .0.snapshot_id)]
    SnapshotRestarted(Box<SnapshotBegin>),
}

impl Error {
    /// The hub's reason, if it is an error of the hub.
    pub fn reason(&self) -> Option<&Reason> {
        if let Error::Hub(error) = self { Some(&error.reason) } else { None }
    }

    /// Whether the subscription goes on when it is asked for the next item.
    pub fn goes_on(&self) -> bool {
        matches!(self, Error::TimelineChanged(_) | Error::Gap(_) | Error::SnapshotRestarted(_))
    }
}

impl From<HubError> for Error {
    fn from(error: HubError) -> Self {
        Error::Hub(Box::new(error))
    }
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        HubError::from(status).into()
    }
}

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident $text:literal,)+) => {
        /// `ErrorInfo.reason`: one for each kind of error that a hub has.
        #[derive(Clone, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Reason {
            /// No hub answered, or the connection broke: there is no ErrorInfo.
            ConnectionLost,
            $($(#[doc = $doc])+ $name,)+
            /// A reason that this version does not know.
            Unknown(String),
        }

        impl Reason {
            /// All that this version knows.
            pub const ALL: &[(&str, Reason)] = &[$(($text, Reason::$name),)+];

            /// As the hub says it; empty for a lost connection.
            pub fn as_str(&self) -> &str {
                match self {
                    Reason::ConnectionLost => "",
                    $(Reason::$name => $text,)+
                    Reason::Unknown(text) => text,
                }
            }
        }
    };
}

reasons! {
    /// The position is older than what the journal retains ([`HubError::earliest`]). Start over, from a snapshot or there.
    PositionExpired "POSITION_EXPIRED",
    /// The position lies beyond the WAL that the source has written.
    PositionInFuture "POSITION_IN_FUTURE",
    /// The position lies on a part of history that a failover took back. Undo what came after [`HubError::common`].
    PositionDiverged "POSITION_DIVERGED",
    /// The position belongs to a history that this hub has never seen.
    LineageUnknown "LINEAGE_UNKNOWN",
    /// The acknowledged position has not been handed out, or not been sent in the live session.
    AckAhead "ACK_AHEAD",
    /// The subscriber has no checkpoint and no start was given.
    CheckpointMissing "CHECKPOINT_MISSING",
    /// There is no subscriber of this name.
    SubscriberUnknown "SUBSCRIBER_UNKNOWN",
    /// The publication does not contain the table ([`HubError::table`]).
    TableNotPublished "TABLE_NOT_PUBLISHED",
    /// The publication does not exist at the source.
    PublicationMissing "PUBLICATION_MISSING",
    /// The filter cannot be applied; the violations name the place.
    FilterInvalid "FILTER_INVALID",
    /// The request is not well formed; the violations name the place.
    RequestInvalid "REQUEST_INVALID",
    /// A newer stream of the same subscriber has taken over. Never retried: the two would fence each other for ever.
    SubscriberFenced "SUBSCRIBER_FENCED",
    /// The hub's data directory has no room.
    DiskFull "DISK_FULL",
    /// The limit on streams is reached.
    TooManyStreams "TOO_MANY_STREAMS",
    /// One event is larger than `max_message_bytes`; metadata `bytes` and `lsn` name it.
    EventTooLarge "EVENT_TOO_LARGE",
    /// The call carries no valid bearer token.
    Unauthenticated "UNAUTHENTICATED",
    /// The principal may not do this ([`HubError::table`], where it is about one).
    PermissionDenied "PERMISSION_DENIED",
    /// A part of the hub's journal is damaged; the metadata name the range.
    JournalCorrupt "JOURNAL_CORRUPT",
    /// The replication slot no longer covers what the journal lacks; metadata `from` and `to` name the gap.
    SlotLost "SLOT_LOST",
    /// Changes of a published table are not all in the log tables, so a lost slot would lose them.
    FailoverNotProtected "FAILOVER_NOT_PROTECTED",
    /// A new slot waits for a transaction that does not end; the message names it.
    RecoveryBlocked "RECOVERY_BLOCKED",
    /// The hub is not ready yet.
    Starting "STARTING",
    /// The hub is shutting down.
    Draining "DRAINING",
    /// The call needs PostgreSQL, which is away.
    SourceUnavailable "SOURCE_UNAVAILABLE",
    /// The server is behind the history that the journal has already seen.
    SourceStalePrimary "SOURCE_STALE_PRIMARY",
    /// The server or its database is not the journal's.
    SourceChanged "SOURCE_CHANGED",
    /// Another process streams from the slot.
    SlotInUse "SLOT_IN_USE",
    /// The source does not meet a precondition; `walcast doctor` lists what to run.
    PreflightFailed "PREFLIGHT_FAILED",
    /// The hub cannot decode a message from the source.
    DecodeError "DECODE_ERROR",
    /// A snapshot could not be read to its end. Retried: it goes on from the last position, or starts over and says so.
    SnapshotInterrupted "SNAPSHOT_INTERRUPTED",
    /// The rows of a table cannot be read in this way; the message says what would be possible ([`HubError::table`]).
    SnapshotImpossible "SNAPSHOT_IMPOSSIBLE",
    /// This hub does not offer the requested feature.
    Unsupported "UNSUPPORTED",
    /// A defect in the hub.
    Internal "INTERNAL",
}

impl From<&str> for Reason {
    fn from(text: &str) -> Self {
        let known = Reason::ALL.iter().find(|(name, _)| *name == text);
        known.map_or_else(|| Reason::Unknown(text.into()), |(_, reason)| reason.clone())
    }
}

/// An error from the hub, or of the connection to it.
#[derive(Clone, Debug)]
pub struct HubError {
    /// What it is about.
    pub reason: Reason,
    /// The gRPC status.
    pub code: Code,
    /// For people.
    pub message: String,
    /// ErrorInfo.metadata.
    pub metadata: BTreeMap<String, String>,
    /// The delay of RetryInfo; `None` where trying again does not help.
    pub retry_after: Option<Duration>,
    /// Field paths and what is wrong there, from BadRequest.
    pub violations: Vec<(String, String)>,
}

impl HubError {
    pub(crate) fn new(reason: Reason, code: Code, message: impl Into<String>) -> Self {
        let (metadata, violations) = (BTreeMap::new(), Vec::new());
        HubError { reason, code, message: message.into(), metadata, retry_after: None, violations }
    }

    fn text(&self, key: &str) -> Option<&str> {
        self.metadata.get(key).map(String::as_str)
    }

    /// [`Reason::PositionExpired`]: the LSN of the oldest position that the journal has.
    pub fn earliest(&self) -> Option<&str> {
        self.text("earliest")
    }

    /// [`Reason::PositionDiverged`]: the last LSN that both histories share.
    pub fn common(&self) -> Option<&str> {
        self.text("common")
    }

    /// `schema.table`, where it is about a table.
    pub fn table(&self) -> Option<&str> {
        self.text("table")
    }

    /// Whether trying again may help.
    pub fn is_retryable(&self) -> bool {
        let lost = matches!(
            self.code,
            Code::Unavailable
                | Code::Unknown
                | Code::Internal
                | Code::Cancelled
                | Code::Aborted
                | Code::DeadlineExceeded
        );
        self.retry_after.is_some() || (self.reason == Reason::ConnectionLost && lost)
    }
}

impl std::error::Error for HubError {}

impl fmt::Display for HubError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.reason {
            Reason::ConnectionLost => write!(f, "{:?}: {}", self.code, self.message)?,
            reason => write!(f, "{}: {}", reason.as_str(), self.message)?,
        }
        if !self.metadata.is_empty() {
            write!(f, " {:?}", self.metadata)?;
        }
        self.violations.iter().try_for_each(|(field, what)| write!(f, "\n  {field}: {what}"))
    }
}

impl From<Status> for HubError {
    fn from(status: Status) -> Self {
        let details = status.get_error_details();
        let info = details.error_info().filter(|info| info.domain == DOMAIN);
        let mut message = status.message().to_owned();
        if info.is_none() {
            let mut cause = std::error::Error::source(&status);
            while let Some(error) = cause {
                message.push_str(&format!(": {error}"));
                cause = error.source();
            }
        }
        let violations = details.bad_request().map(|bad| bad.field_violations.clone()).unwrap_or_default();
        HubError {
            reason: info.map_or(Reason::ConnectionLost, |info| info.reason.as_str().into()),
            code: status.code(),
            message,
            metadata: info.map(|info| info.metadata.clone().into_iter().collect()).unwrap_or_default(),
            retry_after: details.retry_info().map(|retry| retry.retry_delay.unwrap_or_default()),
            violations: violations.into_iter().map(|violation| (violation.field, violation.description)).collect(),
        }
    }
}

impl From<tonic::transport::Error> for HubError {
    fn from(error: tonic::transport::Error) -> Self {
        HubError::from(Status::from_error(Box::new(error)))
    }
}
