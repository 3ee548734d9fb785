"""The client for threads."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message as ProtoMessage

from . import _events, _position, _retracted, filters
from . import _model as model
from ._connect import CONSUME, TLS, UNARY_DEADLINE, Target, Token, log
from ._core import Core
from ._events import Event, Opened, Progress
from ._gather import Gatherer
from ._model import Change, Transaction
from ._options import Options
from ._position import Position, Start
from ._retry import Retry
from ._values import Decoder
from .errors import Closed, HubError, WalcastError, from_status
from .filters import Operations, Rule
from .v1 import walcast_pb2 as api
from .v1 import walcast_pb2_grpc as rpc

R = TypeVar("R", bound=ProtoMessage)


def _identity(raw: bytes) -> bytes:
    return raw


def _channel(target: Target) -> grpc.Channel:
    credentials = target.credentials()
    if credentials is None:
        return grpc.insecure_channel(target.address, options=target.options())
    return grpc.secure_channel(target.address, credentials, options=target.options())


def _error(error: Any) -> HubError:
    return from_status(error.code(), error.details() or "", error.trailing_metadata())


class _Stream:
    """One connection with one Consume call. The requests go out from a thread of grpc's, which ends with the call."""

    def __init__(self, target: Target, core: Core) -> None:
        self._core = core
        self._changed = threading.Condition()
        self._done = False
        self._first: api.ConsumeRequest | None = core.open_request()
        core.outbox.wake = self._wake
        self.channel = _channel(target)
        consume = self.channel.stream_stream(
            CONSUME, request_serializer=api.ConsumeRequest.SerializeToString, response_deserializer=_identity
        )
        self._call = consume(self._requests(), metadata=target.metadata())

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify()

    def _requests(self) -> Iterator[api.ConsumeRequest]:
        if self._first is not None:
            yield self._first
        while True:
            with self._changed:  # so that a stream that was closed takes nothing from the next one
                if self._done:
                    return
                request, wait = self._core.outbox.take()
                if request is None:
                    self._changed.wait(wait)
                    continue
            yield request

    def receive(self) -> bytes:
        """The next response; StopIteration or grpc.RpcError at the end."""
        raw: bytes = next(self._call)
        return raw

    def close(self) -> None:
        with self._changed:
            self._done = True
            self._changed.notify()
        self._call.cancel()
        self.channel.close()


