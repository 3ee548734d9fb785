"""Values: from what the stream carries to Python's own types.

The hub sends bool, integers, floats and bytea as such and everything else as PostgreSQL prints it with ISO dates, UTC,
and IntervalStyle postgres. The type of a decoded value depends on the column's type alone, except where Python has no
value for what PostgreSQL holds: infinite dates, years before 1 or after 9999, and 24:00:00 become :class:`Unrepresentable`.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any, Generic, TypeVar
from uuid import UUID

T = TypeVar("T")
Decoder = Callable[[str], Any]


class _Unchanged:
    """See :data:`UNCHANGED`."""

    __slots__ = ()
    _instance: _Unchanged | None = None

    def __new__(cls) -> _Unchanged:
        if cls._instance is None:
            cls._instance = super().__new__(cls)
        return cls._instance

    def __repr__(self) -> str:
        return "UNCHANGED"

    def __bool__(self) -> bool:
        return False

    def __reduce__(self) -> str:
        return "UNCHANGED"


#: A TOASTed value that the update did not touch and PostgreSQL did not send: it is what it was. Never ``None``.
UNCHANGED = _Unchanged()


@dataclass(frozen=True, slots=True)
class Unrepresentable:
    """A valid PostgreSQL value that Python's type cannot hold, as PostgreSQL prints it."""

    type_name: str
    text: str

    @property
    def is_infinite(self) -> bool:
        """``infinity`` or ``-infinity``."""
        return self.text in ("infinity", "-infinity")

    @property
    def is_bc(self) -> bool:
        """A date before the year 1."""
        return self.text.endswith(" BC")

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Interval:
    """PostgreSQL's interval. A month has no fixed number of days, nor has a day a fixed number of hours."""

    months: int = 0
    days: int = 0
    microseconds: int = 0

    def as_timedelta(self) -> timedelta:
        """As a timedelta, a day being 24 hours. ValueError if there are months."""
        if self.months:
            raise ValueError(f"{self.months} months are no fixed number of days")
        return timedelta(days=self.days, microseconds=self.microseconds)


@dataclass(frozen=True, slots=True)
class Range(Generic[T]):
    """A range. ``None`` as a bound is unbounded; of an empty range both are ``None``."""

    lower: T | None = None
    upper: T | None = None
    lower_inc: bool = False
    upper_inc: bool = False
    empty: bool = False

    def __contains__(self, value: Any) -> bool:
        if self.empty:
            return False
        above = self.lower is None or value > self.lower or (self.lower_inc and value == self.lower)
        below = self.upper is None or value < self.upper or (self.upper_inc and value == self.upper)
        return above and below


def _iso(parse: Callable[[str], T], type_name: str) -> Callable[[str], T | Unrepresentable]:
    def decode(text: str) -> T | Unrepresentable:
        try:
            return parse(text)
        except ValueError:
            return Unrepresentable(type_name, text)

    return decode


if sys.version_info >= (3, 11):
    _datetime = datetime.fromisoformat
    _time = time.fromisoformat
else:  # 3.10 takes fractions of 3 or 6 digits and offsets with minutes only
    _PARTS = re.compile(r"^(.*?:\d\d:\d\d|\d\d:\d\d:\d\d)(?:\.(\d{1,6}))?([+-]\d\d(?::\d\d(?::\d\d)?)?)?$")

    def _padded(text: str) -> str:
        parts = _PARTS.match(text)
        if parts is None:
            raise ValueError(text)
        base, fraction, offset = parts.groups()
        offset = offset or ""
        return base + (f".{fraction:0<6}" if fraction else "") + (offset + ":00" if len(offset) == 3 else offset)

    def _datetime(text: str) -> datetime:
        return datetime.fromisoformat(_padded(text))

    def _time(text: str) -> time:
        return time.fromisoformat(_padded(text))


def _clock(text: str) -> time:
    if text.startswith("24"):  # later versions of Python read it as midnight of the same day
        raise ValueError(text)
    return _time(text)


def _timestamptz(text: str) -> datetime:
    value = _datetime(text)
    if value.tzinfo is timezone.utc:
        return value
    if value.tzinfo is None:
        raise ValueError(text)
    return value.astimezone(timezone.utc) if value.utcoffset() else value.replace(tzinfo=timezone.utc)


_INTERVAL_UNIT = re.compile(r"([+-]?\d+) (year|mon|day)s?")
_INTERVAL_TIME = re.compile(r"([+-]?)(\d+):(\d\d):(\d\d)(?:\.(\d{1,6}))?$")


def interval(text: str) -> Interval | Unrepresentable:
    """An interval as IntervalStyle postgres prints it: ``-1 years -2 mons +3 days -04:05:06.7``."""
    if text in ("infinity", "-infinity"):
        return Unrepresentable("interval", text)
    months = days = microseconds = 0
    for amount, unit in _INTERVAL_UNIT.findall(text):
        if unit == "year":
            months += 12 * int(amount)
        elif unit == "mon":
            months += int(amount)
        else:
            days += int(amount)
    clock = _INTERVAL_TIME.search(text)
    if clock:
        sign, hours, minutes, seconds, fraction = clock.groups()
        microseconds = ((int(hours) * 60 + int(minutes)) * 60 + int(seconds)) * 1_000_000
        microseconds += int(f"{fraction:0<6}") if fraction else 0
        if sign == "-":
            microseconds = -microseconds
    return Interval(months, days, microseconds)


_ARRAY_BOUNDS = re.compile(r"^(?:\[-?\d+:-?\d+\])+=")


