"""The unary calls of both clients: what is sent, and what is made of the answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, TypeVar

from . import _position, filters
from ._model import Relation
from ._position import Position, Start
from .v1 import walcast_pb2 as api
from .v1 import walcast_pb2_grpc as rpc

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Call(Generic[R]):
    """``stub`` makes the service's stub of a channel, of which ``method`` is called."""

    stub: Callable[[Any], Any]
    method: str
    request: Any
    answer: Callable[[Any], R]

    def on(self, channel: Any) -> Any:
        return getattr(self.stub(channel), self.method)


def acknowledge(request: api.AcknowledgeRequest) -> Call[Position]:
    return Call(
        rpc.ChangeStreamServiceStub, "Acknowledge", request, lambda response: Position.from_pb(response.checkpoint)
    )


def status() -> Call[api.GetStatusResponse]:
    return Call(rpc.AdminServiceStub, "GetStatus", api.GetStatusRequest(), lambda response: response)


def subscribers() -> Call[list[api.Subscriber]]:
    request = api.ListSubscribersRequest()
    return Call(rpc.AdminServiceStub, "ListSubscribers", request, lambda response: list(response.subscribers))


def reset_subscriber(subscriber: str, start: Start | str | Position | datetime) -> Call[Position]:
    request = api.ResetSubscriberRequest(subscriber=subscriber, start=_position.start_to_pb(start))
    return Call(
        rpc.AdminServiceStub, "ResetSubscriber", request, lambda response: Position.from_pb(response.checkpoint)
    )


def delete_subscriber(subscriber: str) -> Call[None]:
    request = api.DeleteSubscriberRequest(subscriber=subscriber)
    return Call(rpc.AdminServiceStub, "DeleteSubscriber", request, lambda response: None)


def relations(tables: str | Iterable[str], all_versions: bool) -> Call[list[Relation]]:
    request = api.ListRelationsRequest(tables=filters._several(tables), all_versions=all_versions)
    return Call(
        rpc.ChangeStreamServiceStub,
        "ListRelations",
        request,
        lambda response: [Relation(relation, {}) for relation in response.relations],
    )


def backfill(
    subscriber: str, action: str, tables: str | Iterable[str], where: str, snapshot_id: str, max_rows_per_second: int
) -> Call[str]:
    selected = filters.to_pb(tables, where=where)
    request = _position.backfill_to_pb(subscriber, action, selected, snapshot_id, max_rows_per_second)
    return Call(rpc.ChangeStreamServiceStub, "Backfill", request, lambda response: str(response.snapshot_id))
