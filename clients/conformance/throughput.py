#!/usr/bin/env python3
"""Changes per second that one process of a client iterates, decoded to native rows, against a real hub.

throughput.py [--rows N] [--per-transaction N] -- COMMAND: once the table public.bench has its rows, the command is given the
hub's address and their number.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

import stage


def fill(cluster: stage.Cluster, rows: int, step: int) -> None:
    """Inserts the rows, so many in each transaction."""
    columns = "i, i, 'text ' || i, now(), i * 1.1"
    statements = [
        f"INSERT INTO bench SELECT {columns} FROM generate_series({first}, {min(first + step - 1, rows)}) i;"
        for first in range(1, rows + 1, step)
    ]
    for at in range(0, len(statements), 1000):
        cluster.sql("".join(statements[at : at + 1000]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--per-transaction", type=int, default=1000)
    parser.add_argument("command", nargs="+")
    arguments = parser.parse_args()
    with stage.scratch() as directory:
        cluster = stage.Cluster(directory)
        try:
            hub = stage.Hub(cluster, directory / "hub")
            try:
                cluster.sql("CREATE TABLE bench (id int PRIMARY KEY, a int, b text, ts timestamptz, n numeric)")
                fill(cluster, arguments.rows, arguments.per_transaction)
                return subprocess.run([*arguments.command, hub.address, str(arguments.rows)]).returncode
            finally:
                hub.close()
        finally:
            cluster.close()


if __name__ == "__main__":
    sys.exit(main())
