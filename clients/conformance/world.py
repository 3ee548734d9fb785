"""What a step of the conformance scenario works with: a cluster, a hub, and runners that end with the step."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from runner import Runner
from stage import Cluster, Hub, until


class World:
    """What a step works with."""

    def __init__(self, command: str, directory: Path) -> None:
        self.command = command
        self.directory = directory
        self.log = (directory / "runner.log").open("ab")
        self._runners: list[Runner] = []
        self._rest = contextlib.ExitStack()
        self._rest.callback(self.log.close)
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            self.cluster = self._rest.enter_context(contextlib.closing(Cluster(directory)))
            self.hub = self._rest.enter_context(contextlib.closing(Hub(self.cluster, directory / "hub")))
            self._begin()
            undo.pop_all()

    def _begin(self) -> None:
        self.cluster.sql("CREATE TABLE first (id int PRIMARY KEY); INSERT INTO first VALUES (1)")
        first = self.runner(start="earliest")
        first.ask("next 1")  # from here on the source's LSNs are positions in the journal
        first.close()

    def published(self, hub: Hub, *tables: str) -> None:
        """Waits until the hub knows new tables, which it looks for every few seconds."""
        for table in tables:

            def known(table: str = table) -> bool:
                runner = self.runner(hub=hub, tables=[table], start="latest")
                runner.send("until 0/0")
                try:
                    runner.wait("done")
                except AssertionError as refused:
                    assert "TABLE_NOT_PUBLISHED" in str(refused), refused
                    return False
                runner.close()
                return True

            until(f"{table} being known", known)

    def runner(self, hub: Hub | None = None, **request: Any) -> Runner:
        request.setdefault("address", (hub or self.hub).address)
        runner = Runner(self.command, request, self.log)
        self._runners.append(runner)
        return runner

    def lsn(self) -> str:
        """Where the source's WAL ends now."""
        return self.cluster.sql("SELECT pg_current_wal_insert_lsn()")

    def commit(self) -> str:
        """Commits something that nobody selects, since what is not WAL of a transaction is heard of late; where WAL ends then."""
        self.cluster.sql("UPDATE first SET id = id")
        return self.lsn()

    def taken_in(self) -> None:
        """Waits until the hub has what is committed, so that it is before "latest"."""
        runner = self.runner(start="latest")
        runner.ask(f"until {self.commit()}")
        runner.close()

    def close_runners(self) -> None:
        for runner in self._runners:
            runner.kill()
        self._runners.clear()

    def close(self) -> None:
        self.close_runners()
        self._rest.close()
