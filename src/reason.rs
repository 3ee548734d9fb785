//! The one table of error reasons. `google.rpc.ErrorInfo.reason` is what clients switch on; the gRPC code is derived
//! from it here and nowhere else (tonic itself answers OUT_OF_RANGE for a message that is too large, so a code alone
//! says too little). README's table of errors is printed from [`Reason::ALL`] and checked by a test.

/// `google.rpc.ErrorInfo.domain` of every error.
pub const DOMAIN: &str = "walcast";

/// gRPC status codes that the hub answers with
/// ([google.rpc.Code](https://github.com/googleapis/googleapis/blob/master/google/rpc/code.proto)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Code {
    /// The request is wrong whatever the state of the system.
    InvalidArgument = 3,
    /// Something named does not exist.
    NotFound = 5,
    /// Known caller, not allowed.
    PermissionDenied = 7,
    /// A limit is reached.
    ResourceExhausted = 8,
    /// A person must change something first.
    FailedPrecondition = 9,
    /// Somebody else took over.
    Aborted = 10,
    /// Outside of what is retained or written.
    OutOfRange = 11,
    /// A defect.
    Internal = 13,
    /// Try again.
    Unavailable = 14,
    /// Data is gone or damaged.
    DataLoss = 15,
    /// Unknown caller.
    Unauthenticated = 16,
}

macro_rules! reasons {
    ($( $variant:ident = $text:literal, $code:ident, $retry:expr, $meaning:literal, $action:literal; )*) => {
        /// Why a call or a stream ended, or why the source does not run.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Reason { $( #[doc = $meaning] $variant, )* }

        impl Reason {
            /// Every reason, in the order of the documented table.
            pub const ALL: &[Reason] = &[$(Reason::$variant),*];

            /// The text in `ErrorInfo.reason`.
            pub const fn as_str(self) -> &'static str { match self { $(Reason::$variant => $text),* } }
            /// The gRPC code that goes with it.
            pub const fn code(self) -> Code { match self { $(Reason::$variant => Code::$code),* } }
            /// Seconds after which a retry may help (RetryInfo); `None` where it does not.
            pub const fn retry_after(self) -> Option<f64> { match self { $(Reason::$variant => $retry),* } }
            /// One sentence: what it means.
            pub const fn meaning(self) -> &'static str { match self { $(Reason::$variant => $meaning),* } }
            /// One sentence: what to do.
            pub const fn action(self) -> &'static str { match self { $(Reason::$variant => $action),* } }
        }
    };
}

