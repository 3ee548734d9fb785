"""Against a real PostgreSQL and a real hub: the conformance scenario and the examples."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import subprocess
import sys
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

import walcast

HERE = Path(__file__).resolve().parent
RUNNER = f"{sys.executable} {HERE / 'conformance_runner.py'}"


@pytest.mark.parametrize("mode", ["", " async"])
def test_conformance(stage: Any, mode: str) -> None:
    """Once with the compiled reader, where it is installed, and once without."""
    scenario = HERE.parents[1] / "conformance" / "run.py"
    environment = {**os.environ, "WALCAST_PURE_PYTHON": "1" if mode else ""}
    done = subprocess.run(
        [sys.executable, scenario, "--runner", RUNNER + mode], capture_output=True, text=True, env=environment
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr


def test_python_m_walcast_tail(stage: Any) -> None:
    stage.cluster.sql(
        "CREATE TABLE tailed (id int PRIMARY KEY, v numeric); INSERT INTO tailed VALUES (1, 1.50), (2, NULL)"
    )
    command = [
        sys.executable,
        "-m",
        "walcast",
        "tail",
        "public.tailed",
        "--hub",
        stage.hub.address,
        "--from",
        "earliest",
    ]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent / "src")}
    lines = subprocess.run(
        [*command, "--stop-at-tail", "--format", "json"], capture_output=True, text=True, env=environment
    )
    rows = [json.loads(line) for line in lines.stdout.splitlines()]
    assert [row["after"] for row in rows] == [{"id": 1, "v": "1.50"}, {"id": 2, "v": None}], lines.stderr
    pretty = subprocess.run([*command, "--count", "1"], capture_output=True, text=True, env=environment)
    assert "insert   public.tailed id=1 v=Decimal('1.50')" in pretty.stdout, pretty.stderr
    wrong = subprocess.run([*command, "--where", "nonsense ="], capture_output=True, text=True, env=environment)
    assert wrong.returncode == 1 and "FILTER_INVALID" in wrong.stderr


def test_arrow(stage: Any) -> None:
    pa = pytest.importorskip("pyarrow")
    from walcast import arrow

    stage.cluster.sql(
        "CREATE TABLE arrows (id int PRIMARY KEY, n numeric(10,2), ts timestamptz, d date, f float4, b bytea, t text, ok bool, tm time);"
        "INSERT INTO arrows VALUES (1, 1.50, '2024-01-01 12:00+02', '2024-02-29', 'NaN', '\\x00', '', false, '01:02:03.5'),"
        " (2, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL); UPDATE arrows SET t = 'x' WHERE id = 1; DELETE FROM arrows WHERE id = 2;"
        "ALTER TABLE arrows ADD more int; INSERT INTO arrows (id, more) VALUES (3, 3); TRUNCATE arrows"
    )
    with walcast.Client(stage.hub.address) as client:
        stream = client.subscribe("public.arrows", start="earliest", stop_at_tail=True)
        batches = [table for batch in stream.batches(max_delay=60) for table in batch.to_arrow()]
    assert [len(table.relation.columns) for table in batches] == [9, 10]
    batch = batches[0].batch
    rows = batch.to_pylist()
    assert [row["_operation"] for row in rows] == ["insert", "insert", "update", "delete"]
    assert rows[0]["n"] == Decimal("1.50") and rows[0]["ts"].isoformat() == "2024-01-01T10:00:00+00:00"
    assert str(rows[0]["d"]) == "2024-02-29" and rows[0]["t"] == "" and rows[0]["ok"] is False and rows[0]["b"] == b"\0"
    assert rows[0]["tm"].isoformat() == "01:02:03.500000" and rows[0]["f"] != rows[0]["f"]
    assert all(rows[1][name] is None for name in ("n", "ts", "d", "f", "b", "t", "ok")) and rows[3]["id"] == 2
    assert batch.schema.field("n").type == pa.decimal128(10, 2)
    assert batches[1].batch.column("_operation").to_pylist() == ["insert", "truncate"]

    stage.cluster.sql(
        "CREATE TABLE odd (id int PRIMARY KEY, d date); INSERT INTO odd VALUES (1, 'infinity'), (2, '2024-01-01')"
    )
    with walcast.Client(stage.hub.address) as client:
        stream = client.subscribe("public.odd", start="earliest", stop_at_tail=True)
        (odd,) = stream.batches(max_delay=60)
    with pytest.raises(arrow.Unconvertible, match=r"public\.odd\.d"):
        odd.to_arrow()
    assert odd.to_arrow(text=["public.odd.d"])[0].batch.column("d").to_pylist() == ["infinity", "2024-01-01"]
    assert odd.to_arrow(invalid="null")[0].batch.column("d").null_count == 1


def test_streamz_acknowledges_what_was_released(stage: Any) -> None:
    streamz = pytest.importorskip("streamz")
    import walcast.streamz

    stage.cluster.sql(
        "CREATE TABLE streamed (id int PRIMARY KEY);" + "".join(f"INSERT INTO streamed VALUES ({i});" for i in range(7))
    )

    async def run() -> list[Any]:
        source = streamz.Stream.from_walcast(
            stage.hub.address, "public.streamed", subscriber="streamz", start_at="earliest", asynchronous=True
        )
        got: list[Any] = []
        source.partition(3).sink(got.append)
        source.start()
        deadline = time.monotonic() + 30
        while len(got) < 2 or not acked(got[1][-1]):
            assert time.monotonic() < deadline, f"{len(got)} partitions"
            await asyncio.sleep(0.02)
        source.stop()  # makes durable what was acknowledged, and closes the stream
        while subscriber().connected:
            assert time.monotonic() < deadline, "the stream stays open"
            await asyncio.sleep(0.02)
        return got

    def subscriber() -> Any:
        with walcast.Client(stage.hub.address) as client:
            (entry,) = [entry for entry in client.subscribers() if entry.name == "streamz"]
        return entry

    def acked(tx: walcast.Transaction) -> bool:
        entry = subscriber()
        return (
            walcast.Position.from_pb(entry.checkpoint).reaches(tx.position) if entry.HasField("checkpoint") else False
        )

    got = asyncio.run(run())
    assert [[tx.changes[0].after["id"] for tx in part] for part in got] == [[0, 1, 2], [3, 4, 5]]
    assert walcast.Position.from_pb(subscriber().checkpoint) == got[1][-1].position, (
        "the seventh is still held by partition"
    )


def test_the_examples(stage: Any, tmp_path: Path) -> None:
    import cache_invalidation
    import search_index
    import sqlite_replica

    address = stage.hub.address
    stage.cluster.sql(
        "CREATE SCHEMA shop; CREATE TABLE shop.articles (id int, lang text, body text, price numeric, PRIMARY KEY (id, lang));"
        "ALTER TABLE shop.articles ALTER body SET STORAGE EXTERNAL;"
        "INSERT INTO shop.articles VALUES (1, 'en', 'red apple', 1.5), (2, 'en', 'green apple', 2);"
        "INSERT INTO shop.articles VALUES (3, 'en', repeat('pear ', 1000), 3)"
    )
    index = search_index.Index()
    search_index.run(address, "shop.articles", "body", index, stop_at_tail=True)
    assert index.search("apple") == {(1, "en"), (2, "en")} and index.search("pear") == {(3, "en")}
    path = str(tmp_path / "replica.db")
    sqlite_replica.run(address, path, "shop.*", stop_at_tail=True)
    stage.cluster.sql(
        "UPDATE shop.articles SET price = 4 WHERE id = 3; UPDATE shop.articles SET id = 7 WHERE id = 2;"
        "DELETE FROM shop.articles WHERE id = 1; ALTER TABLE shop.articles ADD note text; UPDATE shop.articles SET note = 'n' WHERE id = 7"
    )
    search_index.run(address, "shop.articles", "body", index, stop_at_tail=True)
    assert index.search("apple") == {(7, "en")} and index.search("pear") == {(3, "en")}
    sqlite_replica.run(address, path, "shop.*", stop_at_tail=True)
    sqlite_replica.run(address, path, "shop.*", stop_at_tail=True)
    with sqlite3.connect(path) as database:
        mine = database.execute('SELECT id, lang, body, price, note FROM "shop.articles" ORDER BY id').fetchall()
    source = stage.cluster.json("SELECT id, lang, body, price::text, note FROM shop.articles ORDER BY id")
    assert mine == [tuple(row.values()) for row in source]

    cache = cache_invalidation.Cache()
    cache.rows = {("shop.articles", 3, "en"): {"price": 4}, ("shop.articles", 7, "en"): {"price": 2}}
    with walcast.Client(address) as client:
        for change in client.subscribe("shop.articles", start="earliest", stop_at_tail=True).changes():
            if change.operation == "update" and change.after["id"] == 3:
                cache.drop(change)
    assert list(cache.rows) == [("shop.articles", 7, "en")]


def test_the_audit_example(stage: Any, tmp_path: Path) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    import audit_parquet

    stage.cluster.sql(
        "CREATE TABLE audited (id int PRIMARY KEY); INSERT INTO audited SELECT generate_series(1, 10); DELETE FROM audited"
    )
    audit_parquet.run(stage.hub.address, tmp_path, stop_at_tail=True)
    rows = [row for file in tmp_path.glob("public.audited.*.parquet") for row in pq.read_table(file).to_pylist()]
    assert sorted((row["_operation"], row["id"]) for row in rows) == sorted(
        [("insert", i) for i in range(1, 11)] + [("delete", i) for i in range(1, 11)]
    )
    files = set(tmp_path.iterdir())
    audit_parquet.run(stage.hub.address, tmp_path, stop_at_tail=True)
    assert set(tmp_path.iterdir()) == files, "what was acknowledged does not come again"
