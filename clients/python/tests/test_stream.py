"""What a subscription does with a stream that breaks, repeats itself, or says something new: against scripted streams."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from scripted import (
    LINEAGE,
    Connection,
    Hub,
    Refuse,
    Script,
    begin,
    commit,
    insert,
    opened,
    position,
    progress,
    relation,
    transaction,
)

import walcast
from walcast import After, AsyncClient, Client, Position, Retry, errors
from walcast._core import Core
from walcast._options import Options
from walcast._outbox import Outbox
from walcast._retry import Backoff
from walcast.v1 import event_pb2 as pb
from walcast.v1 import walcast_pb2 as api

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
FAST = Retry(initial=0.001, maximum=0.01)


def lost() -> Refuse:
    return Refuse(UNAVAILABLE, "")


def ids(transactions: list[walcast.Transaction]) -> list[list[int]]:
    return [[change.after["id"] for change in tx.changes] for tx in transactions]


def first(connection: Connection) -> Iterator[list[pb.Event]]:
    yield [opened(), relation(), *transaction(16), *transaction(32, 2)]
    yield [begin(48), insert(1, 4800)]
    raise lost()


def second(connection: Connection) -> Iterator[list[pb.Event]]:
    assert connection.open is not None
    assert connection.open.start.after == position(32), "resumes behind what was received whole"
    yield [opened(32), relation(), *transaction(32, 2), *transaction(48, 2), progress(64)]


def test_a_broken_stream_goes_on_without_loss_or_repeat() -> None:
    with Hub(first, second) as hub, Client(hub.address) as client:
        lost_with: list[errors.HubError] = []
        subscription = client.subscribe(
            start="earliest", stop_at_tail=True, retry=FAST, on_reconnect=lambda error, _: lost_with.append(error)
        )
        assert ids(list(subscription)) == [[1600], [3200, 3201], [4800, 4801]]
        assert isinstance(lost_with[0], errors.ConnectionLost)
        assert subscription.position == Position("0/40", LINEAGE)


def test_the_same_for_asyncio() -> None:
    async def run(address: str) -> list[walcast.Transaction]:
        async with AsyncClient(address) as client:
            return [tx async for tx in client.subscribe(start="earliest", stop_at_tail=True, retry=FAST)]

    with Hub(first, second) as hub:
        assert ids(asyncio.run(run(hub.address))) == [[1600], [3200, 3201], [4800, 4801]]


def test_events_continue_inside_a_transaction() -> None:
    with Hub(first, second) as hub, Client(hub.address) as client:
        kinds = [
            event.after["id"] if isinstance(event, walcast.Change) else type(event).__name__
            for event in client.subscribe(start="earliest", stop_at_tail=True, retry=FAST).events()
        ]
        assert kinds == [
            "Begin", 1600, "Commit", "Begin", 3200, 3201, "Commit", "Begin", 4800,
            "Discard", "Begin", 3200, 3201, "Discard", "Begin", 4800, 4801, "Commit", "Progress",
        ]  # fmt: skip


def test_events_drop_repeats_by_identity() -> None:
    def again(connection: Connection) -> Iterator[list[pb.Event]]:
        yield [opened(32), relation(), *transaction(48, 3)]

    with Hub(first, again) as hub, Client(hub.address) as client:
        events = list(client.subscribe(start="earliest", stop_at_tail=True, retry=FAST).events())
        identities = [event.identity for event in events if isinstance(event, walcast.Change)]
        assert len(set(identities)) == len(identities) == 6
        assert not any(isinstance(event, walcast.Discard) for event in events)


def test_a_discarded_transaction_never_comes() -> None:
    def script(connection: Connection) -> Iterator[list[pb.Event]]:
        yield [opened(), relation(), begin(16), insert(1, 1)]
        yield [pb.Event(discard=pb.Discard(reason="made anew")), *transaction(16)]

    with Hub(script) as hub, Client(hub.address) as client:
        assert ids(list(client.subscribe(start="earliest", stop_at_tail=True))) == [[1600]]


def test_auto_ack_follows_the_loop_body() -> None:
    seen: list[list[str]] = []

    def script(connection: Connection) -> Iterator[list[pb.Event]]:
        yield [opened(session=3), relation(), *transaction(16), *transaction(32)]
        connection.until_acked(16)
        seen.append(list(connection.acks))
        connection.until_ended()

    def left(connection: Connection) -> Iterator[list[pb.Event]]:
        yield [opened(session=3), relation(), *transaction(16), *transaction(32)]
        connection.until_ended()

    with Hub(left, script) as hub, Client(hub.address) as client:
        subscription = client.subscribe(subscriber="s")
        next(subscription)
        subscription.close()  # makes durable what was acknowledged
        hub.connections[0].until_ended()
        assert hub.connections[0].acks == [], "the first transaction was still in the user's hands"
        assert hub.unary_acks == []
        subscription = client.subscribe(subscriber="s")
        next(subscription)
        next(subscription)
        hub.connections[1].until_acked(16)
        subscription.close()
        assert "0/20" not in hub.connections[1].acks
        assert [(request.position.lsn, request.session) for request in hub.unary_acks] == [("0/10", 3)]


def test_acks_are_gathered() -> None:
    def script(connection: Connection) -> Iterator[list[pb.Event]]:
        yield [opened(session=1), relation()]
        for number in range(1, 501):
            yield transaction(number * 16)
        yield [progress(501 * 16)]
        connection.until_acked(501 * 16)

    with Hub(script) as hub, Client(hub.address) as client:
        assert len(list(client.subscribe(subscriber="s", stop_at_tail=True))) == 500
        connection = hub.connections[0]
        assert len(connection.acks) < 100
        numbers = [int(lsn[2:], 16) for lsn in connection.acks]
        assert numbers == sorted(set(numbers))


def test_explicit_acks_hold_progress_back() -> None:
    def script(connection: Connection) -> Iterator[list[pb.Event]]:
        yield [opened(session=1), relation(), progress(8)]
        connection.until_acked(8)
        yield [*transaction(16), progress(32), *transaction(48)]
        connection.until_acked(16)
        yield [progress(64)]
        connection.until_ended()

    with Hub(script) as hub, Client(hub.address) as client, client.subscribe(subscriber="s", auto_ack=False) as stream:
        tx = next(stream)
        second_tx = next(stream)
        tx.ack()
        hub.connections[0].until_acked(16)
        # Acknowledgements only go forward: one of 0/20 would have kept this one back.
        assert hub.connections[0].acks == ["0/8", "0/10"], "progress behind an open transaction is not acknowledged"
        with pytest.raises(errors.AckAhead):
            stream.ack(Position("0/50", LINEAGE))
        second_tx.ack()
        assert stream.flush() == second_tx.position


def test_credit_is_granted_as_the_user_reads() -> None:
    def script(connection: Connection) -> Iterator[list[pb.Event]]:
        yield [opened(), relation()]
        connection.wait(lambda: connection.events == 10)
        yield [*transaction(16, 5)]
        connection.wait(lambda: connection.events == 15)
        yield [begin(32), *(insert(ordinal, ordinal) for ordinal in range(1, 11))]
        connection.wait(lambda: connection.events == 25)
        yield [commit(32, 10)]

    with Hub(script) as hub, Client(hub.address) as client:
        stream = client.subscribe(start="earliest", stop_at_tail=True, window_events=10)
        assert len(next(stream)) == 5
        assert hub.connections[0].events <= 15
        assert len(next(stream)) == 10, "a transaction larger than the window comes whole"
        assert list(stream) == []


def test_the_checkpoint_goes_before_the_given_start() -> None:
    def none(connection: Connection) -> Iterator[list[pb.Event]]:
        assert connection.open is not None and not connection.open.HasField("start")
        yield from ()
        raise Refuse(grpc.StatusCode.NOT_FOUND, "CHECKPOINT_MISSING")

    def fresh(connection: Connection) -> Iterator[list[pb.Event]]:
        assert connection.open is not None and connection.open.start.HasField("latest")
        yield [opened(16, session=1)]
        connection.until_acked(16)
        yield [relation(), *transaction(32)]

    with Hub(none, fresh, none) as hub, Client(hub.address) as client:
        stream = client.subscribe(subscriber="s", start="latest", stop_at_tail=True)
        assert ids(list(stream)) == [[3200]]
        with pytest.raises(errors.CheckpointMissing):
            next(client.subscribe(subscriber="s"))


def refusing(code: grpc.StatusCode, reason: str, retry: float | None = None, **metadata: str) -> Script:
    def script(connection: Connection) -> Iterator[list[pb.Event]]:
        yield from ()
        raise Refuse(code, reason, retry, **metadata)

    return script


@pytest.mark.parametrize("reason", sorted(errors.BY_REASON))
def test_each_reason_has_its_class(reason: str) -> None:
    with (
        Hub(refusing(grpc.StatusCode.FAILED_PRECONDITION, reason, earliest="0/5")) as hub,
        Client(hub.address) as client,
    ):
        with pytest.raises(errors.BY_REASON[reason]) as caught:
            next(client.subscribe())
        assert caught.value.reason == reason and caught.value.metadata == {"earliest": "0/5"}
        assert len(hub.connections) == 1, "without RetryInfo it is not tried again"


def test_every_documented_reason_has_a_class() -> None:
    readme = Path(__file__).parents[3] / "README.md"
    if not readme.exists():
        pytest.skip("not in the repository")
    documented = {
        line.split("`")[1] for line in readme.read_text().splitlines() if line.startswith("| `") and "_" in line
    }
    reasons = {name for name in documented if name.isupper()}
    assert reasons and reasons <= set(errors.BY_REASON), reasons - set(errors.BY_REASON)


def test_retry_info_is_obeyed() -> None:
    def fine(connection: Connection) -> Iterator[list[pb.Event]]:
        yield [opened(), relation(), *transaction(16)]

    with Hub(refusing(UNAVAILABLE, "STARTING", 0.4), fine) as hub, Client(hub.address) as client:
        started = time.monotonic()
        assert len(list(client.subscribe(stop_at_tail=True, retry=FAST))) == 1
        assert time.monotonic() - started >= 0.4


def test_a_fenced_twin_is_not_tried_again() -> None:
    with Hub(refusing(grpc.StatusCode.ABORTED, "SUBSCRIBER_FENCED")) as hub, Client(hub.address) as client:
        stream = client.subscribe(subscriber="s")
        with pytest.raises(errors.SubscriberFenced):
            next(stream)
        with pytest.raises(errors.Closed):
            next(stream)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_twin_that_lost_its_connection_does_not_take_over_again(asynchronous: bool) -> None:
    def script(connection: Connection) -> Iterator[list[pb.Event]]:
        yield [opened(session=3), relation(), *transaction(16)]
        raise lost()

    async def run(address: str) -> None:
        async with AsyncClient(address) as client:
            stream = client.subscribe(subscriber="s", retry=FAST)
            await stream.__anext__()
            await stream.__anext__()

    with Hub(script) as hub:
        hub.fenced_below = 4
        with pytest.raises(errors.SubscriberFenced):
            if asynchronous:
                asyncio.run(run(hub.address))
            else:
                with Client(hub.address) as client:
                    stream = client.subscribe(subscriber="s", retry=FAST)
                    next(stream), next(stream)
        assert len(hub.connections) == 1


def test_an_unknown_reason_is_a_hub_error() -> None:
    with Hub(refusing(grpc.StatusCode.INTERNAL, "NEW_IN_2030")) as hub, Client(hub.address) as client:
        with pytest.raises(errors.HubError, match="NEW_IN_2030") as caught:
            next(client.subscribe())
        assert type(caught.value) is errors.HubError


def fork(more: bool, *retracted: int) -> pb.Event:
    event = pb.TimelineChanged(old_lineage=LINEAGE, new_lineage="bb", switch_lsn="0/20", more=more)
    event.position.CopyFrom(position(32, "bb"))
    for number in retracted:
        event.retracted.add(begin=begin(number).begin, position=position(number), changes=1)
    return pb.Event(timeline_changed=event)


def garbled(event: pb.Event, lsn: str) -> pb.Event:
    """The event with an LSN that is none."""
    kind = getattr(event, event.WhichOneof("kind") or "")
    (kind.after if event.HasField("opened") else kind.position).lsn = lsn
    return event


@pytest.mark.parametrize(
    "events",
    [
        [pb.Event()],
        [insert(1, 1)],
        [commit(16)],
        [begin(16), begin(32)],
        [begin(16), progress(32)],
        [begin(16), pb.Event(change=pb.Change(operation=pb.OPERATION_INSERT, relation_id=99, ordinal=1))],
        [begin(16), pb.Event(truncate=pb.Truncate(relation_ids=[99], ordinal=1))],
        [begin(16), pb.Event(commit=pb.Commit())],
        *(
            [garbled(event, lsn)]
            for event in (progress(32), fork(False))
            for lsn in ("", "1", "0/", "0/x", "+0/1", "0/123456789")
        ),
        [begin(16), garbled(commit(16), "0/-1")],
        [garbled(opened(), "0_0/0")],
    ],
)
def test_what_the_client_does_not_know_is_an_error(events: list[pb.Event]) -> None:
    def script(connection: Connection) -> Iterator[list[pb.Event]]:
        yield [opened(), relation(), *events]

    with Hub(script) as hub, Client(hub.address) as client, pytest.raises(errors.ProtocolError):
        next(client.subscribe())


def test_a_failover_cannot_be_missed() -> None:
    def script(connection: Connection) -> Iterator[list[pb.Event]]:
        yield [opened(session=1), relation(), *transaction(16), *transaction(48)]
        yield [fork(True, 48), fork(False, 64), progress(32)]
        raise lost()

    def after(connection: Connection) -> Iterator[list[pb.Event]]:
        yield [opened(32, session=2, lineage="bb"), fork(True, 48), fork(False, 64)]
        yield [relation(), *transaction(64)]

    with Hub(script, after) as hub, Client(hub.address) as client:
        stream = client.subscribe(subscriber="s", start="earliest", stop_at_tail=True, retry=FAST)
        got = []
        with pytest.raises(errors.TimelineChangedError) as caught:
            got.extend(stream)
        assert len(got) == 2
        assert [entry.transaction.xid for entry in caught.value.event.retracted] == [48, 64]
        assert caught.value.event.position == Position("0/20", "bb")
        assert len(list(stream)) == 1, "it goes on, and the same failover is not raised again"

    with Hub(script, after) as hub, Client(hub.address) as client:
        forks: list[walcast.TimelineChanged] = []
        stream = client.subscribe(subscriber="s", stop_at_tail=True, retry=FAST, on_timeline_changed=forks.append)
        assert len(list(stream)) == 3 and len(forks) == 1


def test_tokens_are_asked_for_on_each_connection() -> None:
    tokens = iter(["one", "two"])

    def fine(connection: Connection) -> Iterator[list[pb.Event]]:
        yield [opened()]

    with (
        Hub(refusing(UNAVAILABLE, "STARTING", 0.0), fine) as hub,
        Client(hub.address, token=lambda: next(tokens)) as client,
    ):
        list(client.subscribe(stop_at_tail=True, retry=FAST))
        assert [connection.metadata["authorization"] for connection in hub.connections] == ["Bearer one", "Bearer two"]


def client_threads(before: set[threading.Thread]) -> set[threading.Thread]:
    """Threads that are neither of the test's server nor were there before."""
    server = ("ThreadPool", "(read)", "(_serve)")
    return {thread for thread in set(threading.enumerate()) - before if not any(name in thread.name for name in server)}


