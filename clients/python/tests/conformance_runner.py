"""Python's runner for clients/conformance: one subscription, driven by lines on stdin. With ``async`` before the
request it drives the asyncio client."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import logging
import math
import struct
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import walcast
from walcast import UNCHANGED, errors
from walcast._position import lsn_to_int

logging.basicConfig(level=logging.INFO, stream=sys.stderr)


def value(native: Any, type_name: str) -> Any:
    """A value as README.md of the conformance scenario writes it."""
    if native is None:
        return None
    if native is UNCHANGED:
        return ["unchanged"]
    if type_name in ("json", "jsonb"):
        return ["json", native]
    if isinstance(native, list):
        return ["array", [value(element, type_name.removeprefix("_")) for element in native]]
    for kind, write in WRITERS.items():
        if type(native) is kind:
            return write(native)
    raise TypeError(type(native))


def _range(native: walcast.Range[Any]) -> list[Any]:
    if native.empty:
        return ["range", "empty"]
    lower, upper = ("" if bound is None else str(bound) for bound in (native.lower, native.upper))
    return ["range", f"{'[' if native.lower_inc else '('}{lower},{upper}{']' if native.upper_inc else ')'}"]


WRITERS: dict[type, Any] = {
    bool: lambda v: ["bool", v],
    int: lambda v: ["int", str(v)],
    float: lambda v: ["float", "nan" if math.isnan(v) else struct.pack(">d", v).hex()],
    Decimal: lambda v: ["decimal", "NaN" if v.is_nan() else format(v, "f")],
    str: lambda v: ["text", v],
    bytes: lambda v: ["bytes", v.hex()],
    UUID: lambda v: ["uuid", str(v)],
    dt.date: lambda v: ["date", v.isoformat()],
    dt.time: lambda v: ["time", v.isoformat("microseconds")],
    dt.datetime: lambda v: [
        "timestamptz" if v.tzinfo else "timestamp",
        v.replace(tzinfo=None).isoformat("T", "microseconds"),
    ],
    walcast.Interval: lambda v: ["interval", [v.months, v.days, v.microseconds]],
    walcast.Range: _range,
    walcast.Unrepresentable: lambda v: ["special", v.text],
}


def row(change: walcast.Change, image: dict[str, Any] | None) -> Any:
    if image is None:
        return None
    return {c.name: value(image[c.name], c.type_name) for c in change.relation.columns if c.name in image}


def say(event: str, **data: Any) -> None:
    sys.stdout.write(json.dumps({"event": event, **data}) + "\n")
    sys.stdout.flush()


def say_transaction(tx: walcast.Transaction) -> None:
    say(
        "transaction",
        position=str(tx.position),
        commit_lsn=tx.commit_lsn,
        xid=tx.xid,
        snapshot=tx.snapshot_id or None,
        commit_time=tx.commit_time.isoformat().replace("+00:00", "Z") if tx.commit_time else None,
        changes=[
            {
                "operation": change.operation.value,
                "table": change.table,
                "ordinal": change.ordinal,
                "before": row(change, change.before),
                "after": row(change, change.after),
                "changed": None if change.changed_columns is None else list(change.changed_columns),
                "transition": change.transition,
            }
            for change in tx.changes
        ],
    )


def say_error(error: errors.WalcastError) -> None:
    hub = error if isinstance(error, errors.HubError) else None
    say(
        "error",
        reason=hub.reason if hub else type(error).__name__,
        metadata=hub.metadata if hub else {},
        violations=[list(violation) for violation in hub.violations] if hub else [],
        message=str(error),
    )


def say_snapshot(event: Any) -> None:
    if isinstance(event, walcast.SnapshotBegin):
        say(
            "snapshot",
            step="begin",
            snapshot=event.snapshot_id,
            restarted=event.restarted,
            tables=list(event.tables),
        )
    elif isinstance(event, walcast.SnapshotTableEnd):
        say("snapshot", step="table_end", snapshot=event.snapshot_id, table=event.table, rows=event.rows)
    else:
        say(
            "snapshot",
            step="end",
            snapshot=event.snapshot_id,
            rows=event.rows,
            position=str(event.position),
        )


def say_loss(loss: errors.TimelineChangedError | errors.GapError) -> None:
    event = loss.event
    if isinstance(event, walcast.Gap):
        say("gap", after=str(event.after), up_to=str(event.up_to))
    else:
        say(
            "timeline_changed",
            old_lineage=event.old_lineage,
            new_lineage=event.new_lineage,
            switch_lsn=event.switch_lsn,
            position=str(event.position),
            retracted=[
                {"position": str(entry.position), "xid": entry.transaction.xid, "changes": entry.changes}
                for entry in event.retracted
            ],
        )


class Reached(Exception):
    """Raised out of on_progress when the asked-for LSN has been reached."""


def prepare(request: dict[str, Any], goal: list[int]) -> tuple[dict[str, Any], dict[str, Any]]:
    tls = request.pop("tls", None)
    client = {
        "address": request.pop("address"),
        "token": request.pop("token", None),
        "tls": walcast.TLS(**tls) if tls else None,
    }
    give_up = request.pop("give_up_after", None)
    if (mode := request.pop("snapshot_mode", None)) is not None:
        request["start"] = walcast.Snapshot(incremental=mode == "incremental")

    def progressed(progress: walcast.Progress) -> None:
        if goal and lsn_to_int(progress.position.lsn) >= goal[0]:
            raise Reached

    request["on_progress"] = progressed
    request["on_snapshot"] = say_snapshot
    request["on_reconnect"] = lambda error, _: say("reconnect", reason=error.reason)
    request["retry"] = walcast.Retry(give_up_after=give_up)
    request["progress_interval"] = dt.timedelta(milliseconds=200)
    return client, request


def reached(stream: walcast.Subscription) -> bool:
    """Hands out transactions until the goal is reached, or something must not be missed."""
    try:
        for tx in stream:
            say_transaction(tx)
    except (errors.TimelineChangedError, errors.GapError) as loss:
        say_loss(loss)
        return False
    except Reached:
        return True
    raise EOFError("the stream ended")


async def reached_async(stream: walcast.AsyncSubscription) -> bool:
    try:
        async for tx in stream:
            say_transaction(tx)
    except (errors.TimelineChangedError, errors.GapError) as loss:
        say_loss(loss)
        return False
    except Reached:
        return True
    raise EOFError("the stream ended")


def main() -> int:
    goal: list[int] = []
    client_arguments, request = prepare(json.loads(sys.argv[1]), goal)
    name = request.get("subscriber", "")
    with walcast.Client(**client_arguments) as client:
        stream = client.subscribe(**request)
        try:
            for line in sys.stdin:
                command, _, argument = line.strip().partition(" ")
                if command == "close":
                    break
                if command == "next":
                    for _ in range(int(argument)):
                        say_transaction(next(stream))
                elif command == "until":
                    goal[:] = [lsn_to_int(argument)]
                    while not reached(stream):
                        pass
                    goal.clear()
                elif command == "ack":
                    stream.ack()
                elif command == "flush":
                    say("flushed", checkpoint=str(stream.flush()))
                elif command == "backfill":
                    table, _, rate = argument.partition(" ")
                    say("backfill", snapshot=client.backfill(name, tables=table, max_rows_per_second=int(rate or 0)))
                elif command in ("pause", "resume", "cancel"):
                    client.backfill(name, command, snapshot_id=argument)
                elif command == "retracted":
                    for tx in client.read_retracted(argument):
                        say_transaction(tx)
                else:
                    raise ValueError(command)
                say("done")
        except errors.WalcastError as error:
            say_error(error)
            return 1
    say("closed")
    return 0


async def main_async() -> int:
    goal: list[int] = []
    client_arguments, request = prepare(json.loads(sys.argv[2]), goal)
    name = request.get("subscriber", "")
    async with walcast.AsyncClient(**client_arguments) as client:
        stream = client.subscribe(**request)
        try:
            while line := await asyncio.to_thread(sys.stdin.readline):
                command, _, argument = line.strip().partition(" ")
                if command == "close":
                    break
                if command == "next":
                    for _ in range(int(argument)):
                        say_transaction(await stream.__anext__())
                elif command == "until":
                    goal[:] = [lsn_to_int(argument)]
                    while not await reached_async(stream):
                        pass
                    goal.clear()
                elif command == "ack":
                    stream.ack()
                elif command == "flush":
                    say("flushed", checkpoint=str(await stream.flush()))
                elif command == "backfill":
                    table, _, rate = argument.partition(" ")
                    snapshot = await client.backfill(name, tables=table, max_rows_per_second=int(rate or 0))
                    say("backfill", snapshot=snapshot)
                elif command in ("pause", "resume", "cancel"):
                    await client.backfill(name, command, snapshot_id=argument)
                elif command == "retracted":
                    async for tx in client.read_retracted(argument):
                        say_transaction(tx)
                else:
                    raise ValueError(command)
                say("done")
        except errors.WalcastError as error:
            say_error(error)
            return 1
    say("closed")
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main_async()) if sys.argv[1] == "async" else main())
