"""What a subscription yields."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from enum import Enum
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Union

from ._values import NATIVE_FIELDS, UNCHANGED, Decoder
from .errors import ProtocolError
from .v1 import event_pb2 as pb
from .v1 import walcast_pb2 as api

if TYPE_CHECKING:
    from ._core import Core

Row = dict[str, Any]


class Operation(str, Enum):
    """What happened to a row or a table. Equal to its text."""

    INSERT = "insert"
    UPDATE = "update"
    DELETE = "delete"
    TRUNCATE = "truncate"
    READ = "read"

    __str__ = str.__str__


_OPERATIONS = {
    pb.OPERATION_INSERT: Operation.INSERT,
    pb.OPERATION_UPDATE: Operation.UPDATE,
    pb.OPERATION_DELETE: Operation.DELETE,
    pb.OPERATION_TRUNCATE: Operation.TRUNCATE,
    pb.OPERATION_READ: Operation.READ,
}
OPERATION_NUMBERS = {operation: number for number, operation in _OPERATIONS.items()}
_TRANSITIONS = {pb.TRANSITION_ENTER: "enter", pb.TRANSITION_STAY: "stay", pb.TRANSITION_LEAVE: "leave"}
_IDENTITIES = {
    pb.REPLICA_IDENTITY_DEFAULT: "default",
    pb.REPLICA_IDENTITY_FULL: "full",
    pb.REPLICA_IDENTITY_INDEX: "index",
    pb.REPLICA_IDENTITY_NOTHING: "nothing",
}


def lsn_to_int(lsn: str) -> int:
    """``X/Y`` as a number of bytes."""
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

    incremental: bool = False
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
    incremental: bool,
    max_rows_per_second: int,
) -> api.BackfillRequest:
    """A request to start or control a snapshot into a running subscription."""
    if action not in _BACKFILL:
        raise ValueError(f"action is one of {', '.join(_BACKFILL)}, not {action!r}")
    request = api.BackfillRequest(subscriber=subscriber, action=_BACKFILL[action], snapshot_id=snapshot_id)
    if action == "start":
        if selected is not None:
            request.filter.CopyFrom(selected)
        request.options.mode = _snapshot_mode(Snapshot(incremental))
        request.options.max_rows_per_second = max_rows_per_second
    return request


@dataclass(frozen=True, slots=True)
class Column:
    """A column of one relation version."""

    name: str
    type_name: str
    type_oid: int
    type_modifier: int
    in_identity: bool


_ABSENT = object()
_Plan = list[tuple[str, Callable[[Any], Any], Union[Decoder, None], str]]


class Relation:
    """One immutable version of a table."""

    __slots__ = ("_decoders", "_plan", "columns", "oid", "relation_id", "replica_identity", "schema", "table_name")

    def __init__(self, message: pb.Relation, decoders: Mapping[str, Decoder]) -> None:
        self.relation_id = message.relation_id
        self.oid = message.oid
        self.schema = message.schema
        self.table_name = message.table
        self.replica_identity = _IDENTITIES.get(message.replica_identity, "default")
        self.columns = tuple(
            Column(column.name, column.type_name, column.type_oid, column.type_modifier, column.in_identity)
            for column in message.columns
        )
        self._decoders = decoders
        self._plan: _Plan = [
            (
                column.name,
                attrgetter(NATIVE_FIELDS.get(column.type_name, "text")),
                decoders.get(column.type_name),
                column.type_name,
            )
            for column in self.columns
        ]

    @property
    def table(self) -> str:
        """``schema.table``, unquoted."""
        return f"{self.schema}.{self.table_name}"

    def __repr__(self) -> str:
        return f"Relation({self.table!r}, version {self.relation_id}, {[column.name for column in self.columns]})"

    def decode(self, row: pb.Row) -> Row:
        """A row by column name; absent columns have no entry."""
        values = row.values
        if len(values) != len(self._plan):
            raise ProtocolError(f"{self.table}: {len(values)} values for {len(self._plan)} columns")
        decoded: Row = {}
        for (name, get, decode, type_name), value in zip(self._plan, values):
            plain = get(value)
            if plain:  # neither missing nor the zero of another kind
                try:
                    decoded[name] = plain if decode is None else decode(plain)
                except (ValueError, ArithmeticError) as error:
                    raise ProtocolError(f"{self.table}.{name} ({type_name}): {plain!r}: {error}") from error
            else:
                other = self._unusual(value, decode)
                if other is not _ABSENT:
                    decoded[name] = other
        return decoded

    @staticmethod
    def _unusual(value: pb.Value, decode: Decoder | None) -> Any:
        kind = value.WhichOneof("kind")
        if kind == "missing":
            missing = value.missing
            if missing == pb.MISSING_NULL:
                return None
            if missing == pb.MISSING_UNCHANGED:
                return UNCHANGED
            if missing == pb.MISSING_ABSENT:
                return _ABSENT
            raise ProtocolError(f"a value is missing for reason {missing}, which this version does not know")
        if kind == "text":
            return value.text if decode is None else decode(value.text)
        if kind is None:
            raise ProtocolError("a value has a kind that this version does not know")
        return getattr(value, kind)


class Change:
    """What happened to one row, or to a table in the case of a truncate. Rows are decoded when first looked at."""

    __slots__ = ("_after", "_before", "_message", "operation", "ordinal", "relation", "transaction", "truncate")

    def __init__(
        self,
        transaction: Transaction,
        relation: Relation,
        message: pb.Change | None,
        truncate: Truncate | None = None,
    ) -> None:
        self.transaction = transaction
        self.relation = relation
        self._message = message
        self._before: Any = _ABSENT
        self._after: Any = _ABSENT
        #: CASCADE and RESTART IDENTITY of a truncate.
        self.truncate = truncate
        if message is not None:
            operation = _OPERATIONS.get(message.operation)
            if operation is None:
                raise ProtocolError(f"operation {message.operation} is not known to this version")
            self.operation = operation
            #: Number in its transaction, from 1, counted before filtering.
            self.ordinal: int = message.ordinal
        else:
            self.operation = Operation.TRUNCATE
            self.ordinal = truncate.ordinal if truncate else 0

    @property
    def table(self) -> str:
        """``schema.table``, unquoted."""
        return self.relation.table

    @property
    def before(self) -> Row | None:
        """The row as it was: for a delete, and for an update that PostgreSQL sent the old row or key of."""
        if self._before is _ABSENT:
            message = self._message
            known = message is not None and message.HasField("before_row")
            self._before = self.relation.decode(message.before_row) if message is not None and known else None
        row: Row | None = self._before
        return row

    @property
    def after(self) -> Row | None:
        """The row as it is; ``None`` for a delete or truncate."""
        if self._after is _ABSENT:
            message = self._message
            known = message is not None and message.HasField("after_row")
            self._after = self.relation.decode(message.after_row) if message is not None and known else None
        row: Row | None = self._after
        return row

    @property
    def key(self) -> Row:
        """The columns of the replica identity, of the old row where there is one. Empty if the table has none."""
        row = self.before if self.before is not None else self.after
        if row is None:
            return {}
        return {column.name: row[column.name] for column in self.relation.columns if column.in_identity}

    @property
    def changed_columns(self) -> tuple[str, ...] | None:
        """Columns whose value an update changed; ``None`` where the old row is not known whole (REPLICA IDENTITY FULL)."""
        message = self._message
        if message is None or self.operation is not Operation.UPDATE or self.relation.replica_identity != "full":
            return None
        if not message.HasField("before_row") or not message.HasField("after_row"):
            return None
        changed = []
        for column, old, new in zip(self.relation.columns, message.before_row.values, message.after_row.values):
            if new.missing == pb.MISSING_UNCHANGED:
                continue
            if old.missing == pb.MISSING_ABSENT:
                return None
            if old.SerializeToString() != new.SerializeToString():
                changed.append(column.name)
        return tuple(changed)

    @property
    def transition(self) -> str | None:
        """ "enter", "stay" or "leave" under a ``where``; ``None`` without."""
        return _TRANSITIONS.get(self._message.transition) if self._message is not None else None

    @property
    def lsn(self) -> str:
        """LSN of the transaction's commit record, ``X/Y``. The compact form carries none per change."""
        return self.transaction.commit_lsn

    commit_lsn = lsn

    @property
    def identity(self) -> tuple[str, str, int, int]:
        """(lineage, commit LSN, sequence, ordinal): the same whenever this change comes again."""
        return (*self.transaction.identity, self.ordinal)

    def __repr__(self) -> str:
        return f"Change({self.operation} {self.table}, {self.lsn}#{self.ordinal})"


