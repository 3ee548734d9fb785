package walcast

import (
	"time"

	"github.com/walcast/walcast/clients/go/walcastpb"
)

// Row is a row by column name. nil is NULL, [Unchanged] a value that PostgreSQL did not send, and a column that is not known
// has no entry.
type Row map[string]any

// Operation is what happened to a row or a table.
type Operation string

// The operations.
const (
	Insert   Operation = "insert"
	Update   Operation = "update"
	Delete   Operation = "delete"
	Truncate Operation = "truncate"
	// Read is a row that was already there, from a snapshot.
	Read Operation = "read"
)

var operations = [...]Operation{1: Insert, 2: Update, 3: Delete, 5: Read}

var operationNumbers = map[Operation]walcastpb.Operation{
	Insert: walcastpb.Operation_OPERATION_INSERT, Update: walcastpb.Operation_OPERATION_UPDATE,
	Delete: walcastpb.Operation_OPERATION_DELETE, Truncate: walcastpb.Operation_OPERATION_TRUNCATE,
	Read: walcastpb.Operation_OPERATION_READ,
}

// Transition is how a changed row stands to the filter's Where.
type Transition string

// The transitions; empty without a Where.
const (
	// Enter: matches now, did not before.
	Enter Transition = "enter"
	// Stay: matches before and after.
	Stay Transition = "stay"
	// Leave: matched before, does not now.
	Leave Transition = "leave"
)

var transitions = [...]Transition{1: Enter, 2: Stay, 3: Leave}

// Column is a column of one relation version.
type Column struct {
	Name string
	// Type is "int4", "timestamptz"; outside pg_catalog "schema.name".
	Type         string
	TypeOID      uint32
	TypeModifier int32
	// InIdentity: part of the replica identity.
	InIdentity bool
}

// Relation is one immutable version of a table.
type Relation struct {
	// ID is the hub's number of this version, within the stream.
	ID uint32
	// OID is pg_class.oid.
	OID uint32
	// Table is "schema.table", unquoted.
	Table string
	// Schema and Name are its parts.
	Schema, Name string
	// ReplicaIdentity is "default", "full", "index" or "nothing".
	ReplicaIdentity string
	// Columns are the selected ones.
	Columns []Column

	plan []columnPlan
}

type columnPlan struct {
	name     string
	typeName string
	decode   Decoder
}

var replicaIdentities = map[walcastpb.ReplicaIdentity]string{
	walcastpb.ReplicaIdentity_REPLICA_IDENTITY_FULL:    "full",
	walcastpb.ReplicaIdentity_REPLICA_IDENTITY_INDEX:   "index",
	walcastpb.ReplicaIdentity_REPLICA_IDENTITY_NOTHING: "nothing",
}

func newRelation(message *walcastpb.Relation, decoders map[string]Decoder) *Relation {
	relation := &Relation{
		ID: message.GetRelationId(), OID: message.GetOid(), Schema: message.GetSchema(), Name: message.GetTable(),
		Table: message.GetSchema() + "." + message.GetTable(), ReplicaIdentity: "default",
	}
	if identity, ok := replicaIdentities[message.GetReplicaIdentity()]; ok {
		relation.ReplicaIdentity = identity
	}
	for _, column := range message.GetColumns() {
		relation.Columns = append(relation.Columns, Column{
			column.GetName(), column.GetTypeName(), column.GetTypeOid(), column.GetTypeModifier(), column.GetInIdentity(),
		})
		relation.plan = append(relation.plan, columnPlan{column.GetName(), column.GetTypeName(), decoders[column.GetTypeName()]})
	}
	return relation
}

// Change is what happened to one row, or to one table of a truncate.
type Change struct {
	// Transaction that it belongs to. In [Subscription.Events] it is not known yet whether it will commit.
	Transaction *Transaction
	// Relation is the version of the table that the rows fit.
	Relation  *Relation
	Operation Operation
	// Ordinal is its number in the transaction, from 1, counted before filtering; 0 for rows of a snapshot.
	Ordinal uint64
	// Before is the row as it was: for a delete, and for an update that PostgreSQL sent the old row or key of; nil otherwise.
	Before Row
	// After is the row as it is; nil for a delete or truncate.
	After Row
	// Transition is empty without a Where.
	Transition Transition
	// Statement is what a truncate said; nil for the rest.
	Statement *TruncateStatement

	changed      []string
	changedKnown bool
}

