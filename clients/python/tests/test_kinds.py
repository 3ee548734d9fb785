"""What is not an ordinary change: rows of a snapshot, truncates, messages, gaps, and transactions that are too large."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from scripted import Connection, Hub, begin, commit, insert, opened, position, relation, transaction

from walcast import Client, Message, errors
from walcast.v1 import event_pb2 as pb


def playing(*events: pb.Event) -> Any:
    def script(connection: Connection) -> Iterator[list[pb.Event]]:
        yield list(events)

    return script


def read(number: int) -> pb.Event:
    event = insert(0, number)
    event.change.operation = pb.OPERATION_READ
    return event


def snapshot(restarted: bool) -> Any:
    start = pb.Event(snapshot_begin=pb.SnapshotBegin(snapshot_id="s1", restarted=restarted))
    end = pb.Event(snapshot_end=pb.SnapshotEnd(snapshot_id="s1", position=position(16), rows=2))
    return playing(opened(8), start, relation(), read(1), read(2), end, *transaction(32))


def test_rows_of_a_snapshot_are_transactions_that_name_it() -> None:
    told: list[Any] = []
    with Hub(snapshot(False)) as hub, Client(hub.address) as client:
        rows, change = client.subscribe(stop_at_tail=True, on_snapshot=told.append)
    assert [change.after["id"] for change in rows.changes] == [1, 2]
    assert (rows.snapshot_id, rows.changes[0].operation, rows.xid) == ("s1", "read", 0)
    assert change.changes[0].after["id"] == 3200 and len(told) == 2
    with Hub(snapshot(True)) as hub, Client(hub.address) as client, pytest.raises(errors.SnapshotRestartedError):
        next(client.subscribe(stop_at_tail=True))


def test_truncates_and_messages() -> None:
    other = relation()
    other.relation.relation_id, other.relation.table = 8, "u"
    truncate = pb.Event(truncate=pb.Truncate(relation_ids=[8, 7], ordinal=1, cascade=True))
    message = pb.Event(message=pb.LogicalMessage(prefix="p", content=b"c", ordinal=2, lsn="0/5"))
    outside = pb.Event(message=pb.LogicalMessage(prefix="p", content=b"c", lsn="0/5", position=position(32)))
    script = playing(opened(), relation(), other, begin(16), truncate, message, commit(16, 2), outside)
    with Hub(script) as hub, Client(hub.address) as client:
        tx, alone = client.subscribe(stop_at_tail=True)
    assert [change.table for change in tx.changes] == ["public.u", "public.t"]
    said = tx.changes[1].truncate
    assert said is not None and said.tables == ("public.u", "public.t") and said.cascade
    assert list(tx.messages) == [Message("p", b"c", 2, "0/5")]
    assert (len(alone.changes), len(alone.messages), alone.position.lsn) == (0, 1, "0/20")


def test_a_gap_cannot_be_missed() -> None:
    gap = pb.Event(gap=pb.Gap(after=position(8), up_to=position(16), reason="lost"))
    with Hub(playing(opened(), gap, relation(), *transaction(32))) as hub, Client(hub.address) as client:
        subscription = client.subscribe(stop_at_tail=True)
        with pytest.raises(errors.GapError) as caught:
            next(subscription)
        assert caught.value.event.up_to.lsn == "0/10"
        assert len(list(subscription)) == 1, "it goes on behind the gap"


def test_a_transaction_that_is_too_large_is_refused() -> None:
    def script(connection: Connection) -> Iterator[list[pb.Event]]:
        yield [opened(), relation(), begin(16), insert(1, 1)]
        connection.until_ended()

    with Hub(script) as hub, Client(hub.address) as client, pytest.raises(errors.TransactionTooLarge, match="events"):
        next(client.subscribe(max_transaction_bytes=10))
