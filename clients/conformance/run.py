#!/usr/bin/env python3
"""The conformance scenario of walcast's clients: see README.md in this directory.

run.py --runner 'python clients/python/tests/conformance_runner.py' [step ...]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from replica import Replica, one_each, plain
from runner import Runner
from stage import Cluster, Hub, Proxy, certificates, scratch, until
from world import World

HERE = Path(__file__).resolve().parent


def types(world: World) -> None:
    """Every value arrives as the same native value in every language."""
    at = world.lsn()
    world.cluster.sql((HERE / "fixture" / "types.sql").read_text())
    runner = world.runner(start=at)
    got = runner.ask(f"until {world.lsn()}")
    runner.close()
    changes = [
        {key: change[key] for key in ("operation", "table", "before", "after", "changed")}
        for tx in got
        for change in tx["changes"]
    ]
    for tx in got:
        assert tx["commit_time"].endswith("Z") and tx["xid"] > 0 and "/" in tx["commit_lsn"]
    expected = json.loads((HERE / "fixture" / "types.json").read_text())
    for number, (mine, right) in enumerate(zip(changes, expected, strict=False)):
        for side in ("before", "after"):
            for name in sorted({*(mine[side] or {}), *(right[side] or {})}):
                assert (mine[side] or {}).get(name) == (right[side] or {}).get(name), (
                    f"change {number}, {side}.{name}: {(mine[side] or {}).get(name)} instead of {(right[side] or {}).get(name)}"
                )
        assert mine == right, f"change {number}: {mine} instead of {right}"
    assert len(changes) == len(expected)


def filters(world: World) -> None:
    """Two subscribers with different filters; each builds its part."""
    world.cluster.sql("CREATE TABLE a (id int PRIMARY KEY, n int); CREATE TABLE b (id int PRIMARY KEY, n int)")
    world.published(world.hub, "public.a", "public.b")
    at = world.lsn()
    one = world.runner(start=at, tables=["public.a"])
    slim = world.runner(
        start=at, tables=["public.*"], exclude_tables=["public.a"], operations=["insert"], columns=["public.b.id"]
    )
    world.cluster.sql(
        "BEGIN; INSERT INTO a SELECT i, i FROM generate_series(1, 300) i;"
        "INSERT INTO b SELECT i, i FROM generate_series(1, 50) i; COMMIT;"
        "UPDATE b SET n = 0; DELETE FROM b WHERE id > 10; UPDATE a SET n = -n WHERE id < 10; UPDATE a SET id = 1000 WHERE id = 6;"
        "DELETE FROM a WHERE id = 5"
    )
    end = world.lsn()
    Replica().apply(one.ask(f"until {end}")).equals(world, "a")
    got = slim.ask(f"until {end}")
    assert [change["after"] for tx in got for change in tx["changes"]] == [
        {"id": ["int", str(i)]} for i in range(1, 51)
    ]
    absent = world.runner(tables=["public.no_such_table"]).error("next 1")
    assert absent["reason"] == "TABLE_NOT_PUBLISHED" and absent["metadata"]["table"] == "public.no_such_table", absent


def predicates(world: World) -> None:
    """Rows that enter and leave a predicate; the part of the table that matches it."""
    world.cluster.sql("CREATE TABLE p (id int PRIMARY KEY, kind text, n int); ALTER TABLE p REPLICA IDENTITY FULL")
    world.published(world.hub, "public.p")
    red = world.runner(start=world.lsn(), tables=["public.p"], where="kind = 'red'")
    red.send("until 0/0")
    red.wait("done")
    world.cluster.sql(
        "INSERT INTO p SELECT i, CASE WHEN i % 3 = 0 THEN 'red' ELSE 'blue' END, i FROM generate_series(1, 300) i;"
        "UPDATE p SET kind = 'red' WHERE id = 1; UPDATE p SET kind = 'blue' WHERE id = 3; DELETE FROM p WHERE id = 6"
    )
    rows = Replica()
    transitions = []
    for tx in red.ask(f"until {world.lsn()}"):
        for change in tx["changes"]:
            transitions.append(change["transition"])
            if change["operation"] == "update" and change["transition"] != "stay":
                change.update(operation="delete" if change["transition"] == "leave" else "insert")
        rows.apply([tx])
    assert transitions.count("enter") == 101 and transitions.count("leave") == 2, transitions
    rows.equals(world, "p", "kind = 'red'")
    wrong = world.runner(tables=["public.p"], where="no_such_column = 1").error("next 1")
    assert wrong["reason"] == "FILTER_INVALID" and wrong["violations"], wrong


def crash(world: World) -> None:
    """Acknowledge, kill -9 the hub, resume: the live client goes on by itself, and a new one at the checkpoint."""
    world.cluster.sql("CREATE TABLE c (id int PRIMARY KEY, v text)")
    at = world.lsn()
    runner = world.runner(subscriber="crash", start=at, auto_ack=False)
    world.cluster.sql("".join(f"INSERT INTO c VALUES ({i}, 'v{i}');" for i in range(1, 11)))
    first = runner.ask("next 4")
    runner.ask("ack")
    assert runner.ask("flush") == []
    assert runner.others[-2]["checkpoint"] == first[-1]["position"], runner.others[-2]
    runner.ask("next 2")
    world.hub.kill()
    world.cluster.sql("".join(f"INSERT INTO c VALUES ({i}, 'v{i}');" for i in range(11, 16)))
    world.hub.start()
    runner.ask(f"until {world.lsn()}")
    one_each(runner.transactions)
    Replica().apply(runner.transactions).equals(world, "c")
    runner.kill()
    again = world.runner(subscriber="crash", auto_ack=True)
    rest = again.ask(f"until {world.lsn()}")
    assert [tx["position"] for tx in rest] == [tx["position"] for tx in runner.transactions[4:]], (
        "it goes on at its checkpoint"
    )
    again.ask("flush")
    again.close()
    assert world.runner(subscriber="crash").ask(f"until {world.lsn()}") == [], "everything was acknowledged"
    missing = world.runner(subscriber="never seen").error("next 1")
    assert missing["reason"] in ("CHECKPOINT_MISSING", "REQUEST_INVALID"), missing


def torn(world: World) -> None:
    """The client is killed, and a connection lost, in the middle of a transaction: it comes again, whole, once."""
    world.cluster.sql("CREATE TABLE torn (id int PRIMARY KEY, v text)")
    at = world.lsn()
    world.cluster.sql("INSERT INTO torn VALUES (0, 'before')")
    world.cluster.sql("INSERT INTO torn SELECT i, repeat('x', 100) FROM generate_series(1, 20000) i")
    world.cluster.sql("INSERT INTO torn VALUES (-1, 'after')")
    proxy = Proxy(world.hub.port)
    try:
        proxy.limit_next(500_000, stall=True)
        killed = world.runner(address=proxy.address, subscriber="torn", start=at)
        killed.ask("next 1")
        killed.send("next 1")
        until("the middle of the transaction", proxy.reached.is_set)
        killed.kill()
        proxy.limit_next(1_000_000, stall=False)
        runner = world.runner(address=proxy.address, subscriber="torn", start=at)
        got = runner.ask(f"until {world.lsn()}")
        assert proxy.connections >= 3 and proxy.reached.is_set(), "the connection was not lost"
        assert [len(tx["changes"]) for tx in got] in ([1, 20000, 1], [20000, 1]), [len(tx["changes"]) for tx in got]
        one_each(got)
        Replica().apply([tx for tx in got if len(tx["changes"]) > 1 or tx is got[-1]] + killed.transactions[:1]).equals(
            world, "torn"
        )
        runner.close()
    finally:
        proxy.close()


def twin(world: World) -> None:
    """A second client of the same name takes over; the first ends with SUBSCRIBER_FENCED and does not come back."""
    world.cluster.sql("CREATE TABLE twin (id int PRIMARY KEY)")
    at = world.lsn()
    world.cluster.sql("INSERT INTO twin VALUES (1)")
    first = world.runner(subscriber="twin", start=at)
    assert len(first.ask("next 1")) == 1
    second = world.runner(subscriber="twin", start=at)
    assert len(second.ask("next 1")) == 1, "what the first had not acknowledged comes to the second"
    fenced = first.error("next 1")
    assert fenced["reason"] == "SUBSCRIBER_FENCED", fenced
    world.cluster.sql("INSERT INTO twin VALUES (2)")
    assert len(second.ask("next 1")) == 1, "the first does not take it back"
    second.close()


def expired(world: World) -> None:
    """A position that the journal no longer has is a typed error that names the oldest one, where the client starts over."""
    hub = Hub(world.cluster, world.directory / "small", "--slot", "small", "--retain-bytes", "4MiB",
              "--set", "journal.segment_bytes=1MiB")  # fmt: skip
    try:
        world.cluster.sql("CREATE TABLE old (id int PRIMARY KEY, v text)")
        world.published(hub, "public.old")
        anonymous = world.runner(hub=hub, start="latest", tables=["public.old"])
        anonymous.ask("until 0/0")
        world.cluster.sql("INSERT INTO old VALUES (0, 'first')")
        position = anonymous.ask("next 1")[0]["position"]
        anonymous.close()
        for batch in range(16):
            world.cluster.sql(
                f"INSERT INTO old SELECT {batch} * 1000 + i, repeat('x', 1000) FROM generate_series(1, 1000) i"
            )
        filled = world.lsn()
        world.runner(hub=hub, start="latest").ask(f"until {filled}")

        def gone() -> dict[str, Any] | None:
            runner = world.runner(hub=hub, start=position, tables=["public.old"])
            runner.send("next 1")
            answer = runner.wait("error", "done")
            runner.kill()
            return answer if answer["event"] == "error" else None

        error = until("the position's expiry", gone, 90)
        assert error["reason"] == "POSITION_EXPIRED" and "/" in error["metadata"]["earliest"], error
        fresh = world.runner(hub=hub, start="snapshot", tables=["public.old"])
        whole(world, fresh)
        Replica().apply(fresh.lines).equals(world, "old")
        fresh.close()
    finally:
        hub.close()


def whole(world: World, runner: Runner) -> dict[str, Any]:
    """Waits until a snapshot is complete, and then for everything behind it. The end, as told."""

    def ended() -> dict[str, Any] | None:
        runner.ask(f"until {world.commit()}")
        return next((line for line in runner.told("snapshot") if line["step"] == "end"), None)

    end = until("the end of the snapshot", ended)
    runner.ask(f"until {world.commit()}")
    return end


def snapshot(world: World) -> None:
    """The rows that are there and the changes that follow, in both modes; a lost connection starts over, or goes on."""
    world.cluster.sql("CREATE TABLE snap (id int PRIMARY KEY, v text)")
    world.published(world.hub, "public.snap")
    changes = (
        "UPDATE snap SET v = v || '!' WHERE id % 100 = 0; DELETE FROM snap WHERE id % 1000 = 1; INSERT INTO snap"
        " SELECT coalesce(max(id), 0) + 1, 'new' FROM snap; UPDATE snap SET id = -id WHERE id = 77;"
    )
    for mode in ("consistent", "incremental"):
        world.cluster.sql("TRUNCATE snap; INSERT INTO snap SELECT i, repeat('x', 100) FROM generate_series(1, 8000) i")
        proxy = Proxy(world.hub.port)
        try:
            proxy.limit_next(300_000, stall=False)
            request = {"start": "snapshot", "snapshot_mode": mode, "tables": ["public.snap"], "window_events": 1000}
            runner = world.runner(address=proxy.address, **request)
            rows = runner.ask("next 1")
            assert rows[0]["snapshot"] and rows[0]["changes"][0]["operation"] == "read", rows[0]
            world.cluster.sql(changes)
            end = whole(world, runner)
            begins = [line for line in runner.told("snapshot") if line["step"] == "begin"]
            assert proxy.reached.is_set() and runner.told("reconnect"), "the connection was not lost"
            assert begins[0]["tables"] == ["public.snap"] and not begins[0]["restarted"], begins
            assert any(begin["restarted"] for begin in begins) == (mode == "consistent"), begins
            assert end["snapshot"] == begins[-1]["snapshot"] and end["rows"] > 0, end
            replica = Replica(upserts=mode == "incremental").apply(runner.lines)
            replica.equals(world, "snap")
            runner.close()
            # A position inside of a snapshot says by itself what else is needed.
            first = world.runner(**request)
            at = first.ask("next 3")[-1]["position"]
            first.kill()
            world.cluster.sql(changes)
            second = world.runner(start=at, tables=["public.snap"])
            whole(world, second)
            both = Replica(upserts=mode == "incremental").apply(first.lines[:-1]).apply(second.lines)
            both.equals(world, "snap")
            second.close()
        finally:
            proxy.close()


def backfill(world: World) -> None:
    """The rows of one more table into the open stream of a subscriber, which is killed in the middle of it and goes on."""
    world.cluster.sql(
        "CREATE TABLE live (id int PRIMARY KEY, v text); CREATE TABLE more (id int PRIMARY KEY, v text);"
        "INSERT INTO more SELECT i, repeat('y', 100) FROM generate_series(1, 8000) i"
    )
    world.published(world.hub, "public.live", "public.more")
    world.taken_in()
    request = {"subscriber": "backfill", "start": "latest", "tables": ["public.live", "public.more"]}
    changes = "UPDATE more SET v = v || '!' WHERE id % 100 = 0; DELETE FROM more WHERE id % 1000 = 1; INSERT INTO live"
    first = world.runner(**request, window_events=1000)
    first.ask(f"until {world.commit()}")
    assert first.transactions == [], "what was there before latest does not come by itself"
    first.ask("backfill public.more")
    (started,) = first.told("backfill")
    world.cluster.sql(f"{changes} VALUES (1, 'a')")
    while not any(tx["snapshot"] == started["snapshot"] for tx in first.transactions):
        first.ask("next 1")
    world.cluster.sql(f"{changes} VALUES (2, 'b')")
    first.ask("next 2")
    first.ask("flush")
    first.kill()
    world.cluster.sql(f"{changes} VALUES (3, 'c')")
    second = world.runner(**request)
    end = whole(world, second)
    assert end["snapshot"] == started["snapshot"], "it is the same snapshot that goes on"
    replica = Replica(upserts=True).apply(first.lines).apply(second.lines)
    replica.equals(world, "live")
    replica.equals(world, "more")
    second.close()


def control(world: World) -> None:
    """A backfill is paused while changes go on, and resumed; another is cancelled."""
    world.cluster.sql(
        "CREATE TABLE idle (id int PRIMARY KEY); CREATE TABLE many (id int PRIMARY KEY);"
        "INSERT INTO many SELECT generate_series(1, 1500)"
    )
    world.published(world.hub, "public.idle", "public.many")
    tables = ["public.idle", "public.many"]
    runner = world.runner(subscriber="control", start="latest", tables=tables)
    runner.ask(f"until {world.commit()}")

    def begun() -> str:
        """Begins one, which is in the middle for the next seconds: the hub is held to its rate."""
        runner.ask("backfill public.many 500")
        snapshot = str(runner.told("backfill")[-1]["snapshot"])
        while runner.ask("next 1")[-1]["snapshot"] != snapshot:
            pass
        return snapshot

    def rows(transactions: list[dict[str, Any]]) -> int:
        return sum(len(tx["changes"]) for tx in transactions if tx["snapshot"])

    paused = begun()
    runner.ask(f"pause {paused}")
    runner.ask(f"until {world.commit()}")
    held = rows(runner.transactions)
    world.cluster.sql("INSERT INTO idle VALUES (1)")
    (change,) = runner.ask(f"until {world.commit()}")
    assert change["snapshot"] is None and held < 1500, f"{held} rows, and {change}"
    runner.ask(f"resume {paused}")
    end = whole(world, runner)
    assert end["snapshot"] == paused and end["rows"] == rows(runner.transactions) == 1500, end
    cancelled = begun()
    runner.ask(f"cancel {cancelled}")
    runner.ask(f"until {world.commit()}")
    steps = [line["step"] for line in runner.told("snapshot") if line["snapshot"] == cancelled]
    assert steps == ["begin"], steps
    gone = runner.error(f"resume {cancelled}")
    assert gone["reason"] == "SNAPSHOT_IMPOSSIBLE", gone


def failover(world: World) -> None:
    """A promoted standby lacks transactions that came: the user is told which, and of the gap by policy, and can read them."""
    directory = world.directory / "failover"
    with contextlib.ExitStack() as stack:
        primary = stack.enter_context(contextlib.closing(Cluster(directory / "primary")))
        primary.sql("CREATE TABLE t (id int PRIMARY KEY, v text); CREATE PUBLICATION walcast FOR ALL TABLES")
        standby = stack.enter_context(contextlib.closing(Cluster(directory / "standby", primary)))
        hub = Hub(primary, directory / "hub", "--set", "source.on_slot_lost=continue", standby=standby)
        stack.callback(hub.close)
        runner = world.runner(hub=hub, start="latest", tables=["public.t"])
        runner.ask("until 0/0")
        primary.sql("INSERT INTO t VALUES (1, 'common'); INSERT INTO t VALUES (2, 'common')")
        common = runner.ask("next 2")
        end = primary.sql("SELECT pg_current_wal_insert_lsn()")
        until("the standby's replay", lambda: standby.sql(f"SELECT pg_last_wal_replay_lsn() >= '{end}'") == "t")
        standby.stop()
        primary.sql("INSERT INTO t VALUES (3, 'lost'); INSERT INTO t SELECT i, 'lost' FROM generate_series(4, 6) i")
        lost = runner.ask("next 2")
        primary.kill()
        standby.start()
        standby.promote()
        until("the end of recovery", lambda: standby.sql("SELECT pg_is_in_recovery()") == "f")
        until("the new slot", lambda: standby.sql("SELECT active FROM pg_replication_slots") == "t")
        standby.sql("INSERT INTO t VALUES (7, 'new')")
        while not any(change["after"]["id"] == ["int", "7"] for tx in runner.transactions for change in tx["changes"]):
            runner.ask(f"until {standby.sql('SELECT pg_current_wal_insert_lsn()')}")
        (told,) = runner.told("timeline_changed")
        assert [entry["position"] for entry in told["retracted"]] == [tx["position"] for tx in lost], told
        assert [entry["changes"] for entry in told["retracted"]] == [1, 3], told
        assert len(runner.told("gap")) == 1, "the new slot begins behind a gap"
        kinds = [line["event"] for line in runner.lines if line["event"] in ("transaction", "timeline_changed", "gap")]
        assert kinds == ["transaction"] * 4 + ["timeline_changed", "gap", "transaction"], kinds
        lineages = {tx["position"].split(":")[0] for tx in common + lost}
        assert lineages == {told["old_lineage"]}, "the positions that were taken back are of the old lineage"
        again = runner.ask(f"retracted {told['old_lineage']}")
        assert [tx["changes"] for tx in again] == [tx["changes"] for tx in lost], again
        runner.close()
        diverged = world.runner(hub=hub, start=lost[-1]["position"], tables=["public.t"]).error("next 1")
        assert diverged["reason"] == "POSITION_DIVERGED" and "/" in diverged["metadata"]["common"], diverged
        unknown = world.runner(hub=hub, start="latest").error("retracted 0123456789abcdef")
        assert unknown["reason"] == "LINEAGE_UNKNOWN", unknown


def schema(world: World) -> None:
    """A table changes in mid-stream, within one transaction too; each row has the columns that it had."""
    world.cluster.sql("CREATE TABLE s (id int PRIMARY KEY, v text)")
    runner = world.runner(start=world.lsn())
    runner.ask("until 0/0")
    world.cluster.sql(
        "INSERT INTO s VALUES (1, 'a');"
        "BEGIN; INSERT INTO s VALUES (2, 'b'); ALTER TABLE s ADD n int DEFAULT 7; INSERT INTO s VALUES (3, 'c', 1);"
        "ALTER TABLE s RENAME v TO w; INSERT INTO s VALUES (4, 'd', 2); COMMIT;"
        "ALTER TABLE s DROP w; INSERT INTO s VALUES (5, 3); ALTER TABLE s RENAME TO s2; UPDATE s2 SET n = 8 WHERE id = 1"
    )
    got = runner.ask(f"until {world.lsn()}")
    rows = [
        (change["table"], {name: plain(value) for name, value in change["after"].items()})
        for tx in got
        for change in tx["changes"]
    ]
    assert rows == [
        ("public.s", {"id": 1, "v": "a"}),
        ("public.s", {"id": 2, "v": "b"}),
        ("public.s", {"id": 3, "v": "c", "n": 1}),
        ("public.s", {"id": 4, "w": "d", "n": 2}),
        ("public.s", {"id": 5, "n": 3}),
        ("public.s2", {"id": 1, "n": 8}),
    ], rows
    runner.close()


def large(world: World) -> None:
    """A transaction of 100,000 rows comes as one."""
    world.cluster.sql("CREATE TABLE large (id int PRIMARY KEY, v text)")
    runner = world.runner(start=world.lsn())
    runner.ask("until 0/0")
    world.cluster.sql("INSERT INTO large SELECT i, 'row ' || i FROM generate_series(1, 100000) i")
    got = runner.ask(f"until {world.lsn()}")
    assert [len(tx["changes"]) for tx in got] == [100_000]
    Replica().apply(got).equals(world, "large")
    runner.close()


def slow(world: World) -> None:
    """A consumer that does not read is sent what it gave credit for, and hinders nobody."""
    window, batches = 500, 200
    world.cluster.sql("CREATE TABLE slow (id int PRIMARY KEY, v text)")
    at = world.lsn()
    still = world.runner(start=at, window_events=window)
    still.ask("until 0/0")
    before = world.hub.metric("walcast_events_delivered_total")
    world.cluster.sql("".join(
        f"INSERT INTO slow SELECT {batch} * 100 + i, 'x' FROM generate_series(1, 100) i;" for batch in range(batches)
    ))  # fmt: skip
    end = world.lsn()
    still.ask("next 1")
    fast = world.runner(start=at)
    got = fast.ask(f"until {end}")
    assert sum(len(tx["changes"]) for tx in got) == batches * 100
    sent = world.hub.metric("walcast_events_delivered_total") - before - batches * 100
    assert sent <= 5 * window, f"{sent} events were sent to a subscriber that reads nothing"
    still.ask(f"until {end}")
    one_each(still.transactions)
    Replica().apply(still.transactions).equals(world, "slow")


def tls(world: World) -> None:
    """TLS with a private authority, a client certificate and a token; refused without them."""
    files = certificates(world.directory / "tls")
    tokens = world.directory / "tokens"
    tokens.write_text("0123456789abcdef0123456789abcdef billing public.* admin\n")
    hub = Hub(world.cluster, world.directory / "secure", "--slot", "secure", "--tls-cert", str(files["server.pem"]),
              "--tls-key", str(files["server.key"]), "--tls-client-ca", str(files["ca.pem"]),
              "--tokens-file", str(tokens))  # fmt: skip
    try:
        world.cluster.sql("CREATE TABLE secure (id int PRIMARY KEY)")
        identity = {"ca": str(files["ca.pem"]), "cert": str(files["client.pem"]), "key": str(files["client.key"])}
        token = "0123456789abcdef0123456789abcdef"
        address = f"https://localhost:{hub.port}"
        runner = world.runner(address=address, tls=identity, token=token, start="latest", subscriber="secure")
        runner.ask("until 0/0")
        world.cluster.sql("INSERT INTO secure VALUES (1)")
        assert len(runner.ask("next 1")) == 1
        runner.ask("flush")
        runner.close()
        wrong = world.runner(address=address, tls=identity, token="wrong").error("next 1")
        assert wrong["reason"] == "UNAUTHENTICATED", wrong
        for request in (
            {"address": hub.address, "token": token},
            {"address": address, "token": token, "tls": {"ca": str(files["ca.pem"])}},
        ):
            refused = world.runner(**request, give_up_after=1.0).error("next 1")
            assert refused["reason"] == "", refused
    finally:
        hub.close()


STEPS: list[Callable[[World], None]] = [
    types,
    filters,
    predicates,
    crash,
    torn,
    twin,
    expired,
    snapshot,
    backfill,
    control,
    failover,
    schema,
    large,
    slow,
    tls,
]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runner", required=True, help="command of the language's runner")
    parser.add_argument("steps", nargs="*", help="; ".join(f"{step.__name__}: {step.__doc__}" for step in STEPS))
    arguments = parser.parse_args()
    unknown = set(arguments.steps) - {step.__name__ for step in STEPS}
    if unknown:
        parser.error(f"no such step: {', '.join(sorted(unknown))}")
    failed = []
    with scratch() as directory, contextlib.closing(World(arguments.runner, directory)) as made:
        for step in STEPS:
            if arguments.steps and step.__name__ not in arguments.steps:
                continue
            started = time.monotonic()
            try:
                step(made)
                print(f"ok     {step.__name__:8} {time.monotonic() - started:5.1f} s  {step.__doc__}", flush=True)
            except Exception:
                failed.append(step.__name__)
                print(f"FAILED {step.__name__}", flush=True)
                traceback.print_exc()
                made.log.flush()
                print("-- runner --\n" + (made.directory / "runner.log").read_text()[-3000:], file=sys.stderr)
                print("-- hub --\n" + made.hub.log.read_text()[-3000:], file=sys.stderr)
                if made.hub.process is None or made.hub.process.poll() is not None:
                    made.hub.start()
            finally:
                made.close_runners()
    print(f"failed: {', '.join(failed)}" if failed else "conformant")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