// TruncateStatement is the statement behind one or several truncate changes.
type TruncateStatement struct {
	// Tables in the statement's order, "schema.table".
	Tables                   []string
	Cascade, RestartIdentity bool
}

// Table is "schema.table", unquoted.
func (c *Change) Table() string { return c.Relation.Table }

// LSN is that of the transaction's commit record, "X/Y": the compact form carries none per change.
func (c *Change) LSN() string { return c.Transaction.CommitLSN }

// ChangedColumns names the columns whose value an update changed; false where the old row is not known whole, that is
// without REPLICA IDENTITY FULL.
func (c *Change) ChangedColumns() ([]string, bool) { return c.changed, c.changedKnown }

// Key holds the columns of the replica identity, of the old row where there is one.
func (c *Change) Key() Row {
	row := c.Before
	if row == nil {
		row = c.After
	}
	key := Row{}
	for _, column := range c.Relation.Columns {
		if value, ok := row[column.Name]; ok && column.InIdentity {
			key[column.Name] = value
		}
	}
	return key
}

// Identity of a transaction: the same whenever it comes again.
type Identity struct {
	Lineage, CommitLSN string
	Sequence           uint32
}

// Message is a logical message, pg_logical_emit_message.
type Message struct {
	Prefix  string
	Content []byte
	// Ordinal is its number in the transaction; 0 outside of one.
	Ordinal uint64
	LSN     string
}

// Transaction is a committed transaction with what the subscription selects of it.
type Transaction struct {
	// CommitLSN is where the commit record starts, "X/Y"; the LSN for a message outside transactions.
	CommitLSN string
	Lineage   string
	// Sequence is 0 for transactions from the slot.
	Sequence uint32
	// XID is PostgreSQL's xid8; 0 for a message outside transactions and for snapshot rows.
	XID uint64
	// CommitTime is in UTC by the source's clock; zero for messages outside transactions and for snapshot rows.
	CommitTime time.Time
	// Origin is the name of the replication origin; empty for transactions of the source itself.
	Origin string
	// SnapshotID names the snapshot that these rows belong to; empty for transactions.
	SnapshotID string
	// TotalChanges counts the events of the whole transaction, before filtering.
	TotalChanges uint64
	// Position is where to resume behind this transaction; zero while it is open, in [Subscription.Events].
	Position Position
	// Changes in order; a truncate of several tables is one change per table.
	Changes []*Change
	// Messages in order.
	Messages []Message

	core   *core
	serial uint64
	raw    []rawEvent
}

// Identity is the same whenever this transaction comes again.
func (t *Transaction) Identity() Identity { return Identity{t.Lineage, t.CommitLSN, t.Sequence} }

// Ack says that everything up to and including this transaction is done. Returns at once; [Subscription.Flush] waits until
// it is durable.
func (t *Transaction) Ack() error {
	if t.core == nil || t.Position.IsZero() {
		return protocolError("only whole transactions of a subscription can be acknowledged")
	}
	return t.core.acknowledge(t.Position, t.serial)
}

func transactionFrom(begin *walcastpb.Begin) *Transaction {
	transaction := &Transaction{
		CommitLSN: begin.GetCommitLsn(), Lineage: begin.GetLineage(), Sequence: begin.GetSequence(),
		XID: begin.GetXid(), Origin: begin.GetOrigin(),
	}
	if begin.GetCommitTime() != nil {
		transaction.CommitTime = begin.GetCommitTime().AsTime()
	}
	return transaction
}

func messageFrom(event *walcastpb.LogicalMessage) Message {
	return Message{event.GetPrefix(), event.GetContent(), event.GetOrdinal(), event.GetLsn()}
}

// Opened is how a stream was opened.
type Opened struct {
	// After is the start that was resolved (exclusive).
	After Position
	// Earliest is the oldest position that the journal retains, Tail the last one when the stream was opened.
	Earliest, Tail Position
	// Session is the fencing token of a named subscriber.
	Session uint64
	// Created: the named subscriber is new.
	Created bool
	// FilterChanged: the filter differs from the one that the checkpoint was made with.
	FilterChanged bool
}

