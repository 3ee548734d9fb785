from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import empty_pb2 as _empty_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from walcast.v1 import event_pb2 as _event_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RowFormat(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROW_FORMAT_UNSPECIFIED: _ClassVar[RowFormat]
    ROW_FORMAT_COMPACT: _ClassVar[RowFormat]
    ROW_FORMAT_STRUCT: _ClassVar[RowFormat]

class BackfillAction(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    BACKFILL_ACTION_UNSPECIFIED: _ClassVar[BackfillAction]
    BACKFILL_ACTION_START: _ClassVar[BackfillAction]
    BACKFILL_ACTION_PAUSE: _ClassVar[BackfillAction]
    BACKFILL_ACTION_RESUME: _ClassVar[BackfillAction]
    BACKFILL_ACTION_CANCEL: _ClassVar[BackfillAction]
ROW_FORMAT_UNSPECIFIED: RowFormat
ROW_FORMAT_COMPACT: RowFormat
ROW_FORMAT_STRUCT: RowFormat
BACKFILL_ACTION_UNSPECIFIED: BackfillAction
BACKFILL_ACTION_START: BackfillAction
BACKFILL_ACTION_PAUSE: BackfillAction
BACKFILL_ACTION_RESUME: BackfillAction
BACKFILL_ACTION_CANCEL: BackfillAction

class SubscribeRequest(_message.Message):
    __slots__ = ("subscriber", "start", "filter", "row_format", "stop_at_tail", "max_message_bytes", "progress_interval", "source")
    SUBSCRIBER_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    ROW_FORMAT_FIELD_NUMBER: _ClassVar[int]
    STOP_AT_TAIL_FIELD_NUMBER: _ClassVar[int]
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_INTERVAL_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    subscriber: str
    start: Start
    filter: Filter
    row_format: RowFormat
    stop_at_tail: bool
    max_message_bytes: int
    progress_interval: _duration_pb2.Duration
    source: str
    def __init__(self, subscriber: _Optional[str] = ..., start: _Optional[_Union[Start, _Mapping]] = ..., filter: _Optional[_Union[Filter, _Mapping]] = ..., row_format: _Optional[_Union[RowFormat, str]] = ..., stop_at_tail: bool = ..., max_message_bytes: _Optional[int] = ..., progress_interval: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., source: _Optional[str] = ...) -> None: ...

class Start(_message.Message):
    __slots__ = ("checkpoint", "earliest", "latest", "after_lsn", "after", "since", "snapshot")
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    EARLIEST_FIELD_NUMBER: _ClassVar[int]
    LATEST_FIELD_NUMBER: _ClassVar[int]
    AFTER_LSN_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    checkpoint: _empty_pb2.Empty
    earliest: _empty_pb2.Empty
    latest: _empty_pb2.Empty
    after_lsn: str
    after: _event_pb2.Position
    since: _timestamp_pb2.Timestamp
    snapshot: SnapshotOptions
    def __init__(self, checkpoint: _Optional[_Union[_empty_pb2.Empty, _Mapping]] = ..., earliest: _Optional[_Union[_empty_pb2.Empty, _Mapping]] = ..., latest: _Optional[_Union[_empty_pb2.Empty, _Mapping]] = ..., after_lsn: _Optional[str] = ..., after: _Optional[_Union[_event_pb2.Position, _Mapping]] = ..., since: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., snapshot: _Optional[_Union[SnapshotOptions, _Mapping]] = ...) -> None: ...

class SnapshotOptions(_message.Message):
    __slots__ = ("mode", "max_rows_per_second")
    MODE_FIELD_NUMBER: _ClassVar[int]
    MAX_ROWS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    mode: _event_pb2.SnapshotMode
    max_rows_per_second: int
    def __init__(self, mode: _Optional[_Union[_event_pb2.SnapshotMode, str]] = ..., max_rows_per_second: _Optional[int] = ...) -> None: ...

class Filter(_message.Message):
    __slots__ = ("tables", "exclude_tables", "operations", "columns", "where", "message_prefixes", "origins", "rules")
    TABLES_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_TABLES_FIELD_NUMBER: _ClassVar[int]
    OPERATIONS_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    WHERE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_PREFIXES_FIELD_NUMBER: _ClassVar[int]
    ORIGINS_FIELD_NUMBER: _ClassVar[int]
    RULES_FIELD_NUMBER: _ClassVar[int]
    tables: _containers.RepeatedScalarFieldContainer[str]
    exclude_tables: _containers.RepeatedScalarFieldContainer[str]
    operations: _containers.RepeatedScalarFieldContainer[_event_pb2.Operation]
    columns: _containers.RepeatedScalarFieldContainer[str]
    where: str
    message_prefixes: _containers.RepeatedScalarFieldContainer[str]
    origins: _containers.RepeatedScalarFieldContainer[str]
    rules: _containers.RepeatedCompositeFieldContainer[TableRule]
    def __init__(self, tables: _Optional[_Iterable[str]] = ..., exclude_tables: _Optional[_Iterable[str]] = ..., operations: _Optional[_Iterable[_Union[_event_pb2.Operation, str]]] = ..., columns: _Optional[_Iterable[str]] = ..., where: _Optional[str] = ..., message_prefixes: _Optional[_Iterable[str]] = ..., origins: _Optional[_Iterable[str]] = ..., rules: _Optional[_Iterable[_Union[TableRule, _Mapping]]] = ...) -> None: ...

class TableRule(_message.Message):
    __slots__ = ("tables", "columns", "where", "operations")
    TABLES_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    WHERE_FIELD_NUMBER: _ClassVar[int]
    OPERATIONS_FIELD_NUMBER: _ClassVar[int]
    tables: str
    columns: _containers.RepeatedScalarFieldContainer[str]
    where: str
    operations: _containers.RepeatedScalarFieldContainer[_event_pb2.Operation]
    def __init__(self, tables: _Optional[str] = ..., columns: _Optional[_Iterable[str]] = ..., where: _Optional[str] = ..., operations: _Optional[_Iterable[_Union[_event_pb2.Operation, str]]] = ...) -> None: ...

class SubscribeResponse(_message.Message):
    __slots__ = ("events",)
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[_event_pb2.Event]
    def __init__(self, events: _Optional[_Iterable[_Union[_event_pb2.Event, _Mapping]]] = ...) -> None: ...

class ConsumeResponse(_message.Message):
    __slots__ = ("events",)
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[_event_pb2.Event]
    def __init__(self, events: _Optional[_Iterable[_Union[_event_pb2.Event, _Mapping]]] = ...) -> None: ...

class ReadRetractedResponse(_message.Message):
    __slots__ = ("events",)
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[_event_pb2.Event]
    def __init__(self, events: _Optional[_Iterable[_Union[_event_pb2.Event, _Mapping]]] = ...) -> None: ...

class ConsumeRequest(_message.Message):
    __slots__ = ("open", "credit", "acknowledge")
    OPEN_FIELD_NUMBER: _ClassVar[int]
    CREDIT_FIELD_NUMBER: _ClassVar[int]
    ACKNOWLEDGE_FIELD_NUMBER: _ClassVar[int]
    open: SubscribeRequest
    credit: _event_pb2.Credit
    acknowledge: _event_pb2.Position
    def __init__(self, open: _Optional[_Union[SubscribeRequest, _Mapping]] = ..., credit: _Optional[_Union[_event_pb2.Credit, _Mapping]] = ..., acknowledge: _Optional[_Union[_event_pb2.Position, _Mapping]] = ...) -> None: ...

class AcknowledgeRequest(_message.Message):
    __slots__ = ("subscriber", "position", "session")
    SUBSCRIBER_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    subscriber: str
    position: _event_pb2.Position
    session: int
    def __init__(self, subscriber: _Optional[str] = ..., position: _Optional[_Union[_event_pb2.Position, _Mapping]] = ..., session: _Optional[int] = ...) -> None: ...

class AcknowledgeResponse(_message.Message):
    __slots__ = ("checkpoint",)
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    checkpoint: _event_pb2.Position
    def __init__(self, checkpoint: _Optional[_Union[_event_pb2.Position, _Mapping]] = ...) -> None: ...

class BackfillRequest(_message.Message):
    __slots__ = ("subscriber", "action", "snapshot_id", "filter", "options")
    SUBSCRIBER_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_ID_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    subscriber: str
    action: BackfillAction
    snapshot_id: str
    filter: Filter
    options: SnapshotOptions
    def __init__(self, subscriber: _Optional[str] = ..., action: _Optional[_Union[BackfillAction, str]] = ..., snapshot_id: _Optional[str] = ..., filter: _Optional[_Union[Filter, _Mapping]] = ..., options: _Optional[_Union[SnapshotOptions, _Mapping]] = ...) -> None: ...

class BackfillResponse(_message.Message):
    __slots__ = ("snapshot_id",)
    SNAPSHOT_ID_FIELD_NUMBER: _ClassVar[int]
    snapshot_id: str
    def __init__(self, snapshot_id: _Optional[str] = ...) -> None: ...

class ListRelationsRequest(_message.Message):
    __slots__ = ("tables", "all_versions")
    TABLES_FIELD_NUMBER: _ClassVar[int]
    ALL_VERSIONS_FIELD_NUMBER: _ClassVar[int]
    tables: _containers.RepeatedScalarFieldContainer[str]
    all_versions: bool
    def __init__(self, tables: _Optional[_Iterable[str]] = ..., all_versions: bool = ...) -> None: ...

class ListRelationsResponse(_message.Message):
    __slots__ = ("relations",)
    RELATIONS_FIELD_NUMBER: _ClassVar[int]
    relations: _containers.RepeatedCompositeFieldContainer[_event_pb2.Relation]
    def __init__(self, relations: _Optional[_Iterable[_Union[_event_pb2.Relation, _Mapping]]] = ...) -> None: ...

class ReadRetractedRequest(_message.Message):
    __slots__ = ("old_lineage", "filter", "row_format")
    OLD_LINEAGE_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    ROW_FORMAT_FIELD_NUMBER: _ClassVar[int]
    old_lineage: str
    filter: Filter
    row_format: RowFormat
    def __init__(self, old_lineage: _Optional[str] = ..., filter: _Optional[_Union[Filter, _Mapping]] = ..., row_format: _Optional[_Union[RowFormat, str]] = ...) -> None: ...

class GetStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetStatusResponse(_message.Message):
    __slots__ = ("version", "source", "journal", "streams")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    JOURNAL_FIELD_NUMBER: _ClassVar[int]
    STREAMS_FIELD_NUMBER: _ClassVar[int]
    version: str
    source: SourceStatus
    journal: JournalStatus
    streams: int
    def __init__(self, version: _Optional[str] = ..., source: _Optional[_Union[SourceStatus, _Mapping]] = ..., journal: _Optional[_Union[JournalStatus, _Mapping]] = ..., streams: _Optional[int] = ...) -> None: ...

class SourceStatus(_message.Message):
    __slots__ = ("connected", "system_identifier", "timeline", "lineage", "slot", "wal_status", "confirmed_flush_lsn", "current_lsn", "retained_wal_bytes", "last_error", "standbys", "alarms")
    CONNECTED_FIELD_NUMBER: _ClassVar[int]
    SYSTEM_IDENTIFIER_FIELD_NUMBER: _ClassVar[int]
    TIMELINE_FIELD_NUMBER: _ClassVar[int]
    LINEAGE_FIELD_NUMBER: _ClassVar[int]
    SLOT_FIELD_NUMBER: _ClassVar[int]
    WAL_STATUS_FIELD_NUMBER: _ClassVar[int]
    CONFIRMED_FLUSH_LSN_FIELD_NUMBER: _ClassVar[int]
    CURRENT_LSN_FIELD_NUMBER: _ClassVar[int]
    RETAINED_WAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    LAST_ERROR_FIELD_NUMBER: _ClassVar[int]
    STANDBYS_FIELD_NUMBER: _ClassVar[int]
    ALARMS_FIELD_NUMBER: _ClassVar[int]
    connected: bool
    system_identifier: str
    timeline: int
    lineage: str
    slot: str
    wal_status: str
    confirmed_flush_lsn: str
    current_lsn: str
    retained_wal_bytes: int
    last_error: str
    standbys: _containers.RepeatedCompositeFieldContainer[StandbyStatus]
    alarms: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, connected: bool = ..., system_identifier: _Optional[str] = ..., timeline: _Optional[int] = ..., lineage: _Optional[str] = ..., slot: _Optional[str] = ..., wal_status: _Optional[str] = ..., confirmed_flush_lsn: _Optional[str] = ..., current_lsn: _Optional[str] = ..., retained_wal_bytes: _Optional[int] = ..., last_error: _Optional[str] = ..., standbys: _Optional[_Iterable[_Union[StandbyStatus, _Mapping]]] = ..., alarms: _Optional[_Iterable[str]] = ...) -> None: ...

class StandbyStatus(_message.Message):
    __slots__ = ("server", "ready", "detail")
    SERVER_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    server: str
    ready: bool
    detail: str
    def __init__(self, server: _Optional[str] = ..., ready: bool = ..., detail: _Optional[str] = ...) -> None: ...

class JournalStatus(_message.Message):
    __slots__ = ("earliest", "tail", "bytes", "earliest_commit_time", "retracted", "eager", "durable")
    EARLIEST_FIELD_NUMBER: _ClassVar[int]
    TAIL_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    EARLIEST_COMMIT_TIME_FIELD_NUMBER: _ClassVar[int]
    RETRACTED_FIELD_NUMBER: _ClassVar[int]
    EAGER_FIELD_NUMBER: _ClassVar[int]
    DURABLE_FIELD_NUMBER: _ClassVar[int]
    earliest: _event_pb2.Position
    tail: _event_pb2.Position
    bytes: int
    earliest_commit_time: _timestamp_pb2.Timestamp
    retracted: _containers.RepeatedCompositeFieldContainer[RetractedRange]
    eager: bool
    durable: _event_pb2.Position
    def __init__(self, earliest: _Optional[_Union[_event_pb2.Position, _Mapping]] = ..., tail: _Optional[_Union[_event_pb2.Position, _Mapping]] = ..., bytes: _Optional[int] = ..., earliest_commit_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., retracted: _Optional[_Iterable[_Union[RetractedRange, _Mapping]]] = ..., eager: bool = ..., durable: _Optional[_Union[_event_pb2.Position, _Mapping]] = ...) -> None: ...

class RetractedRange(_message.Message):
    __slots__ = ("old_lineage", "new_lineage", "switch_lsn", "after", "up_to")
    OLD_LINEAGE_FIELD_NUMBER: _ClassVar[int]
    NEW_LINEAGE_FIELD_NUMBER: _ClassVar[int]
    SWITCH_LSN_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    UP_TO_FIELD_NUMBER: _ClassVar[int]
    old_lineage: str
    new_lineage: str
    switch_lsn: str
    after: _event_pb2.Position
    up_to: _event_pb2.Position
    def __init__(self, old_lineage: _Optional[str] = ..., new_lineage: _Optional[str] = ..., switch_lsn: _Optional[str] = ..., after: _Optional[_Union[_event_pb2.Position, _Mapping]] = ..., up_to: _Optional[_Union[_event_pb2.Position, _Mapping]] = ...) -> None: ...

class ListSubscribersRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListSubscribersResponse(_message.Message):
    __slots__ = ("subscribers",)
    SUBSCRIBERS_FIELD_NUMBER: _ClassVar[int]
    subscribers: _containers.RepeatedCompositeFieldContainer[Subscriber]
    def __init__(self, subscribers: _Optional[_Iterable[_Union[Subscriber, _Mapping]]] = ...) -> None: ...

class Subscriber(_message.Message):
    __slots__ = ("name", "checkpoint", "connected", "lag_bytes", "lag", "last_seen", "filter", "peer")
    NAME_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    CONNECTED_FIELD_NUMBER: _ClassVar[int]
    LAG_BYTES_FIELD_NUMBER: _ClassVar[int]
    LAG_FIELD_NUMBER: _ClassVar[int]
    LAST_SEEN_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    PEER_FIELD_NUMBER: _ClassVar[int]
    name: str
    checkpoint: _event_pb2.Position
    connected: bool
    lag_bytes: int
    lag: _duration_pb2.Duration
    last_seen: _timestamp_pb2.Timestamp
    filter: Filter
    peer: str
    def __init__(self, name: _Optional[str] = ..., checkpoint: _Optional[_Union[_event_pb2.Position, _Mapping]] = ..., connected: bool = ..., lag_bytes: _Optional[int] = ..., lag: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., last_seen: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., filter: _Optional[_Union[Filter, _Mapping]] = ..., peer: _Optional[str] = ...) -> None: ...

class ResetSubscriberRequest(_message.Message):
    __slots__ = ("subscriber", "start")
    SUBSCRIBER_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    subscriber: str
    start: Start
    def __init__(self, subscriber: _Optional[str] = ..., start: _Optional[_Union[Start, _Mapping]] = ...) -> None: ...

class ResetSubscriberResponse(_message.Message):
    __slots__ = ("checkpoint",)
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    checkpoint: _event_pb2.Position
    def __init__(self, checkpoint: _Optional[_Union[_event_pb2.Position, _Mapping]] = ...) -> None: ...

class DeleteSubscriberRequest(_message.Message):
    __slots__ = ("subscriber",)
    SUBSCRIBER_FIELD_NUMBER: _ClassVar[int]
    subscriber: str
    def __init__(self, subscriber: _Optional[str] = ...) -> None: ...

class DeleteSubscriberResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
