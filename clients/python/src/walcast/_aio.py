"""The client for asyncio: the twin of ``_sync``."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Iterable
from datetime import datetime
from types import TracebackType
from typing import Any, TypeVar

import grpc
import grpc.aio

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


def _channel(target: Target) -> grpc.aio.Channel:
    credentials = target.credentials()
    if credentials is None:
        return grpc.aio.insecure_channel(target.address, options=target.options())
    return grpc.aio.secure_channel(target.address, credentials, options=target.options())


def _error(error: grpc.aio.AioRpcError) -> HubError:
    return from_status(error.code(), error.details() or "", list(error.trailing_metadata() or ()))


class _Stream:
    """One connection with one Consume call. The requests go out from a task of grpc's, which ends with the call."""

    def __init__(self, target: Target, core: Core) -> None:
        self._core = core
        self._loop = asyncio.get_running_loop()
        self._wakened = asyncio.Event()
        self._done = False
        self._first = core.open_request()
        core.outbox.wake = self._wake
        self.channel = _channel(target)
        consume = self.channel.stream_stream(
            CONSUME, request_serializer=api.ConsumeRequest.SerializeToString, response_deserializer=_identity
        )
        self._call = consume(self._requests(), metadata=target.metadata())
        self._responses = self._call.__aiter__()

    def _wake(self) -> None:
        try:
            here = asyncio.get_running_loop() is self._loop
        except RuntimeError:
            here = False
        if here:
            self._wakened.set()
        elif not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._wakened.set)

    async def _requests(self) -> AsyncIterator[api.ConsumeRequest]:
        yield self._first
        while not self._done:
            self._wakened.clear()
            request, wait = self._core.outbox.take()
            if request is not None:
                yield request
                continue
            try:
                await asyncio.wait_for(self._wakened.wait(), wait)
            except asyncio.TimeoutError:
                continue

    async def receive(self) -> bytes:
        """The next response; StopAsyncIteration or AioRpcError at the end."""
        raw: bytes = await self._responses.__anext__()
        return raw

    async def close(self) -> None:
        self._done = True
        self._wakened.set()
        self._call.cancel()
        await self.channel.close()


