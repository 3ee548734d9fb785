package walcast

import (
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/walcast/walcast/clients/go/walcastpb"
)

// rawEvent is an event of a gathered transaction that has not been decoded.
type rawEvent struct {
	relation *Relation
	change   []byte
	truncate *Change
	message  *walcastpb.LogicalMessage
}

// receive takes a response message. It keeps data, which must not be used again.
func (c *core) receive(data []byte) error {
	received := c.received
	var counted, free uint64
	var relation *Relation
	err := eachEvent(data, func(change []byte) error {
		counted++
		id, err := relationOf(change)
		if err != nil {
			return err
		}
		if relation == nil || uint64(relation.ID) != id || c.relations[id] != relation {
			if relation = c.relations[id]; relation == nil {
				return protocolError("a change refers to relation %d, which was not sent", id)
			}
		}
		if c.open != nil && !c.streaming {
			c.open.raw = append(c.open.raw, rawEvent{relation: relation, change: change})
			return nil
		}
		return c.change(relation, change)
	}, func(raw []byte) error {
		var event walcastpb.Event
		if err := proto.Unmarshal(raw, &event); err != nil {
			return protocolError("%v", err)
		}
		relation = nil
		switch kind := event.GetKind().(type) {
		case *walcastpb.Event_Change: // with something more in its event
			counted++
			content, err := proto.Marshal(kind.Change)
			if err != nil {
				return err
			}
			known := c.relations[uint64(kind.Change.GetRelationId())]
			if known == nil {
				return protocolError("a change refers to relation %d, which was not sent", kind.Change.GetRelationId())
			}
			if c.open != nil && !c.streaming {
				c.open.raw = append(c.open.raw, rawEvent{relation: known, change: content})
				return nil
			}
			return c.change(known, content)
		case *walcastpb.Event_Truncate, *walcastpb.Event_Message:
			counted++
		case *walcastpb.Event_Progress, *walcastpb.Event_Opened:
			free += uint64(protowire.SizeTag(responseEvents) + protowire.SizeBytes(len(raw)))
		}
		return c.event(&event)
	})
	if err == errWire {
		err = protocolError("%v", err)
	}
	if err != nil {
		return err
	}
	c.flushRows()
	if c.open != nil && !c.streaming {
		c.openBytes += int64(len(data))
		if c.openBytes > c.options.MaxTransactionBytes {
			return &TransactionTooLargeError{c.open.CommitLSN}
		}
	}
	if !received.IsZero() && c.received != received {
		c.backoff.succeeded(c.now())
	}
	c.spend(counted, uint64(len(data))-free)
	return nil
}

func (c *core) spend(events, size uint64) {
	c.spentEvents += events
	c.spentBytes += size
	if c.spentEvents*2 >= c.options.WindowEvents || c.spentBytes*2 >= c.options.WindowBytes {
		c.outbox.grant(c.spentEvents, c.spentBytes)
		c.spentEvents, c.spentBytes = 0, 0
	}
}

