package walcast

import (
	"errors"
	"testing"

	"github.com/walcast/walcast/clients/go/walcastpb"
)

func snapshotBegin(restarted bool) *walcastpb.Event {
	return &walcastpb.Event{Kind: &walcastpb.Event_SnapshotBegin{SnapshotBegin: &walcastpb.SnapshotBegin{SnapshotId: "s1", Restarted: restarted}}}
}

func read(id int64) *walcastpb.Event {
	event := insert(0, id)
	event.GetChange().Operation = walcastpb.Operation_OPERATION_READ
	return event
}

func TestRowsOfASnapshotAreTransactionsThatNameIt(test *testing.T) {
	end := &walcastpb.Event{Kind: &walcastpb.Event_SnapshotEnd{SnapshotEnd: &walcastpb.SnapshotEnd{SnapshotId: "s1", Position: at(16), Rows: 2}}}
	script := func(restarted bool) script {
		return func(c *connection) error {
			c.send(opened(8, 0), snapshotBegin(restarted), relation(), read(1), read(2), end, transaction(32, 1))
			return nil
		}
	}
	var told []Event
	subscription := play(test, script(false)).subscribe(SubscribeOptions{StopAtTail: true, OnSnapshot: func(event Event) error {
		told = append(told, event)
		return nil
	}})
	rows := next(test, subscription)
	equal(test, idsOf(rows), []int64{1, 2})
	equal(test, []any{rows.SnapshotID, rows.Changes[0].Operation, rows.XID}, []any{"s1", Read, uint64(0)})
	equal(test, idsOf(next(test, subscription)), []int64{3200})
	equal(test, len(told), 2)
	fails[*SnapshotRestartedError](test, play(test, script(true)).subscribe(SubscribeOptions{StopAtTail: true}))
}

func TestTruncatesAndMessages(test *testing.T) {
	other := relation()
	other.GetRelation().RelationId, other.GetRelation().Table = 8, "u"
	truncate := &walcastpb.Event{Kind: &walcastpb.Event_Truncate{Truncate: &walcastpb.Truncate{RelationIds: []uint32{8, 7}, Ordinal: 1, Cascade: true}}}
	message := func(ordinal uint64, position *walcastpb.Position) *walcastpb.Event {
		return &walcastpb.Event{Kind: &walcastpb.Event_Message{Message: &walcastpb.LogicalMessage{
			Prefix: "p", Content: []byte("c"), Ordinal: ordinal, Lsn: "0/5", Position: position,
		}}}
	}
	subscription := play(test, func(c *connection) error {
		c.send(opened(0, 0), relation(), other, begin(16), truncate, message(2, nil), commit(16, 2), message(0, at(32)))
		return nil
	}).subscribe(SubscribeOptions{StopAtTail: true})
	tx := next(test, subscription)
	equal(test, []string{tx.Changes[0].Table(), tx.Changes[1].Table()}, []string{"public.u", "public.t"})
	equal(test, tx.Changes[1].Statement, &TruncateStatement{Tables: []string{"public.u", "public.t"}, Cascade: true})
	equal(test, tx.Messages, []Message{{"p", []byte("c"), 2, "0/5"}})
	alone := next(test, subscription)
	equal(test, []any{len(alone.Changes), len(alone.Messages), alone.Position.LSN}, []any{0, 1, "0/20"})
}

func TestAGapCannotBeMissedAndALargeTransactionIsRefused(test *testing.T) {
	gap := &walcastpb.Event{Kind: &walcastpb.Event_Gap{Gap: &walcastpb.Gap{After: at(8), UpTo: at(16), Reason: "lost"}}}
	subscription := play(test, func(c *connection) error {
		c.send(opened(0, 0), gap, relation(), transaction(32, 1))
		return nil
	}).subscribe(SubscribeOptions{StopAtTail: true})
	equal(test, fails[*GapError](test, subscription).Event.UpTo.LSN, "0/10")
	equal(test, len(all(test, subscription)), 1)

	large := play(test, func(c *connection) error {
		c.send(opened(0, 0), relation(), begin(16), insert(1, 1))
		c.untilEnded()
		return nil
	}).subscribe(SubscribeOptions{MaxTransactionBytes: 10})
	var refused *TransactionTooLargeError
	if _, err := large.Next(); !errors.As(err, &refused) {
		test.Fatal(err)
	}
}
