"""Filters: which tables, operations, columns and rows a subscription selects."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any, Union
from uuid import UUID

from ._model import OPERATION_NUMBERS, Operation
from .v1 import walcast_pb2 as api

Operations = Iterable[Union[Operation, str]]


@dataclass(frozen=True, slots=True)
class Rule:
    """What is selected of the tables that match, instead of the subscription's columns, where and operations."""

    tables: str
    columns: Sequence[str] = ()
    where: str = ""
    operations: Sequence[Operation | str] = ()


def identifier(name: str) -> str:
    """A column name for a ``where``, quoted as PostgreSQL does."""
    return '"' + name.replace('"', '""') + '"'


def literal(value: Any) -> str:
    """A value for a ``where``, quoted as PostgreSQL does."""
    if value is None:
        return "NULL"
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    if isinstance(value, (int, Decimal)):
        text = str(value)
        return text if text.lstrip("-").isdigit() else f"'{text}'"
    if isinstance(value, float):
        return repr(value) if value == value and abs(value) != float("inf") else f"'{value}'"
    if isinstance(value, (date, datetime, time)):
        return f"'{value.isoformat(' ') if isinstance(value, datetime) else value.isoformat()}'"
    if isinstance(value, UUID):
        return f"'{value}'"
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    raise TypeError(f"no literal for {type(value).__name__}")


def where(**columns: Any) -> str:
    """Equality of columns as a ``where``: ``where(status="paid", region=["eu", "us"], note=None)``.

    A list, tuple or set is IN; None is IS NULL; all of them hold together.
    """
    terms = []
    for name, value in columns.items():
        column = identifier(name)
        if value is None:
            terms.append(f"{column} IS NULL")
        elif isinstance(value, (list, tuple, set, frozenset)):
            if not value:
                raise ValueError(f"{name}: IN needs at least one value")
            terms.append(f"{column} IN ({', '.join(literal(element) for element in value)})")
        else:
            terms.append(f"{column} = {literal(value)}")
    return " AND ".join(terms)


def to_pb(
    tables: str | Iterable[str] = (),
    exclude_tables: str | Iterable[str] = (),
    operations: Operations = (),
    columns: str | Iterable[str] = (),
    where: str = "",
    messages: str | Iterable[str] = (),
    origins: Iterable[str] = (),
    rules: Iterable[Rule] = (),
) -> api.Filter | None:
    """The request's filter; ``None`` if nothing was said, which selects everything."""
    message = api.Filter(
        tables=_several(tables),
        exclude_tables=_several(exclude_tables),
        operations=_numbers(operations),
        columns=_several(columns),
        where=where,
        message_prefixes=_several(messages),
        origins=list(origins),
        rules=[
            api.TableRule(
                tables=rule.tables, columns=list(rule.columns), where=rule.where, operations=_numbers(rule.operations)
            )
            for rule in rules
        ],
    )
    return message if message.ByteSize() else None


def _several(names: str | Iterable[str]) -> list[str]:
    return [names] if isinstance(names, str) else list(names)


def _numbers(operations: Operations) -> list[Any]:
    return [OPERATION_NUMBERS[Operation(operation)] for operation in operations]