def test_nothing_is_left_behind() -> None:
    def script(connection: Connection) -> Iterator[list[pb.Event]]:
        yield [opened(session=1), relation(), *transaction(16)]
        connection.until_ended()

    with Hub(script, script) as hub:
        before = set(threading.enumerate())
        client = Client(hub.address)
        stream = client.subscribe(subscriber="s")
        next(stream)
        assert client_threads(before), "this test looks for the wrong threads"
        ended: list[list[walcast.Transaction]] = []
        waiting = threading.Thread(target=lambda: ended.append(list(stream)))
        waiting.start()
        hub.connections[0].until_acked(16)
        client.close()
        waiting.join(10)
        assert ended == [[]], "closing from another thread ends the loop"
        hub.connections[0].until_ended()
        dropped = Client(hub.address).subscribe()
        next(dropped)
        del dropped
        hub.connections[1].until_ended()
        deadline = time.monotonic() + 10
        while client_threads(before):
            assert time.monotonic() < deadline, client_threads(before)
            time.sleep(0.01)


def test_a_batch_is_acknowledged_whole_and_comes_before_an_error() -> None:
    def script(connection: Connection) -> Iterator[list[pb.Event]]:
        yield [
            opened(session=1),
            relation(),
            *transaction(16),
            *transaction(32),
            *transaction(48),
            fork(False, 48),
            progress(64),
        ]
        connection.until_ended()

    with Hub(script, script) as hub, Client(hub.address) as client:
        stream = client.subscribe(subscriber="s")
        assert len(next(stream.batches(max_rows=2)).transactions) == 2
        stream.close()  # makes durable what was acknowledged
        hub.connections[0].until_ended()
        assert hub.connections[0].acks == [] and hub.unary_acks == []
        stream = client.subscribe(subscriber="s")
        batches = stream.batches(max_rows=2)
        assert len(next(batches).transactions) == 2
        assert len(next(batches).transactions) == 1, "what came before the failover comes first"
        hub.connections[1].until_acked(32)
        with pytest.raises(errors.TimelineChangedError):
            next(batches)
        assert hub.connections[1].acks == ["0/20"]