func (c *core) event(event *walcastpb.Event) error {
	switch kind := event.GetKind().(type) {
	case *walcastpb.Event_Begin:
		return c.begin(kind.Begin)
	case *walcastpb.Event_Commit:
		return c.commit(kind.Commit)
	case *walcastpb.Event_Discard:
		return c.discard(kind.Discard.GetReason())
	case *walcastpb.Event_Relation:
		relation := newRelation(kind.Relation, c.decoders)
		c.relations[uint64(relation.ID)] = relation
		return nil
	case *walcastpb.Event_Truncate:
		return c.truncate(kind.Truncate)
	case *walcastpb.Event_Message:
		return c.message(kind.Message)
	case *walcastpb.Event_Opened:
		return c.openedEvent(kind.Opened)
	case nil:
		return protocolError("the hub sent an event of a kind that this version does not know")
	}
	if err := c.between(event); err != nil {
		return err
	}
	switch kind := event.GetKind().(type) {
	case *walcastpb.Event_Progress:
		progress, err := progressFrom(kind.Progress)
		if err != nil {
			return err
		}
		c.received = progress.Position
		c.ready = append(c.ready, progress)
	case *walcastpb.Event_TimelineChanged:
		return c.timelineChanged(kind.TimelineChanged)
	case *walcastpb.Event_Gap:
		positions, err := positionsFrom(kind.Gap.GetAfter(), kind.Gap.GetUpTo())
		if err != nil {
			return err
		}
		gap := &Gap{positions[0], positions[1], kind.Gap.GetReason()}
		c.received = gap.UpTo
		c.ready = append(c.ready, gap)
	case *walcastpb.Event_SnapshotBegin:
		begin := &SnapshotBegin{SnapshotID: kind.SnapshotBegin.GetSnapshotId(), Restarted: kind.SnapshotBegin.GetRestarted()}
		for _, table := range kind.SnapshotBegin.GetTables() {
			begin.Tables = append(begin.Tables, SnapshotTable{table.GetTable(), table.GetEstimatedRows()})
		}
		c.snapshotID = begin.SnapshotID
		c.ready = append(c.ready, begin)
	case *walcastpb.Event_SnapshotTableEnd:
		end := kind.SnapshotTableEnd
		c.ready = append(c.ready, &SnapshotTableEnd{end.GetSnapshotId(), end.GetTable(), end.GetRows()})
	case *walcastpb.Event_SnapshotEnd:
		end := kind.SnapshotEnd
		position, err := positionFrom(end.GetPosition())
		if err != nil {
			return err
		}
		c.received = position
		c.ready = append(c.ready, &SnapshotEnd{end.GetSnapshotId(), c.received, end.GetRows()})
	default:
		return protocolError("the hub sent %T, which this version does not know", kind)
	}
	return nil
}

func (c *core) openedEvent(message *walcastpb.Opened) error {
	at, err := positionsFrom(message.GetAfter(), message.GetEarliest(), message.GetTail())
	if err != nil {
		return err
	}
	opened := &Opened{at[0], at[1], at[2], message.GetSession(), message.GetCreated(), message.GetFilterChanged()}
	c.mu.Lock()
	c.opened = opened
	first := c.received.IsZero()
	if first {
		c.handedAt = opened.After
	}
	c.mu.Unlock()
	if opened.FilterChanged {
		c.log.Warn("the filter differs from the checkpoint's", "subscriber", c.options.Subscriber)
	}
	c.log.Debug("stream opened", "after", opened.After.LSN)
	if first {
		c.received, c.firstAfter = opened.After, opened.After
		if c.options.Subscriber != "" && c.useFirstStart {
			// From now on the subscriber has a place of its own, whatever happens before its first transaction.
			return c.acknowledge(opened.After, 0)
		}
	}
	return nil
}

// between checks that no transaction is open.
func (c *core) between(event *walcastpb.Event) error {
	if c.open != nil {
		return protocolError("%T inside a transaction", event.GetKind())
	}
	c.flushRows()
	c.settleInterrupted()
	return nil
}

func (c *core) settleInterrupted() {
	if c.interrupted != nil {
		c.ready = append(c.ready, &Discard{c.interrupted, "it did not come again after a reconnect"})
		c.interrupted = nil
	}
}

func (c *core) begin(begin *walcastpb.Begin) error {
	if c.open != nil {
		return protocolError("a transaction begins inside another")
	}
	c.flushRows()
	transaction := transactionFrom(begin)
	transaction.core = c
	c.skipUntil, c.ordinal = 0, 0
	if c.interrupted != nil && c.interrupted.Identity() == transaction.Identity() {
		transaction, c.skipUntil = c.interrupted, c.interruptedAt
		c.interrupted = nil
	} else {
		c.settleInterrupted()
		if c.streaming {
			c.ready = append(c.ready, &Begin{transaction})
		}
	}
	if !c.streaming && c.typical > 1 {
		transaction.raw = make([]rawEvent, 0, min(c.typical, 1024))
	}
	c.open, c.openBytes = transaction, 0
	return nil
}

