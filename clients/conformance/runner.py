"""The driver's side of a runner: a process of the language under test that holds one subscription. See README.md."""

from __future__ import annotations

import json
import queue
import shlex
import subprocess
import threading
from typing import Any


class Runner:
    """One subscription in the language under test."""

    def __init__(self, command: str, request: dict[str, Any], log: Any) -> None:
        self._process = subprocess.Popen(
            [*shlex.split(command), json.dumps(request)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        self._lines: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self.transactions: list[dict[str, Any]] = []
        self.others: list[dict[str, Any]] = []
        #: Both, in order.
        self.lines: list[dict[str, Any]] = []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(json.loads(line))
        self._lines.put(None)

    def send(self, command: str) -> None:
        """A command, without waiting for its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()

    def wait(self, *events: str, seconds: float = 120.0) -> dict[str, Any]:
        """The next line of one of these kinds. Transactions and others on the way are kept."""
        while True:
            try:
                line = self._lines.get(timeout=seconds)
            except queue.Empty:
                raise AssertionError(f"no {' or '.join(events)} within {seconds:.0f} s") from None
            if line is None:
                raise AssertionError(f"the runner ended (exit {self._process.wait()}) before {' or '.join(events)}")
            kept = self.transactions if line["event"] == "transaction" else self.others
            kept.append(line)
            self.lines.append(line)
            if line["event"] in events:
                return line
            if line["event"] == "error":
                raise AssertionError(f"{line}")

    def told(self, event: str) -> list[dict[str, Any]]:
        """The lines of this kind so far, transactions aside."""
        return [line for line in self.others if line["event"] == event]

    def ask(self, command: str, seconds: float = 120.0) -> list[dict[str, Any]]:
        """Sends a command and waits until it is done; the transactions that it handed out."""
        before = len(self.transactions)
        self.send(command)
        self.wait("done", seconds=seconds)
        return self.transactions[before:]

    def error(self, command: str) -> dict[str, Any]:
        """Sends a command that must end in an error, and waits until the process has ended with 1."""
        self.send(command)
        line = self.wait("error")
        assert self._process.wait(30) == 1, "a runner that met an error ends with exit code 1"
        return line

    def close(self) -> None:
        """Ends it in order."""
        self.send("close")
        self.wait("closed")
        assert self._process.wait(30) == 0, "a closed runner ends with exit code 0: something of it was left behind"

    def kill(self) -> None:
        """kill -9."""
        self._process.kill()
        self._process.wait()
