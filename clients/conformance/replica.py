"""What a client builds from a stream, and what must hold of the stream whatever it carries."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from world import World

Row = dict[str, Any]


def plain(value: Any) -> Any:
    """int and text values of the replicas below."""
    if value is None or value[0] == "text":
        return value and value[1]
    assert value[0] == "int", value
    return int(value[1])


class Replica:
    """Tables with the primary key ``id``, built from transactions."""

    def __init__(self, upserts: bool = False) -> None:
        """``upserts``: rows of an incremental snapshot come between changes, so a row may come before or after what
        happens to it, and again."""
        self.tables: dict[str, dict[int, Row]] = {}
        self.upserts = upserts

    def apply(self, lines: list[dict[str, Any]]) -> Replica:
        for line in lines:
            if line["event"] == "snapshot" and line.get("restarted"):
                self.tables.clear()
            self._changes(line.get("changes", ()))
        return self

    def _changes(self, changes: Iterable[dict[str, Any]]) -> None:
        for change in changes:
            table = self.tables.setdefault(change["table"], {})
            old = {name: plain(value) for name, value in (change["before"] or {}).items()}
            new = {name: plain(value) for name, value in (change["after"] or {}).items()}
            if change["operation"] == "truncate":
                table.clear()
            elif change["operation"] == "delete":
                assert self.upserts or old["id"] in table, f"{change['table']} {old['id']} was not there"
                table.pop(old["id"], None)
            elif change["operation"] == "insert" or (change["operation"] == "read" and not self.upserts):
                assert self.upserts or new["id"] not in table, f"{change['table']} {new['id']} came twice"
                table[new["id"]] = new
            else:
                table.pop(old.get("id", new["id"]), None)
                table[new["id"]] = new

    def equals(self, world: World, table: str, where: str = "true") -> None:
        source = {row["id"]: row for row in world.cluster.json(f"SELECT * FROM {table} WHERE {where}")}
        mine = self.tables.get(f"public.{table}", {})
        assert mine == source, f"{table}: {len(mine)} rows built, {len(source)} at the source"


def one_each(transactions: list[dict[str, Any]]) -> None:
    """No transaction and no change came twice, and all came in order."""
    positions = [tx["position"] for tx in transactions]
    assert len(set(positions)) == len(positions), "a transaction came twice"
    orders = [(int(lsn.split("/")[0], 16), int(lsn.split("/")[1], 16)) for lsn in (p.split(":")[1] for p in positions)]
    assert orders == sorted(orders), "transactions are out of order"
