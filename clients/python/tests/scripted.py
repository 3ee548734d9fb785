"""A grpc server that plays scripts: what each connection sends, and how it ends."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

from walcast.v1 import event_pb2 as pb
from walcast.v1 import walcast_pb2 as api
from walcast.v1 import walcast_pb2_grpc as rpc

LINEAGE = "00000000000000aa"


def position(number: int, lineage: str = LINEAGE) -> pb.Position:
    return pb.Position(lsn=f"0/{number:X}", lineage=lineage)


def opened(after: int = 0, session: int = 0, lineage: str = LINEAGE) -> pb.Event:
    at = position(after, lineage)
    return pb.Event(opened=pb.Opened(after=at, earliest=position(0), tail=position(0xFFFF), session=session))


def relation() -> pb.Event:
    columns = [pb.Column(name="id", type_name="int4", in_identity=True), pb.Column(name="v", type_name="text")]
    return pb.Event(
        relation=pb.Relation(relation_id=7, schema="public", table="t", columns=columns, replica_identity=1)
    )


def insert(ordinal: int, number: int) -> pb.Event:
    row = pb.Row(values=[pb.Value(int_value=number), pb.Value(text=f"v{number}")])
    return pb.Event(change=pb.Change(operation=pb.OPERATION_INSERT, relation_id=7, ordinal=ordinal, after_row=row))


def begin(number: int) -> pb.Event:
    return pb.Event(begin=pb.Begin(commit_lsn=f"0/{number - 1:X}", lineage=LINEAGE, xid=number))


def commit(number: int, changes: int = 1) -> pb.Event:
    return pb.Event(commit=pb.Commit(position=position(number), changes=changes, total_changes=changes))


def transaction(number: int, changes: int = 1) -> list[pb.Event]:
    return [
        begin(number),
        *(insert(ordinal + 1, number * 100 + ordinal) for ordinal in range(changes)),
        commit(number, changes),
    ]


def progress(number: int, checkpoint: int | None = None) -> pb.Event:
    message = pb.Progress(position=position(number), tail=position(0xFFFF), source_connected=True)
    if checkpoint is not None:
        message.checkpoint.CopyFrom(position(checkpoint))
    return pb.Event(progress=message)


class Refuse(Exception):
    """Ends the stream with an error of the hub."""

    def __init__(self, code: grpc.StatusCode, reason: str, retry: float | None = None, **metadata: str) -> None:
        super().__init__(reason)
        self.code, self.reason, self.retry, self.metadata = code, reason, retry, metadata

    def abort(self, context: grpc.ServicerContext) -> None:
        status = status_pb2.Status(code=self.code.value[0], message=f"because of {self.reason}")
        details: list[Any] = []
        if self.reason:
            details.append(error_details_pb2.ErrorInfo(reason=self.reason, domain="walcast", metadata=self.metadata))
        if self.retry is not None:
            info = error_details_pb2.RetryInfo()
            info.retry_delay.FromNanoseconds(int(self.retry * 1e9))
            details.append(info)
        for detail in details:
            packed = any_pb2.Any()
            packed.Pack(detail)
            status.details.append(packed)
        context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
        context.abort(self.code, status.message)


Script = Callable[["Connection"], Iterator[list[pb.Event]]]


class Connection:
    """What one stream asked for, as it comes."""

    def __init__(self) -> None:
        self.open: api.SubscribeRequest | None = None
        self.changed = threading.Condition()
        self.events = 0
        self.bytes = 0
        self.acks: list[str] = []
        self.ended = False
        self.metadata: dict[str, Any] = {}

    def wait(self, what: Callable[[], Any], seconds: float = 20.0) -> None:
        with self.changed:
            assert self.changed.wait_for(what, seconds), "the client did not do it"

    def until_acked(self, number: int) -> None:
        self.wait(lambda: f"0/{number:X}" in self.acks)

    def until_ended(self) -> None:
        self.wait(lambda: self.ended)


class Hub(rpc.ChangeStreamServiceServicer):
    """Plays one script per connection, in order."""

    def __init__(self, *scripts: Script) -> None:
        self.scripts = list(scripts)
        self.connections: list[Connection] = []
        self.unary_acks: list[api.AcknowledgeRequest] = []
        self.fenced_below = 0
        self._server = grpc.server(ThreadPoolExecutor(16))
        rpc.add_ChangeStreamServiceServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def Consume(self, requests: Any, context: grpc.ServicerContext) -> Iterator[api.ConsumeResponse]:
        connection = Connection()
        connection.metadata = dict(context.invocation_metadata())
        connection.open = next(requests).open
        number = len(self.connections)
        self.connections.append(connection)

        def read() -> None:
            try:
                for request in requests:
                    with connection.changed:
                        if request.HasField("credit"):
                            connection.events += request.credit.events
                            connection.bytes += request.credit.bytes
                        else:
                            connection.acks.append(request.acknowledge.lsn)
                        connection.changed.notify_all()
            except Exception:
                pass
            with connection.changed:
                connection.ended = True
                connection.changed.notify_all()

        threading.Thread(target=read, daemon=True).start()
        try:
            for events in self.scripts[number](connection):
                yield api.ConsumeResponse(events=events)
        except Refuse as refusal:
            refusal.abort(context)

    def Acknowledge(self, request: api.AcknowledgeRequest, context: grpc.ServicerContext) -> api.AcknowledgeResponse:
        self.unary_acks.append(request)
        if request.session < self.fenced_below:
            Refuse(grpc.StatusCode.ABORTED, "SUBSCRIBER_FENCED").abort(context)
        return api.AcknowledgeResponse(checkpoint=request.position)

    def __enter__(self) -> Hub:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(None).wait()