func (c *core) commit(commit *walcastpb.Commit) error {
	transaction := c.open
	if transaction == nil {
		return protocolError("commit without begin")
	}
	c.open = nil
	c.typical += (len(transaction.raw) - c.typical) / 4
	var err error
	if transaction.Position, err = positionFrom(commit.GetPosition()); err != nil {
		return err
	}
	transaction.TotalChanges = commit.GetTotalChanges()
	if c.received.Reaches(transaction.Position) {
		c.log.Debug("a transaction came again and is dropped", "commit_lsn", transaction.CommitLSN)
		if c.streaming {
			c.ready = append(c.ready, &Discard{transaction, "it came before"})
		}
		return nil
	}
	c.received = transaction.Position
	if c.streaming {
		c.ready = append(c.ready, &Commit{transaction})
	} else {
		c.ready = append(c.ready, transaction)
	}
	return nil
}

func (c *core) discard(reason string) error {
	transaction := c.open
	if transaction == nil {
		return protocolError("discard without begin")
	}
	c.open = nil
	if c.streaming {
		c.ready = append(c.ready, &Discard{transaction, reason})
	}
	return nil
}

// change: one that is not gathered into a transaction.
func (c *core) change(relation *Relation, data []byte) error {
	var raw rawChange
	if err := parseChange(data, &raw); err != nil {
		return err
	}
	if c.open != nil {
		if raw.ordinal <= c.skipUntil {
			return nil
		}
		c.ordinal = raw.ordinal
		change, err := decodeChange(c.open, relation, &raw)
		if err == nil {
			c.ready = append(c.ready, change)
		}
		return err
	}
	if raw.operation != uint64(walcastpb.Operation_OPERATION_READ) {
		return protocolError("a change outside a transaction")
	}
	if c.rows == nil {
		if c.received.IsZero() {
			return protocolError("a row before opened")
		}
		at := c.received
		c.rows = &Transaction{CommitLSN: at.LSN, Lineage: at.Lineage, Sequence: at.Sequence, SnapshotID: c.snapshotID, Position: at, core: c}
	}
	if !c.streaming {
		c.rows.raw = append(c.rows.raw, rawEvent{relation: relation, change: data})
		return nil
	}
	change, err := decodeChange(c.rows, relation, &raw)
	if err == nil {
		c.ready = append(c.ready, change)
	}
	return err
}

func (c *core) flushRows() {
	if c.rows != nil && !c.streaming {
		c.ready = append(c.ready, c.rows)
	}
	c.rows = nil
}

func (c *core) truncate(event *walcastpb.Truncate) error {
	for _, id := range event.GetRelationIds() {
		if c.relations[uint64(id)] == nil {
			return protocolError("a truncate refers to relation %d, which was not sent", id)
		}
	}
	transaction := c.open
	switch {
	case transaction == nil:
		return protocolError("a truncate outside a transaction")
	case !c.streaming:
		for _, change := range truncates(transaction, event, c.relations) {
			transaction.raw = append(transaction.raw, rawEvent{truncate: change})
		}
	case event.GetOrdinal() > c.skipUntil:
		c.ordinal = event.GetOrdinal()
		for _, change := range truncates(transaction, event, c.relations) {
			c.ready = append(c.ready, change)
		}
	}
	return nil
}

func truncates(transaction *Transaction, event *walcastpb.Truncate, relations map[uint64]*Relation) []*Change {
	statement := &TruncateStatement{Cascade: event.GetCascade(), RestartIdentity: event.GetRestartIdentity()}
	changes := make([]*Change, 0, len(event.GetRelationIds()))
	for _, id := range event.GetRelationIds() {
		relation := relations[uint64(id)]
		statement.Tables = append(statement.Tables, relation.Table)
		changes = append(changes, &Change{
			Transaction: transaction, Relation: relation, Operation: Truncate, Ordinal: event.GetOrdinal(), Statement: statement,
		})
	}
	return changes
}

