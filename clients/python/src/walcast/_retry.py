"""When to try again."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Retry:
    """Exponential back-off with full jitter; what the hub asks for by RetryInfo is never undercut. Seconds."""

    initial: float = 0.1
    maximum: float = 30.0
    #: Give up when nothing was received for this long; ``None``: never.
    give_up_after: float | None = None


class Backoff:
    """The state of one subscription's retries."""

    def __init__(self, retry: Retry, now: float, uniform: Callable[[float, float], float] = random.uniform) -> None:
        self._retry = retry
        self._uniform = uniform
        self._failures = 0
        self._healthy = now

    def succeeded(self, now: float) -> None:
        """The stream moved forward."""
        self._failures = 0
        self._healthy = now

    def delay(self, asked: float | None, now: float) -> float | None:
        """Seconds to wait before the next attempt; ``None`` to give up."""
        limit = self._retry.give_up_after
        if limit is not None and now - self._healthy >= limit:
            return None
        ceiling = min(self._retry.maximum, self._retry.initial * 2.0 ** min(self._failures, 60))
        self._failures += 1
        return (asked or 0.0) + self._uniform(0.0, ceiling)