// Event is what [Subscription.Events] hands out: [*Begin], [*Change], [*MessageEvent], [*Commit], [*Discard], [*Progress],
// [*TimelineChanged], [*Gap], [*SnapshotBegin], [*SnapshotTableEnd] or [*SnapshotEnd].
type Event interface{ isEvent() }

// Begin: a transaction begins. Whether it happened is known with its Commit or Discard.
type Begin struct{ Transaction *Transaction }

// Commit: the open transaction is complete.
type Commit struct{ Transaction *Transaction }

// Discard: the open transaction never happened; drop what came since its Begin.
type Discard struct {
	Transaction *Transaction
	Reason      string
}

// MessageEvent is a logical message; its Transaction is one of its own outside transactions.
type MessageEvent struct {
	Transaction *Transaction
	Message     Message
}

// Progress: every selected change at or before Position has been sent.
type Progress struct {
	Position, Tail Position
	CaughtUp       bool
	// SourceConnected: the hub streams from PostgreSQL now.
	SourceConnected bool
	// Time is by the hub's clock.
	Time time.Time
	// Checkpoint is the durable one of a named subscriber; zero where there is none.
	Checkpoint Position
	// ExpiresIn says when Position falls off the journal at the present rate; nil while that is far.
	ExpiresIn *time.Duration
}

// LagBytes is the WAL between the position and the journal's tail.
func (p *Progress) LagBytes() uint64 {
	at, _ := ParseLSN(p.Position.LSN)
	tail, err := ParseLSN(p.Tail.LSN)
	if err != nil || p.Position.Lineage != p.Tail.Lineage || tail < at {
		return 0
	}
	return tail - at
}

func progressFrom(message *walcastpb.Progress) (*Progress, error) {
	positions, err := positionsFrom(message.GetPosition(), message.GetTail())
	if err != nil {
		return nil, err
	}
	progress := &Progress{
		Position: positions[0], Tail: positions[1], CaughtUp: message.GetCaughtUp(), SourceConnected: message.GetSourceConnected(),
	}
	if message.GetTime() != nil {
		progress.Time = message.GetTime().AsTime()
	}
	if message.GetCheckpoint() != nil {
		if progress.Checkpoint, err = positionFrom(message.GetCheckpoint()); err != nil {
			return nil, err
		}
	}
	if message.GetExpiresIn() != nil {
		expires := message.GetExpiresIn().AsDuration()
		progress.ExpiresIn = &expires
	}
	return progress, nil
}

// Retracted is a transaction that a failover took back.
type Retracted struct {
	Transaction *Transaction
	Position    Position
	// Changes counts the events of the whole transaction.
	Changes uint64
}

// TimelineChanged: the source failed over. What the old lineage has from SwitchLSN on never happened.
type TimelineChanged struct {
	OldLineage, NewLineage, SwitchLSN string
	// Retracted are the transactions that this subscription may have received and that never happened, oldest first.
	Retracted []Retracted
	// Position is where the new lineage goes on.
	Position Position
}

// Gap: changes are missing between After (exclusive) and UpTo (inclusive).
type Gap struct {
	After, UpTo Position
	Reason      string
}

// SnapshotBegin: a snapshot starts. Its rows come as transactions with a SnapshotID and changes of operation Read.
type SnapshotBegin struct {
	SnapshotID string
	// Tables in order, with the planner's estimate of rows, -1 where it has none.
	Tables []SnapshotTable
	// Restarted: drop the rows that an earlier attempt delivered.
	Restarted bool
}

// SnapshotTable is a table that a snapshot will read.
type SnapshotTable struct {
	Table         string
	EstimatedRows int64
}

// SnapshotTableEnd: a snapshot has read one table to its end.
type SnapshotTableEnd struct {
	SnapshotID, Table string
	Rows              uint64
}

// SnapshotEnd: a snapshot is complete; changes follow from Position.
type SnapshotEnd struct {
	SnapshotID string
	Position   Position
	Rows       uint64
}

func (*Begin) isEvent()            {}
func (*Change) isEvent()           {}
func (*MessageEvent) isEvent()     {}
func (*Commit) isEvent()           {}
func (*Discard) isEvent()          {}
func (*Progress) isEvent()         {}
func (*TimelineChanged) isEvent()  {}
func (*Gap) isEvent()              {}
func (*SnapshotBegin) isEvent()    {}
func (*SnapshotTableEnd) isEvent() {}
func (*SnapshotEnd) isEvent()      {}
