"""What the clients for threads and for asyncio have in common: everything that neither waits nor does I/O."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, Generic, TypeVar

from . import _events, _retracted, filters
from ._connect import TLS, Target, Token
from ._core import Core
from ._events import Opened, Progress
from ._options import Options
from ._position import Position, Start
from ._retry import Retry
from ._values import Decoder
from .errors import Closed, HubError, WalcastError
from .filters import Operations, Rule
from .v1 import walcast_pb2 as api


class BaseSubscription:
    """The state of a subscription."""

    def __init__(self, target: Target, options: Options) -> None:
        self._target = target
        self._core = Core(options)
        self._finished = False

    def ack(self, position: Position | None = None) -> None:
        """Everything up to and including the position is done; without one: everything that was handed out.

        Returns at once; acknowledgements are gathered and sent a few times per second.
        """
        position = position or self._core.position
        if position is None:
            raise WalcastError("nothing was received yet")
        self._core.acknowledge(position)

    def _acknowledgement(self) -> api.AcknowledgeRequest | None:
        """What makes durable what was acknowledged; ``None`` if nothing was."""
        position, opened = self._core.acked_position, self._core.opened
        if position is None or opened is None:
            return None
        return api.AcknowledgeRequest(
            subscriber=self._core.options.subscriber, position=position.to_pb(), session=opened.session
        )

    @property
    def position(self) -> Position | None:
        """Everything up to here was handed out."""
        return self._core.position

    @property
    def opened(self) -> Opened | None:
        """How the present stream was opened; ``None`` before that."""
        return self._core.opened

    @property
    def progress(self) -> Progress | None:
        """The newest progress that was reached."""
        return self._core.progress

    @property
    def lag_bytes(self) -> int | None:
        """WAL between what was handed out and the journal's tail, as of the newest progress."""
        return self._core.progress.lag_bytes if self._core.progress else None


#: The subscription of a client, and what iterates retracted transactions.
S = TypeVar("S", bound=BaseSubscription)
T = TypeVar("T")


class BaseClient(Generic[S, T]):
    """Where the hub is, and what goes on there."""

    _subscription: type[S]

    def __init__(
        self,
        address: str = "127.0.0.1:50051",
        *,
        token: Token | None = None,
        tls: TLS | bool | None = None,
        max_message_bytes: int = 64 << 20,
    ) -> None:
        self._target = Target.parse(address, tls, token, max_message_bytes)
        self._subscriptions: weakref.WeakSet[S] = weakref.WeakSet()
        #: Of unary calls.
        self._channel: Any = None
        self._closed = False
        self._lock = threading.Lock()

    def subscribe(
        self,
        tables: str | Iterable[str] = (),
        *,
        exclude_tables: str | Iterable[str] = (),
        operations: Operations = (),
        columns: str | Iterable[str] = (),
        where: str = "",
        messages: str | Iterable[str] = (),
        origins: Iterable[str] = (),
        rules: Iterable[Rule] = (),
        subscriber: str = "",
        start: Start | str | Position | datetime | None = None,
        auto_ack: bool = True,
        stop_at_tail: bool = False,
        json: str = "parsed",
        types: Mapping[str, Decoder] | None = None,
        window_events: int = 100_000,
        window_bytes: int = 8 << 20,
        max_transaction_bytes: int = 1 << 30,
        progress_interval: timedelta | None = None,
        retry: Retry = Retry(),  # noqa: B008 (frozen)
        on_progress: Callable[[Progress], Any] | None = None,
        on_timeline_changed: Callable[[_events.TimelineChanged], Any] | None = None,
        on_gap: Callable[[_events.Gap], Any] | None = None,
        on_snapshot: Callable[[Any], Any] | None = None,
        on_reconnect: Callable[[HubError, float], Any] | None = None,
    ) -> S:
        """Subscribes. Connects when iterated. Callbacks of an ``AsyncClient`` may be coroutine functions.

        A named ``subscriber`` goes on at its checkpoint, and begins at ``start`` if it has none. An anonymous one begins at
        ``start`` (default: latest); store ``tx.position`` and give ``start=After(position)`` next time.

        ``auto_ack`` acknowledges a transaction when the next one is asked for, that is after the loop's body succeeded.
        """
        if self._closed:
            raise Closed("the client is closed")
        options = Options.of(
            filters.to_pb(tables, exclude_tables, operations, columns, where, messages, origins, rules),
            self._target.max_message_bytes,
            locals(),
        )
        subscription = self._subscription(self._target, options)
        self._subscriptions.add(subscription)
        return subscription

    def read_retracted(
        self,
        lineage: str,
        tables: str | Iterable[str] = (),
        *,
        exclude_tables: str | Iterable[str] = (),
        operations: Operations = (),
        columns: str | Iterable[str] = (),
        where: str = "",
        messages: str | Iterable[str] = (),
        origins: Iterable[str] = (),
        rules: Iterable[Rule] = (),
        json: str = "parsed",
        types: Mapping[str, Decoder] | None = None,
    ) -> T:
        """The transactions that a failover took back: the end of a lineage that never happened on the next one, for as long
        as the journal retains it. ``lineage`` is ``TimelineChanged.old_lineage``, or that of a position which the hub
        refuses with PositionDiverged. Ends by itself; is not resumed when the connection breaks."""
        if self._closed:
            raise Closed("the client is closed")
        selected = filters.to_pb(tables, exclude_tables, operations, columns, where, messages, origins, rules)
        reader = _retracted.Reader(json, types, self._target.max_message_bytes)
        return self._read(_retracted.request(lineage, selected), reader)

    def _read(self, request: api.ReadRetractedRequest, reader: _retracted.Reader) -> T:
        raise NotImplementedError
