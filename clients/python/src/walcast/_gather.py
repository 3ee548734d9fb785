"""Transactions into batches."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._events import Progress
from ._model import Batch, Transaction

if TYPE_CHECKING:
    from ._core import Core, Item


class Gatherer:
    """Gathers transactions into a batch: until there are ``max_rows``, or ``max_delay`` is over, or nothing more is there."""

    def __init__(self, core: Core, max_rows: int, max_delay: float) -> None:
        if max_rows < 1:
            raise ValueError("max_rows is at least 1")
        self._core = core
        self._max_rows = max_rows
        self._max_delay = max_delay
        self._transactions: list[Transaction] = []
        self._rows = 0
        self._since = 0.0

    def add(self, item: Item) -> bool:
        """Whether the batch is ready."""
        now = self._core._clock()
        if isinstance(item, Transaction):
            if not self._transactions:
                self._since = now
            self._transactions.append(item)
            self._rows += item._size()
        if not self._transactions:
            return False
        idle = isinstance(item, Progress) and item.caught_up
        return idle or self._rows >= self._max_rows or now - self._since >= self._max_delay

    def take(self) -> Batch | None:
        """What was gathered."""
        transactions, self._transactions, self._rows = self._transactions, [], 0
        return Batch(transactions) if transactions else None
