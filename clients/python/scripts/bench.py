"""Iterates a table's changes as often as it is told to: see clients/README.md.

Orders: `rows` (decoded to native rows), `asyncio` (the same with AsyncClient), `arrow` (RecordBatches).
"""

from __future__ import annotations

import asyncio
import json
import platform
import sys
import time
from typing import Any

import walcast
from walcast import _native

FOLD = (1 << 32) - 1


class Count:
    def __init__(self) -> None:
        self.changes = self.nulls = self.digest = 0

    def rows(self, stream: walcast.Subscription) -> None:
        changes = nulls = digest = 0
        for change in stream.changes():
            row = change.after
            changes += 1
            digest = digest * 31 + row["id"] & FOLD
            if row["note"] is None:
                nulls += 1
        self.changes, self.nulls, self.digest = changes, nulls, digest

    async def asyncio(self, address: str, options: dict[str, Any]) -> None:
        changes = nulls = digest = 0
        async with walcast.AsyncClient(address) as client:
            async for change in client.subscribe(**options).changes():
                row = change.after
                changes += 1
                digest = digest * 31 + row["id"] & FOLD
                if row["note"] is None:
                    nulls += 1
        self.changes, self.nulls, self.digest = changes, nulls, digest

    def arrow(self, stream: walcast.Subscription) -> None:
        import pyarrow as pa
        import pyarrow.compute as pc

        powers = [pow(31, power, FOLD + 1) for power in range(1001)]
        weights = pa.array(powers[999::-1], pa.uint64())
        for batch in stream.batches():
            for table in batch.to_arrow():
                ids = table.batch.column("id").cast(pa.uint64())
                for at in range(0, len(ids), 1000):
                    part = ids.slice(at, 1000)
                    weighed = pc.sum(pc.multiply(part, weights.slice(1000 - len(part)))).as_py()
                    self.digest = self.digest * powers[len(part)] + weighed & FOLD
                self.changes += table.batch.num_rows
                self.nulls += table.batch.column("note").null_count


def main() -> None:
    address, table = sys.argv[1:]
    options: dict[str, Any] = {"tables": table, "start": "earliest", "stop_at_tail": True}
    reader = "compiled" if _native.native else "pure"
    print(json.dumps({"ready": f"Python {platform.python_version()}, {reader}"}), flush=True)
    for order in sys.stdin:
        count = Count()
        began = time.perf_counter()
        if order.strip() == "asyncio":
            asyncio.run(count.asyncio(address, options))
        else:
            with walcast.Client(address) as client:
                getattr(count, order.strip())(client.subscribe(**options))
        print(json.dumps({**vars(count), "seconds": time.perf_counter() - began}), flush=True)


if __name__ == "__main__":
    main()
