package walcast

// ConnectionLostError: no hub answered, or the connection broke: an error without ErrorInfo.
type ConnectionLostError struct{ *HubError }

// PositionExpiredError is POSITION_EXPIRED: the position is older than what the journal retains. Start over, from a snapshot or at Earliest.
type PositionExpiredError struct{ *HubError }

// Earliest is the LSN of the oldest position that the journal has.
func (e *PositionExpiredError) Earliest() string { return e.Metadata["earliest"] }

// PositionInFutureError is POSITION_IN_FUTURE: the position lies beyond the WAL that the source has written.
type PositionInFutureError struct{ *HubError }

// PositionDivergedError is POSITION_DIVERGED: the position lies on a part of history that a failover took back. Undo what came after Common.
type PositionDivergedError struct{ *HubError }

// Common is the last LSN that both histories share.
func (e *PositionDivergedError) Common() string { return e.Metadata["common"] }

// LineageUnknownError is LINEAGE_UNKNOWN: the position belongs to a history that this hub has never seen.
type LineageUnknownError struct{ *HubError }

// AckAheadError is ACK_AHEAD: the acknowledged position has not been handed out, or not sent in the live session.
type AckAheadError struct{ *HubError }

// CheckpointMissingError is CHECKPOINT_MISSING: the subscriber has no checkpoint and no start was given.
type CheckpointMissingError struct{ *HubError }

// SubscriberUnknownError is SUBSCRIBER_UNKNOWN: there is no subscriber of this name.
type SubscriberUnknownError struct{ *HubError }

// TableNotPublishedError is TABLE_NOT_PUBLISHED: the publication does not contain the table.
type TableNotPublishedError struct{ *HubError }

// Table is "schema.table".
func (e *TableNotPublishedError) Table() string { return e.Metadata["table"] }

// PublicationMissingError is PUBLICATION_MISSING: the publication does not exist at the source.
type PublicationMissingError struct{ *HubError }

// FilterInvalidError is FILTER_INVALID: the filter cannot be applied; Violations name the place.
type FilterInvalidError struct{ *HubError }

// RequestInvalidError is REQUEST_INVALID: the request is not well formed; Violations name the place.
type RequestInvalidError struct{ *HubError }

// SubscriberFencedError is SUBSCRIBER_FENCED: a newer stream of the same subscriber has taken over. Never retried: the two would fence each other for ever.
type SubscriberFencedError struct{ *HubError }

// DiskFullError is DISK_FULL: the hub's data directory has no room.
type DiskFullError struct{ *HubError }

// TooManyStreamsError is TOO_MANY_STREAMS: the limit on streams is reached.
type TooManyStreamsError struct{ *HubError }

// EventTooLargeError is EVENT_TOO_LARGE: one event is larger than MaxMessageBytes.
type EventTooLargeError struct{ *HubError }

// Bytes is the size of the event.
func (e *EventTooLargeError) Bytes() uint64 { return e.number("bytes") }

// LSN is the end of the transaction that holds it.
func (e *EventTooLargeError) LSN() string { return e.Metadata["lsn"] }

// UnauthenticatedError is UNAUTHENTICATED: the call carries no valid bearer token.
type UnauthenticatedError struct{ *HubError }

// PermissionDeniedError is PERMISSION_DENIED: the principal may not do this.
type PermissionDeniedError struct{ *HubError }

// Table is "schema.table", where it is about a table.
func (e *PermissionDeniedError) Table() string { return e.Metadata["table"] }

// JournalCorruptError is JOURNAL_CORRUPT: a part of the hub's journal is damaged; Metadata names the range.
type JournalCorruptError struct{ *HubError }

// SlotLostError is SLOT_LOST: the replication slot no longer covers what the journal lacks.
type SlotLostError struct{ *HubError }

// From is where the gap begins.
func (e *SlotLostError) From() string { return e.Metadata["from"] }

// To is where the gap ends.
func (e *SlotLostError) To() string { return e.Metadata["to"] }

// FailoverNotProtectedError is FAILOVER_NOT_PROTECTED: changes of a published table are not all in the log tables, so a lost slot would lose them.
type FailoverNotProtectedError struct{ *HubError }

// RecoveryBlockedError is RECOVERY_BLOCKED: a new slot waits for a transaction that does not end; the message names it.
type RecoveryBlockedError struct{ *HubError }

// StartingError is STARTING: the hub is not ready yet.
type StartingError struct{ *HubError }

// DrainingError is DRAINING: the hub is shutting down.
type DrainingError struct{ *HubError }

// SourceUnavailableError is SOURCE_UNAVAILABLE: the call needs PostgreSQL, which is away.
type SourceUnavailableError struct{ *HubError }

// SourceStalePrimaryError is SOURCE_STALE_PRIMARY: the server is behind the history that the journal has already seen.
type SourceStalePrimaryError struct{ *HubError }

