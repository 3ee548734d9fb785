"""What a subscription sends."""

from __future__ import annotations

import threading
from collections.abc import Callable

from ._position import Position
from .v1 import event_pb2 as pb
from .v1 import walcast_pb2 as api

#: Acknowledgements are sent at most this often, in seconds,
ACK_INTERVAL = 0.1
#: or when this many have gathered.
ACK_BATCH = 1000


class Outbox:
    """What is to be sent: credit that was earned and the newest acknowledgement. Used from two threads."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._events = 0
        self._bytes = 0
        self._position: Position | None = None
        self._count = 0
        self._due = 0.0
        #: Called whenever :meth:`take` may answer differently than before.
        self.wake: Callable[[], None] = lambda: None

    def grant(self, events: int, size: int) -> None:
        with self._lock:
            self._events += events
            self._bytes += size
        self.wake()

    def acknowledge(self, position: Position) -> None:
        with self._lock:
            pending = self._position
            if pending is not None and pending.reaches(position):
                return
            first = pending is None
            self._position = position
            self._count += 1
            urgent = self._count == ACK_BATCH
        if first or urgent:
            self.wake()

    def pending(self) -> Position | None:
        """The newest acknowledgement that was not taken."""
        with self._lock:
            return self._position

    def reopen(self, resume: Position | None) -> None:
        """A new stream: earlier credit is void, and an acknowledgement on another lineage would be refused there."""
        with self._lock:
            self._events = self._bytes = 0
            if self._position is not None and (resume is None or not resume.reaches(self._position)):
                self._position = None
            self._count = 0

    def take(self) -> tuple[api.ConsumeRequest | None, float | None]:
        """The next request, or how many seconds until there may be one (``None``: not before :attr:`wake`)."""
        with self._lock:
            if self._events or self._bytes:
                request = api.ConsumeRequest(credit=pb.Credit(events=self._events, bytes=self._bytes))
                self._events = self._bytes = 0
                return request, None
            if self._position is None:
                return None, None
            now = self._clock()
            if self._count < ACK_BATCH and now < self._due:
                return None, self._due - now
            request = api.ConsumeRequest(acknowledge=self._position.to_pb())
            self._position = None
            self._count = 0
            self._due = now + ACK_INTERVAL
            return request, None
