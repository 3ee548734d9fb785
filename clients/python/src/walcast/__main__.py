"""``python -m walcast tail``: prints changes, for looking at a stream. The hub's own ``walcast tail`` can do more."""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
from typing import Any

from . import TLS, UNCHANGED, Client, __version__
from ._model import Change, Row
from .errors import WalcastError


def _plain(value: Any) -> Any:
    if isinstance(value, (bytes, bytearray)):
        return value.hex()
    if isinstance(value, (list, tuple)):
        return [_plain(element) for element in value]
    if isinstance(value, float) and (value != value or abs(value) == float("inf")):
        return str(value)
    return value if isinstance(value, (str, int, float, bool, dict)) or value is None else str(value)


def _row(row: Row | None) -> dict[str, Any] | None:
    return None if row is None else {name: _plain(value) for name, value in row.items() if value is not UNCHANGED}


def _json(change: Change) -> str:
    tx = change.transaction
    return json.dumps(
        {
            "op": change.operation.value,
            "table": change.table,
            "lineage": tx.lineage,
            "commit_lsn": tx.commit_lsn,
            "sequence": tx.sequence,
            "xid": tx.xid,
            "commit_time": tx.commit_time.isoformat() if tx.commit_time else None,
            "ordinal": change.ordinal,
            "before": _row(change.before),
            "after": _row(change.after),
            "unchanged": [name for name, value in (change.after or {}).items() if value is UNCHANGED],
        },
        ensure_ascii=False,
    )


def _pretty(change: Change) -> str:
    row = change.after if change.after is not None else change.before
    columns = " ".join(f"{name}={value!r}" for name, value in (row or {}).items())
    return f"{change.lsn:>17} {change.operation:8} {change.table} {columns}".rstrip()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m walcast", description="A client of a walcast hub.")
    parser.add_argument("--version", action="version", version=f"walcast {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    tail = commands.add_parser("tail", help="print changes")
    tail.add_argument("tables", nargs="*", help='globs over "schema.table"; none for all')
    tail.add_argument("--hub", default=os.environ.get("WALCAST_HUB", "127.0.0.1:50051"), help="address, or https://...")
    tail.add_argument("--from", dest="start", help="earliest, latest (default), an LSN, or a position")
    tail.add_argument("--where", default="", help="a predicate over columns")
    tail.add_argument("--op", action="append", default=[], help="insert, update, delete or truncate; repeatable")
    tail.add_argument("--exclude", action="append", default=[], help="globs of tables to leave out; repeatable")
    tail.add_argument("--subscriber", default="", help="go on at this subscriber's checkpoint")
    tail.add_argument("--ack", action="store_true", help="acknowledge what was printed")
    tail.add_argument("--stop-at-tail", action="store_true", help="end when everything that is there was printed")
    tail.add_argument("--count", type=int, help="end after so many changes")
    tail.add_argument("--format", choices=("pretty", "json"), default="pretty")
    tail.add_argument("--token-file", help="file with a bearer token")
    for name in ("ca", "cert", "key"):
        tail.add_argument(f"--{name}", help=f"PEM file of TLS: {name}")
    chosen = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        return _tail(chosen)
    except (WalcastError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0


def _tail(chosen: argparse.Namespace) -> int:
    tls = TLS(ca=chosen.ca, cert=chosen.cert, key=chosen.key) if chosen.ca or chosen.cert else None
    token = None
    if chosen.token_file:
        with open(chosen.token_file) as file:
            token = file.read().strip()
    show = _json if chosen.format == "json" else _pretty
    left = chosen.count
    with Client(chosen.hub, token=token, tls=tls) as client:
        subscription = client.subscribe(
            chosen.tables,
            exclude_tables=chosen.exclude,
            operations=chosen.op,
            where=chosen.where,
            subscriber=chosen.subscriber,
            start=chosen.start,
            auto_ack=chosen.ack,
            stop_at_tail=chosen.stop_at_tail,
        )
        for change in subscription.changes():
            print(show(change), flush=True)
            if left is not None:
                left -= 1
                if left <= 0:
                    break
    return 0


if __name__ == "__main__":
    sys.exit(main())
