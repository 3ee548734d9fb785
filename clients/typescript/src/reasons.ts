import { HubError } from "./errors.js";

// One class for each documented ErrorInfo.reason; a test compares them with the README's table.

/** POSITION_EXPIRED: The position is older than what the journal retains. Start over, from a snapshot or at `earliest`. */
export class PositionExpiredError extends HubError {
  /** The LSN of the oldest position that the journal has. */
  get earliest(): string {
    return this.metadata["earliest"] ?? "";
  }
}

/** POSITION_IN_FUTURE: The position lies beyond the WAL that the source has written. */
export class PositionInFutureError extends HubError {}

/** POSITION_DIVERGED: The position lies on a part of history that a failover took back. Undo what came after `common`. */
export class PositionDivergedError extends HubError {
  /** The last LSN that both histories share. */
  get common(): string {
    return this.metadata["common"] ?? "";
  }
}

/** LINEAGE_UNKNOWN: The position belongs to a history that this hub has never seen. */
export class LineageUnknownError extends HubError {}

/** ACK_AHEAD: The acknowledged position has not been handed out, or not sent in the live session. */
export class AckAheadError extends HubError {}

/** CHECKPOINT_MISSING: The subscriber has no checkpoint and no start was given. */
export class CheckpointMissingError extends HubError {}

/** SUBSCRIBER_UNKNOWN: There is no subscriber of this name. */
export class SubscriberUnknownError extends HubError {}

/** TABLE_NOT_PUBLISHED: The publication does not contain the table. */
export class TableNotPublishedError extends HubError {
  /** "schema.table". */
  get table(): string {
    return this.metadata["table"] ?? "";
  }
}

/** PUBLICATION_MISSING: The publication does not exist at the source. */
export class PublicationMissingError extends HubError {}

/** FILTER_INVALID: The filter cannot be applied; `violations` name the place. */
export class FilterInvalidError extends HubError {}

/** REQUEST_INVALID: The request is not well formed; `violations` name the place. */
export class RequestInvalidError extends HubError {}

/** SUBSCRIBER_FENCED: A newer stream of the same subscriber has taken over. Never retried: the two would fence each other for ever. */
export class SubscriberFencedError extends HubError {}

/** DISK_FULL: The hub's data directory has no room. */
export class DiskFullError extends HubError {}

/** TOO_MANY_STREAMS: The limit on streams is reached. */
export class TooManyStreamsError extends HubError {}

/** EVENT_TOO_LARGE: One event is larger than maxMessageBytes. */
export class EventTooLargeError extends HubError {
  /** The end of the transaction that holds it. */
  get lsn(): string {
    return this.metadata["lsn"] ?? "";
  }
}

/** UNAUTHENTICATED: The call carries no valid bearer token. */
export class UnauthenticatedError extends HubError {}

/** PERMISSION_DENIED: The principal may not do this. */
export class PermissionDeniedError extends HubError {
  /** "schema.table", where it is about a table. */
  get table(): string {
    return this.metadata["table"] ?? "";
  }
}

/** JOURNAL_CORRUPT: A part of the hub's journal is damaged; `metadata` names the range. */
export class JournalCorruptError extends HubError {}

/** SLOT_LOST: The replication slot no longer covers what the journal lacks. */
export class SlotLostError extends HubError {}

/** FAILOVER_NOT_PROTECTED: Changes of a published table are not all in the log tables, so a lost slot would lose them. */
export class FailoverNotProtectedError extends HubError {}

/** RECOVERY_BLOCKED: A new slot waits for a transaction that does not end; the message names it. */
export class RecoveryBlockedError extends HubError {}

/** STARTING: The hub is not ready yet. */
export class StartingError extends HubError {}

/** DRAINING: The hub is shutting down. */
export class DrainingError extends HubError {}

/** SOURCE_UNAVAILABLE: The call needs PostgreSQL, which is away. */
export class SourceUnavailableError extends HubError {}

/** SOURCE_STALE_PRIMARY: The server is behind the history that the journal has already seen. */
export class SourceStalePrimaryError extends HubError {}

/** SOURCE_CHANGED: The server or its database is not the journal's. */
export class SourceChangedError extends HubError {}

/** SLOT_IN_USE: Another process streams from the slot. */
export class SlotInUseError extends HubError {}

/** PREFLIGHT_FAILED: The source does not meet a precondition; "walcast doctor" lists what to run. */
export class PreflightFailedError extends HubError {}

/** DECODE_ERROR: The hub cannot decode a message from the source. */
export class DecodeError extends HubError {}

/** SNAPSHOT_INTERRUPTED: A snapshot could not be read to its end. Retried: it goes on from the last position, or starts over and says so. */
export class SnapshotInterruptedError extends HubError {}

/** SNAPSHOT_IMPOSSIBLE: The rows of a table cannot be read in this way; the message says what would be possible. */
export class SnapshotImpossibleError extends HubError {
  /** "schema.table". */
  get table(): string {
    return this.metadata["table"] ?? "";
  }
}

/** UNSUPPORTED: This hub does not offer the requested feature. */
export class UnsupportedError extends HubError {}

/** INTERNAL: A defect in the hub. */
export class InternalError extends HubError {}

export const REASONS: Readonly<Record<string, typeof HubError>> = {
  POSITION_EXPIRED: PositionExpiredError,
  POSITION_IN_FUTURE: PositionInFutureError,
  POSITION_DIVERGED: PositionDivergedError,
  LINEAGE_UNKNOWN: LineageUnknownError,
  ACK_AHEAD: AckAheadError,
  CHECKPOINT_MISSING: CheckpointMissingError,
  SUBSCRIBER_UNKNOWN: SubscriberUnknownError,
  TABLE_NOT_PUBLISHED: TableNotPublishedError,
  PUBLICATION_MISSING: PublicationMissingError,
  FILTER_INVALID: FilterInvalidError,
  REQUEST_INVALID: RequestInvalidError,
  SUBSCRIBER_FENCED: SubscriberFencedError,
  DISK_FULL: DiskFullError,
  TOO_MANY_STREAMS: TooManyStreamsError,
  EVENT_TOO_LARGE: EventTooLargeError,
  UNAUTHENTICATED: UnauthenticatedError,
  PERMISSION_DENIED: PermissionDeniedError,
  JOURNAL_CORRUPT: JournalCorruptError,
  SLOT_LOST: SlotLostError,
  FAILOVER_NOT_PROTECTED: FailoverNotProtectedError,
  RECOVERY_BLOCKED: RecoveryBlockedError,
  STARTING: StartingError,
  DRAINING: DrainingError,
  SOURCE_UNAVAILABLE: SourceUnavailableError,
  SOURCE_STALE_PRIMARY: SourceStalePrimaryError,
  SOURCE_CHANGED: SourceChangedError,
  SLOT_IN_USE: SlotInUseError,
  PREFLIGHT_FAILED: PreflightFailedError,
  DECODE_ERROR: DecodeError,
  SNAPSHOT_INTERRUPTED: SnapshotInterruptedError,
  SNAPSHOT_IMPOSSIBLE: SnapshotImpossibleError,
  UNSUPPORTED: UnsupportedError,
  INTERNAL: InternalError,
};
