"""Drops cached rows when they change, whoever changed them.

    python cache_invalidation.py 127.0.0.1:50051 public.products

Anonymous and from "latest": a cache starts empty, so it needs nothing from before. It must not miss a change
while it holds entries. If the position has expired after a long outage, the whole cache is dropped.
"""

from __future__ import annotations

import sys
from typing import Any

import walcast


class Cache:
    """Rows by table and key."""

    def __init__(self) -> None:
        self.rows: dict[tuple[Any, ...], dict[str, Any]] = {}

    def drop(self, change: walcast.Change) -> None:
        if change.operation == "truncate":
            self.rows = {key: row for key, row in self.rows.items() if key[0] != change.table}
            return
        self.rows.pop((change.table, *change.key.values()), None)


def run(address: str, table: str, cache: Cache, stop_at_tail: bool = False) -> None:
    start: walcast.Position | str = "latest"
    while True:
        with walcast.Client(address) as client:
            subscription = client.subscribe(table, start=start, stop_at_tail=stop_at_tail)
            try:
                for change in subscription.changes():
                    cache.drop(change)
                return
            except (walcast.PositionExpired, walcast.TimelineChangedError, walcast.GapError):
                cache.rows.clear()
                start = "latest"


if __name__ == "__main__":
    run(sys.argv[1], sys.argv[2], Cache())