func (c *core) message(event *walcastpb.LogicalMessage) error {
	transaction := c.open
	if transaction != nil {
		if !c.streaming {
			transaction.raw = append(transaction.raw, rawEvent{message: event})
		} else if event.GetOrdinal() > c.skipUntil {
			c.ordinal = event.GetOrdinal()
			c.ready = append(c.ready, &MessageEvent{transaction, messageFrom(event)})
		}
		return nil
	}
	if event.GetPosition() == nil {
		return protocolError("a transactional message outside a transaction")
	}
	c.flushRows()
	c.settleInterrupted()
	position, err := positionFrom(event.GetPosition())
	if err != nil {
		return err
	}
	if c.received.Reaches(position) {
		return nil
	}
	c.received = position
	alone := &Transaction{
		CommitLSN: event.GetLsn(), Lineage: position.Lineage, Sequence: position.Sequence, TotalChanges: 1, Position: position, core: c,
	}
	if c.streaming {
		c.ready = append(c.ready, &MessageEvent{alone, messageFrom(event)}, &Commit{alone})
	} else {
		alone.raw = []rawEvent{{message: event}}
		c.ready = append(c.ready, alone)
	}
	return nil
}

func (c *core) timelineChanged(message *walcastpb.TimelineChanged) error {
	var err error
	for _, entry := range message.GetRetracted() {
		transaction := transactionFrom(entry.GetBegin())
		if transaction.Position, err = positionFrom(entry.GetPosition()); err != nil {
			return err
		}
		c.retracted = append(c.retracted, Retracted{transaction, transaction.Position, entry.GetChanges()})
	}
	if message.GetMore() {
		return nil
	}
	position, err := positionFrom(message.GetPosition())
	if err != nil {
		return err
	}
	event := &TimelineChanged{message.GetOldLineage(), message.GetNewLineage(), message.GetSwitchLsn(), c.retracted, position}
	c.retracted = nil
	c.received = event.Position
	if !c.forks[[3]string{event.OldLineage, event.NewLineage, event.SwitchLSN}] {
		c.ready = append(c.ready, event)
	}
	return nil
}

func decodeChange(transaction *Transaction, relation *Relation, raw *rawChange) (*Change, error) {
	change := &Change{}
	return change, change.decode(transaction, relation, raw)
}

// decode fills a new change.
func (change *Change) decode(transaction *Transaction, relation *Relation, raw *rawChange) error {
	if raw.operation >= uint64(len(operations)) || operations[raw.operation] == "" {
		return protocolError("operation %d is not known to this version", raw.operation)
	}
	operation := operations[raw.operation]
	change.Transaction, change.Relation, change.Operation, change.Ordinal = transaction, relation, operation, raw.ordinal
	if raw.transition < uint64(len(transitions)) {
		change.Transition = transitions[raw.transition]
	}
	var err error
	if raw.hasBefore {
		if change.Before, err = relation.decode(raw.before); err != nil {
			return err
		}
	}
	if raw.hasAfter {
		if change.After, err = relation.decode(raw.after); err != nil {
			return err
		}
	}
	if raw.hasBefore && raw.hasAfter && operation == Update && relation.ReplicaIdentity == "full" {
		change.changed, change.changedKnown = relation.changed(raw.before, raw.after)
	}
	return nil
}

// changesAtOnce bounds how many changes are allocated together, and so are kept if one of them is.
const changesAtOnce = 32

// each decodes the gathered events one by one, until the function says no.
func (t *Transaction) each(change func(*Change) bool, message func(Message)) error {
	events := t.raw
	t.raw = nil
	var raw rawChange
	var fresh []Change
	for i := range events {
		event := &events[i]
		switch {
		case event.message != nil:
			message(messageFrom(event.message))
			continue
		case event.truncate != nil:
			if !change(event.truncate) {
				return nil
			}
			continue
		}
		if err := parseChange(event.change, &raw); err != nil {
			return protocolError("%v", err)
		}
		if len(fresh) == 0 {
			fresh = make([]Change, min(changesAtOnce, len(events)-i))
		}
		decoded := &fresh[0]
		fresh = fresh[1:]
		err := decoded.decode(t, event.relation, &raw)
		if err == errWire {
			err = protocolError("%v", err)
		}
		if err != nil {
			return err
		}
		event.change = nil
		if !change(decoded) {
			return nil
		}
	}
	return nil
}

// decode fills Changes and Messages.
func (t *Transaction) decode() error {
	t.Changes = make([]*Change, 0, len(t.raw))
	return t.each(func(change *Change) bool {
		t.Changes = append(t.Changes, change)
		return true
	}, func(message Message) { t.Messages = append(t.Messages, message) })
}
