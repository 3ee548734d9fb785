"""Writes an audit log as Parquet files, one per table and batch. Needs walcast[arrow].

    python audit_parquet.py 127.0.0.1:50051 audit/

A file is complete before it gets its name, which is the first and last LSN of its batch. After a crash the batch that was not
acknowledged comes again, perhaps cut differently: files that begin where it begins are its earlier attempt and are removed first,
so nothing is in the log twice.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

import walcast


def run(address: str, directory: Path, stop_at_tail: bool = False) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    with walcast.Client(address) as client:
        subscription = client.subscribe(subscriber="audit", start="earliest", stop_at_tail=stop_at_tail)
        for batch in subscription.batches(max_rows=100_000, max_delay=60.0):
            first, last = (tx.commit_lsn.replace("/", "-") for tx in (batch.transactions[0], batch.transactions[-1]))
            for earlier in directory.glob(f"*.{first}.*.parquet"):
                earlier.unlink()
            for number, changes in enumerate(batch.to_arrow(invalid="null")):
                name = f"{changes.table}.{first}.{last}.{number}.parquet"
                temporary = directory / f".{name}.tmp"
                pq.write_table(pa.Table.from_batches([changes.batch]), temporary)
                with temporary.open("rb") as written:
                    os.fsync(written.fileno())
                temporary.rename(directory / name)


if __name__ == "__main__":
    run(sys.argv[1], Path(sys.argv[2]))
