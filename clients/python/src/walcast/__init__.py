"""Committed changes of a PostgreSQL database from a walcast hub.

>>> import walcast
>>> with walcast.Client("127.0.0.1:50051") as client:  # doctest: +SKIP
...     for tx in client.subscribe("public.orders", subscriber="billing", start="earliest"):
...         for change in tx.changes:
...             print(change.operation, change.table, change.after)
"""

from ._aio import AsyncClient, AsyncSubscription
from ._connect import TLS, __version__
from ._events import (
    Begin,
    Commit,
    Discard,
    Event,
    Gap,
    MessageEvent,
    Opened,
    Progress,
    Retracted,
    SnapshotBegin,
    SnapshotEnd,
    SnapshotTableEnd,
    TimelineChanged,
)
from ._model import (
    Batch,
    Change,
    Column,
    Message,
    Operation,
    Relation,
    Row,
    Transaction,
    Truncate,
)
from ._position import After, Earliest, Latest, Position, Since, Snapshot, Start
from ._retry import Retry
from ._sync import Client, Subscription
from ._values import UNCHANGED, Interval, Range, Unrepresentable, array, multirange_of, range_of
from .errors import *  # noqa: F403
from .errors import __all__ as _errors
from .filters import Rule, identifier, literal, where

__all__ = [
    "TLS", "UNCHANGED", "After", "AsyncClient", "AsyncSubscription", "Batch", "Begin", "Change", "Client", "Column", "Commit",
    "Discard", "Earliest", "Event", "Gap", "Interval", "Latest", "Message", "MessageEvent", "Opened", "Operation",
    "Position", "Progress", "Range", "Relation", "Retracted", "Retry", "Row", "Rule", "Since", "Snapshot",
    "SnapshotBegin", "SnapshotEnd", "SnapshotTableEnd", "Start", "Subscription", "TimelineChanged", "Transaction",
    "Truncate", "Unrepresentable", "__version__", "array", "identifier", "literal", "multirange_of", "range_of", "where",
    *_errors,
]  # fmt: skip
