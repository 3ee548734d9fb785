"""A Streamz source: ``Stream.from_walcast("127.0.0.1:50051", "public.orders", subscriber="billing")``.

Emits transactions. A transaction is acknowledged when every node downstream has released it, and all before it: Streamz
counts references, and nodes such as ``partition``, ``buffer`` or ``rate_limit`` hold what they have not passed on. Needs the
extra ``streamz``.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from streamz import Stream
from streamz.core import RefCounter
from streamz.sources import Source

from ._aio import AsyncClient, AsyncSubscription
from ._connect import TLS, Token
from ._model import Transaction


class InOrder:
    """Acknowledges the longest prefix of what was emitted that is done: acknowledgements are cumulative."""

    def __init__(self) -> None:
        self._emitted: deque[Transaction] = deque()
        self._done: set[int] = set()

    def emitted(self, transaction: Transaction) -> None:
        self._emitted.append(transaction)

    def released(self, transaction: Transaction) -> None:
        self._done.add(id(transaction))
        newest: Transaction | None = None
        while self._emitted and id(self._emitted[0]) in self._done:
            newest = self._emitted.popleft()
            self._done.discard(id(newest))
        if newest is not None:
            newest.ack()


@Stream.register_api(staticmethod)
class from_walcast(Source):  # type: ignore[misc]
    """Transactions from a hub. The arguments are those of ``Client`` and ``Client.subscribe``."""

    def __init__(
        self,
        address: str = "127.0.0.1:50051",
        tables: Any = (),
        *,
        token: Token | None = None,
        tls: TLS | bool | None = None,
        start: bool = False,
        start_at: Any = None,
        subscriber: str = "",
        loop: Any = None,
        asynchronous: bool | None = None,
        stream_name: str | None = None,
        **subscription: Any,
    ) -> None:
        self._address, self._token, self._tls = address, token, tls
        self._arguments = {
            **subscription,
            "tables": tables,
            "subscriber": subscriber,
            "start": start_at,
            "auto_ack": False,
        }
        self._subscription: AsyncSubscription | None = None
        super().__init__(start=start, loop=loop, asynchronous=asynchronous, stream_name=stream_name)

    async def run(self) -> None:
        named = bool(self._arguments["subscriber"])
        async with AsyncClient(self._address, token=self._token, tls=self._tls) as client:
            subscription = self._subscription = client.subscribe(**self._arguments)
            window = InOrder()
            async for transaction in subscription:
                if self.stopped:
                    break
                metadata = None
                if named:
                    window.emitted(transaction)
                    counter = RefCounter(
                        initial=1, cb=lambda transaction=transaction: window.released(transaction), loop=self.loop
                    )
                    metadata = [{"ref": counter}]
                await self.emit(transaction, asynchronous=True, metadata=metadata)
                if named:
                    counter.release()

    def stop(self) -> None:
        """Ends the stream; what was released is acknowledged."""
        super().stop()
        subscription = self._subscription
        if subscription is not None:
            self.loop.add_callback(subscription.close)
