"""What a subscription yields beside transactions, and what ``events()`` makes of those."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Union

from ._model import Change, Message, Transaction, time_from_pb
from ._position import Position
from .v1 import event_pb2 as pb


@dataclass(frozen=True, slots=True)
class Opened:
    """How a stream was opened."""

    after: Position
    earliest: Position
    tail: Position
    session: int
    created: bool
    filter_changed: bool

    @classmethod
    def from_pb(cls, message: pb.Opened) -> Opened:
        return cls(
            Position.from_pb(message.after),
            Position.from_pb(message.earliest),
            Position.from_pb(message.tail),
            message.session,
            message.created,
            message.filter_changed,
        )


@dataclass(frozen=True, slots=True)
class Progress:
    """Every selected change at or before ``position`` has been sent."""

    position: Position
    tail: Position
    caught_up: bool
    source_connected: bool
    #: The hub's clock.
    time: datetime | None
    #: The durable checkpoint of a named subscriber.
    checkpoint: Position | None
    #: When the position falls off the journal at the present rate; ``None`` while that is far.
    expires_in: timedelta | None

    @property
    def lag_bytes(self) -> int:
        """WAL between the position and the journal's tail."""
        if self.position.lineage != self.tail.lineage:
            return 0
        return max(0, self.tail.order()[0] - self.position.order()[0])

    @classmethod
    def from_pb(cls, message: pb.Progress) -> Progress:
        return cls(
            Position.from_pb(message.position),
            Position.from_pb(message.tail),
            message.caught_up,
            message.source_connected,
            time_from_pb(message.time) if message.HasField("time") else None,
            Position.from_pb(message.checkpoint) if message.HasField("checkpoint") else None,
            message.expires_in.ToTimedelta() if message.HasField("expires_in") else None,
        )


@dataclass(frozen=True, slots=True)
class Retracted:
    """A transaction that a failover took back."""

    transaction: Transaction
    position: Position
    changes: int


@dataclass(frozen=True, slots=True)
class TimelineChanged:
    """The source failed over: what the old lineage has from ``switch_lsn`` on never happened."""

    old_lineage: str
    new_lineage: str
    switch_lsn: str
    #: Transactions that this subscription may have received and that never happened, oldest first.
    retracted: Sequence[Retracted]
    #: Where the new lineage goes on.
    position: Position


@dataclass(frozen=True, slots=True)
class Gap:
    """Changes are missing between ``after`` (exclusive) and ``up_to`` (inclusive)."""

    after: Position
    up_to: Position
    reason: str


@dataclass(frozen=True, slots=True)
class SnapshotBegin:
    """A snapshot starts. Its rows come as transactions with ``snapshot_id`` and changes of operation "read"."""

    snapshot_id: str
    tables: Mapping[str, int]
    #: Drop the rows that an earlier attempt delivered.
    restarted: bool


@dataclass(frozen=True, slots=True)
class SnapshotTableEnd:
    """A snapshot has read one table to its end."""

    snapshot_id: str
    table: str
    rows: int


@dataclass(frozen=True, slots=True)
class SnapshotEnd:
    """A snapshot is complete; changes follow from ``position``."""

    snapshot_id: str
    position: Position
    rows: int


@dataclass(frozen=True, slots=True)
class Begin:
    """``events()`` only: a transaction begins. Whether it happened is known with its Commit or Discard."""

    transaction: Transaction


@dataclass(frozen=True, slots=True)
class Commit:
    """``events()`` only: the open transaction is complete."""

    transaction: Transaction


@dataclass(frozen=True, slots=True)
class Discard:
    """``events()`` only: the open transaction never happened; drop what came since its Begin."""

    transaction: Transaction
    reason: str


@dataclass(frozen=True, slots=True)
class MessageEvent:
    """``events()`` only: a logical message; ``transaction`` is of its own outside transactions."""

    transaction: Transaction
    message: Message


Event = Union[
    Begin, Change, MessageEvent, Commit, Discard, Progress, TimelineChanged, Gap,
    SnapshotBegin, SnapshotTableEnd, SnapshotEnd,
]  # fmt: skip