// SourceChangedError is SOURCE_CHANGED: the server is another cluster than the journal's.
type SourceChangedError struct{ *HubError }

// SlotInUseError is SLOT_IN_USE: another process streams from the slot.
type SlotInUseError struct{ *HubError }

// PreflightFailedError is PREFLIGHT_FAILED: the source does not meet a precondition; "walcast doctor" lists what to run.
type PreflightFailedError struct{ *HubError }

// DecodeError is DECODE_ERROR: the hub cannot decode a message from the source.
type DecodeError struct{ *HubError }

// SnapshotInterruptedError is SNAPSHOT_INTERRUPTED: a snapshot could not be read to its end. Retried: it goes on from the last position, or starts over and says so.
type SnapshotInterruptedError struct{ *HubError }

// SnapshotImpossibleError is SNAPSHOT_IMPOSSIBLE: the rows of a table cannot be read in this way; the message says what would be possible.
type SnapshotImpossibleError struct{ *HubError }

// Table is "schema.table".
func (e *SnapshotImpossibleError) Table() string { return e.Metadata["table"] }

// UnsupportedError is UNSUPPORTED: this hub does not offer the requested feature.
type UnsupportedError struct{ *HubError }

// InternalError is INTERNAL: a defect in the hub.
type InternalError struct{ *HubError }

// reasons has the type of each documented ErrorInfo.reason.
var reasons = map[string]func(*HubError) hubError{
	"POSITION_EXPIRED":       func(e *HubError) hubError { return &PositionExpiredError{e} },
	"POSITION_IN_FUTURE":     func(e *HubError) hubError { return &PositionInFutureError{e} },
	"POSITION_DIVERGED":      func(e *HubError) hubError { return &PositionDivergedError{e} },
	"LINEAGE_UNKNOWN":        func(e *HubError) hubError { return &LineageUnknownError{e} },
	"ACK_AHEAD":              func(e *HubError) hubError { return &AckAheadError{e} },
	"CHECKPOINT_MISSING":     func(e *HubError) hubError { return &CheckpointMissingError{e} },
	"SUBSCRIBER_UNKNOWN":     func(e *HubError) hubError { return &SubscriberUnknownError{e} },
	"TABLE_NOT_PUBLISHED":    func(e *HubError) hubError { return &TableNotPublishedError{e} },
	"PUBLICATION_MISSING":    func(e *HubError) hubError { return &PublicationMissingError{e} },
	"FILTER_INVALID":         func(e *HubError) hubError { return &FilterInvalidError{e} },
	"REQUEST_INVALID":        func(e *HubError) hubError { return &RequestInvalidError{e} },
	"SUBSCRIBER_FENCED":      func(e *HubError) hubError { return &SubscriberFencedError{e} },
	"DISK_FULL":              func(e *HubError) hubError { return &DiskFullError{e} },
	"TOO_MANY_STREAMS":       func(e *HubError) hubError { return &TooManyStreamsError{e} },
	"EVENT_TOO_LARGE":        func(e *HubError) hubError { return &EventTooLargeError{e} },
	"UNAUTHENTICATED":        func(e *HubError) hubError { return &UnauthenticatedError{e} },
	"PERMISSION_DENIED":      func(e *HubError) hubError { return &PermissionDeniedError{e} },
	"JOURNAL_CORRUPT":        func(e *HubError) hubError { return &JournalCorruptError{e} },
	"SLOT_LOST":              func(e *HubError) hubError { return &SlotLostError{e} },
	"FAILOVER_NOT_PROTECTED": func(e *HubError) hubError { return &FailoverNotProtectedError{e} },
	"RECOVERY_BLOCKED":       func(e *HubError) hubError { return &RecoveryBlockedError{e} },
	"STARTING":               func(e *HubError) hubError { return &StartingError{e} },
	"DRAINING":               func(e *HubError) hubError { return &DrainingError{e} },
	"SOURCE_UNAVAILABLE":     func(e *HubError) hubError { return &SourceUnavailableError{e} },
	"SOURCE_STALE_PRIMARY":   func(e *HubError) hubError { return &SourceStalePrimaryError{e} },
	"SOURCE_CHANGED":         func(e *HubError) hubError { return &SourceChangedError{e} },
	"SLOT_IN_USE":            func(e *HubError) hubError { return &SlotInUseError{e} },
	"PREFLIGHT_FAILED":       func(e *HubError) hubError { return &PreflightFailedError{e} },
	"DECODE_ERROR":           func(e *HubError) hubError { return &DecodeError{e} },
	"SNAPSHOT_INTERRUPTED":   func(e *HubError) hubError { return &SnapshotInterruptedError{e} },
	"SNAPSHOT_IMPOSSIBLE":    func(e *HubError) hubError { return &SnapshotImpossibleError{e} },
	"UNSUPPORTED":            func(e *HubError) hubError { return &UnsupportedError{e} },
	"INTERNAL":               func(e *HubError) hubError { return &InternalError{e} },
}
