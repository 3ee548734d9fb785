"""Changes per second that one process iterates, against a real hub (WALCAST_BIN; PostgreSQL as for the conformance scenario)."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1] / "conformance"), str(HERE.parent / "src")]

import stage  # noqa: E402

import walcast  # noqa: E402

ROWS = int(sys.argv[1]) if len(sys.argv) > 1 else 300_000


def timed(name: str, run: Callable[[], int]) -> None:
    wall, cpu = time.perf_counter(), time.process_time()
    count = run()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    assert count == ROWS, count
    print(f"{name:22} {count / wall:10,.0f} changes/s, {count / cpu:10,.0f} per second of the client's CPU")


def main() -> None:
    with stage.scratch() as directory:
        cluster = stage.Cluster(directory)
        try:
            hub = stage.Hub(cluster, directory / "hub")
            try:
                cluster.sql("CREATE TABLE bench (id int PRIMARY KEY, a int, b text, ts timestamptz, n numeric)")
                cluster.sql(
                    f"INSERT INTO bench SELECT i, i, 'text ' || i, now(), i * 1.1 FROM generate_series(1, {ROWS}) i"
                )
                measure(hub.address)
            finally:
                hub.close()
        finally:
            cluster.close()


def measure(address: str) -> None:
    async def asynchronous() -> int:
        async with walcast.AsyncClient(address) as client:
            stream = client.subscribe("public.bench", start="earliest", stop_at_tail=True)
            return sum([1 async for change in stream.changes() if change.after])

    with walcast.Client(address) as client:

        def stream() -> walcast.Subscription:
            return client.subscribe("public.bench", start="earliest", stop_at_tail=True)

        timed("native rows", lambda: sum(1 for change in stream().changes() if change.after))
        timed("native rows, asyncio", lambda: asyncio.run(asynchronous()))
        timed("to_pylist", lambda: sum(len(tx.to_pylist()) for tx in stream()))
        timed("Arrow", lambda: sum(table.batch.num_rows for batch in stream().batches() for table in batch.to_arrow()))


if __name__ == "__main__":
    main()
