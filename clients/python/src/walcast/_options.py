"""What a subscription asks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime, timedelta
from typing import Any

from ._events import Gap, Progress, TimelineChanged
from ._position import Position, Start
from ._retry import Retry
from ._values import Decoder
from .errors import HubError
from .v1 import walcast_pb2 as api


@dataclass(frozen=True, slots=True)
class Options:
    """What a subscription asks for."""

    filter: api.Filter | None = None
    subscriber: str = ""
    start: Start | str | Position | datetime | None = None
    auto_ack: bool = True
    stop_at_tail: bool = False
    json: str = "parsed"
    types: Mapping[str, Decoder] | None = None
    window_events: int = 100_000
    window_bytes: int = 8 << 20
    max_message_bytes: int = 64 << 20
    max_transaction_bytes: int = 1 << 30
    progress_interval: timedelta | None = None
    retry: Retry = field(default_factory=Retry)
    on_progress: Callable[[Progress], Any] | None = None
    on_timeline_changed: Callable[[TimelineChanged], Any] | None = None
    on_gap: Callable[[Gap], Any] | None = None
    on_snapshot: Callable[[Any], Any] | None = None
    on_reconnect: Callable[[HubError, float], Any] | None = None

    @classmethod
    def of(cls, selected: api.Filter | None, max_message_bytes: int, arguments: Mapping[str, Any]) -> Options:
        """From the arguments of ``subscribe``, which has a parameter for each of the other fields."""
        named = {entry.name: arguments[entry.name] for entry in fields(cls) if entry.name in arguments}
        if named["window_events"] < 1 or named["window_bytes"] < 1:
            raise ValueError("window_events and window_bytes are at least 1")
        return cls(**{**named, "filter": selected, "max_message_bytes": max_message_bytes})