class Subscription:
    """Transactions in commit order, across reconnects. An iterator and a context manager.

    Not for several threads at once, but ``ack``, ``tx.ack`` and ``close`` may come from any thread.
    """

    def __init__(self, target: Target, options: Options) -> None:
        self._target = target
        self._core = Core(options)
        self._stream: _Stream | None = None
        self._closed = threading.Event()
        self._finished = False
        self._lock = threading.Lock()

    # -- iterating

    def __iter__(self) -> Subscription:
        return self

    def __next__(self) -> Transaction:
        while True:
            item = self._next()
            if isinstance(item, Transaction):
                return item
            handler = self._core.handler(item)
            if handler is not None:
                handler(item)

    def changes(self) -> Iterator[Change]:
        """Single changes of complete transactions. Under ``auto_ack`` a transaction is done when the next one's first
        change is asked for."""
        for transaction in self:
            yield from transaction.changes

    def batches(self, max_rows: int = 65_536, max_delay: float = 1.0) -> Iterator[model.Batch]:
        """Whole transactions by the batch, for columns and bulk writes. Under ``auto_ack`` a batch is done when the next
        one is asked for. ``max_delay`` in seconds is looked at when something arrives; a caught-up stream ends a batch."""
        core = self._core
        gatherer = Gatherer(core, max_rows, max_delay)
        while True:
            ended = False
            failure: WalcastError | None = None
            core.next_requested()
            core.gathering = True
            try:
                while True:
                    item = self._next()
                    if not isinstance(item, Transaction):
                        handler = core.handler(item)
                        if handler is not None:
                            handler(item)
                    if gatherer.add(item):
                        break
            except StopIteration:
                ended = True
            except WalcastError as error:  # told when what came before it has been handed out
                failure = error
            finally:
                core.gathering = False
            batch = gatherer.take()
            if batch is not None:
                yield batch
            if failure is not None:
                raise failure
            if ended:
                core.next_requested()
                return

    def events(self) -> Iterator[Event]:
        """Everything as it comes, without waiting for a transaction's end: for transactions that do not fit into
        memory. What came since a Begin counts only when its Commit has come; a Discard takes it back."""
        if self._core.opened is not None and not self._core.streaming:
            raise WalcastError("events() must be the first use of a subscription")
        self._core.streaming = True
        while True:
            try:
                item = self._next()
            except StopIteration:
                return
            assert not isinstance(item, Transaction)
            yield item

    def _next(self) -> Any:
        core = self._core
        if self._closed.is_set():
            raise Closed("the subscription is closed")
        core.next_requested()
        while True:
            item = core.poll()
            if item is not None:
                return item
            if self._finished or self._closed.is_set():
                raise StopIteration
            try:
                self._receive()
            except WalcastError:
                self.close()
                raise

    def _receive(self) -> None:
        error: HubError | None
        try:
            with self._lock:
                if self._closed.is_set():
                    return
                if self._stream is None:
                    self._prove()
                    self._stream = _Stream(self._target, self._core)
                stream = self._stream
            self._core.receive(stream.receive())
            return
        except StopIteration:
            error = self._core.ended()
        except grpc.RpcError as failure:
            error = _error(failure)
        self._disconnect()
        if self._closed.is_set():
            return
        if error is None:
            self._finished = True
            return
        delay = self._core.failed(error)
        if self._core.options.on_reconnect is not None:
            self._core.options.on_reconnect(error, delay)
        self._closed.wait(delay)

    def _prove(self) -> None:
        proof = self._core.proof()
        if proof is None:
            return
        channel = _channel(self._target)
        try:
            rpc.ChangeStreamServiceStub(channel).Acknowledge(
                proof, timeout=UNARY_DEADLINE, metadata=self._target.metadata()
            )
        finally:
            channel.close()
        self._core.proved()

    # -- acknowledging

    def ack(self, position: Position | None = None) -> None:
        """Everything up to and including the position is done; without one: everything that was handed out.

        Returns at once; acknowledgements are gathered and sent a few times per second.
        """
        position = position or self._core.position
        if position is None:
            raise WalcastError("nothing was received yet")
        self._core.acknowledge(position)

    def flush(self, timeout: float = UNARY_DEADLINE) -> Position | None:
        """Waits until what was acknowledged is durable; the checkpoint. Raises HubError."""
        core = self._core
        position = core.acked_position
        if position is None or core.opened is None:
            return None
        with self._lock:
            channel = self._stream.channel if self._stream is not None else None
        temporary = _channel(self._target) if channel is None else None
        try:
            response = rpc.ChangeStreamServiceStub(channel or temporary).Acknowledge(
                api.AcknowledgeRequest(
                    subscriber=core.options.subscriber, position=position.to_pb(), session=core.opened.session
                ),
                timeout=timeout,
                metadata=self._target.metadata(),
            )
        except grpc.RpcError as failure:
            raise _error(failure) from None
        finally:
            if temporary is not None:
                temporary.close()
        return Position.from_pb(response.checkpoint)

    # -- state

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

    # -- closing

    def _disconnect(self) -> None:
        with self._lock:
            stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()

    def close(self) -> None:
        """Makes durable what was acknowledged, as far as the hub answers, and closes the connection."""
        if self._closed.is_set():
            return
        if self._core.unflushed():
            try:
                self.flush(timeout=5.0)
            except HubError as error:
                log.warning("the last acknowledgement was not confirmed: %s", error)
        self._closed.set()
        self._disconnect()

    def __enter__(self) -> Subscription:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        closed: threading.Event | None = getattr(self, "_closed", None)
        if closed is not None and not closed.is_set():
            closed.set()
            self._disconnect()


