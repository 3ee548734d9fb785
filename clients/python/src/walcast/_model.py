"""Transactions: their changes, rows and messages."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from enum import Enum
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Union

from google.protobuf.message import DecodeError

from . import _native
from ._native import is_run
from ._position import Position
from ._values import NATIVE_FIELDS, UNCHANGED, Decoder
from .errors import ProtocolError
from .v1 import event_pb2 as pb

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
#: A change as it came: ``walcast.v1.Change``, or its compiled twin.
_Raw = Any


class Relation:
    """One immutable version of a table."""

    __slots__ = (
        "_decoders",
        "_native_plan",
        "_plan",
        "columns",
        "oid",
        "relation_id",
        "replica_identity",
        "schema",
        "table_name",
    )

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
                None if column.type_name in NATIVE_FIELDS else decoders.get(column.type_name),
                column.type_name,
            )
            for column in self.columns
        ]
        native = _native.native
        self._native_plan = (
            native.Plan([(name, decode) for name, _, decode, _ in self._plan], UNCHANGED) if native else None
        )

    @property
    def table(self) -> str:
        """``schema.table``, unquoted."""
        return f"{self.schema}.{self.table_name}"

    def __repr__(self) -> str:
        return f"Relation({self.table!r}, version {self.relation_id}, {[column.name for column in self.columns]})"

    def image(self, change: _Raw, after: bool) -> Row | None:
        """The row after or before a change, if there is one."""
        if type(change) is not pb.Change:
            row = change.row(after, self._native_plan)
            if row is not NotImplemented:
                decoded: Row | None = row
                return decoded
            change = message_of(change)
        if not change.HasField("after_row" if after else "before_row"):
            return None
        return self.decode(change.after_row if after else change.before_row)

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
        message: _Raw | None,
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
            self._before = None if message is None else self.relation.image(message, False)
        row: Row | None = self._before
        return row

    @property
    def after(self) -> Row | None:
        """The row as it is; ``None`` for a delete or truncate."""
        if self._after is _ABSENT:
            message = self._message
            self._after = None if message is None else self.relation.image(message, True)
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
        if type(message) is not pb.Change:
            message = message_of(message)
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
            elif is_run(event):
                for change in event:
                    yield Change(self, relations[change.relation_id], change)
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

    def _size(self) -> int:
        """Events in it."""
        return sum([len(event) if is_run(event) else 1 for event in self._events])

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


def message_of(change: Any) -> pb.Change:
    """The message that a compiled change was made of."""
    try:
        return pb.Change.FromString(change.message())
    except DecodeError as error:
        raise ProtocolError(f"a change is malformed: {error}") from None


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
