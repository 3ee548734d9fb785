#!/usr/bin/env python3
"""Changes per second that one process of a client iterates, from a real hub (WALCAST_BIN): see clients/README.md.

bench.py LANGUAGE[:ORDER] ...  for instance `bench.py go python:rows python:arrow`. The suite `clients` of `make bench`
measures the same, beside a peer; this one is for working on a client, whose bench.sh must have been built.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import stage

CLIENTS = Path(__file__).resolve().parents[1]
TABLE = "public.bench_clients"
COLUMNS = (
    "id int8 PRIMARY KEY, branch int4, account int4, delta numeric(12,2), ratio float8, paid bool, "
    "mtime timestamptz, note text"
)
ROW = (
    "n, n % 10, n % 100000, (n % 10000) / 100.0, n / 7.0, n % 2 = 0, '2026-01-01Z'::timestamptz + n * interval '1 ms', "
    "CASE WHEN n % 10 > 0 THEN 'note ' || md5(n::text) END"
)


def fill(cluster: stage.Cluster, rows: int, step: int) -> None:
    cluster.sql(f"CREATE TABLE {TABLE} ({COLUMNS})")
    cluster.sql(
        f"DO $$ BEGIN FOR i IN 0 .. {rows // step - 1} LOOP INSERT INTO {TABLE} "
        f"SELECT {ROW} FROM generate_series(1 + i * {step}, (i + 1) * {step}) n; COMMIT; END LOOP; END $$"
    )


def cpu(pid: int) -> float:
    """Seconds of user and system time."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(name: str, address: str, rows: int, passes: int, hub: int) -> None:
    language, _, order = name.partition(":")
    command = [CLIENTS / language / "scripts" / "bench.sh", address, TABLE]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdin is not None and program.stdout is not None
        version = json.loads(program.stdout.readline())["ready"]
        for _ in range(passes):
            before, hub_before = cpu(program.pid), cpu(hub)
            print(order or "rows", file=program.stdin, flush=True)
            done = json.loads(program.stdout.readline())
            used, hub_used = cpu(program.pid) - before, cpu(hub) - hub_before
            assert done["changes"] == rows and done["nulls"] == rows // 10, done
            print(
                f"{name:16} {rows / done['seconds']:10,.0f}/s, {rows / used:10,.0f} per CPU second; hub {hub_used:.2f} of "
                f"{done['seconds']:.2f} s; {done['digest']:08x}; {version}",
                flush=True,
            )
        program.stdin.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=500_000)
    parser.add_argument("--per-transaction", type=int, default=100)
    parser.add_argument("--passes", type=int, default=4)
    parser.add_argument("clients", nargs="+", metavar="LANGUAGE[:ORDER]")
    arguments = parser.parse_args()
    with stage.scratch() as directory, contextlib.ExitStack() as rest:
        cluster = rest.enter_context(contextlib.closing(stage.Cluster(directory)))
        hub = rest.enter_context(contextlib.closing(stage.Hub(cluster, directory / "hub")))
        fill(cluster, arguments.rows, arguments.per_transaction)
        transactions = arguments.rows // arguments.per_transaction
        stage.until("the journal's end", lambda: hub.metric("walcast_source_transactions_total") >= transactions)
        for name in arguments.clients:
            measure(name, hub.address, arguments.rows, arguments.passes, hub.process.pid)
    return 0


if __name__ == "__main__":
    sys.exit(main())