class Client:
    """A walcast hub. Cheap to make: connections are opened by calls, one for each subscription.

    ``address``: ``host:port``, or ``https://host:port`` for TLS. ``token``: a bearer token, or a function that gives one.
    """

    def __init__(
        self,
        address: str = "127.0.0.1:50051",
        *,
        token: Token | None = None,
        tls: TLS | bool | None = None,
        max_message_bytes: int = 64 << 20,
    ) -> None:
        self._target = Target.parse(address, tls, token, max_message_bytes)
        self._subscriptions: weakref.WeakSet[Subscription] = weakref.WeakSet()
        self._channel: grpc.Channel | None = None
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
    ) -> Subscription:
        """Subscribes. Connects when iterated.

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
        subscription = Subscription(self._target, options)
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
    ) -> Iterator[Transaction]:
        """The transactions that a failover took back: the end of a lineage that never happened on the next one, for as long
        as the journal retains it. ``lineage`` is ``TimelineChanged.old_lineage``, or that of a position which the hub
        refuses with PositionDiverged. Ends by itself; is not resumed when the connection breaks."""
        if self._closed:
            raise Closed("the client is closed")
        selected = filters.to_pb(tables, exclude_tables, operations, columns, where, messages, origins, rules)
        reader = _retracted.Reader(json, types, self._target.max_message_bytes)
        channel = _channel(self._target)
        try:
            method = channel.unary_stream(
                _retracted.READ_RETRACTED,
                request_serializer=api.ReadRetractedRequest.SerializeToString,
                response_deserializer=_identity,
            )
            for raw in method(_retracted.request(lineage, selected), metadata=self._target.metadata()):
                yield from reader.transactions(raw)
            reader.ended()
        except grpc.RpcError as failure:
            raise _error(failure) from None
        finally:
            channel.close()

    # -- unary calls

    def _call(self, method: Callable[[grpc.Channel], Any], request: Any, timeout: float) -> Any:
        with self._lock:
            if self._closed:
                raise Closed("the client is closed")
            if self._channel is None:
                self._channel = _channel(self._target)
            channel = self._channel
        try:
            return method(channel)(request, timeout=timeout, metadata=self._target.metadata())
        except grpc.RpcError as failure:
            raise _error(failure) from None

    def status(self, timeout: float = UNARY_DEADLINE) -> api.GetStatusResponse:
        """The state of the source, the journal and the streams."""
        response: api.GetStatusResponse = self._call(
            lambda channel: rpc.AdminServiceStub(channel).GetStatus, api.GetStatusRequest(), timeout
        )
        return response

    def subscribers(self, timeout: float = UNARY_DEADLINE) -> list[api.Subscriber]:
        """Every named subscriber with its checkpoint and lag."""
        response = self._call(
            lambda channel: rpc.AdminServiceStub(channel).ListSubscribers, api.ListSubscribersRequest(), timeout
        )
        return list(response.subscribers)

    def reset_subscriber(
        self, subscriber: str, start: Start | str | Position | datetime, timeout: float = UNARY_DEADLINE
    ) -> Position:
        """Moves a checkpoint anywhere, and ends an open stream of the subscriber. Where it stands now."""
        response = self._call(
            lambda channel: rpc.AdminServiceStub(channel).ResetSubscriber,
            api.ResetSubscriberRequest(subscriber=subscriber, start=_position.start_to_pb(start)),
            timeout,
        )
        return Position.from_pb(response.checkpoint)

    def delete_subscriber(self, subscriber: str, timeout: float = UNARY_DEADLINE) -> None:
        """Forgets a subscriber, and ends its open stream."""
        self._call(
            lambda channel: rpc.AdminServiceStub(channel).DeleteSubscriber,
            api.DeleteSubscriberRequest(subscriber=subscriber),
            timeout,
        )

    def relations(
        self, tables: str | Iterable[str] = (), *, all_versions: bool = False, timeout: float = UNARY_DEADLINE
    ) -> list[model.Relation]:
        """The relation versions that the hub knows."""
        response = self._call(
            lambda channel: rpc.ChangeStreamServiceStub(channel).ListRelations,
            api.ListRelationsRequest(tables=filters._several(tables), all_versions=all_versions),
            timeout,
        )
        return [model.Relation(relation, {}) for relation in response.relations]

    def backfill(
        self,
        subscriber: str,
        action: str = "start",
        *,
        tables: str | Iterable[str] = (),
        where: str = "",
        snapshot_id: str = "",
        max_rows_per_second: int = 0,
        timeout: float = UNARY_DEADLINE,
    ) -> str:
        """Starts a snapshot of tables, or of what ``where`` selects of them, into the open stream of a subscriber, in
        incremental mode; or pauses, resumes or cancels one. Its identifier."""
        response = self._call(
            lambda channel: rpc.ChangeStreamServiceStub(channel).Backfill,
            _position.backfill_to_pb(
                subscriber, action, filters.to_pb(tables, where=where), snapshot_id, max_rows_per_second
            ),
            timeout,
        )
        identifier: str = response.snapshot_id
        return identifier

    def close(self) -> None:
        """Closes every subscription and connection."""
        with self._lock:
            self._closed = True
            channel, self._channel = self._channel, None
        for subscription in list(self._subscriptions):
            subscription.close()
        if channel is not None:
            channel.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
