#!/usr/bin/env python3
"""Changes per second that one process of a language decodes to native rows, from a real hub (WALCAST_BIN).

bench.py --bench 'COMMAND' [ROWS]

COMMAND is run with the hub's address, the number of rows and the number of rounds, and prints what it measured. The table is
that of clients/python/scripts/bench.py: int, int, text, timestamptz and numeric. What the hub can serve is a bound too, so
figures per second of the client's CPU belong to it.
"""

from __future__ import annotations

import argparse
import contextlib
import shlex
import subprocess
import sys

import stage


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bench", required=True, help="command of the language's bench")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("rows", nargs="?", type=int, default=300_000)
    arguments = parser.parse_args()
    with stage.scratch() as directory, contextlib.ExitStack() as rest:
        cluster = rest.enter_context(contextlib.closing(stage.Cluster(directory)))
        hub = rest.enter_context(contextlib.closing(stage.Hub(cluster, directory / "hub")))
        cluster.sql("CREATE TABLE bench (id int PRIMARY KEY, a int, b text, ts timestamptz, n numeric)")
        cluster.sql(
            f"INSERT INTO bench SELECT i, i, 'text ' || i, now(), i * 1.1 FROM generate_series(1, {arguments.rows}) i"
        )
        command = [*shlex.split(arguments.bench), hub.address, str(arguments.rows), str(arguments.rounds)]
        return subprocess.run(command).returncode


if __name__ == "__main__":
    sys.exit(main())