reasons! {
    PositionExpired = "POSITION_EXPIRED", OutOfRange, None, "The position is older than what the journal retains.", "Start over from a snapshot, or at `earliest` if the gap is acceptable; metadata `earliest` names the oldest position.";
    PositionInFuture = "POSITION_IN_FUTURE", OutOfRange, None, "The position lies beyond the WAL that the source has written.", "Check that it belongs to this cluster.";
    PositionDiverged = "POSITION_DIVERGED", FailedPrecondition, None, "The position lies on a part of history that a failover took back.", "Undo what came after metadata `common` (ReadRetracted shows it) and resume there, on metadata `lineage`.";
    LineageUnknown = "LINEAGE_UNKNOWN", FailedPrecondition, None, "The position belongs to a history that this hub has never seen.", "Check that it belongs to this cluster and hub.";
    AckAhead = "ACK_AHEAD", FailedPrecondition, None, "The acknowledged position has not been sent in the live session.", "Acknowledge positions from received commits and progress only.";
    CheckpointMissing = "CHECKPOINT_MISSING", NotFound, None, "The subscriber has no checkpoint and the request names no start.", "Give a start; if there was a checkpoint before, the hub's data directory was lost.";
    SubscriberUnknown = "SUBSCRIBER_UNKNOWN", NotFound, None, "There is no subscriber of this name.", "`walcast subscribers list` shows the names.";
    TableNotPublished = "TABLE_NOT_PUBLISHED", NotFound, None, "The publication does not contain the table.", "ALTER PUBLICATION ... ADD TABLE, or correct the name.";
    PublicationMissing = "PUBLICATION_MISSING", FailedPrecondition, Some(5.0), "The publication does not exist at the source.", "CREATE PUBLICATION, or start the hub with --create-publication.";
    FilterInvalid = "FILTER_INVALID", InvalidArgument, None, "The filter cannot be applied.", "The field violations name the place.";
    RequestInvalid = "REQUEST_INVALID", InvalidArgument, None, "The request is not well formed.", "The field violations name the place.";
    SubscriberFenced = "SUBSCRIBER_FENCED", Aborted, None, "A newer stream of the same subscriber has taken over.", "Run one consumer per subscriber name.";
    DiskFull = "DISK_FULL", ResourceExhausted, Some(10.0), "The hub's data directory has no room.", "Free space or lower the retention; the hub goes on by itself.";
    TooManyStreams = "TOO_MANY_STREAMS", ResourceExhausted, Some(5.0), "The limit on streams is reached.", "Close streams, or raise the limit in the hub's configuration.";
    EventTooLarge = "EVENT_TOO_LARGE", ResourceExhausted, None, "One event is larger than the client can receive.", "Raise max_message_bytes (and the client's own limit), or leave its transaction out on purpose: acknowledge the position in metadata `lineage`, `lsn`, `sequence`, or start after it. `table` and `ordinal` name the row.";
    Unauthenticated = "UNAUTHENTICATED", Unauthenticated, None, "The call carries no valid bearer token.", "Send `authorization: Bearer <token>`.";
    PermissionDenied = "PERMISSION_DENIED", PermissionDenied, None, "The principal may not do this.", "Metadata `table` names the table; ask the hub's operator for the right.";
    JournalCorrupt = "JOURNAL_CORRUPT", DataLoss, None, "A part of the journal is damaged.", "Metadata names the range; start after it, or from a snapshot.";
    SlotLost = "SLOT_LOST", DataLoss, None, "The slot no longer covers what the journal lacks.", "Metadata `from` and `to` name the gap. Restore the slot, or set `source.on_slot_lost = \"continue\"`, or start over from a snapshot.";
    FailoverNotProtected = "FAILOVER_NOT_PROTECTED", FailedPrecondition, None, "Changes of a published table are not all in the log tables, so a lost slot would lose them.", "`walcast logtables status` names the tables; `walcast logtables install` repairs.";
    RecoveryBlocked = "RECOVERY_BLOCKED", Unavailable, Some(5.0), "A recovery waits: the new slot for a transaction that does not end, or the replay for standbys of the gate.", "End the transaction that the message names: COMMIT PREPARED, ROLLBACK PREPARED, or pg_terminate_backend. Or bring the standbys back.";
    Starting = "STARTING", Unavailable, Some(1.0), "The hub is not ready yet.", "Try again.";
    Draining = "DRAINING", Unavailable, Some(1.0), "The hub is shutting down.", "Connect again and resume after metadata `position`.";
    SourceUnavailable = "SOURCE_UNAVAILABLE", Unavailable, Some(2.0), "The call needs the source, which is away.", "Try again.";
    SourceStalePrimary = "SOURCE_STALE_PRIMARY", FailedPrecondition, Some(5.0), "The server is behind the history that the journal has already seen.", "Point the hub at the current primary.";
    SourceChanged = "SOURCE_CHANGED", FailedPrecondition, None, "The server or its database is not the journal's.", "Point the hub back; or, if the database moved to another cluster, `walcast rebase`; or use a new data directory.";
    SlotInUse = "SLOT_IN_USE", FailedPrecondition, Some(5.0), "Another process streams from the slot.", "Stop it, or give this hub a slot of its own with --slot.";
    PreflightFailed = "PREFLIGHT_FAILED", FailedPrecondition, Some(10.0), "The source does not meet a precondition.", "`walcast doctor` lists what to run.";
    DecodeError = "DECODE_ERROR", Internal, None, "A message from the source cannot be decoded; its bytes are kept in the data directory.", "Report it with the quarantined file; nothing is skipped.";
    SnapshotInterrupted = "SNAPSHOT_INTERRUPTED", Aborted, Some(1.0), "A snapshot could not be read to its end.", "Resume from the last position: an incremental snapshot goes on where it was, a consistent one starts over and says so.";
    SnapshotImpossible = "SNAPSHOT_IMPOSSIBLE", FailedPrecondition, None, "The rows of a table cannot be read in this way.", "Metadata `table` names the table; the message says what would be possible.";
    Unsupported = "UNSUPPORTED", FailedPrecondition, None, "This hub does not offer the requested feature.", "See the release notes for the version that does.";
    Internal = "INTERNAL", Internal, Some(5.0), "A defect in the hub.", "Report it with the hub's log.";
}

/// What a typed gRPC error is made of. Every module's `Error` that can reach a client implements it; `rpc::status`
/// turns it into a status and knows no module's variants.
pub trait Classified: std::error::Error {
    /// The documented reason.
    fn reason(&self) -> Reason;

    /// `ErrorInfo.metadata`, as the table of errors names the keys.
    fn metadata(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }

    /// `BadRequest.field_violations`: field path and what is wrong there.
    fn violations(&self) -> Vec<(String, String)> {
        Vec::new()
    }
}