def array(element: Decoder, delimiter: str = ",") -> Decoder:
    """A decoder for arrays whose elements ``element`` decodes: nested lists, NULL as ``None``, lower bounds dropped."""
    token = re.compile(rf'"((?:[^"\\]|\\.)*)"|([^{{}}"{re.escape(delimiter)}]+)|([{{}}]|{re.escape(delimiter)})', re.S)

    def decode(text: str) -> list[Any]:
        start = _ARRAY_BOUNDS.match(text)
        stack: list[list[Any]] = [[]]
        at = start.end() if start else 0
        while at < len(text):
            match = token.match(text, at)
            if match is None:
                raise ValueError(f"not an array: {text!r}")
            at = match.end()
            quoted, plain, mark = match.groups()
            if quoted is not None:
                stack[-1].append(element(re.sub(r"\\(.)", r"\1", quoted, flags=re.S) if "\\" in quoted else quoted))
            elif plain is not None:
                stack[-1].append(None if plain == "NULL" else element(plain))
            elif mark == "{":
                inner: list[Any] = []
                stack[-1].append(inner)
                stack.append(inner)
            elif mark == "}":
                stack.pop()
        if len(stack) != 1 or len(stack[0]) != 1 or not isinstance(stack[0][0], list):
            raise ValueError(f"not an array: {text!r}")
        return stack[0][0]

    return decode


_RANGE = re.compile(
    r"""([\[(]) (?: "((?:[^"\\]|\\.|"")*)" | ([^",\])]*) ) , (?: "((?:[^"\\]|\\.|"")*)" | ([^",\])]*) ) ([\])])""",
    re.S | re.X,
)


def _range_of(match: re.Match[str], element: Decoder) -> Range[Any]:
    opening, quoted_lower, lower, quoted_upper, upper, closing = match.groups()

    def bound(quoted: str | None, plain: str | None) -> Any:
        if quoted is not None:
            return element(re.sub(r'\\(.)|""', lambda part: part.group(1) or '"', quoted, flags=re.S))
        return element(plain) if plain else None

    return Range(bound(quoted_lower, lower), bound(quoted_upper, upper), opening == "[", closing == "]")


def range_of(element: Decoder) -> Decoder:
    """A decoder for ranges whose bounds ``element`` decodes."""

    def decode(text: str) -> Range[Any]:
        if text == "empty":
            return Range(empty=True)
        match = _RANGE.fullmatch(text)
        if match is None:
            raise ValueError(f"not a range: {text!r}")
        return _range_of(match, element)

    return decode


def multirange_of(element: Decoder) -> Decoder:
    """A decoder for multiranges: a list of ranges."""

    def decode(text: str) -> list[Range[Any]]:
        return [_range_of(match, element) for match in _RANGE.finditer(text)]

    return decode


def _bool(text: str) -> bool:
    return text == "t"


def _bytea(text: str) -> bytes:
    return bytes.fromhex(text[2:])


#: Columns whose values arrive as such, by type: the field of Value that holds them.
NATIVE_FIELDS: dict[str, str] = {
    "bool": "bool_value",
    "int2": "int_value",
    "int4": "int_value",
    "int8": "int_value",
    "oid": "int_value",
    "float4": "float_value",
    "float8": "float_value",
    "bytea": "bytes_value",
}

_SCALARS: dict[str, Decoder] = {
    "bool": _bool,
    "int2": int,
    "int4": int,
    "int8": int,
    "oid": int,
    "float4": float,
    "float8": float,
    "bytea": _bytea,
    "numeric": Decimal,
    "date": _iso(date.fromisoformat, "date"),
    "time": _iso(_clock, "time"),
    "timetz": _iso(_clock, "timetz"),
    "timestamp": _iso(_datetime, "timestamp"),
    "timestamptz": _iso(_timestamptz, "timestamptz"),
    "interval": interval,
    "uuid": UUID,
    "json": json.loads,
    "jsonb": json.loads,
}

_RANGES = {
    "int4range": "int4",
    "int8range": "int8",
    "numrange": "numeric",
    "daterange": "date",
    "tsrange": "timestamp",
    "tstzrange": "timestamptz",
}

#: Text types of pg_catalog that have arrays.
_TEXTS = (
    "text varchar bpchar name char xml inet cidr macaddr macaddr8 bit varbit money point lseg path polygon line circle "
    "tsvector tsquery pg_lsn pg_snapshot txid_snapshot jsonpath xid xid8 cid tid refcursor regclass regtype regproc "
    "regprocedure regoper regoperator regrole regnamespace regconfig regdictionary regcollation aclitem"
).split()


def _builtin() -> dict[str, Decoder]:
    decoders = {name: decode for name, decode in _SCALARS.items() if name not in NATIVE_FIELDS}
    for name, element in _RANGES.items():
        decoders[name] = range_of(_SCALARS[element])
        multi = name.replace("range", "multirange")
        decoders[multi] = multirange_of(_SCALARS[element])
        decoders["_" + name] = array(decoders[name])
        decoders["_" + multi] = array(decoders[multi])
    for name, decode in _SCALARS.items():
        decoders["_" + name] = array(decode)
    for name in _TEXTS:
        decoders["_" + name] = array(str)
    decoders["_box"] = array(str, ";")
    return decoders


BUILTIN: Mapping[str, Decoder] = _builtin()


def decoders(json_as: str, extra: Mapping[str, Decoder] | None) -> dict[str, Decoder]:
    """Decoders of text by type name. ``json_as``: "parsed" or "text"."""
    table = dict(BUILTIN)
    if json_as == "text":
        for name in ("json", "jsonb"):
            del table[name]
            table["_" + name] = array(str)
    elif json_as != "parsed":
        raise ValueError(f'json is "parsed" or "text", not {json_as!r}')
    table.update(extra or {})
    return table
