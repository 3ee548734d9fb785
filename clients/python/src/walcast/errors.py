"""One exception class per ``google.rpc.ErrorInfo.reason``, with the data that came with it.

What to do about an error is decided by its reason, never by the gRPC code alone: a message that is too large and a
position that has expired may have the same code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import grpc
from google.rpc import error_details_pb2, status_pb2

if TYPE_CHECKING:
    from ._events import Gap, SnapshotBegin, TimelineChanged

DOMAIN = "walcast"
_DETAILS = "grpc-status-details-bin"


class WalcastError(Exception):
    """Base of everything that this package raises."""


class ProtocolError(WalcastError):
    """The hub sent something that this version does not know. Skipping it would lose data, so the stream ends."""


class Closed(WalcastError):
    """The client or subscription was closed and cannot be used any more."""


class TransactionTooLarge(WalcastError):
    """A transaction exceeds ``max_transaction_bytes``. ``Subscription.events()`` streams it without holding it."""


class TimelineChangedError(WalcastError):
    """The source failed over. Undo ``event.retracted``, then iterate again: the stream goes on behind ``event.position``."""

    def __init__(self, event: TimelineChanged) -> None:
        super().__init__(
            f"history forked at {event.switch_lsn}: lineage {event.old_lineage} ended, {event.new_lineage} goes on; "
            f"{len(event.retracted)} transactions were taken back"
        )
        self.event = event


class GapError(WalcastError):
    """Changes are missing by the hub's policy. Iterate again to go on behind ``event.up_to``."""

    def __init__(self, event: Gap) -> None:
        super().__init__(f"changes are missing from {event.after.lsn} to {event.up_to.lsn}: {event.reason}")
        self.event = event


class SnapshotRestartedError(WalcastError):
    """A snapshot starts over: drop the rows that an earlier attempt delivered, then iterate again."""

    def __init__(self, event: SnapshotBegin) -> None:
        super().__init__(f"snapshot {event.snapshot_id} starts over: drop the rows that it delivered before")
        self.event = event


