from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import struct_pb2 as _struct_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Operation(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OPERATION_UNSPECIFIED: _ClassVar[Operation]
    OPERATION_INSERT: _ClassVar[Operation]
    OPERATION_UPDATE: _ClassVar[Operation]
    OPERATION_DELETE: _ClassVar[Operation]
    OPERATION_TRUNCATE: _ClassVar[Operation]
    OPERATION_READ: _ClassVar[Operation]

class Missing(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MISSING_UNSPECIFIED: _ClassVar[Missing]
    MISSING_NULL: _ClassVar[Missing]
    MISSING_UNCHANGED: _ClassVar[Missing]
    MISSING_ABSENT: _ClassVar[Missing]

class Transition(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TRANSITION_UNSPECIFIED: _ClassVar[Transition]
    TRANSITION_ENTER: _ClassVar[Transition]
    TRANSITION_STAY: _ClassVar[Transition]
    TRANSITION_LEAVE: _ClassVar[Transition]

class ReplicaIdentity(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REPLICA_IDENTITY_UNSPECIFIED: _ClassVar[ReplicaIdentity]
    REPLICA_IDENTITY_DEFAULT: _ClassVar[ReplicaIdentity]
    REPLICA_IDENTITY_FULL: _ClassVar[ReplicaIdentity]
    REPLICA_IDENTITY_INDEX: _ClassVar[ReplicaIdentity]
    REPLICA_IDENTITY_NOTHING: _ClassVar[ReplicaIdentity]

class Provenance(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PROVENANCE_UNSPECIFIED: _ClassVar[Provenance]
    PROVENANCE_SLOT: _ClassVar[Provenance]
    PROVENANCE_LOG_REPLAY: _ClassVar[Provenance]
    PROVENANCE_LOG_POLL: _ClassVar[Provenance]

class SnapshotMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SNAPSHOT_MODE_UNSPECIFIED: _ClassVar[SnapshotMode]
    SNAPSHOT_MODE_CONSISTENT: _ClassVar[SnapshotMode]
    SNAPSHOT_MODE_INCREMENTAL: _ClassVar[SnapshotMode]
OPERATION_UNSPECIFIED: Operation
OPERATION_INSERT: Operation
OPERATION_UPDATE: Operation
OPERATION_DELETE: Operation
OPERATION_TRUNCATE: Operation
OPERATION_READ: Operation
MISSING_UNSPECIFIED: Missing
MISSING_NULL: Missing
MISSING_UNCHANGED: Missing
MISSING_ABSENT: Missing
TRANSITION_UNSPECIFIED: Transition
TRANSITION_ENTER: Transition
TRANSITION_STAY: Transition
TRANSITION_LEAVE: Transition
REPLICA_IDENTITY_UNSPECIFIED: ReplicaIdentity
REPLICA_IDENTITY_DEFAULT: ReplicaIdentity
REPLICA_IDENTITY_FULL: ReplicaIdentity
REPLICA_IDENTITY_INDEX: ReplicaIdentity
REPLICA_IDENTITY_NOTHING: ReplicaIdentity
PROVENANCE_UNSPECIFIED: Provenance
PROVENANCE_SLOT: Provenance
PROVENANCE_LOG_REPLAY: Provenance
PROVENANCE_LOG_POLL: Provenance
SNAPSHOT_MODE_UNSPECIFIED: SnapshotMode
SNAPSHOT_MODE_CONSISTENT: SnapshotMode
SNAPSHOT_MODE_INCREMENTAL: SnapshotMode

class Position(_message.Message):
    __slots__ = ("lsn", "lineage", "sequence", "snapshot")
    LSN_FIELD_NUMBER: _ClassVar[int]
    LINEAGE_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    lsn: str
    lineage: str
    sequence: int
    snapshot: bytes
    def __init__(self, lsn: _Optional[str] = ..., lineage: _Optional[str] = ..., sequence: _Optional[int] = ..., snapshot: _Optional[bytes] = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("begin", "relation", "change", "truncate", "message", "commit", "progress", "discard", "opened", "timeline_changed", "gap", "snapshot_begin", "snapshot_table_end", "snapshot_end")
    BEGIN_FIELD_NUMBER: _ClassVar[int]
    RELATION_FIELD_NUMBER: _ClassVar[int]
    CHANGE_FIELD_NUMBER: _ClassVar[int]
    TRUNCATE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    COMMIT_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    DISCARD_FIELD_NUMBER: _ClassVar[int]
    OPENED_FIELD_NUMBER: _ClassVar[int]
    TIMELINE_CHANGED_FIELD_NUMBER: _ClassVar[int]
    GAP_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_BEGIN_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_TABLE_END_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_END_FIELD_NUMBER: _ClassVar[int]
    begin: Begin
    relation: Relation
    change: Change
    truncate: Truncate
    message: LogicalMessage
    commit: Commit
    progress: Progress
    discard: Discard
    opened: Opened
    timeline_changed: TimelineChanged
    gap: Gap
    snapshot_begin: SnapshotBegin
    snapshot_table_end: SnapshotTableEnd
    snapshot_end: SnapshotEnd
    def __init__(self, begin: _Optional[_Union[Begin, _Mapping]] = ..., relation: _Optional[_Union[Relation, _Mapping]] = ..., change: _Optional[_Union[Change, _Mapping]] = ..., truncate: _Optional[_Union[Truncate, _Mapping]] = ..., message: _Optional[_Union[LogicalMessage, _Mapping]] = ..., commit: _Optional[_Union[Commit, _Mapping]] = ..., progress: _Optional[_Union[Progress, _Mapping]] = ..., discard: _Optional[_Union[Discard, _Mapping]] = ..., opened: _Optional[_Union[Opened, _Mapping]] = ..., timeline_changed: _Optional[_Union[TimelineChanged, _Mapping]] = ..., gap: _Optional[_Union[Gap, _Mapping]] = ..., snapshot_begin: _Optional[_Union[SnapshotBegin, _Mapping]] = ..., snapshot_table_end: _Optional[_Union[SnapshotTableEnd, _Mapping]] = ..., snapshot_end: _Optional[_Union[SnapshotEnd, _Mapping]] = ...) -> None: ...

class Opened(_message.Message):
    __slots__ = ("after", "earliest", "tail", "session", "created", "filter_changed")
    AFTER_FIELD_NUMBER: _ClassVar[int]
    EARLIEST_FIELD_NUMBER: _ClassVar[int]
    TAIL_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    FILTER_CHANGED_FIELD_NUMBER: _ClassVar[int]
    after: Position
    earliest: Position
    tail: Position
    session: int
    created: bool
    filter_changed: bool
    def __init__(self, after: _Optional[_Union[Position, _Mapping]] = ..., earliest: _Optional[_Union[Position, _Mapping]] = ..., tail: _Optional[_Union[Position, _Mapping]] = ..., session: _Optional[int] = ..., created: bool = ..., filter_changed: bool = ...) -> None: ...

class Begin(_message.Message):
    __slots__ = ("commit_lsn", "lineage", "sequence", "xid", "commit_time", "origin", "provenance")
    COMMIT_LSN_FIELD_NUMBER: _ClassVar[int]
    LINEAGE_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    XID_FIELD_NUMBER: _ClassVar[int]
    COMMIT_TIME_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    commit_lsn: str
    lineage: str
    sequence: int
    xid: int
    commit_time: _timestamp_pb2.Timestamp
    origin: str
    provenance: Provenance
    def __init__(self, commit_lsn: _Optional[str] = ..., lineage: _Optional[str] = ..., sequence: _Optional[int] = ..., xid: _Optional[int] = ..., commit_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., origin: _Optional[str] = ..., provenance: _Optional[_Union[Provenance, str]] = ...) -> None: ...

class Commit(_message.Message):
    __slots__ = ("position", "changes", "total_changes")
    POSITION_FIELD_NUMBER: _ClassVar[int]
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    TOTAL_CHANGES_FIELD_NUMBER: _ClassVar[int]
    position: Position
    changes: int
    total_changes: int
    def __init__(self, position: _Optional[_Union[Position, _Mapping]] = ..., changes: _Optional[int] = ..., total_changes: _Optional[int] = ...) -> None: ...

class Discard(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class Relation(_message.Message):
    __slots__ = ("relation_id", "oid", "schema", "table", "replica_identity", "columns")
    RELATION_ID_FIELD_NUMBER: _ClassVar[int]
    OID_FIELD_NUMBER: _ClassVar[int]
    SCHEMA_FIELD_NUMBER: _ClassVar[int]
    TABLE_FIELD_NUMBER: _ClassVar[int]
    REPLICA_IDENTITY_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    relation_id: int
    oid: int
    schema: str
    table: str
    replica_identity: ReplicaIdentity
    columns: _containers.RepeatedCompositeFieldContainer[Column]
    def __init__(self, relation_id: _Optional[int] = ..., oid: _Optional[int] = ..., schema: _Optional[str] = ..., table: _Optional[str] = ..., replica_identity: _Optional[_Union[ReplicaIdentity, str]] = ..., columns: _Optional[_Iterable[_Union[Column, _Mapping]]] = ...) -> None: ...

class Column(_message.Message):
    __slots__ = ("name", "type_oid", "type_name", "type_modifier", "in_identity")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TYPE_OID_FIELD_NUMBER: _ClassVar[int]
    TYPE_NAME_FIELD_NUMBER: _ClassVar[int]
    TYPE_MODIFIER_FIELD_NUMBER: _ClassVar[int]
    IN_IDENTITY_FIELD_NUMBER: _ClassVar[int]
    name: str
    type_oid: int
    type_name: str
    type_modifier: int
    in_identity: bool
    def __init__(self, name: _Optional[str] = ..., type_oid: _Optional[int] = ..., type_name: _Optional[str] = ..., type_modifier: _Optional[int] = ..., in_identity: bool = ...) -> None: ...

class Change(_message.Message):
    __slots__ = ("operation", "relation_id", "ordinal", "before_row", "after_row", "before", "after", "unchanged", "table", "lsn", "transition")
    OPERATION_FIELD_NUMBER: _ClassVar[int]
    RELATION_ID_FIELD_NUMBER: _ClassVar[int]
    ORDINAL_FIELD_NUMBER: _ClassVar[int]
    BEFORE_ROW_FIELD_NUMBER: _ClassVar[int]
    AFTER_ROW_FIELD_NUMBER: _ClassVar[int]
    BEFORE_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    UNCHANGED_FIELD_NUMBER: _ClassVar[int]
    TABLE_FIELD_NUMBER: _ClassVar[int]
    LSN_FIELD_NUMBER: _ClassVar[int]
    TRANSITION_FIELD_NUMBER: _ClassVar[int]
    operation: Operation
    relation_id: int
    ordinal: int
    before_row: Row
    after_row: Row
    before: _struct_pb2.Struct
    after: _struct_pb2.Struct
    unchanged: _containers.RepeatedScalarFieldContainer[str]
    table: str
    lsn: str
    transition: Transition
    def __init__(self, operation: _Optional[_Union[Operation, str]] = ..., relation_id: _Optional[int] = ..., ordinal: _Optional[int] = ..., before_row: _Optional[_Union[Row, _Mapping]] = ..., after_row: _Optional[_Union[Row, _Mapping]] = ..., before: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., after: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., unchanged: _Optional[_Iterable[str]] = ..., table: _Optional[str] = ..., lsn: _Optional[str] = ..., transition: _Optional[_Union[Transition, str]] = ...) -> None: ...

class Row(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedCompositeFieldContainer[Value]
    def __init__(self, values: _Optional[_Iterable[_Union[Value, _Mapping]]] = ...) -> None: ...

class Value(_message.Message):
    __slots__ = ("missing", "bool_value", "int_value", "float_value", "bytes_value", "text", "raw_text")
    MISSING_FIELD_NUMBER: _ClassVar[int]
    BOOL_VALUE_FIELD_NUMBER: _ClassVar[int]
    INT_VALUE_FIELD_NUMBER: _ClassVar[int]
    FLOAT_VALUE_FIELD_NUMBER: _ClassVar[int]
    BYTES_VALUE_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    RAW_TEXT_FIELD_NUMBER: _ClassVar[int]
    missing: Missing
    bool_value: bool
    int_value: int
    float_value: float
    bytes_value: bytes
    text: str
    raw_text: bytes
    def __init__(self, missing: _Optional[_Union[Missing, str]] = ..., bool_value: bool = ..., int_value: _Optional[int] = ..., float_value: _Optional[float] = ..., bytes_value: _Optional[bytes] = ..., text: _Optional[str] = ..., raw_text: _Optional[bytes] = ...) -> None: ...

class Truncate(_message.Message):
    __slots__ = ("relation_ids", "cascade", "restart_identity", "ordinal", "tables")
    RELATION_IDS_FIELD_NUMBER: _ClassVar[int]
    CASCADE_FIELD_NUMBER: _ClassVar[int]
    RESTART_IDENTITY_FIELD_NUMBER: _ClassVar[int]
    ORDINAL_FIELD_NUMBER: _ClassVar[int]
    TABLES_FIELD_NUMBER: _ClassVar[int]
    relation_ids: _containers.RepeatedScalarFieldContainer[int]
    cascade: bool
    restart_identity: bool
    ordinal: int
    tables: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, relation_ids: _Optional[_Iterable[int]] = ..., cascade: bool = ..., restart_identity: bool = ..., ordinal: _Optional[int] = ..., tables: _Optional[_Iterable[str]] = ...) -> None: ...

class LogicalMessage(_message.Message):
    __slots__ = ("prefix", "content", "ordinal", "lsn", "position")
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    ORDINAL_FIELD_NUMBER: _ClassVar[int]
    LSN_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    prefix: str
    content: bytes
    ordinal: int
    lsn: str
    position: Position
    def __init__(self, prefix: _Optional[str] = ..., content: _Optional[bytes] = ..., ordinal: _Optional[int] = ..., lsn: _Optional[str] = ..., position: _Optional[_Union[Position, _Mapping]] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("position", "tail", "caught_up", "source_connected", "time", "checkpoint", "credit", "expires_in")
    POSITION_FIELD_NUMBER: _ClassVar[int]
    TAIL_FIELD_NUMBER: _ClassVar[int]
    CAUGHT_UP_FIELD_NUMBER: _ClassVar[int]
    SOURCE_CONNECTED_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    CREDIT_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_IN_FIELD_NUMBER: _ClassVar[int]
    position: Position
    tail: Position
    caught_up: bool
    source_connected: bool
    time: _timestamp_pb2.Timestamp
    checkpoint: Position
    credit: Credit
    expires_in: _duration_pb2.Duration
    def __init__(self, position: _Optional[_Union[Position, _Mapping]] = ..., tail: _Optional[_Union[Position, _Mapping]] = ..., caught_up: bool = ..., source_connected: bool = ..., time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., checkpoint: _Optional[_Union[Position, _Mapping]] = ..., credit: _Optional[_Union[Credit, _Mapping]] = ..., expires_in: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class Credit(_message.Message):
    __slots__ = ("events", "bytes")
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    events: int
    bytes: int
    def __init__(self, events: _Optional[int] = ..., bytes: _Optional[int] = ...) -> None: ...

class TimelineChanged(_message.Message):
    __slots__ = ("old_lineage", "new_lineage", "switch_lsn", "retracted", "more", "position")
    OLD_LINEAGE_FIELD_NUMBER: _ClassVar[int]
    NEW_LINEAGE_FIELD_NUMBER: _ClassVar[int]
    SWITCH_LSN_FIELD_NUMBER: _ClassVar[int]
    RETRACTED_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    old_lineage: str
    new_lineage: str
    switch_lsn: str
    retracted: _containers.RepeatedCompositeFieldContainer[Retracted]
    more: bool
    position: Position
    def __init__(self, old_lineage: _Optional[str] = ..., new_lineage: _Optional[str] = ..., switch_lsn: _Optional[str] = ..., retracted: _Optional[_Iterable[_Union[Retracted, _Mapping]]] = ..., more: bool = ..., position: _Optional[_Union[Position, _Mapping]] = ...) -> None: ...

class Retracted(_message.Message):
    __slots__ = ("begin", "position", "changes")
    BEGIN_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    begin: Begin
    position: Position
    changes: int
    def __init__(self, begin: _Optional[_Union[Begin, _Mapping]] = ..., position: _Optional[_Union[Position, _Mapping]] = ..., changes: _Optional[int] = ...) -> None: ...

class Gap(_message.Message):
    __slots__ = ("after", "up_to", "reason")
    AFTER_FIELD_NUMBER: _ClassVar[int]
    UP_TO_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    after: Position
    up_to: Position
    reason: str
    def __init__(self, after: _Optional[_Union[Position, _Mapping]] = ..., up_to: _Optional[_Union[Position, _Mapping]] = ..., reason: _Optional[str] = ...) -> None: ...

class SnapshotBegin(_message.Message):
    __slots__ = ("snapshot_id", "mode", "tables", "restarted")
    SNAPSHOT_ID_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    TABLES_FIELD_NUMBER: _ClassVar[int]
    RESTARTED_FIELD_NUMBER: _ClassVar[int]
    snapshot_id: str
    mode: SnapshotMode
    tables: _containers.RepeatedCompositeFieldContainer[SnapshotTable]
    restarted: bool
    def __init__(self, snapshot_id: _Optional[str] = ..., mode: _Optional[_Union[SnapshotMode, str]] = ..., tables: _Optional[_Iterable[_Union[SnapshotTable, _Mapping]]] = ..., restarted: bool = ...) -> None: ...

class SnapshotTable(_message.Message):
    __slots__ = ("table", "estimated_rows")
    TABLE_FIELD_NUMBER: _ClassVar[int]
    ESTIMATED_ROWS_FIELD_NUMBER: _ClassVar[int]
    table: str
    estimated_rows: int
    def __init__(self, table: _Optional[str] = ..., estimated_rows: _Optional[int] = ...) -> None: ...

class SnapshotTableEnd(_message.Message):
    __slots__ = ("snapshot_id", "table", "rows")
    SNAPSHOT_ID_FIELD_NUMBER: _ClassVar[int]
    TABLE_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    snapshot_id: str
    table: str
    rows: int
    def __init__(self, snapshot_id: _Optional[str] = ..., table: _Optional[str] = ..., rows: _Optional[int] = ...) -> None: ...

class SnapshotEnd(_message.Message):
    __slots__ = ("snapshot_id", "position", "rows")
    SNAPSHOT_ID_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    snapshot_id: str
    position: Position
    rows: int
    def __init__(self, snapshot_id: _Optional[str] = ..., position: _Optional[_Union[Position, _Mapping]] = ..., rows: _Optional[int] = ...) -> None: ...