@dataclass(frozen=True, slots=True)
class Truncate:
    """The statement behind one or several truncate changes."""

    tables: tuple[str, ...]
    cascade: bool
    restart_identity: bool
    ordinal: int


@dataclass(frozen=True, slots=True)
class Message:
    """``pg_logical_emit_message``."""

    prefix: str
    content: bytes
    ordinal: int
    lsn: str


@dataclass(slots=True, eq=False)
class Transaction:
    """A committed transaction with the events that the subscription selects of it."""

    #: Where the commit record starts, ``X/Y``; the LSN for a message outside transactions.
    commit_lsn: str
    lineage: str
    sequence: int
    #: PostgreSQL's xid8; 0 for a message outside transactions and for snapshot rows.
    xid: int
    #: In UTC, by the source's clock; ``None`` for messages outside transactions and for snapshot rows.
    commit_time: datetime | None
    #: Name of the replication origin; empty for transactions of the source itself.
    origin: str = ""
    #: Identifier of the snapshot that these rows belong to; empty for transactions.
    snapshot_id: str = ""
    #: Events in the whole transaction, before filtering.
    total_changes: int = 0
    _position: Position | None = None
    _serial: int = 0
    _core: Core | None = field(default=None, repr=False)
    _relations: Mapping[int, Relation] = field(default_factory=dict, repr=False)
    _events: list[Any] = field(default_factory=list, repr=False)
    _changes: list[Change] | None = field(default=None, repr=False)

    @property
    def position(self) -> Position:
        """Resume behind this transaction here (``After(tx.position)``)."""
        if self._position is None:
            raise ProtocolError("the transaction has no position yet")
        return self._position

    @property
    def identity(self) -> tuple[str, str, int]:
        """(lineage, commit LSN, sequence): the same whenever this transaction comes again."""
        return (self.lineage, self.commit_lsn, self.sequence)

    @property
    def changes(self) -> list[Change]:
        """Changes in order; a truncate of several tables is one change per table."""
        if self._changes is None:
            self._changes = list(self._iterate())
        return self._changes

    def _iterate(self) -> Iterator[Change]:
        relations = self._relations
        for event in self._events:
            if type(event) is pb.Change:
                yield Change(self, relations[event.relation_id], event)
            elif type(event) is pb.Truncate:
                yield from truncates(self, event, relations)

    @property
    def messages(self) -> list[Message]:
        """Logical messages in it, in order."""
        return [message_from_pb(event) for event in self._events if type(event) is pb.LogicalMessage]

    def __iter__(self) -> Iterator[Change]:
        return iter(self.changes)

    def __len__(self) -> int:
        return len(self.changes)

    def ack(self) -> None:
        """Everything up to and including this transaction is done. Returns at once; ``flush()`` waits until it is durable."""
        if self._core is None:
            raise ProtocolError("only transactions of a subscription can be acknowledged")
        self._core.acknowledge(self.position, self._serial)

    def to_pylist(self) -> list[Row]:
        """Every change as one flat dict: ``_table``, ``_operation``, ``_commit_lsn``, ``_ordinal`` and the row's columns.

        The row is the new one, for a delete the old one.
        """
        rows = []
        for change in self.changes:
            row: Row = {
                "_table": change.table,
                "_operation": change.operation.value,
                "_commit_lsn": self.commit_lsn,
                "_ordinal": change.ordinal,
            }
            row.update(change.after or change.before or {})
            rows.append(row)
        return rows