class HubError(WalcastError):
    """An error from the hub. One whose reason has a class of its own is raised as that class."""

    REASON: ClassVar[str] = ""

    def __init__(
        self,
        message: str,
        *,
        code: grpc.StatusCode = grpc.StatusCode.UNKNOWN,
        reason: str = "",
        metadata: Mapping[str, str] | None = None,
        retry_after: float | None = None,
        violations: Sequence[tuple[str, str]] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        #: ``ErrorInfo.reason``; empty where the connection failed and no hub answered.
        self.reason = reason or self.REASON
        #: ``ErrorInfo.metadata``.
        self.metadata: dict[str, str] = dict(metadata or {})
        #: Seconds from RetryInfo; ``None`` where trying again does not help.
        self.retry_after = retry_after
        #: Field path and what is wrong there, from BadRequest.
        self.violations = tuple(violations)

    def __str__(self) -> str:
        text = f"{self.reason or self.code.name}: {self.message}"
        if self.metadata:
            text += " (" + ", ".join(f"{key} {value}" for key, value in sorted(self.metadata.items())) + ")"
        for field, description in self.violations:
            text += f"\n  {field}: {description}"
        return text

    @property
    def retryable(self) -> bool:
        """Whether trying again may help."""
        return self.retry_after is not None


class ConnectionLost(HubError):
    """No hub answered, or the connection broke: an error without ErrorInfo."""

    _LOST = frozenset(
        {
            grpc.StatusCode.UNAVAILABLE,
            grpc.StatusCode.UNKNOWN,
            grpc.StatusCode.INTERNAL,
            grpc.StatusCode.CANCELLED,
            grpc.StatusCode.ABORTED,
            grpc.StatusCode.DEADLINE_EXCEEDED,
        }
    )

    @property
    def retryable(self) -> bool:
        return self.retry_after is not None or self.code in self._LOST


class PositionExpired(HubError):
    """The position is older than what the journal retains. Start over, from a snapshot or at ``earliest``."""

    REASON = "POSITION_EXPIRED"

    @property
    def earliest(self) -> str:
        """The LSN of the oldest position that the journal has."""
        return self.metadata.get("earliest", "")


class PositionInFuture(HubError):
    """The position lies beyond the WAL that the source has written."""

    REASON = "POSITION_IN_FUTURE"


class PositionDiverged(HubError):
    """The position lies on a part of history that a failover took back. Undo what came after ``common``."""

    REASON = "POSITION_DIVERGED"

    @property
    def common(self) -> str:
        """The last LSN that both histories share."""
        return self.metadata.get("common", "")


class LineageUnknown(HubError):
    """The position belongs to a history that this hub has never seen."""

    REASON = "LINEAGE_UNKNOWN"


class AckAhead(HubError):
    """The acknowledged position has not been sent in the live session."""

    REASON = "ACK_AHEAD"


class CheckpointMissing(HubError):
    """The subscriber has no checkpoint and no start was given."""

    REASON = "CHECKPOINT_MISSING"


class SubscriberUnknown(HubError):
    """There is no subscriber of this name."""

    REASON = "SUBSCRIBER_UNKNOWN"


class TableNotPublished(HubError):
    """The publication does not contain the table."""

    REASON = "TABLE_NOT_PUBLISHED"

    @property
    def table(self) -> str:
        """``schema.table``."""
        return self.metadata.get("table", "")


class PublicationMissing(HubError):
    """The publication does not exist at the source."""

    REASON = "PUBLICATION_MISSING"


class FilterInvalid(HubError):
    """The filter cannot be applied; ``violations`` name the place."""

    REASON = "FILTER_INVALID"


class RequestInvalid(HubError):
    """The request is not well formed; ``violations`` name the place."""

    REASON = "REQUEST_INVALID"


class SubscriberFenced(HubError):
    """A newer stream of the same subscriber has taken over. Never retried: the two would fence each other for ever."""

    REASON = "SUBSCRIBER_FENCED"


class DiskFull(HubError):
    """The hub's data directory has no room."""

    REASON = "DISK_FULL"


class TooManyStreams(HubError):
    """The limit on streams is reached."""

    REASON = "TOO_MANY_STREAMS"


class EventTooLarge(HubError):
    """One event is larger than ``max_message_bytes``."""

    REASON = "EVENT_TOO_LARGE"

    @property
    def bytes(self) -> int:
        """Size of the event."""
        return int(self.metadata.get("bytes", "0"))

    @property
    def lsn(self) -> str:
        """End of the transaction that holds it."""
        return self.metadata.get("lsn", "")


class Unauthenticated(HubError):
    """The call carries no valid bearer token."""

    REASON = "UNAUTHENTICATED"


class PermissionDenied(HubError):
    """The principal may not do this."""

    REASON = "PERMISSION_DENIED"

    @property
    def table(self) -> str:
        """``schema.table``, where it is about a table."""
        return self.metadata.get("table", "")


class JournalCorrupt(HubError):
    """A part of the hub's journal is damaged; the metadata name the range."""

    REASON = "JOURNAL_CORRUPT"


class SlotLost(HubError):
    """The replication slot no longer covers what the journal lacks; metadata ``from`` and ``to`` name the gap."""

    REASON = "SLOT_LOST"


class FailoverNotProtected(HubError):
    """Changes of a published table are not all in the log tables, so a lost slot would lose them."""

    REASON = "FAILOVER_NOT_PROTECTED"


class RecoveryBlocked(HubError):
    """A new slot waits for a transaction that does not end; the message names it."""

    REASON = "RECOVERY_BLOCKED"


class Starting(HubError):
    """The hub is not ready yet."""

    REASON = "STARTING"


class Draining(HubError):
    """The hub is shutting down."""

    REASON = "DRAINING"


class SourceUnavailable(HubError):
    """The call needs PostgreSQL, which is away."""

    REASON = "SOURCE_UNAVAILABLE"


class SourceStalePrimary(HubError):
    """The server is behind the history that the journal has already seen."""

    REASON = "SOURCE_STALE_PRIMARY"


class SourceChanged(HubError):
    """The server or its database is not the journal's."""

    REASON = "SOURCE_CHANGED"


class SlotInUse(HubError):
    """Another process streams from the slot."""

    REASON = "SLOT_IN_USE"


class PreflightFailed(HubError):
    """The source does not meet a precondition; ``walcast doctor`` lists what to run."""

    REASON = "PREFLIGHT_FAILED"


class DecodeError(HubError):
    """The hub cannot decode a message from the source."""

    REASON = "DECODE_ERROR"


class SnapshotInterrupted(HubError):
    """A snapshot could not be read to its end. Retried: it goes on from the last position, or starts over and says so."""

    REASON = "SNAPSHOT_INTERRUPTED"


class SnapshotImpossible(HubError):
    """The rows of a table cannot be read in this way; the message says what would be possible."""

    REASON = "SNAPSHOT_IMPOSSIBLE"

    @property
    def table(self) -> str:
        """``schema.table``."""
        return self.metadata.get("table", "")


class Unsupported(HubError):
    """This hub does not offer the requested feature."""

    REASON = "UNSUPPORTED"


class Internal(HubError):
    """A defect in the hub."""

    REASON = "INTERNAL"


BY_REASON: dict[str, type[HubError]] = {cls.REASON: cls for cls in HubError.__subclasses__() if cls.REASON}


def from_status(code: grpc.StatusCode, message: str, trailing: Sequence[tuple[str, str | bytes]] | None) -> HubError:
    """The exception for a finished call's status and trailing metadata."""
    info: error_details_pb2.ErrorInfo | None = None
    retry_after: float | None = None
    violations: list[tuple[str, str]] = []
    for key, value in trailing or ():
        if key != _DETAILS:
            continue
        status = status_pb2.Status.FromString(value if isinstance(value, bytes) else value.encode("latin-1"))
        for detail in status.details:
            if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
                candidate = error_details_pb2.ErrorInfo()
                detail.Unpack(candidate)
                if candidate.domain == DOMAIN:
                    info = candidate
            elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
                retry = error_details_pb2.RetryInfo()
                detail.Unpack(retry)
                retry_after = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
            elif detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
                bad = error_details_pb2.BadRequest()
                detail.Unpack(bad)
                violations += [(violation.field, violation.description) for violation in bad.field_violations]
    cls: type[HubError] = ConnectionLost if info is None else BY_REASON.get(info.reason, HubError)
    return cls(
        message,
        code=code,
        reason=info.reason if info else "",
        metadata=dict(info.metadata) if info else None,
        retry_after=retry_after,
        violations=violations,
    )


__all__ = [
    "AckAhead", "CheckpointMissing", "Closed", "ConnectionLost", "DecodeError", "DiskFull", "Draining", "EventTooLarge",
    "FailoverNotProtected", "FilterInvalid", "GapError", "HubError", "Internal", "JournalCorrupt", "LineageUnknown",
    "PermissionDenied", "PositionDiverged", "PositionExpired", "PositionInFuture", "PreflightFailed", "ProtocolError",
    "PublicationMissing", "RecoveryBlocked", "RequestInvalid", "SlotInUse", "SlotLost", "SnapshotImpossible",
    "SnapshotInterrupted", "SnapshotRestartedError", "SourceChanged", "SourceStalePrimary", "SourceUnavailable",
    "Starting", "SubscriberFenced", "SubscriberUnknown", "TableNotPublished", "TimelineChangedError", "TooManyStreams",
    "TransactionTooLarge", "Unauthenticated", "Unsupported", "WalcastError",
]  # fmt: skip
