"""One subscription without its transport: the clients for threads and for asyncio both drive this.

Bytes of responses go in (:meth:`Core.receive`), items for the user come out (:meth:`Core.poll`), and what is to be sent
waits in the :class:`Outbox`. Nothing in here waits or does I/O.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Union

import grpc
from google.protobuf.message import DecodeError

from . import _events, _native, _position
from . import _model as model
from ._events import Event, Progress
from ._model import Relation, Transaction
from ._native import is_run
from ._options import Options
from ._outbox import Outbox
from ._position import Position
from ._retry import Backoff
from ._values import decoders
from .errors import (
    AckAhead,
    CheckpointMissing,
    ConnectionLost,
    GapError,
    HubError,
    ProtocolError,
    SnapshotRestartedError,
    TimelineChangedError,
    TransactionTooLarge,
    WalcastError,
)
from .v1 import event_pb2 as pb
from .v1 import walcast_pb2 as api

log = logging.getLogger("walcast")

Item = Union[Event, Transaction]


class Core:
    """The state of one subscription across its streams."""

    def __init__(self, options: Options, clock: Callable[[], float] = time.monotonic) -> None:
        self.options = options
        self.outbox = Outbox(clock)
        self.backoff = Backoff(options.retry, clock())
        self.opened: _events.Opened | None = None
        self.progress: Progress | None = None
        #: Whether events are handed out as they come rather than whole transactions.
        self.streaming = False
        #: Whether what is handed out is gathered into a batch that the user has not seen.
        self.gathering = False
        self._clock = clock
        self._decoders = decoders(options.json, options.types)
        self._first_start = _position.start_to_pb(options.start) if options.start is not None else None
        self._use_first_start = not options.subscriber
        self._received: Position | None = None
        self._ready: deque[Item] = deque()
        self._relations: dict[int, Relation] = {}
        self._open: Transaction | None = None
        self._open_bytes = 0
        self._ordinal = 0
        self._skip_until = 0
        self._interrupted: tuple[Transaction, int] | None = None
        self._rows: Transaction | None = None
        self._snapshot_id = ""
        self._retracted: list[_events.Retracted] = []
        self._forks: set[tuple[str, str, str]] = set()
        self._spent_events = 0
        self._spent_bytes = 0
        self._opened_at = 0.0
        self._first_after: Position | None = None
        self._unsure = False
        self._lock = threading.Lock()
        self._handed = 0
        self._acked = 0
        self._handed_position: Position | None = None
        self._acked_position: Position | None = None
        self._last: Transaction | _events.TimelineChanged | _events.Gap | _events.Commit | None = None

    # -- opening and failing

    @property
    def within_transaction(self) -> bool:
        """Whether a transaction has begun that is not complete."""
        return self._open is not None

    @property
    def position(self) -> Position | None:
        """Everything up to here has been handed to the user: what an anonymous subscriber resumes after."""
        return self._handed_position

    def open_request(self) -> api.ConsumeRequest:
        """The first request of a new stream."""
        options = self.options
        if self._open is not None and self.streaming:
            self._interrupted = (self._open, max(self._ordinal, self._skip_until))
        self._open = self._rows = None
        self._open_bytes = 0
        self._skip_until = self._ordinal = 0
        self._relations = {}
        self._retracted = []
        self._spent_events = self._spent_bytes = 0
        self._opened_at = self._clock()
        self.outbox.reopen(self._received)
        request = api.SubscribeRequest(
            subscriber=options.subscriber,
            stop_at_tail=options.stop_at_tail,
            max_message_bytes=options.max_message_bytes,
        )
        if options.filter is not None:
            request.filter.CopyFrom(options.filter)
        if options.progress_interval is not None:
            request.progress_interval.FromTimedelta(options.progress_interval)
        if self._received is not None:
            request.start.after.CopyFrom(self._received.to_pb())
        elif self._use_first_start and self._first_start is not None:
            request.start.CopyFrom(self._first_start)
        acked = self._acked_position
        if acked is not None and self._received is not None and self._received.reaches(acked):
            self.outbox.acknowledge(acked)  # the last stream may have broken before it arrived
        self.outbox.grant(options.window_events, options.window_bytes)
        return api.ConsumeRequest(open=request)

    def proof(self) -> api.AcknowledgeRequest | None:
        """What to call before the next stream is opened, to learn whether a newer session has taken over meanwhile.

        A connection that broke does not say whether the hub had fenced this subscriber, and opening again would fence the other.
        """
        at = self._acked_position or self._first_after
        if not self._unsure or self.opened is None or at is None:
            return None
        return api.AcknowledgeRequest(
            subscriber=self.options.subscriber, position=at.to_pb(), session=self.opened.session
        )

    def proved(self) -> None:
        """The call succeeded: the subscriber is still ours."""
        self._unsure = False

    def failed(self, error: HubError) -> float:
        """Seconds until the next attempt; raises the error where another one does not help."""
        never_opened = self._received is None
        if isinstance(error, CheckpointMissing) and never_opened and not self._use_first_start and self._first_start:
            self._use_first_start = True
            log.info("subscriber %s has no checkpoint: starting at the given start", self.options.subscriber)
            return 0.0
        now = self._clock()
        if self.opened is not None and now - self._opened_at >= 60:
            self.backoff.succeeded(now)
        delay = self.backoff.delay(error.retry_after, now) if error.retryable else None
        if delay is None:
            raise error
        if isinstance(error, ConnectionLost) and self.options.subscriber:
            self._unsure = True
        log.warning("stream lost, next attempt in %.2f s: %s", delay, error)
        return delay

    def ended(self) -> ConnectionLost | None:
        """The stream ended with OK: ``None`` if that was asked for."""
        if self.options.stop_at_tail:
            return None
        return ConnectionLost("the stream ended", code=grpc.StatusCode.UNAVAILABLE)

    # -- acknowledging

    @property
    def acked_position(self) -> Position | None:
        """The newest position that was acknowledged, durable or not."""
        return self._acked_position

    def unflushed(self) -> bool:
        """Whether something was acknowledged that no progress has confirmed."""
        acked = self._acked_position
        confirmed = self.progress.checkpoint if self.progress is not None else None
        return acked is not None and (confirmed is None or not confirmed.reaches(acked))

    def acknowledge(self, position: Position, serial: int = 0) -> None:
        """Everything up to and including the position is done. ``serial``: of the item whose position it is."""
        if not self.options.subscriber:
            raise WalcastError(
                "an anonymous subscription has no checkpoint; give it a subscriber name, or store tx.position"
            )
        with self._lock:
            handed = self._handed_position
            if handed is None or (handed.lineage == position.lineage and not handed.reaches(position)):
                raise AckAhead(
                    f"position {position.lsn} has not been handed out yet", code=grpc.StatusCode.FAILED_PRECONDITION
                )
            if serial:
                self._acked = max(self._acked, serial)
            elif position.reaches(handed):
                self._acked = self._handed
            acked = self._acked_position
            if acked is not None and acked.reaches(position):
                return
            self._acked_position = position
        self.outbox.acknowledge(position)

    def next_requested(self) -> None:
        """The user asks for the next item, so the last one is done."""
        if self.gathering:
            return
        last, self._last = self._last, None
        if last is None or not self.options.auto_ack or not self.options.subscriber:
            return
        if isinstance(last, _events.Gap):
            self.acknowledge(last.up_to)
        else:
            self.acknowledge(last.transaction.position if isinstance(last, _events.Commit) else last.position)

    def _hand(
        self, item: Transaction | _events.TimelineChanged | _events.Gap | _events.Commit, position: Position
    ) -> None:
        with self._lock:
            self._handed += 1
            self._handed_position = position
            if isinstance(item, Transaction):
                item._serial = self._handed
        self._last = item

    def _passed(self, progress: Progress) -> None:
        """Progress is acknowledged for the user when nothing before it is outstanding."""
        self.progress = progress
        with self._lock:
            self._handed_position = progress.position
            if self._acked < self._handed or not self.options.subscriber:
                return
            acked = self._acked_position
            if acked is not None and acked.reaches(progress.position):
                return
            self._acked_position = progress.position
        self.outbox.acknowledge(progress.position)

    # -- handing out

    def poll(self) -> Item | None:
        """The next item for the user, or ``None`` until more was received."""
        while self._ready:
            item = self._ready.popleft()
            if isinstance(item, Transaction):
                self._hand(item, item.position)
                return item
            if isinstance(item, Progress):
                self._passed(item)
                return item
            if isinstance(item, _events.Commit):
                self._hand(item, item.transaction.position)
            elif isinstance(item, _events.TimelineChanged):
                self._forks.add((item.old_lineage, item.new_lineage, item.switch_lsn))
                self._hand(item, item.position)
            elif isinstance(item, _events.Gap):
                self._hand(item, item.up_to)
            return item
        return None

    def handler(self, item: Item) -> Callable[[Any], Any] | None:
        """The user's callback for an item that is not a transaction. Raises where none was given and it matters."""
        options = self.options
        if isinstance(item, Progress):
            return options.on_progress
        if isinstance(item, _events.TimelineChanged):
            if options.on_timeline_changed is None:
                raise TimelineChangedError(item)
            return options.on_timeline_changed
        if isinstance(item, _events.Gap):
            if options.on_gap is None:
                raise GapError(item)
            return options.on_gap
        if isinstance(item, _events.SnapshotBegin) and item.restarted and options.on_snapshot is None:
            raise SnapshotRestartedError(item)
        return options.on_snapshot

    # -- receiving

    def receive(self, raw: bytes) -> None:
        """A response message."""
        received = self._received
        counted = 0
        free = 0
        relations = self._relations
        streaming = self.streaming
        open_events = self._open._events if self._open is not None else None
        for event in _events_of(raw):
            if is_run(event):
                counted += len(event)
                for number in event.relation_ids:
                    if number not in relations:
                        raise ProtocolError(f"a change refers to relation {number}, which was not sent")
                if streaming:
                    for change in event:
                        self._change(change)
                elif open_events is not None:
                    open_events.append(event)
                else:
                    self._read_rows(event.operations)._events.append(event)
                continue
            kind = event.WhichOneof("kind")
            if kind == "change":
                counted += 1
                change = event.change
                if change.relation_id not in relations:
                    raise ProtocolError(f"a change refers to relation {change.relation_id}, which was not sent")
                if open_events is not None and not streaming:
                    open_events.append(change)
                else:
                    self._change(change)
            elif kind == "begin":
                self._begin(event.begin)
                assert self._open is not None
                open_events = self._open._events
            elif kind == "commit":
                self._commit(event.commit)
                open_events = None
            elif kind == "progress":
                free += _framed(event.ByteSize())
                self._between(kind)
                progress = Progress.from_pb(event.progress)
                self._received = progress.position
                self._ready.append(progress)
            elif kind == "relation":
                relations[event.relation.relation_id] = Relation(event.relation, self._decoders)
            elif kind == "truncate" or kind == "message":
                counted += 1
                self._ordinal_event(event.truncate if kind == "truncate" else event.message)
            elif kind == "discard":
                self._discard(event.discard.reason)
                open_events = None
            elif kind == "opened":
                free += _framed(event.ByteSize())
                self._opened(event.opened)
            elif kind is None:
                raise ProtocolError("the hub sent an event of a kind that this version does not know")
            else:
                self._between(kind)
                self._rare(kind, event)
        if self._rows is not None:
            self._flush_rows()
        if self._open is not None and not streaming:
            self._open_bytes += len(raw)
            if self._open_bytes > self.options.max_transaction_bytes:
                raise TransactionTooLarge(
                    f"the transaction at {self._open.commit_lsn} exceeds max_transaction_bytes; stream it with events()"
                )
        if received is not None and self._received != received:
            self.backoff.succeeded(self._clock())
        self._spend(counted, len(raw) - free)

    def _spend(self, events: int, size: int) -> None:
        self._spent_events += events
        self._spent_bytes += size
        options = self.options
        if self._spent_events * 2 >= options.window_events or self._spent_bytes * 2 >= options.window_bytes:
            self.outbox.grant(self._spent_events, self._spent_bytes)
            self._spent_events = self._spent_bytes = 0

    def _opened(self, message: pb.Opened) -> None:
        opened = _events.Opened.from_pb(message)
        self.opened = opened
        if self._received is None:
            self._received = self._first_after = opened.after
            with self._lock:
                self._handed_position = opened.after
            if self.options.subscriber and self._use_first_start:
                # From now on the subscriber has a place of its own, whatever happens before its first transaction.
                self.acknowledge(opened.after)
        if opened.filter_changed:
            log.warning("subscriber %s: the filter differs from the checkpoint's", self.options.subscriber)
        log.info("stream opened behind %s", opened.after.lsn)

    def _between(self, kind: str) -> None:
        if self._open is not None:
            raise ProtocolError(f"{kind} inside a transaction")
        if self._rows is not None:
            self._flush_rows()
        self._settle_interrupted()

    def _settle_interrupted(self) -> None:
        if self._interrupted is not None:
            transaction, _ = self._interrupted
            self._interrupted = None
            self._ready.append(_events.Discard(transaction, "it did not come again after a reconnect"))

    def _begin(self, begin: pb.Begin) -> None:
        if self._open is not None:
            raise ProtocolError("a transaction begins inside another")
        if self._rows is not None:
            self._flush_rows()
        transaction = model.begin_from_pb(begin)
        self._skip_until = self._ordinal = 0
        if self._interrupted is not None and self._interrupted[0].identity == transaction.identity:
            transaction, self._skip_until = self._interrupted
            self._interrupted = None
        else:
            self._settle_interrupted()
            if self.streaming:
                self._ready.append(_events.Begin(transaction))
        transaction._core = self
        transaction._relations = self._relations
        self._open = transaction
        self._open_bytes = 0

    def _commit(self, commit: pb.Commit) -> None:
        transaction = self._open
        if transaction is None:
            raise ProtocolError("commit without begin")
        self._open = None
        position = Position.from_pb(commit.position)
        transaction._position = position
        transaction.total_changes = commit.total_changes
        if self._received is not None and self._received.reaches(position):
            log.debug("transaction %s came again and is dropped", transaction.identity)
            if self.streaming:
                self._ready.append(_events.Discard(transaction, "it came before"))
            return
        self._received = position
        self._ready.append(_events.Commit(transaction) if self.streaming else transaction)

    def _discard(self, reason: str) -> None:
        transaction = self._open
        if transaction is None:
            raise ProtocolError("discard without begin")
        self._open = None
        if self.streaming:
            self._ready.append(_events.Discard(transaction, reason))

    def _change(self, change: pb.Change) -> None:
        if self._open is not None:
            if change.ordinal > self._skip_until:
                self._ready.append(model.Change(self._open, self._relations[change.relation_id], change))
                self._ordinal = change.ordinal
            return
        rows = self._read_rows([change.operation])
        if self.streaming:
            self._ready.append(model.Change(rows, self._relations[change.relation_id], change))
        else:
            rows._events.append(change)

    def _read_rows(self, operations: list[int]) -> Transaction:
        """What gathers the rows of a snapshot that come together."""
        if operations != [pb.OPERATION_READ]:
            raise ProtocolError("a change outside a transaction")
        if self._rows is None:
            if self._received is None:
                raise ProtocolError("a row before opened")
            at = self._received
            self._rows = Transaction(at.lsn, at.lineage, at.sequence, 0, None, snapshot_id=self._snapshot_id)
            self._rows._position = at
            self._rows._core = self
            self._rows._relations = self._relations
        return self._rows

    def _flush_rows(self) -> None:
        if self._rows is not None and not self.streaming:
            self._ready.append(self._rows)
        self._rows = None

    def _ordinal_event(self, event: pb.Truncate | pb.LogicalMessage) -> None:
        if isinstance(event, pb.Truncate):
            unknown = [number for number in event.relation_ids if number not in self._relations]
            if unknown:
                raise ProtocolError(f"a truncate refers to relations {unknown}, which were not sent")
        transaction = self._open
        if transaction is None:
            if not isinstance(event, pb.LogicalMessage) or not event.HasField("position"):
                raise ProtocolError("a truncate or transactional message outside a transaction")
            self._between("message")
            self._message_alone(event)
        elif not self.streaming:
            transaction._events.append(event)
        elif event.ordinal > self._skip_until:
            self._ordinal = event.ordinal
            if isinstance(event, pb.Truncate):
                self._ready.extend(model.truncates(transaction, event, self._relations))
            else:
                self._ready.append(_events.MessageEvent(transaction, model.message_from_pb(event)))

    def _message_alone(self, event: pb.LogicalMessage) -> None:
        position = Position.from_pb(event.position)
        if self._received is not None and self._received.reaches(position):
            return
        transaction = Transaction(event.lsn, position.lineage, position.sequence, 0, None, total_changes=1)
        transaction._position = position
        transaction._core = self
        transaction._events.append(event)
        self._received = position
        if self.streaming:
            self._ready.append(_events.MessageEvent(transaction, model.message_from_pb(event)))
            self._ready.append(_events.Commit(transaction))
        else:
            self._ready.append(transaction)

    def _rare(self, kind: str, event: pb.Event) -> None:
        if kind == "timeline_changed":
            self._timeline_changed(event.timeline_changed)
        elif kind == "gap":
            gap = _events.Gap(Position.from_pb(event.gap.after), Position.from_pb(event.gap.up_to), event.gap.reason)
            self._received = gap.up_to
            self._ready.append(gap)
        elif kind == "snapshot_begin":
            begin = event.snapshot_begin
            self._snapshot_id = begin.snapshot_id
            tables = {table.table: table.estimated_rows for table in begin.tables}
            self._ready.append(_events.SnapshotBegin(begin.snapshot_id, tables, begin.restarted))
        elif kind == "snapshot_table_end":
            end = event.snapshot_table_end
            self._ready.append(_events.SnapshotTableEnd(end.snapshot_id, end.table, end.rows))
        elif kind == "snapshot_end":
            done = event.snapshot_end
            position = Position.from_pb(done.position)
            self._received = position
            self._ready.append(_events.SnapshotEnd(done.snapshot_id, position, done.rows))
        else:
            raise ProtocolError(f"the hub sent {kind}, which this version does not know")

    def _timeline_changed(self, message: pb.TimelineChanged) -> None:
        for entry in message.retracted:
            transaction = model.begin_from_pb(entry.begin)
            position = Position.from_pb(entry.position)
            transaction._position = position
            self._retracted.append(_events.Retracted(transaction, position, entry.changes))
        if message.more:
            return
        retracted, self._retracted = self._retracted, []
        position = Position.from_pb(message.position)
        self._received = position
        if (message.old_lineage, message.new_lineage, message.switch_lsn) in self._forks:
            return
        self._ready.append(
            _events.TimelineChanged(
                message.old_lineage, message.new_lineage, message.switch_lsn, tuple(retracted), position
            )
        )


def _events_of(raw: bytes) -> Iterator[Any]:
    """The events of a response; consecutive changes as a run where they are read by compiled code."""
    native = _native.native
    try:
        if native is None:
            yield from api.ConsumeResponse.FromString(raw).events
            return
        for event in native.split(raw):
            yield pb.Event.FromString(event) if type(event) is bytes else event
    except (DecodeError, ValueError) as error:
        raise ProtocolError(f"a response is malformed: {error}") from None


def _framed(size: int) -> int:
    """Bytes of an event of this size as an element of a response: tag, length and content."""
    length = 1
    rest = size >> 7
    while rest:
        length += 1
        rest >>= 7
    return 1 + length + size
