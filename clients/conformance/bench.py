#!/usr/bin/env python3
"""Changes per second that one process of a client iterates, decoded to native rows, against a real hub.

bench.py [--rows N] [--per-transaction N] -- COMMAND: the command is given the hub's address and the number of changes, once the table public.bench has them.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

import stage


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
                step = arguments.per_transaction
                for first in range(1, arguments.rows + 1, step * 200):
                    cluster.sql("".join(
                        f"INSERT INTO bench SELECT i, i, 'text ' || i, now(), i * 1.1 FROM generate_series({at}, {min(at + step - 1, arguments.rows)}) i;"
                        for at in range(first, min(first + step * 200, arguments.rows + 1), step)
                    ))  # fmt: skip
                return subprocess.run([*arguments.command, hub.address, str(arguments.rows)]).returncode
            finally:
                hub.close()
        finally:
            cluster.close()


if __name__ == "__main__":
    sys.exit(main())