@dataclass(frozen=True, slots=True)
class Batch:
    """Whole transactions that came together."""

    transactions: Sequence[Transaction]

    @property
    def position(self) -> Position:
        """Resume behind the batch here."""
        return self.transactions[-1].position

    def ack(self) -> None:
        """Everything up to and including this batch is done."""
        self.transactions[-1].ack()

    def to_pylist(self) -> list[Row]:
        """As ``Transaction.to_pylist``."""
        return [row for transaction in self.transactions for row in transaction.to_pylist()]

    def to_arrow(self, *, text: Sequence[str] = (), invalid: str = "error") -> Any:
        """A ``walcast.arrow.TableBatch`` for each table and relation version. Needs the extra ``arrow``."""
        from . import arrow

        return arrow.table_batches(self.transactions, text=text, invalid=invalid)


def truncates(transaction: Transaction, event: pb.Truncate, relations: Mapping[int, Relation]) -> list[Change]:
    tables = tuple(relations[number].table for number in event.relation_ids)
    statement = Truncate(tables, event.cascade, event.restart_identity, event.ordinal)
    return [Change(transaction, relations[number], None, statement) for number in event.relation_ids]


def message_from_pb(event: pb.LogicalMessage) -> Message:
    return Message(event.prefix, event.content, event.ordinal, event.lsn)


def time_from_pb(message: Any) -> datetime:
    value: datetime = message.ToDatetime(tzinfo=timezone.utc)
    return value


def begin_from_pb(begin: pb.Begin) -> Transaction:
    return Transaction(
        commit_lsn=begin.commit_lsn,
        lineage=begin.lineage,
        sequence=begin.sequence,
        xid=begin.xid,
        commit_time=time_from_pb(begin.commit_time) if begin.HasField("commit_time") else None,
        origin=begin.origin,
    )


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
