"""The compiled reader and the one in Python say the same of the same responses."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import pytest
from scripted import begin, commit, opened, progress

import walcast
from walcast import _native
from walcast._core import Core
from walcast._options import Options
from walcast.errors import ProtocolError, WalcastError
from walcast.v1 import event_pb2 as pb
from walcast.v1 import walcast_pb2 as api

if _native.native is None:
    pytest.skip("walcast-native is not installed", allow_module_level=True)

TYPES = (
    "bool int2 int4 int8 oid float4 float8 bytea text varchar numeric date time timetz timestamp timestamptz interval uuid json "
    "jsonb _int4 _text int4range public.mood"
).split()
TEXTS: dict[str, list[str]] = {
    "text": ["", "x", "grüße 😀", "a" * 200], "varchar": ["v"], "numeric": ["1.50", "-0.001", "12345678.90", "NaN", "Infinity"],
    "date": ["2024-02-29", "infinity", "0044-03-15 BC"], "time": ["01:02:03.5", "24:00:00"], "timetz": ["12:00:00.5-03:30"],
    "timestamp": ["2024-02-29 12:34:56.78", "294276-12-31 23:59:59"],
    "timestamptz": ["2024-02-29 12:34:56.789012+00", "-infinity", "2024-02-29 12:34:56+00"],
    "interval": ["1 year 2 mons -3 days 04:05:06.7"], "uuid": ["a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"],
    "json": ['{"a": [1, null]}'], "jsonb": ["0"], "_int4": ["{1,NULL}", "{}"], "_text": ['{a,"b,c"}'], "int4range": ["[1,5)"],
    "public.mood": ["ok"],
}  # fmt: skip
PLAIN = {"numeric": "7.25", "date": "2024-02-29", "time": "01:02:03", "timestamp": "2024-02-29 12:34:56.78"}


def relation(number: int, types: list[str], identity: int = 1) -> pb.Event:
    columns = [
        pb.Column(
            name=f"c{at}", type_name=name, type_modifier=(10 << 16 | 2) + 4 if name == "numeric" and at % 2 else -1
        )
        for at, name in enumerate(types)
    ]
    return pb.Event(
        relation=pb.Relation(
            relation_id=number, schema="public", table=f"t{number}", columns=columns, replica_identity=identity
        )
    )


def value(chance: random.Random, type_name: str, plain: bool, old: bool = False) -> pb.Value:
    if chance.random() < 0.2:
        return pb.Value(missing=chance.choice([pb.MISSING_NULL, pb.MISSING_ABSENT if old else pb.MISSING_UNCHANGED]))
    if type_name == "bool":
        return pb.Value(bool_value=chance.random() < 0.5)
    if type_name in ("int2", "int4", "int8", "oid"):
        return pb.Value(
            int_value={"int2": 2**15 - 1, "int4": -(2**31), "oid": 2**32 - 1}.get(type_name, -(2**63))
            if chance.random() < 0.1
            else chance.randrange(3)
        )
    if type_name in ("float4", "float8"):
        return pb.Value(float_value=chance.choice([0.0, -0.0, 1.5, float("inf")]))
    if type_name == "bytea":
        return pb.Value(bytes_value=chance.choice([b"", b"\x00\xff"]))
    if plain and type_name in PLAIN:
        return pb.Value(text=PLAIN[type_name])
    return pb.Value(
        text=chance.choice(
            ["2024-02-29 12:34:56.789012+00"] if plain and type_name == "timestamptz" else TEXTS[type_name]
        )
    )


def responses(seed: int, plain: bool = False) -> list[bytes]:
    """A stream of all types and operations, cut into responses anywhere."""
    chance = random.Random(seed)
    types = {number: [chance.choice(TYPES) for _ in range(chance.randrange(0, 12))] for number in (1, 2, 3)}
    events = [opened(), *(relation(number, columns, identity=number) for number, columns in types.items())]

    def row(number: int, old: bool = False) -> pb.Row:
        return pb.Row(values=[value(chance, name, plain, old) for name in types[number]])

    def change(number: int, ordinal: int) -> pb.Event:
        operation = chance.choice([pb.OPERATION_INSERT, pb.OPERATION_UPDATE, pb.OPERATION_DELETE])
        made = pb.Change(operation=operation, relation_id=number, ordinal=ordinal, transition=chance.randrange(4))
        if operation != pb.OPERATION_DELETE:
            made.after_row.CopyFrom(row(number))
        if operation == pb.OPERATION_DELETE or (operation == pb.OPERATION_UPDATE and number == 2):
            made.before_row.CopyFrom(row(number, old=True))
        return pb.Event(change=made)

    for tx in range(1, 12):
        at = tx * 16
        start = begin(at)
        if tx % 3:
            start.begin.commit_time.FromMicroseconds(1_700_000_000_123_456 + tx)
        events.append(start)
        sticky = chance.random() < 0.5
        for ordinal in range(1, chance.randrange(2, 30)):
            number = 1 if sticky else chance.choice([1, 2, 3])
            kind = chance.random()
            if kind < 0.05:
                events.append(pb.Event(truncate=pb.Truncate(relation_ids=[1, number], cascade=True, ordinal=ordinal)))
            elif kind < 0.1:
                events.append(pb.Event(message=pb.LogicalMessage(prefix="p", content=b"c", ordinal=ordinal)))
            else:
                events.append(change(number, ordinal))
        events.append(pb.Event(discard=pb.Discard(reason="r")) if tx % 5 == 0 else commit(at, 1))
        if tx % 4 == 0:
            events.append(progress(at))
            for _ in range(3):
                read = pb.Change(operation=pb.OPERATION_READ, relation_id=1, after_row=row(1))
                events.append(pb.Event(change=read))
    cut: list[bytes] = []
    while events:
        some = chance.randrange(1, 20)
        cut.append(api.ConsumeResponse(events=events[:some]).SerializeToString())
        events = events[some:]
    return cut


def read(raws: list[bytes], streaming: bool = False) -> list[Any]:
    core = Core(Options())
    core.streaming = streaming
    core.open_request()
    items = []
    for raw in raws:
        core.receive(raw)
        while (item := core.poll()) is not None:
            items.append(item)
    items.append((core._spent_events, core._spent_bytes))
    return items


def shown(item: Any) -> Any:
    """Everything that a user can see of it."""
    if isinstance(item, walcast.Transaction):
        return [
            repr(item),
            item._size(),
            item.messages,
            [shown(change) for change in item.changes],
            repr(item.to_pylist()),
        ]
    if isinstance(item, walcast.Change):
        names = "operation ordinal table lsn identity transition truncate changed_columns before after"
        return [repr(getattr(item, name)) for name in names.split()]
    return repr(item)


def both(monkeypatch: pytest.MonkeyPatch, run: Callable[[], Any]) -> tuple[Any, Any]:
    """What comes of it, or the error, compiled and in Python."""

    def outcome() -> Any:
        try:
            return run()
        except (WalcastError, OverflowError, ValueError) as error:
            return (type(error), str(error))

    compiled = outcome()
    with monkeypatch.context() as patch:
        patch.setattr(_native, "native", None)
        return compiled, outcome()


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_are_the_same(monkeypatch: pytest.MonkeyPatch, streaming: bool) -> None:
    for seed in range(30):
        raws = responses(seed)
        compiled, pure = both(monkeypatch, lambda raws=raws: [shown(item) for item in read(raws, streaming)])
        assert compiled == pure and isinstance(pure, list), seed


def arrow_of(raws: list[bytes], **options: Any) -> list[Any]:
    from walcast import arrow

    transactions = [item for item in read(raws) if isinstance(item, walcast.Transaction)]
    return arrow.table_batches(transactions, **options)


def test_arrow_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow")
    from walcast import arrow

    taken = []
    real = arrow._compiled
    monkeypatch.setattr(arrow, "_compiled", lambda *given: taken.append(real(*given)) or taken[-1])
    texts = [f"public.t{number}.c{at}" for number in (1, 2, 3) for at in range(0, 12, 3)]
    for seed in range(30):
        for plain, options in [(True, {}), (True, {"text": texts}), (False, {"invalid": "null"}), (False, {})]:
            raws = responses(seed, plain)
            compiled, pure = both(monkeypatch, lambda raws=raws, options=options: arrow_of(raws, **options))
            if isinstance(pure, tuple):
                assert compiled == pure, (seed, options)
                continue
            assert [table.table for table in compiled] == [table.table for table in pure]
            for ours, theirs in zip(compiled, pure):
                ours.batch.validate(full=True)
                assert ours.batch.schema == theirs.batch.schema
                assert ours.batch.equals(theirs.batch) or repr(ours.batch.to_pylist()) == repr(
                    theirs.batch.to_pylist()
                ), seed
    assert len(taken) > 60 and None not in taken, "all of it was done by compiled code"


def one(change: pb.Change, *types: str) -> list[bytes]:
    events = [opened(), relation(1, list(types)), begin(16), pb.Event(change=change), commit(16)]
    return [api.ConsumeResponse(events=events).SerializeToString()]


def insert(*values: pb.Value, **more: Any) -> pb.Change:
    return pb.Change(operation=pb.OPERATION_INSERT, relation_id=1, ordinal=1, after_row=pb.Row(values=values), **more)


def unknown_field(message: Any) -> Any:
    message.MergeFromString(bytes([15 << 3 | 2, 1, 7]))
    return message


ODD: dict[str, tuple[pb.Change, tuple[str, ...]]] = {
    "a kind of another type": (insert(pb.Value(int_value=5)), ("text",)),
    "text for a number": (insert(pb.Value(text="x")), ("int4",)),
    "text that is not UTF-8": (insert(pb.Value(raw_text=b"\xff")), ("text",)),
    "no kind": (insert(pb.Value()), ("text",)),
    "a kind that is not known": (insert(unknown_field(pb.Value())), ("text",)),
    "a kind beside one that is not known": (insert(unknown_field(pb.Value(text="x"))), ("text",)),
    "missing for another reason": (insert(pb.Value(missing=9)), ("text",)),  # type: ignore[arg-type]
    "too few values": (insert(pb.Value(text="x")), ("text", "text")),
    "too many values": (insert(pb.Value(text="x"), pb.Value(text="x")), ("text",)),
    "no row": (pb.Change(operation=pb.OPERATION_INSERT, relation_id=1, ordinal=1), ("text",)),
    "an operation that is not known": (pb.Change(operation=77, relation_id=1, after_row=pb.Row()), ()),  # type: ignore[arg-type]
    "truncate as a change": (pb.Change(operation=pb.OPERATION_TRUNCATE, relation_id=1, after_row=pb.Row()), ()),
    "a text that its type cannot be": (insert(pb.Value(text="zzz")), ("uuid",)),
    "a number that is none": (insert(pb.Value(text="zzz")), ("numeric",)),
    "a field that is not known": (unknown_field(insert(pb.Value(text="x"))), ("text",)),
    "another relation": (pb.Change(operation=pb.OPERATION_INSERT, relation_id=4, after_row=pb.Row()), ()),
    "a number that does not fit": (insert(pb.Value(int_value=70_000)), ("int2",)),
}


@pytest.mark.parametrize("what", ODD)
def test_what_is_odd_is_the_same(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    change, types = ODD[what]
    compiled, pure = both(monkeypatch, lambda: [shown(item) for item in read(one(change, *types))])
    assert compiled == pure


@pytest.mark.parametrize("what", ODD)
def test_what_is_odd_is_the_same_in_arrow(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    pa = pytest.importorskip("pyarrow")
    change, types = ODD[what]

    def columns() -> Any:
        try:
            return [table.batch.to_pydict() for table in arrow_of(one(change, *types))]
        except (pa.ArrowInvalid, pa.ArrowTypeError, KeyError) as error:
            return type(error), str(error)

    compiled, pure = both(monkeypatch, columns)
    assert compiled == pure


def test_two_rows_of_one_change_are_merged(monkeypatch: pytest.MonkeyPatch) -> None:
    change = insert(pb.Value(text="a")).SerializeToString() + bytes([5 << 3 | 2, 5, 1 << 3 | 2, 3, 6 << 3 | 2, 1, 98])
    event = bytes([3 << 3 | 2, len(change)]) + change
    head = [opened(), relation(1, ["text", "text"]), begin(16)]
    raw = api.ConsumeResponse(events=head).SerializeToString() + bytes([1 << 3 | 2, len(event)]) + event
    raw += api.ConsumeResponse(events=[commit(16)]).SerializeToString()
    compiled, pure = both(monkeypatch, lambda: [tx.changes[0].after for tx in read([raw])[:-1]])
    assert compiled == pure == [{"c0": "a", "c1": "b"}]


def damaged(seed: int) -> Iterator[list[bytes]]:
    chance = random.Random(seed)
    raws = responses(seed)
    for _ in range(60):
        at = chance.randrange(len(raws))
        broken = bytearray(raws[at])
        for _ in range(chance.randrange(1, 3)):
            broken[chance.randrange(len(broken))] = chance.randrange(256)
        if chance.random() < 0.2:
            del broken[chance.randrange(len(broken)) :]
        yield [*raws[:at], bytes(broken), *raws[at + 1 :]]


def test_damage_is_an_error_or_read_in_the_same_way(monkeypatch: pytest.MonkeyPatch) -> None:
    same = 0
    for seed in range(12):
        for raws in damaged(seed):
            compiled, pure = both(monkeypatch, lambda raws=raws: [shown(item) for item in read(raws)])
            if isinstance(compiled, list) and isinstance(pure, list):
                assert compiled == pure
                same += 1
            elif isinstance(pure, list):  # parts that the protocol never uses, such as groups
                assert compiled[0] is ProtocolError
    assert same > 50


@pytest.mark.parametrize(
    "raw", [b"\x0a", b"\x0a\x05\x1a\x03\x08", b"\x0b", b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f", b"\x0d"]
)
def test_what_is_no_response_is_refused(monkeypatch: pytest.MonkeyPatch, raw: bytes) -> None:
    for outcome in both(monkeypatch, lambda: read([raw])):
        assert outcome[0] is ProtocolError


def test_a_decoder_that_fails_otherwise_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(text: str) -> str:
        raise RuntimeError(text)

    core = Core(Options(types={"public.mood": refuse, "numeric": Decimal}))
    core.open_request()
    core.receive(one(insert(pb.Value(text="sad"), pb.Value(text="1.0")), "public.mood", "numeric")[0])
    (tx,) = [item for item in iter(core.poll, None) if isinstance(item, walcast.Transaction)]
    with pytest.raises(RuntimeError, match="sad"):
        _ = tx.changes[0].after
