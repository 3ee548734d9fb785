#!/usr/bin/env python3
"""Executes the programs of a client's README as its readers do, against `walcast demo`, which is what `make demo` runs.

readme.py README.md COMMAND: the blocks that stand behind a line ``<!-- tested -->`` are taken in their order. SQL is run
in the demo's database. A program is started, and goes on running while what follows is executed. A block in the language
"text" is what is printed next, by all of the programs together.

The programs are written to a directory as 1.LANGUAGE, 2.LANGUAGE and so on, with the hub's address where it is not the
one that the README says. ``COMMAND build DIRECTORY`` builds all of them; ``COMMAND run DIRECTORY 1`` becomes the first.
"""

from __future__ import annotations

import contextlib
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import stage

ADDRESS = "127.0.0.1:50051"
SECONDS = 120.0


class Lines:
    """What several processes print, in the order in which it comes."""

    def __init__(self) -> None:
        self._lines: queue.Queue[str] = queue.Queue()

    def read(self, stream: IO[str] | None) -> None:
        assert stream is not None
        threading.Thread(target=lambda: [self._lines.put(line.rstrip("\n")) for line in stream], daemon=True).start()

    def next(self, what: str, sources: list[subprocess.Popen[str]]) -> str:
        """The next line; an error if it does not come, or one of those that print has failed."""
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            with contextlib.suppress(queue.Empty):
                return self._lines.get(timeout=0.2)
            for process in sources:
                assert process.poll() in (None, 0), (
                    f"{what} did not come: {process.args} ended with {process.returncode}"
                )
        raise AssertionError(f"{what} did not come within {SECONDS:.0f} s")


@contextlib.contextmanager
def running(command: list[str], lines: Lines, **options: object) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options)  # type: ignore[call-overload]
    try:
        lines.read(process.stdout)
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def introduced(demo: subprocess.Popen[str], lines: Lines) -> tuple[str, str]:
    """The hub's address and the database's, as the demo tells people."""
    text = ""
    while True:
        text += re.sub(r"\x1b\[[0-9;]*m", "", lines.next("the demo's introduction", [demo])) + "\n"
        hub, database = re.search(r"walcast on (\S+?),? ", text), re.search(r"psql (\S+)", text)
        if hub and database:
            return hub[1], database[1]


def execute(readme: Path, command: str, directory: Path) -> int:
    """How many programs were run."""
    blocks = re.findall(r"<!-- tested -->\n```(\w+)\n(.*?)```", readme.read_text(), re.S)
    programs = [(language, text) for language, text in blocks if language not in ("sql", "text")]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WALCAST_")}
    told, printed = Lines(), Lines()
    started: list[subprocess.Popen[str]] = []
    with contextlib.ExitStack() as stack:
        start = [str(stage.hub_binary()), "demo", "--with-parent", "--bin-dir", str(stage.postgres_bin())]
        demo = stack.enter_context(running(start, told, env=environment))
        hub, database = introduced(demo, told)
        for number, (language, text) in enumerate(programs, 1):
            assert ADDRESS in text, "a program does not name the hub of `make demo`"
            (directory / f"{number}.{language}").write_text(text.replace(ADDRESS, hub))
        subprocess.run([command, "build", directory], check=True, stdout=sys.stderr)
        for language, text in blocks:
            if language == "sql":
                psql = [stage.postgres_bin() / "psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-f", "-", database]
                subprocess.run(psql, input=text, text=True, check=True)
            elif language == "text":
                for line in text.splitlines():
                    came = printed.next(repr(line), [demo, *started])
                    assert came == line, f"{came!r} instead of {line!r}"
            else:
                run = [command, "run", str(directory), str(len(started) + 1)]
                started.append(stack.enter_context(running(run, printed)))
    return len(started)


def main(readme: str, command: str) -> int:
    with stage.scratch() as directory:
        number = execute(Path(readme), command, directory)
    assert number >= 3, "the quick start, a backfill and a snapshot"
    print(f"the {number} programs of {readme} print what it says")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
