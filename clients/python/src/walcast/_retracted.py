"""What a failover took back, as ``read_retracted`` of both clients hands it out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ._core import Core
from ._model import Transaction
from ._options import Options
from .errors import ProtocolError
from .v1 import walcast_pb2 as api

READ_RETRACTED = "/walcast.v1.ChangeStreamService/ReadRetracted"


def request(lineage: str, selected: api.Filter | None) -> api.ReadRetractedRequest:
    """The one message of the request."""
    message = api.ReadRetractedRequest(old_lineage=lineage)
    if selected is not None:
        message.filter.CopyFrom(selected)
    return message


class Reader:
    """Bytes of responses in, transactions out. The stream ends by itself, and is not resumed."""

    def __init__(self, json: str, types: Mapping[str, Any] | None, max_message_bytes: int) -> None:
        self._core = Core(Options(json=json, types=types, max_message_bytes=max_message_bytes))

    def transactions(self, raw: bytes) -> Iterator[Transaction]:
        """Those that are complete with this response."""
        self._core.receive(raw)
        while (item := self._core.poll()) is not None:
            if isinstance(item, Transaction):
                yield item

    def ended(self) -> None:
        """The stream ended with OK."""
        if self._core.within_transaction:
            raise ProtocolError("the stream ended inside a transaction")