def test_a_cancelled_wait_loses_nothing() -> None:
    def quiet(connection: Connection) -> Iterator[list[pb.Event]]:
        yield [opened(), relation(), *transaction(16)]
        connection.until_ended()

    def on(connection: Connection) -> Iterator[list[pb.Event]]:
        assert connection.open is not None and connection.open.start.after == position(16)
        yield [opened(16), relation(), *transaction(32)]

    async def run(address: str) -> None:
        async with AsyncClient(address) as client:
            stream = client.subscribe(start="earliest", stop_at_tail=True)
            await stream.__anext__()
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(stream.__anext__(), 0.1)
            assert ids([tx async for tx in stream]) == [[3200]]

    with Hub(quiet, on) as hub:
        asyncio.run(run(hub.address))


def test_back_off_has_full_jitter_and_starts_over() -> None:
    asked: list[tuple[float, float]] = []

    def uniform(low: float, high: float) -> float:
        asked.append((low, high))
        return high

    backoff = Backoff(Retry(initial=0.1, maximum=1.0, give_up_after=100), 0, uniform)
    assert [backoff.delay(None, 1) for _ in range(5)] == [0.1, 0.2, 0.4, 0.8, 1.0]
    assert backoff.delay(5.0, 1) == 6.0, "never earlier than the hub asks for"
    backoff.succeeded(2)
    assert backoff.delay(None, 3) == 0.1 and all(low == 0 for low, _ in asked)
    assert backoff.delay(None, 102) is None