class AsyncSubscription(BaseSubscription):
    """Transactions in commit order, across reconnects. An asynchronous iterator and context manager.

    Cancelling a wait for the next transaction drops the connection; the next one resumes without loss.
    """

    def __init__(self, target: Target, options: Options) -> None:
        super().__init__(target, options)
        self._stream: _Stream | None = None
        self._closed = asyncio.Event()

    # -- iterating

    def __aiter__(self) -> AsyncSubscription:
        return self

    async def __anext__(self) -> Transaction:
        while True:
            item = await self._next()
            if isinstance(item, Transaction):
                return item
            handler = self._core.handler(item)
            if handler is not None:
                await _settled(handler(item))

    async def changes(self) -> AsyncIterator[Change]:
        """As ``Subscription.changes``."""
        async for transaction in self:
            for change in transaction.changes:
                yield change

    async def batches(self, max_rows: int = 65_536, max_delay: float = 1.0) -> AsyncIterator[model.Batch]:
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
                    item = await self._next()
                    if not isinstance(item, Transaction):
                        handler = core.handler(item)
                        if handler is not None:
                            await _settled(handler(item))
                    if gatherer.add(item):
                        break
            except StopAsyncIteration:
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

    async def events(self) -> AsyncIterator[Event]:
        """As ``Subscription.events``."""
        if self._core.opened is not None and not self._core.streaming:
            raise WalcastError("events() must be the first use of a subscription")
        self._core.streaming = True
        while True:
            try:
                item = await self._next()
            except StopAsyncIteration:
                return
            assert not isinstance(item, Transaction)
            yield item

    async def _next(self) -> Any:
        core = self._core
        if self._closed.is_set():
            raise Closed("the subscription is closed")
        core.next_requested()
        while True:
            item = core.poll()
            if item is not None:
                return item
            if self._finished or self._closed.is_set():
                raise StopAsyncIteration
            try:
                await self._receive()
            except WalcastError:
                await self.close()
                raise
            except asyncio.CancelledError:
                await self._disconnect()
                raise

    async def _receive(self) -> None:
        error: HubError | None
        try:
            if self._stream is None:
                await self._prove()
                self._stream = _Stream(self._target, self._core)
            self._core.receive(await self._stream.receive())
            return
        except StopAsyncIteration:
            error = self._core.ended()
        except grpc.aio.AioRpcError as failure:
            error = _error(failure)
        except asyncio.CancelledError:
            if not self._closed.is_set():
                raise
            return
        await self._disconnect()
        if self._closed.is_set():
            return
        if error is None:
            self._finished = True
            return
        delay = self._core.failed(error)
        if self._core.options.on_reconnect is not None:
            await _settled(self._core.options.on_reconnect(error, delay))
        try:
            await asyncio.wait_for(self._closed.wait(), delay)
        except asyncio.TimeoutError:
            return

    async def _prove(self) -> None:
        proof = self._core.proof()
        if proof is None:
            return
        channel = _channel(self._target)
        try:
            acknowledge = _calls.acknowledge(proof).on(channel)
            await acknowledge(proof, timeout=UNARY_DEADLINE, metadata=self._target.metadata())
        finally:
            await channel.close()
        self._core.proved()

    # -- acknowledging

    async def flush(self, timeout: float = UNARY_DEADLINE) -> Position | None:
        """Waits until what was acknowledged is durable; the checkpoint. Raises HubError."""
        request = self._acknowledgement()
        if request is None:
            return None
        call = _calls.acknowledge(request)
        temporary = _channel(self._target) if self._stream is None else None
        channel = temporary if self._stream is None else self._stream.channel
        try:
            return call.answer(await call.on(channel)(request, timeout=timeout, metadata=self._target.metadata()))
        except grpc.aio.AioRpcError as failure:
            raise _error(failure) from None
        finally:
            if temporary is not None:
                await temporary.close()

    # -- closing

    async def _disconnect(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            await stream.close()

    async def close(self) -> None:
        """Makes durable what was acknowledged, as far as the hub answers, and closes the connection."""
        if self._closed.is_set():
            return
        if self._core.unflushed():
            try:
                await self.flush(timeout=5.0)
            except HubError as error:
                log.warning("the last acknowledgement was not confirmed: %s", error)
        self._closed.set()
        await self._disconnect()

    async def __aenter__(self) -> AsyncSubscription:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


async def _settled(result: Any) -> None:
    if inspect.isawaitable(result):
        await result


class AsyncClient(BaseClient[AsyncSubscription, AsyncIterator[Transaction]]):
    """A walcast hub, for asyncio. The same as ``Client``, with ``async for`` and ``await``."""

    _subscription = AsyncSubscription

    async def _read(self, request: api.ReadRetractedRequest, reader: _retracted.Reader) -> AsyncIterator[Transaction]:
        channel = _channel(self._target)
        try:
            method = channel.unary_stream(
                _retracted.READ_RETRACTED,
                request_serializer=api.ReadRetractedRequest.SerializeToString,
                response_deserializer=_identity,
            )
            async for raw in method(request, metadata=self._target.metadata()):
                for transaction in reader.transactions(raw):
                    yield transaction
            reader.ended()
        except grpc.aio.AioRpcError as failure:
            raise _error(failure) from None
        finally:
            await channel.close()

    # -- unary calls

    async def _call(self, call: Call[R], timeout: float) -> R:
        if self._closed:
            raise Closed("the client is closed")
        if self._channel is None:
            self._channel = _channel(self._target)
        try:
            method = call.on(self._channel)
            return call.answer(await method(call.request, timeout=timeout, metadata=self._target.metadata()))
        except grpc.aio.AioRpcError as failure:
            raise _error(failure) from None

    async def status(self, timeout: float = UNARY_DEADLINE) -> api.GetStatusResponse:
        """The state of the source, the journal and the streams."""
        return await self._call(_calls.status(), timeout)

    async def subscribers(self, timeout: float = UNARY_DEADLINE) -> list[api.Subscriber]:
        """Every named subscriber with its checkpoint and lag."""
        return await self._call(_calls.subscribers(), timeout)

    async def reset_subscriber(
        self, subscriber: str, start: Start | str | Position | datetime, timeout: float = UNARY_DEADLINE
    ) -> Position:
        """Moves a checkpoint anywhere, and ends an open stream of the subscriber. Where it stands now."""
        return await self._call(_calls.reset_subscriber(subscriber, start), timeout)

    async def delete_subscriber(self, subscriber: str, timeout: float = UNARY_DEADLINE) -> None:
        """Forgets a subscriber, and ends its open stream."""
        return await self._call(_calls.delete_subscriber(subscriber), timeout)

    async def relations(
        self, tables: str | Iterable[str] = (), *, all_versions: bool = False, timeout: float = UNARY_DEADLINE
    ) -> list[Relation]:
        """The relation versions that the hub knows."""
        return await self._call(_calls.relations(tables, all_versions), timeout)

    async def backfill(
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
        return await self._call(call, timeout)

    async def close(self) -> None:
        """Closes every subscription and connection."""
        self._closed = True
        for subscription in list(self._subscriptions):
            await subscription.close()
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
