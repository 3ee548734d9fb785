"""A replica of some tables in SQLite, each transaction applied exactly once.

    python sqlite_replica.py 127.0.0.1:50051 replica.db 'public.*'

The position is stored in the same SQLite transaction as the rows. So the subscription is anonymous: what has been applied is
known here, not at the hub.
"""

from __future__ import annotations

import sqlite3
import sys
from typing import Any

import walcast


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def plain(value: Any) -> Any:
    """What SQLite can store: its own types as they are, everything else as text."""
    return value if value is None or isinstance(value, (int, float, str, bytes)) else str(value)


class Replica:
    """Tables by their name at the source, and how far they are."""

    def __init__(self, path: str) -> None:
        self.database = sqlite3.connect(path, isolation_level=None)
        self.database.execute("PRAGMA journal_mode = WAL")
        self.database.execute(
            "CREATE TABLE IF NOT EXISTS walcast_position (only INTEGER PRIMARY KEY CHECK (only = 1), position TEXT)"
        )
        self._known: dict[str, set[str]] = {}

    def position(self) -> walcast.Position | None:
        row = self.database.execute("SELECT position FROM walcast_position").fetchone()
        return walcast.Position.parse(row[0]) if row else None

    def apply(self, tx: walcast.Transaction) -> None:
        self.database.execute("BEGIN IMMEDIATE")
        try:
            for change in tx.changes:
                self._change(change)
            self.database.execute("INSERT OR REPLACE INTO walcast_position VALUES (1, ?)", (str(tx.position),))
            self.database.execute("COMMIT")
        except BaseException:
            self.database.execute("ROLLBACK")
            self._known.clear()
            raise

    def _change(self, change: walcast.Change) -> None:
        table = quoted(change.table)
        self._prepare(change.relation)
        if change.operation == "truncate":
            self.database.execute(f"DELETE FROM {table}")
            return
        if change.operation in ("update", "delete"):
            key = change.key
            where = " AND ".join(f"{quoted(name)} IS ?" for name in key)
            values = [plain(value) for value in key.values()]
        if change.operation == "delete":
            self.database.execute(f"DELETE FROM {table} WHERE {where}", values)
            return
        row = {name: plain(value) for name, value in (change.after or {}).items() if value is not walcast.UNCHANGED}
        names = ", ".join(quoted(name) for name in row)
        marks = ", ".join("?" for _ in row)
        if change.operation == "update":
            sets = ", ".join(f"{quoted(name)} = ?" for name in row)
            self.database.execute(f"UPDATE {table} SET {sets} WHERE {where}", [*row.values(), *values])
        else:
            self.database.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", list(row.values()))

    def _prepare(self, relation: walcast.Relation) -> None:
        table = quoted(relation.table)
        known = self._known.get(relation.table)
        if known is None:
            columns = ", ".join(quoted(column.name) for column in relation.columns)
            self.database.execute(f"CREATE TABLE IF NOT EXISTS {table} ({columns})")
            known = {row[1] for row in self.database.execute(f"PRAGMA table_info({table})")}
            self._known[relation.table] = known
        for column in relation.columns:
            if column.name not in known:
                self.database.execute(f"ALTER TABLE {table} ADD COLUMN {quoted(column.name)}")
                known.add(column.name)


def run(address: str, path: str, tables: str, stop_at_tail: bool = False) -> None:
    replica = Replica(path)
    with walcast.Client(address) as client:
        start: Any = replica.position() or "earliest"
        for tx in client.subscribe(tables, start=start, stop_at_tail=stop_at_tail):
            replica.apply(tx)


if __name__ == "__main__":
    run(sys.argv[1], sys.argv[2], sys.argv[3])