def test_the_outbox_keeps_only_the_newest() -> None:
    now = 0.0
    outbox = Outbox(lambda: now)
    outbox.acknowledge(Position("0/10", "a"))
    assert outbox.take()[0] == api.ConsumeRequest(acknowledge=pb.Position(lsn="0/10", lineage="a"))
    outbox.acknowledge(Position("0/20", "a"))
    outbox.acknowledge(Position("0/30", "a"))
    outbox.acknowledge(Position("0/20", "a"))
    assert outbox.take() == (None, pytest.approx(0.1))
    now = 0.2
    taken = outbox.take()[0]
    assert taken is not None and taken.acknowledge.lsn == "0/30"
    assert outbox.take() == (None, None)


def test_an_ack_that_may_have_been_lost_goes_out_again() -> None:
    core = Core(Options(subscriber="s"))
    core.open_request()
    core.receive(api.ConsumeResponse(events=[opened(), relation(), *transaction(16)]).SerializeToString())
    tx = core.poll()
    assert isinstance(tx, walcast.Transaction)
    tx.ack()
    core.outbox.take(), core.outbox.take()
    assert core.outbox.pending() is None
    core.open_request()
    assert core.outbox.pending() == tx.position


def test_starts() -> None:
    from walcast._position import start_to_pb

    assert start_to_pb("0/10").after_lsn == "0/10"
    assert start_to_pb(After(Position("0/10", "aa"))) == start_to_pb(Position("0/10", "aa"))
    at = Position("1/ABC", "00ff", 3, b"\x01")
    assert Position.parse(str(at)) == at and start_to_pb(str(at)).after == at.to_pb()
    with pytest.raises(ValueError):
        start_to_pb("yesterday")


def test_filter_helpers() -> None:
    assert (
        walcast.where(status="it's", n=[1, 2], gone=None)
        == '"status" = \'it\'\'s\' AND "n" IN (1, 2) AND "gone" IS NULL'
    )
    with pytest.raises(ValueError):
        walcast.where(n=[])
