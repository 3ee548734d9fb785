#!/usr/bin/env python3
"""Executes the quick start of a client's README as its readers do, against a PostgreSQL and a hub of its own.

readme.py README.md COMMAND: of the blocks that stand behind a line ``<!-- tested -->`` the one in SQL is run in the database.
The program is written to a directory as snippet.LANGUAGE, with the hub's address in place of 127.0.0.1:50051, and COMMAND is run
with that directory. Its output must begin with the block of the language "text".
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import stage


def main(readme: str, command: str) -> int:
    blocks = dict(re.findall(r"<!-- tested -->\n```(\w+)\n(.*?)```", Path(readme).read_text(), re.S))
    sql, expected = blocks.pop("sql"), blocks.pop("text").splitlines()
    ((language, program),) = blocks.items()
    assert "127.0.0.1:50051" in program, "the program does not name the hub of `make demo`"
    with stage.scratch() as directory:
        cluster = stage.Cluster(directory)
        try:
            hub = stage.Hub(cluster, directory / "hub")
            try:
                cluster.sql(sql)
                place = directory / "snippet"
                place.mkdir()
                (place / f"snippet.{language}").write_text(program.replace("127.0.0.1:50051", hub.address))
                with subprocess.Popen([command, place], stdout=subprocess.PIPE, text=True) as running:
                    try:
                        assert running.stdout is not None
                        lines = [running.stdout.readline().rstrip("\n") for _ in expected]
                    finally:
                        running.kill()
                assert lines == expected, f"{lines}\ninstead of {expected}"
            finally:
                hub.close()
        finally:
            cluster.close()
    print(f"the quick start of {readme} prints what it says")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
