"""Transactions as Arrow record batches, one per table and relation version; from there pandas, polars and Parquet.

Needs ``pyarrow`` (the extra ``arrow``). The columns of the row come under their names, and before them ``_operation``,
``_commit_lsn``, ``_commit_time``, ``_xid``, ``_ordinal`` and ``_unchanged`` (names of columns that are null here because
PostgreSQL did not send their value). The row is the new one, for a delete the old one.

numeric with a declared precision of at most 38 digits is decimal128; numeric without one, and every type that Arrow or
Parquet lacks (interval, uuid, json, arrays, ranges), is text as PostgreSQL prints it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from operator import attrgetter
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from . import _native
from ._model import Column, Operation, Relation, Transaction, message_of
from ._native import is_run
from ._values import NATIVE_FIELDS
from .errors import ProtocolError, WalcastError
from .v1 import event_pb2 as pb

_TYPES: dict[str, Any] = {
    "bool": pa.bool_(),
    "int2": pa.int16(),
    "int4": pa.int32(),
    "int8": pa.int64(),
    "oid": pa.int64(),
    "float4": pa.float32(),
    "float8": pa.float64(),
    "bytea": pa.binary(),
    "date": pa.date32(),
    "time": pa.time64("us"),
    "timestamp": pa.timestamp("us"),
    "timestamptz": pa.timestamp("us", tz="UTC"),
}
_OPERATIONS = {
    pb.OPERATION_INSERT: "insert",
    pb.OPERATION_UPDATE: "update",
    pb.OPERATION_DELETE: "delete",
    pb.OPERATION_READ: "read",
}


#: Changes that are taken apart at once: few enough for their values to stay in the processor's cache.
_RUN = 1024


class Unconvertible(WalcastError):
    """A value that its Arrow type cannot hold, such as an infinite date. Select the column as text, or as null."""


@dataclass(frozen=True, slots=True)
class TableBatch:
    """Consecutive changes of one relation version."""

    relation: Relation
    batch: Any

    @property
    def table(self) -> str:
        """``schema.table``."""
        return self.relation.table


def arrow_type(column: Column) -> Any:
    """The Arrow type of a column."""
    if column.type_name == "numeric" and column.type_modifier >= 4:
        precision, scale = (column.type_modifier - 4) >> 16 & 0xFFFF, (column.type_modifier - 4) & 0x7FF
        if precision <= 38 and scale <= precision:
            return pa.decimal128(precision, scale)
    return _TYPES.get(column.type_name, pa.string())


def _arrow_types(relation: Relation, text: frozenset[str]) -> list[Any]:
    return [
        pa.string() if f"{relation.table}.{column.name}" in text and column.type_name not in NATIVE_FIELDS
        else arrow_type(column)
        for column in relation.columns
    ]  # fmt: skip


class _Builder:
    """Columns of a relation version from messages."""

    def __init__(self, relation: Relation, text: frozenset[str], invalid: str) -> None:
        self.relation = relation
        self.invalid = invalid
        self.names = [column.name for column in relation.columns]
        self.types = _arrow_types(relation, text)
        self.getters: list[Callable[[Any], Any]] = [
            attrgetter(NATIVE_FIELDS.get(column.type_name, "text")) for column in relation.columns
        ]
        self.columns: list[list[Any]] = [[] for _ in self.names]
        self.operations: list[str] = []
        self.lsns: list[str] = []
        self.times: list[Any] = []
        self.xids: list[int] = []
        self.ordinals: list[int] = []
        self.unchanged: list[list[str] | None] = []

    def add(self, transaction: Transaction, changes: list[pb.Change]) -> None:
        """Consecutive changes of one transaction, a column at a time: that leaves most of the work to C."""
        rows = [
            change.before_row.values if change.operation == pb.OPERATION_DELETE else change.after_row.values
            for change in changes
        ]
        try:
            columns = list(zip(*rows, strict=True))
        except ValueError:
            columns = []
        if len(columns) != len(self.names):
            raise ProtocolError(f"{self.relation.table}: rows do not have {len(self.names)} columns")
        unchanged: dict[int, list[str]] = {}
        for name, get, into, column in zip(self.names, self.getters, self.columns, columns):
            values = list(map(get, column))
            if not all(values):  # missing, or the zero of its kind
                for number, plain in enumerate(values):
                    if not plain:
                        values[number] = self._unusual(name, column[number], number, unchanged)
            into.extend(values)
        self.operations.extend([_OPERATIONS[change.operation] for change in changes])
        self.ordinals.extend([change.ordinal for change in changes])
        self.unchanged.extend(
            [unchanged.get(number) for number in range(len(changes))] if unchanged else [None] * len(changes)
        )
        self._envelope(transaction, len(changes))

    def _unusual(self, name: str, value: pb.Value, number: int, unchanged: dict[int, list[str]]) -> Any:
        kind = value.WhichOneof("kind")
        if kind == "missing":
            if value.missing == pb.MISSING_UNCHANGED:
                unchanged.setdefault(number, []).append(name)
            elif value.missing not in (pb.MISSING_NULL, pb.MISSING_ABSENT):
                raise ProtocolError(f"a value is missing for reason {value.missing}, which this version does not know")
            return None
        if kind is None:
            raise ProtocolError("a value has a kind that this version does not know")
        if kind == "raw_text":
            raise Unconvertible(f"{self.relation.table}.{name}: text that is not UTF-8")
        return getattr(value, kind)

    def add_truncate(self, transaction: Transaction, ordinal: int) -> None:
        for values in self.columns:
            values.append(None)
        self.operations.append(Operation.TRUNCATE.value)
        self.ordinals.append(ordinal)
        self.unchanged.append(None)
        self._envelope(transaction, 1)

    def _envelope(self, transaction: Transaction, count: int) -> None:
        self.lsns.extend([transaction.commit_lsn] * count)
        self.times.extend([transaction.commit_time] * count)
        self.xids.extend([transaction.xid] * count)

    def finish(self) -> TableBatch:
        envelope = [
            pa.array(self.operations, pa.string()),
            pa.array(self.lsns, pa.string()),
            pa.array(self.times, pa.timestamp("us", tz="UTC")),
            pa.array(self.xids, pa.uint64()),
            pa.array(self.ordinals, pa.uint64()),
            pa.array(self.unchanged, pa.list_(pa.string())),
        ]
        columns = [
            _parsed(self.relation, name, kind, pa.array(values, pa.string()), self.invalid)
            if _is_parsed(kind)
            else pa.array(values, kind)
            for name, kind, values in zip(self.names, self.types, self.columns)
        ]
        return _table_batch(self.relation, envelope, columns)


_ENVELOPE = ["_operation", "_commit_lsn", "_commit_time", "_xid", "_ordinal", "_unchanged"]


def _table_batch(relation: Relation, envelope: list[Any], columns: list[Any]) -> TableBatch:
    names = [*_ENVELOPE, *(column.name for column in relation.columns)]
    return TableBatch(relation, pa.RecordBatch.from_arrays([*envelope, *columns], names))


def _is_parsed(kind: Any) -> bool:
    """Whether the hub sends text for it that Arrow parses."""
    return bool(pa.types.is_temporal(kind) or pa.types.is_decimal(kind))


def _parsed(relation: Relation, name: str, kind: Any, values: Any, invalid: str) -> Any:
    try:
        return _cast(values, kind)
    except pa.ArrowInvalid as error:
        if invalid != "null":
            message = f"{relation.table}.{name}: {error}; name it in `text`, or pass invalid='null'"
            raise Unconvertible(message) from error
    return pa.concat_arrays([_cast_or_null(value, kind) for value in values.to_pylist()])


def _cast(text: Any, kind: Any) -> Any:
    if pa.types.is_time(kind):  # Arrow reads times as part of a timestamp only
        text = pc.binary_join_element_wise(pa.scalar("1970-01-01"), text, " ").cast(pa.timestamp("us"))
    return text.cast(kind)


def _cast_or_null(value: str | None, kind: Any) -> Any:
    try:
        return _cast(pa.array([value], pa.string()), kind)
    except pa.ArrowInvalid:
        return pa.nulls(1, kind)


def table_batches(
    transactions: Iterable[Transaction], *, text: Iterable[str] = (), invalid: str = "error"
) -> list[TableBatch]:
    """The changes of transactions, grouped by relation version, each group in order.

    ``text``: ``schema.table.column`` names that stay text as PostgreSQL prints it. ``invalid``: "error" or "null" for
    values that the Arrow type cannot hold.
    """
    several, names = list(transactions), frozenset(text)
    compiled = _compiled(several, names, invalid) if _native.native is not None else None
    return list(_grouped(several, names, invalid)) if compiled is None else compiled


def _grouped(transactions: Iterable[Transaction], text: frozenset[str], invalid: str) -> Iterator[TableBatch]:
    builders: dict[int, _Builder] = {}

    def builder(relation: Relation) -> _Builder:
        # Relation numbers hold within one stream only; the object is the same for one version in one stream.
        found = builders.get(id(relation))
        if found is None:
            found = builders[id(relation)] = _Builder(relation, text, invalid)
        return found

    for transaction in transactions:
        relations = transaction._relations
        run: list[pb.Change] = []
        number = 0
        for event in _messages(transaction):
            if type(event) is pb.Change:
                if run and (event.relation_id != number or len(run) == _RUN):
                    builder(relations[number]).add(transaction, run)
                    run = []
                number = event.relation_id
                run.append(event)
            elif type(event) is pb.Truncate:
                if run:
                    builder(relations[number]).add(transaction, run)
                    run = []
                for truncated in event.relation_ids:
                    builder(relations[truncated]).add_truncate(transaction, event.ordinal)
        if run:
            builder(relations[number]).add(transaction, run)
    for entry in builders.values():
        yield entry.finish()


def _messages(transaction: Transaction) -> Iterator[Any]:
    for event in transaction._events:
        if is_run(event):
            yield from map(message_of, event)
        else:
            yield event


# -- with compiled code

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MICROSECOND = timedelta(microseconds=1)
#: What `walcast_native.Columns` calls the fields of Value.
_KINDS = {"bool_value": "bool", "int_value": "int", "float_value": "float", "bytes_value": "bytes"}
#: In which type its buffers are.
_RAW_TYPES = {
    "bool": pa.bool_(), "int": pa.int64(), "float": pa.float64(), "bytes": pa.binary(), "text": pa.string(),
}  # fmt: skip


def _compiled(transactions: list[Transaction], text: frozenset[str], invalid: str) -> list[TableBatch] | None:
    """As `_grouped`, or ``None`` where there is something that only it understands."""
    groups: dict[int, tuple[Relation, Any]] = {}

    def columns(relation: Relation) -> Any:
        found = groups.get(id(relation))
        if found is None:
            kinds = [_KINDS.get(NATIVE_FIELDS.get(column.type_name, ""), "text") for column in relation.columns]
            names = [column.name for column in relation.columns]
            found = groups[id(relation)] = (relation, _native.native.Columns(list(zip(names, kinds))))
        return found[1]

    for transaction in transactions:
        relations = transaction._relations
        time = (transaction.commit_time - _EPOCH) // _MICROSECOND if transaction.commit_time is not None else None
        origin = (transaction.commit_lsn, time, transaction.xid)
        for event in transaction._events:
            if is_run(event):
                for number in event.relation_ids:
                    if not columns(relations[number]).extend(event, number, *origin):
                        return None
            elif type(event) is pb.Truncate:
                for number in event.relation_ids:
                    if not columns(relations[number]).truncate(event.ordinal, *origin):
                        return None
            elif type(event) is pb.Change:
                return None
    try:
        return [_from_buffers(relation, built, text, invalid) for relation, built in groups.values()]
    except pa.ArrowInvalid:
        return None


def _from_buffers(relation: Relation, built: Any, text: frozenset[str], invalid: str) -> TableBatch:
    operations, lsns, times, xids, ordinals, lists, unchanged, *rest = built.finish()
    envelope = [
        _array(pa.string(), operations),
        _array(pa.string(), lsns),
        _array(pa.timestamp("us", tz="UTC"), times),
        _array(pa.uint64(), xids),
        _array(pa.uint64(), ordinals),
        _array(pa.list_(pa.string()), lists, [_array(pa.string(), unchanged)]),
    ]
    columns = []
    for column, kind, buffers in zip(relation.columns, _arrow_types(relation, text), rest):
        values = _array(_RAW_TYPES[_KINDS.get(NATIVE_FIELDS.get(column.type_name, ""), "text")], buffers)
        if _is_parsed(kind):
            values = _parsed(relation, column.name, kind, values, invalid)
        columns.append(values if values.type == kind else values.cast(kind))
    return _table_batch(relation, envelope, columns)


def _array(kind: Any, column: tuple[int, int, list[bytes | None]], children: list[Any] | None = None) -> Any:
    length, nulls, buffers = column
    return pa.Array.from_buffers(
        kind, length, [None if data is None else pa.py_buffer(data) for data in buffers], nulls, children=children
    )


def to_pandas(changes: TableBatch) -> Any:
    """As a pandas DataFrame with Arrow types, so that integers with nulls stay integers."""
    import pandas as pd

    return changes.batch.to_pandas(types_mapper=pd.ArrowDtype)


def to_polars(changes: TableBatch) -> Any:
    """As a polars DataFrame."""
    import polars as pl

    return pl.from_arrow(changes.batch)


__all__ = ["TableBatch", "Unconvertible", "arrow_type", "table_batches", "to_pandas", "to_polars"]
