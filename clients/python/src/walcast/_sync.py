"""The client for threads."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from datetime import datetime
from types import TracebackType
from typing import Any, TypeVar

import grpc

from . import _calls, _retracted
from . import _model as model
from ._base import BaseClient, BaseSubscription
from ._calls import Call
from ._connect import CONSUME, UNARY_DEADLINE, Target, log
from ._core import Core
from ._events import Event
from ._gather import Gatherer
from ._model import Change, Relation, Transaction
from ._options import Options
from ._position import Position, Start
from .errors import Closed, HubError, WalcastError, from_status
from .v1 import walcast_pb2 as api

R = TypeVar("R")


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


class Subscription(BaseSubscription):
    """Transactions in commit order, across reconnects. An iterator and a context manager.

    Not for several threads at once, but ``ack``, ``tx.ack`` and ``close`` may come from any thread.
    """

    def __init__(self, target: Target, options: Options) -> None:
        super().__init__(target, options)
        self._stream: _Stream | None = None
        self._closed = threading.Event()
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
            _calls.acknowledge(proof).on(channel)(proof, timeout=UNARY_DEADLINE, metadata=self._target.metadata())
        finally:
            channel.close()
        self._core.proved()

    # -- acknowledging

    def flush(self, timeout: float = UNARY_DEADLINE) -> Position | None:
        """Waits until what was acknowledged is durable; the checkpoint. Raises HubError."""
        request = self._acknowledgement()
        if request is None:
            return None
        call = _calls.acknowledge(request)
        with self._lock:
            channel = self._stream.channel if self._stream is not None else None
        temporary = _channel(self._target) if channel is None else None
        try:
            return call.answer(
                call.on(channel or temporary)(request, timeout=timeout, metadata=self._target.metadata())
            )
        except grpc.RpcError as failure:
            raise _error(failure) from None
        finally:
            if temporary is not None:
                temporary.close()

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


class Client(BaseClient[Subscription, Iterator[Transaction]]):
    """A walcast hub. Cheap to make: connections are opened by calls, one for each subscription.

    ``address``: ``host:port``, or ``https://host:port`` for TLS. ``token``: a bearer token, or a function that gives one.
    """

    _subscription = Subscription

    def _read(self, request: api.ReadRetractedRequest, reader: _retracted.Reader) -> Iterator[Transaction]:
        channel = _channel(self._target)
        try:
            method = channel.unary_stream(
                _retracted.READ_RETRACTED,
                request_serializer=api.ReadRetractedRequest.SerializeToString,
                response_deserializer=_identity,
            )
            for raw in method(request, metadata=self._target.metadata()):
                yield from reader.transactions(raw)
            reader.ended()
        except grpc.RpcError as failure:
            raise _error(failure) from None
        finally:
            channel.close()

    # -- unary calls

    def _call(self, call: Call[R], timeout: float) -> R:
        with self._lock:
            if self._closed:
                raise Closed("the client is closed")
            if self._channel is None:
                self._channel = _channel(self._target)
            channel = self._channel
        try:
            return call.answer(call.on(channel)(call.request, timeout=timeout, metadata=self._target.metadata()))
        except grpc.RpcError as failure:
            raise _error(failure) from None

    def status(self, timeout: float = UNARY_DEADLINE) -> api.GetStatusResponse:
        """The state of the source, the journal and the streams."""
        return self._call(_calls.status(), timeout)

    def subscribers(self, timeout: float = UNARY_DEADLINE) -> list[api.Subscriber]:
        """Every named subscriber with its checkpoint and lag."""
        return self._call(_calls.subscribers(), timeout)

    def reset_subscriber(
        self, subscriber: str, start: Start | str | Position | datetime, timeout: float = UNARY_DEADLINE
    ) -> Position:
        """Moves a checkpoint anywhere, and ends an open stream of the subscriber. Where it stands now."""
        return self._call(_calls.reset_subscriber(subscriber, start), timeout)

    def delete_subscriber(self, subscriber: str, timeout: float = UNARY_DEADLINE) -> None:
        """Forgets a subscriber, and ends its open stream."""
        return self._call(_calls.delete_subscriber(subscriber), timeout)

    def relations(
        self, tables: str | Iterable[str] = (), *, all_versions: bool = False, timeout: float = UNARY_DEADLINE
    ) -> list[Relation]:
        """The relation versions that the hub knows."""
        return self._call(_calls.relations(tables, all_versions), timeout)

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
        call = _calls.backfill(subscriber, action, tables, where, snapshot_id, max_rows_per_second)
        return self._call(call, timeout)

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
