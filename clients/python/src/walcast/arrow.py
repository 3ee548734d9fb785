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
from operator import attrgetter
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ._model import Column, Operation, Relation, Transaction
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


class _Builder:
    def __init__(self, relation: Relation, text: frozenset[str], invalid: str) -> None:
        self.relation = relation
        self.invalid = invalid
        self.names = [column.name for column in relation.columns]
        self.types = [
            pa.string() if f"{relation.table}.{column.name}" in text and column.type_name not in NATIVE_FIELDS
            else arrow_type(column)
            for column in relation.columns
        ]  # fmt: skip
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
        arrays = [
            pa.array(self.operations, pa.string()),
            pa.array(self.lsns, pa.string()),
            pa.array(self.times, pa.timestamp("us", tz="UTC")),
            pa.array(self.xids, pa.uint64()),
            pa.array(self.ordinals, pa.uint64()),
            pa.array(self.unchanged, pa.list_(pa.string())),
        ]
        names = ["_operation", "_commit_lsn", "_commit_time", "_xid", "_ordinal", "_unchanged", *self.names]
        for name, kind, values in zip(self.names, self.types, self.columns):
            arrays.append(self._array(name, kind, values))
        return TableBatch(self.relation, pa.RecordBatch.from_arrays(arrays, names))

    def _array(self, name: str, kind: Any, values: list[Any]) -> Any:
        parsed = pa.types.is_temporal(kind) or pa.types.is_decimal(kind)
        if not parsed:
            return pa.array(values, kind)
        try:
            return _cast(pa.array(values, pa.string()), kind)
        except pa.ArrowInvalid as error:
            if self.invalid != "null":
                message = f"{self.relation.table}.{name}: {error}; name it in `text`, or pass invalid='null'"
                raise Unconvertible(message) from error
        return pa.concat_arrays([_cast_or_null(value, kind) for value in values])


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
    return list(_grouped(transactions, frozenset(text), invalid))


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
        for event in transaction._events:
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


def to_pandas(changes: TableBatch) -> Any:
    """As a pandas DataFrame with Arrow types, so that integers with nulls stay integers."""
    import pandas as pd

    return changes.batch.to_pandas(types_mapper=pd.ArrowDtype)


def to_polars(changes: TableBatch) -> Any:
    """As a polars DataFrame."""
    import polars as pl

    return pl.from_arrow(changes.batch)


__all__ = ["TableBatch", "Unconvertible", "arrow_type", "table_batches", "to_pandas", "to_polars"]
