"""Where a subscription stands, and where one starts."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Union

from .errors import ProtocolError
from .v1 import event_pb2 as pb
from .v1 import walcast_pb2 as api

_LSN = re.compile(r"[0-9A-Fa-f]{1,8}/[0-9A-Fa-f]{1,8}").fullmatch


def lsn_to_int(lsn: str) -> int:
    """``X/Y`` as a number of bytes. Raises ValueError."""
    if not _LSN(lsn):
        raise ValueError(f"not an LSN: {lsn!r}")
    high, _, low = lsn.partition("/")
    return int(high, 16) << 32 | int(low, 16)


@dataclass(frozen=True, slots=True)
class Position:
    """A resume point: everything up to and including it is done. Store it whole; ``str`` and ``parse`` are inverse."""

    #: End LSN of the commit record, ``X/Y``.
    lsn: str
    #: One unbroken course of history, 16 hexadecimal digits. Equal or not; never compared for order.
    lineage: str
    #: 0 for transactions from the slot.
    sequence: int = 0
    #: Opaque progress of running snapshots.
    snapshot: bytes = b""

    def __str__(self) -> str:
        return f"{self.lineage}:{self.lsn}:{self.sequence}:{self.snapshot.hex()}"

    @classmethod
    def parse(cls, text: str) -> Position:
        """The inverse of ``str``."""
        lineage, lsn, sequence, snapshot = text.split(":")
        lsn_to_int(lsn)
        return cls(lsn, lineage, int(sequence), bytes.fromhex(snapshot))

    def order(self) -> tuple[int, int]:
        """A key that orders positions of the same lineage, and of the same lineage only."""
        return lsn_to_int(self.lsn), self.sequence

    def reaches(self, other: Position) -> bool:
        """Whether this position is on the same lineage and at or behind the other."""
        return self.lineage == other.lineage and self.order() >= other.order()

    @classmethod
    def from_pb(cls, message: pb.Position) -> Position:
        """As a hub sent it; raises ProtocolError if it cannot be resumed from."""
        if not _LSN(message.lsn):
            raise ProtocolError(f"the hub sent a position whose LSN is {message.lsn!r}")
        return cls(message.lsn, message.lineage, message.sequence, message.snapshot)

    def to_pb(self) -> pb.Position:
        return pb.Position(lsn=self.lsn, lineage=self.lineage, sequence=self.sequence, snapshot=self.snapshot)


@dataclass(frozen=True, slots=True)
class Earliest:
    """Start with the oldest change that the journal has."""


@dataclass(frozen=True, slots=True)
class Latest:
    """Start with whatever commits from now on."""


@dataclass(frozen=True, slots=True)
class After:
    """Start behind a position (exclusive), or behind an LSN ``X/Y`` of the current lineage."""

    position: Position | str


@dataclass(frozen=True, slots=True)
class Since:
    """Start with the first block that holds a commit at or after this time; somewhat earlier commits may come too."""

    time: datetime


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Start with the rows that are there, then the changes that follow them without a gap."""

    #: In chunks between changes (true), or all tables as of one point (false). ``None``: the hub chooses by size.
    incremental: bool | None = None
    max_rows_per_second: int = 0


Start = Union[Earliest, Latest, After, Since, Snapshot]


def start_to_pb(start: Start | str | Position | datetime) -> api.Start:
    """The request's start. Text is "earliest", "latest", an LSN ``X/Y``, or a position as text."""
    if isinstance(start, str):
        if start in ("earliest", "latest", "snapshot"):
            named: dict[str, Start] = {"earliest": Earliest(), "latest": Latest(), "snapshot": Snapshot()}
            start = named[start]
        else:
            if ":" not in start:
                lsn_to_int(start)
            start = After(Position.parse(start) if ":" in start else start)
    elif isinstance(start, Position):
        start = After(start)
    elif isinstance(start, datetime):
        start = Since(start)
    message = api.Start()
    if isinstance(start, Earliest):
        message.earliest.SetInParent()
    elif isinstance(start, Latest):
        message.latest.SetInParent()
    elif isinstance(start, After):
        if isinstance(start.position, Position):
            message.after.CopyFrom(start.position.to_pb())
        else:
            message.after_lsn = start.position
    elif isinstance(start, Since):
        if start.time.tzinfo is None:
            raise ValueError("Since needs a datetime with a time zone")
        message.since.FromDatetime(start.time)
    elif isinstance(start, Snapshot):
        mode = _snapshot_mode(start)
        message.snapshot.mode = mode
        message.snapshot.max_rows_per_second = start.max_rows_per_second
    else:
        raise TypeError(f"not a start: {start!r}")
    return message


def _snapshot_mode(start: Snapshot) -> pb.SnapshotMode:
    if start.incremental is None:
        return pb.SNAPSHOT_MODE_UNSPECIFIED
    return pb.SNAPSHOT_MODE_INCREMENTAL if start.incremental else pb.SNAPSHOT_MODE_CONSISTENT


_BACKFILL = {
    "start": api.BACKFILL_ACTION_START,
    "pause": api.BACKFILL_ACTION_PAUSE,
    "resume": api.BACKFILL_ACTION_RESUME,
    "cancel": api.BACKFILL_ACTION_CANCEL,
}


def backfill_to_pb(
    subscriber: str,
    action: str,
    selected: api.Filter | None,
    snapshot_id: str,
    max_rows_per_second: int,
) -> api.BackfillRequest:
    """A request to start or control a snapshot into a running subscription."""
    if action not in _BACKFILL:
        raise ValueError(f"action is one of {', '.join(_BACKFILL)}, not {action!r}")
    request = api.BackfillRequest(subscriber=subscriber, action=_BACKFILL[action], snapshot_id=snapshot_id)
    if action == "start":
        if selected is not None:
            request.filter.CopyFrom(selected)
        request.options.max_rows_per_second = max_rows_per_second
    return request
