from __future__ import annotations

import datetime as dt
import pickle
from decimal import Decimal
from uuid import UUID

import pytest

from walcast import UNCHANGED, Interval, Range, Unrepresentable, array
from walcast._model import Relation
from walcast._values import BUILTIN, decoders
from walcast.errors import ProtocolError
from walcast.v1 import event_pb2 as pb

UTC = dt.timezone.utc


@pytest.mark.parametrize(
    ("type_name", "text", "expected"),
    [
        ("numeric", "12345678901234567890.00010", Decimal("12345678901234567890.00010")),
        ("numeric", "-Infinity", Decimal("-Infinity")),
        ("date", "2024-02-29", dt.date(2024, 2, 29)),
        ("date", "0044-03-15 BC", Unrepresentable("date", "0044-03-15 BC")),
        ("date", "10000-01-01", Unrepresentable("date", "10000-01-01")),
        ("date", "infinity", Unrepresentable("date", "infinity")),
        ("time", "23:59:59.9", dt.time(23, 59, 59, 900000)),
        ("time", "24:00:00", Unrepresentable("time", "24:00:00")),
        ("timetz", "12:00:00.5-03:30", dt.time(12, 0, 0, 500000, dt.timezone(dt.timedelta(hours=-3, minutes=-30)))),
        ("timetz", "12:00:00+05", dt.time(12, tzinfo=dt.timezone(dt.timedelta(hours=5)))),
        ("timestamp", "2024-02-29 12:34:56.78", dt.datetime(2024, 2, 29, 12, 34, 56, 780000)),
        ("timestamp", "0001-01-01 00:00:00", dt.datetime(1, 1, 1)),
        ("timestamp", "0044-03-15 00:00:00 BC", Unrepresentable("timestamp", "0044-03-15 00:00:00 BC")),
        ("timestamp", "294276-12-31 23:59:59", Unrepresentable("timestamp", "294276-12-31 23:59:59")),
        ("timestamptz", "2024-02-29 12:34:56.789012+00", dt.datetime(2024, 2, 29, 12, 34, 56, 789012, UTC)),
        ("timestamptz", "-infinity", Unrepresentable("timestamptz", "-infinity")),
        ("timestamptz", "10000-01-01 00:00:00+00", Unrepresentable("timestamptz", "10000-01-01 00:00:00+00")),
        ("interval", "1 year 2 mons 3 days 04:05:06.7", Interval(14, 3, 14_706_700_000)),
        ("interval", "-1 years -2 mons +3 days -04:05:06.000001", Interval(-14, 3, -14_706_000_001)),
        ("interval", "00:00:00", Interval()),
        ("interval", "123456:00:00", Interval(0, 0, 123456 * 3_600_000_000)),
        ("interval", "infinity", Unrepresentable("interval", "infinity")),
        ("uuid", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", UUID("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11")),
        ("jsonb", '{"a": [1, null, "x"]}', {"a": [1, None, "x"]}),
        ("_int4", "{1,NULL,-3}", [1, None, -3]),
        ("_int4", "{}", []),
        ("_int4", "{{1,2},{3,4}}", [[1, 2], [3, 4]]),
        ("_int4", "[0:1][-1:0]={{1,2},{3,4}}", [[1, 2], [3, 4]]),
        ("_text", r'{a,"b,c","d\"e","f\\g","NULL",NULL,"","{x}"," y"}',
         ["a", "b,c", 'd"e', "f\\g", "NULL", None, "", "{x}", " y"]),
        ("_bool", "{t,f,NULL}", [True, False, None]),
        ("_bytea", r'{"\\x00ff"}', [b"\x00\xff"]),
        ("_numeric", "{NaN,1.50}", None),
        ("_timestamptz", '{"2024-01-01 00:00:00+00",infinity}',
         [dt.datetime(2024, 1, 1, tzinfo=UTC), Unrepresentable("timestamptz", "infinity")]),
        ("_jsonb", r'{"{\"a\": 1}"}', [{"a": 1}]),
        ("_box", "{(1,1),(0,0);(3,3),(2,2)}", ["(1,1),(0,0)", "(3,3),(2,2)"]),
        ("int4range", "[1,5)", Range(1, 5, True, False)),
        ("int4range", "empty", Range(empty=True)),
        ("int8range", "(,5)", Range(None, 5)),
        ("tstzrange", '["2024-01-01 00:00:00+00",)', Range(dt.datetime(2024, 1, 1, tzinfo=UTC), None, True, False)),
        ("int4multirange", "{[1,3),[5,9)}", [Range(1, 3, True), Range(5, 9, True)]),
        ("_int4range", '{"[1,3)",empty}', [Range(1, 3, True), Range(empty=True)]),
    ],
)  # fmt: skip
def test_text_becomes_the_native_type(type_name: str, text: str, expected: object) -> None:
    decoded = BUILTIN[type_name](text)
    if expected is None:
        assert decoded[0].is_nan() and decoded[1] == Decimal("1.50")
    else:
        assert decoded == expected and type(decoded) is type(expected)


@pytest.mark.parametrize("text", ["", "{", "{1}}", "1,2", '{"a}', "{1}x{"])
def test_what_is_no_array_is_refused(text: str) -> None:
    with pytest.raises((ValueError, IndexError)):
        array(int)(text)


def relation(*columns: tuple[str, str]) -> Relation:
    return Relation(
        pb.Relation(
            relation_id=1,
            schema="public",
            table="t",
            columns=[pb.Column(name=name, type_name=type_name) for name, type_name in columns],
        ),
        decoders("parsed", None),
    )


def test_null_unchanged_and_absent_are_three_things() -> None:
    row = pb.Row(
        values=[
            pb.Value(missing=pb.MISSING_NULL),
            pb.Value(missing=pb.MISSING_UNCHANGED),
            pb.Value(missing=pb.MISSING_ABSENT),
        ]
    )
    decoded = relation(("a", "text"), ("b", "text"), ("c", "text")).decode(row)
    assert decoded == {"a": None, "b": UNCHANGED}
    assert decoded["b"] is UNCHANGED and not UNCHANGED and pickle.loads(pickle.dumps(UNCHANGED)) is UNCHANGED


def test_zeros_are_values() -> None:
    row = pb.Row(
        values=[
            pb.Value(int_value=0),
            pb.Value(text=""),
            pb.Value(bool_value=False),
            pb.Value(float_value=0.0),
            pb.Value(bytes_value=b""),
            pb.Value(raw_text=b"\xff"),
            pb.Value(int_value=-(2**63)),
        ]
    )
    columns = [
        ("a", "int4"),
        ("b", "text"),
        ("c", "bool"),
        ("d", "float8"),
        ("e", "bytea"),
        ("f", "text"),
        ("g", "int8"),
    ]
    assert relation(*columns).decode(row) == {
        "a": 0, "b": "", "c": False, "d": 0.0, "e": b"", "f": b"\xff", "g": -(2**63),
    }  # fmt: skip


def test_an_unknown_kind_of_value_is_an_error() -> None:
    with pytest.raises(ProtocolError):
        relation(("a", "text")).decode(pb.Row(values=[pb.Value()]))
    with pytest.raises(ProtocolError):
        relation(("a", "text")).decode(pb.Row(values=[]))
    with pytest.raises(ProtocolError, match=r"public\.t\.a \(uuid\)"):
        relation(("a", "uuid")).decode(pb.Row(values=[pb.Value(text="zzz")]))


def test_json_may_stay_text_and_types_may_be_added() -> None:
    table = decoders("text", {"public.mood": str.upper})
    assert "jsonb" not in table and table["_jsonb"](r'{"{\"a\": 1}"}') == ['{"a": 1}']
    assert table["public.mood"]("ok") == "OK"
    with pytest.raises(ValueError, match="parsed"):
        decoders("lazy", None)


def test_an_interval_with_months_is_no_timedelta() -> None:
    assert Interval(0, 1, 500).as_timedelta() == dt.timedelta(days=1, microseconds=500)
    with pytest.raises(ValueError, match="1 months"):
        Interval(1).as_timedelta()


def test_a_range_contains() -> None:
    assert 1 in Range(1, 5, True) and 5 not in Range(1, 5, True) and 9 in Range(lower=3) and 1 not in Range(empty=True)
