package walcast

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"github.com/walcast/walcast/clients/go/walcastpb"
)

// What a subscription does with a stream that breaks, repeats itself, or says something new.

func all(test *testing.T, subscription *Subscription) [][]int64 {
	test.Helper()
	var ids [][]int64
	for tx, err := range subscription.Transactions() {
		if err != nil {
			test.Fatal(err)
		}
		ids = append(ids, idsOf(tx))
	}
	return ids
}

func idsOf(tx *Transaction) []int64 {
	var ids []int64
	for _, change := range tx.Changes {
		ids = append(ids, change.After["id"].(int64))
	}
	return ids
}

func equal(test *testing.T, got, wanted any) {
	test.Helper()
	if !reflect.DeepEqual(got, wanted) {
		test.Fatalf("%v instead of %v", got, wanted)
	}
}

func next(test *testing.T, subscription *Subscription) *Transaction {
	test.Helper()
	tx, err := subscription.Next()
	if err != nil {
		test.Fatal(err)
	}
	return tx
}

// fails gives the error that the next transaction ends in, as the type that is asked for.
func fails[E error](test *testing.T, subscription *Subscription) E {
	test.Helper()
	tx, err := subscription.Next()
	var wanted E
	if !errors.As(err, &wanted) {
		test.Fatalf("%v, %T %v instead of %T", tx, err, err, wanted)
	}
	return wanted
}

func first(c *connection) error {
	c.send(opened(0, 0), relation(), transaction(16, 1), transaction(32, 2))
	c.send(begin(48), insert(1, 4800))
	return lost
}

func second(c *connection) error {
	if !proto.Equal(c.open.GetStart().GetAfter(), at(32)) {
		c.test.Errorf("it does not resume behind what was received whole: %v", c.open.GetStart())
	}
	c.send(opened(32, 0), relation(), transaction(32, 2), transaction(48, 2), progress(64))
	return nil
}

func TestABrokenStreamGoesOnWithoutLossOrRepeat(test *testing.T) {
	h := play(test, first, second)
	var lostWith []error
	subscription := h.subscribe(SubscribeOptions{
		Start: Earliest, StopAtTail: true, OnReconnect: func(err error, _ time.Duration) { lostWith = append(lostWith, err) },
	})
	equal(test, all(test, subscription), [][]int64{{1600}, {3200, 3201}, {4800, 4801}})
	var connection *ConnectionLostError
	if len(lostWith) != 1 || !errors.As(lostWith[0], &connection) {
		test.Fatal(lostWith)
	}
	equal(test, subscription.Position(), Position{LSN: "0/40", Lineage: lineage})
}

func TestChangesAreFlattened(test *testing.T) {
	var ids []int64
	for change, err := range play(test, first, second).subscribe(SubscribeOptions{StopAtTail: true}).Changes() {
		if err != nil {
			test.Fatal(err)
		}
		ids = append(ids, change.After["id"].(int64))
	}
	equal(test, ids, []int64{1600, 3200, 3201, 4800, 4801})
}

func kinds(test *testing.T, subscription *Subscription) []string {
	test.Helper()
	var kinds []string
	for event, err := range subscription.Events() {
		if err != nil {
			test.Fatal(err)
		}
		if change, ok := event.(*Change); ok {
			kinds = append(kinds, fmt.Sprint(change.After["id"]))
		} else {
			kinds = append(kinds, strings.TrimPrefix(fmt.Sprintf("%T", event), "*walcast."))
		}
	}
	return kinds
}

func TestEventsContinueInsideATransaction(test *testing.T) {
	got := kinds(test, play(test, first, second).subscribe(SubscribeOptions{StopAtTail: true}))
	equal(test, strings.Join(got, " "), "Begin 1600 Commit Begin 3200 3201 Commit Begin 4800 "+
		"Discard Begin 3200 3201 Discard Begin 4800 4801 Commit Progress")
}

func TestEventsDropRepeatsByIdentity(test *testing.T) {
	again := func(c *connection) error {
		c.send(opened(32, 0), relation(), transaction(48, 3))
		return nil
	}
	got := kinds(test, play(test, first, again).subscribe(SubscribeOptions{StopAtTail: true}))
	equal(test, strings.Join(got, " "), "Begin 1600 Commit Begin 3200 3201 Commit Begin 4800 4801 4802 Commit")
}

func TestEventsComeFirst(test *testing.T) {
	subscription := play(test, first, second).subscribe(SubscribeOptions{StopAtTail: true})
	next(test, subscription)
	for _, err := range subscription.Events() {
		if err == nil {
			test.Fatal("events after transactions")
		}
	}
}

func TestADiscardedTransactionNeverComes(test *testing.T) {
	discard := &walcastpb.Event{Kind: &walcastpb.Event_Discard{Discard: &walcastpb.Discard{Reason: "made anew"}}}
	h := play(test, func(c *connection) error {
		c.send(opened(0, 0), relation(), begin(16), insert(1, 1))
		c.send(discard, transaction(16, 1))
		return nil
	})
	equal(test, all(test, h.subscribe(SubscribeOptions{StopAtTail: true})), [][]int64{{1600}})
}

func TestAutoAckFollowsTheLoopBody(test *testing.T) {
	two := func(c *connection) error {
		c.send(opened(0, 3), relation(), transaction(16, 1), transaction(32, 1))
		c.untilEnded()
		return nil
	}
	h := play(test, two, two)
	left := h.subscribe(SubscribeOptions{Subscriber: "s"})
	next(test, left)
	if err := left.Close(); err != nil { // makes durable what was acknowledged
		test.Fatal(err)
	}
	h.connection(0).untilEnded()
	equal(test, h.connection(0).acked(), []string{}) // it was still in the user's hands
	equal(test, len(h.unaryAcks), 0)
	subscription := h.subscribe(SubscribeOptions{Subscriber: "s"})
	next(test, subscription)
	for range subscription.Transactions() {
		break
	}
	h.connection(1).untilAcked(16)
	if err := subscription.Close(); err != nil {
		test.Fatal(err)
	}
	h.connection(1).untilEnded()
	equal(test, h.connection(1).acked(), []string{"0/10"})
	equal(test, len(h.unaryAcks), 1)
	equal(test, h.unaryAcks[0].GetPosition().GetLsn(), "0/10")
	equal(test, h.unaryAcks[0].GetSession(), uint64(3))
}

func TestAcksAreGathered(test *testing.T) {
	h := play(test, func(c *connection) error {
		c.send(opened(0, 1), relation())
		for number := uint64(1); number <= 500; number++ {
			c.send(transaction(number*16, 1))
		}
		c.send(progress(501 * 16))
		c.untilAcked(501 * 16)
		return nil
	})
	equal(test, len(all(test, h.subscribe(SubscribeOptions{Subscriber: "s", StopAtTail: true}))), 500)
	acks := h.connection(0).acked()
	if len(acks) > 100 {
		test.Fatalf("%d acknowledgements", len(acks))
	}
	for i := 1; i < len(acks); i++ {
		if (Position{LSN: acks[i-1]}).Reaches(Position{LSN: acks[i]}) {
			test.Fatal(acks)
		}
	}
}

func TestExplicitAcksHoldProgressBack(test *testing.T) {
	h := play(test, func(c *connection) error {
		c.send(opened(0, 1), relation(), progress(8))
		c.untilAcked(8)
		c.send(transaction(16, 1), progress(32), transaction(48, 1))
		c.untilEnded()
		return nil
	})
	subscription := h.subscribe(SubscribeOptions{Subscriber: "s", ManualAck: true})
	one, two := next(test, subscription), next(test, subscription)
	if err := one.Ack(); err != nil {
		test.Fatal(err)
	}
	h.connection(0).untilAcked(16)
	// Acknowledgements only go forward: one of 0/20 would have kept this one back.
	equal(test, h.connection(0).acked(), []string{"0/8", "0/10"})
	var ahead *AckAheadError
	if err := subscription.Ack(Position{LSN: "0/50", Lineage: lineage}); !errors.As(err, &ahead) {
		test.Fatal(err)
	}
	if err := two.Ack(); err != nil {
		test.Fatal(err)
	}
	checkpoint, err := subscription.Flush(context.Background())
	if err != nil || checkpoint != two.Position {
		test.Fatal(checkpoint, err)
	}
}

func TestAnAnonymousSubscriptionHasNothingToAcknowledge(test *testing.T) {
	subscription := play(test, first, second).subscribe(SubscribeOptions{StopAtTail: true})
	if next(test, subscription).Ack() == nil {
		test.Fatal("acknowledged")
	}
}

func TestCreditIsGrantedAsTheUserReads(test *testing.T) {
	h := play(test, func(c *connection) error {
		c.send(opened(0, 0), relation())
		c.wait(func() bool { return c.events == 10 })
		c.send(transaction(16, 5))
		c.wait(func() bool { return c.events == 15 })
		c.send(begin(32))
		for ordinal := uint64(1); ordinal <= 10; ordinal++ {
			c.send(insert(ordinal, int64(ordinal)))
		}
		c.wait(func() bool { return c.events == 25 })
		c.send(commit(32, 10))
		return nil
	})
	subscription := h.subscribe(SubscribeOptions{StopAtTail: true, WindowEvents: 10})
	equal(test, len(next(test, subscription).Changes), 5)
	h.connection(0).mu.Lock()
	if h.connection(0).events > 15 {
		test.Fatal("credit for what was not read")
	}
	h.connection(0).mu.Unlock()
	equal(test, len(next(test, subscription).Changes), 10)
	equal(test, len(all(test, subscription)), 0)
}

func TestTheCheckpointGoesBeforeTheGivenStart(test *testing.T) {
	none := func(c *connection) error {
		if c.open.GetStart() != nil {
			test.Errorf("a start: %v", c.open.GetStart())
		}
		return refuse(codes.NotFound, "CHECKPOINT_MISSING", -1, nil)
	}
	h := play(test, none, func(c *connection) error {
		if c.open.GetStart().GetLatest() == nil {
			test.Errorf("not the given start: %v", c.open.GetStart())
		}
		c.send(opened(16, 1))
		c.untilAcked(16)
		c.send(relation(), transaction(32, 1))
		return nil
	}, none)
	equal(test, all(test, h.subscribe(SubscribeOptions{Subscriber: "s", Start: Latest, StopAtTail: true})), [][]int64{{3200}})
	fails[*CheckpointMissingError](test, h.subscribe(SubscribeOptions{Subscriber: "s"}))
}

func refusing(code codes.Code, reason string, retry time.Duration, metadata map[string]string) script {
	return func(*connection) error { return refuse(code, reason, retry, metadata) }
}

func TestEachReasonHasItsType(test *testing.T) {
	for reason := range reasons {
		h := play(test, refusing(codes.FailedPrecondition, reason, -1, map[string]string{"earliest": "0/5"}))
		_, err := h.subscribe(SubscribeOptions{}).Next()
		var base *HubError
		if !errors.As(err, &base) || base.Reason != reason || base.Metadata["earliest"] != "0/5" {
			test.Fatalf("%s: %v", reason, err)
		}
		name := strings.ReplaceAll(strings.TrimSuffix(strings.TrimPrefix(fmt.Sprintf("%T", err), "*walcast."), "Error"), "_", "")
		if !strings.EqualFold(name, strings.TrimSuffix(strings.ReplaceAll(reason, "_", ""), "ERROR")) {
			test.Fatalf("%s is %T", reason, err)
		}
		equal(test, h.count(), 1)
	}
}

func TestEveryDocumentedReasonHasAType(test *testing.T) {
	if _, err := os.Stat("../../Cargo.toml"); err != nil {
		test.Skip("a copy of the module, without the repository around it")
	}
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		test.Fatal(err)
	}
	rows := regexp.MustCompile("(?m)^\\| `([A-Z_]+)` \\| [A-Z_]+ \\|").FindAllStringSubmatch(string(readme), -1)
	if len(rows) < 20 {
		test.Fatal("the README's table of errors was not found")
	}
	documented := map[string]bool{}
	for _, row := range rows {
		documented[row[1]] = true
		if reasons[row[1]] == nil {
			test.Errorf("%s has no type", row[1])
		}
	}
	for reason := range reasons {
		if !documented[reason] {
			test.Errorf("%s is not documented", reason)
		}
	}
}

func TestRetryInfoIsObeyed(test *testing.T) {
	h := play(test, refusing(codes.Unavailable, "STARTING", 400*time.Millisecond, nil), func(c *connection) error {
		c.send(opened(0, 0), relation(), transaction(16, 1))
		return nil
	})
	started := time.Now()
	equal(test, len(all(test, h.subscribe(SubscribeOptions{StopAtTail: true}))), 1)
	if time.Since(started) < 400*time.Millisecond {
		test.Fatal("too early")
	}
}

func TestAFencedTwinIsNotTriedAgain(test *testing.T) {
	subscription := play(test, refusing(codes.Aborted, "SUBSCRIBER_FENCED", -1, nil)).subscribe(SubscribeOptions{Subscriber: "s"})
	fails[*SubscriberFencedError](test, subscription)
	if _, err := subscription.Next(); err != ErrClosed {
		test.Fatal(err)
	}
}

func TestATwinThatLostItsConnectionDoesNotTakeOverAgain(test *testing.T) {
	h := play(test, func(c *connection) error {
		c.send(opened(0, 3), relation(), transaction(16, 1))
		return lost
	})
	h.fencedBelow = 4
	subscription := h.subscribe(SubscribeOptions{Subscriber: "s"})
	next(test, subscription)
	fails[*SubscriberFencedError](test, subscription)
	equal(test, h.count(), 1)
}

func TestAnUnknownReasonIsAHubError(test *testing.T) {
	h := play(test, refusing(codes.Internal, "NEW_IN_2030", -1, nil))
	_, err := h.subscribe(SubscribeOptions{}).Next()
	if hub, ok := err.(*HubError); !ok || hub.Reason != "NEW_IN_2030" {
		test.Fatalf("%T %v", err, err)
	}
}

func TestWhatTheClientDoesNotKnowIsAnError(test *testing.T) {
	alien := insert(1, 1)
	alien.GetChange().RelationId = 99
	narrow := insert(1, 1)
	narrow.GetChange().AfterRow.Values = narrow.GetChange().GetAfterRow().GetValues()[:1]
	odd := insert(1, 1)
	odd.GetChange().Operation = 77
	garbled := progress(32)
	garbled.GetProgress().Position.Lsn = "0/x"
	forked := fork(false)
	forked.GetTimelineChanged().Position.Lsn = "20"
	committed := commit(16, 0)
	committed.GetCommit().Position.Lsn = "-0/1"
	lost := commit(16, 0)
	lost.GetCommit().Position = nil
	truncate := &walcastpb.Event{Kind: &walcastpb.Event_Truncate{Truncate: &walcastpb.Truncate{RelationIds: []uint32{99}, Ordinal: 1}}}
	for number, wrong := range []events{
		{{}}, {insert(1, 1)}, {commit(16, 0)}, {begin(16), begin(32)}, {begin(16), progress(32)},
		{begin(16), alien}, {begin(16), truncate}, {begin(16), narrow, commit(16, 1)}, {begin(16), odd, commit(16, 1)},
		{garbled}, {forked}, {begin(16), committed}, {begin(16), lost},
	} {
		h := play(test, func(c *connection) error {
			c.send(opened(0, 0), relation(), wrong)
			return nil
		})
		_, err := h.subscribe(SubscribeOptions{}).Next()
		var protocol *ProtocolError
		if !errors.As(err, &protocol) {
			test.Fatalf("%d: %v", number, err)
		}
	}
}

func fork(more bool, retracted ...uint64) *walcastpb.Event {
	event := &walcastpb.TimelineChanged{
		OldLineage: lineage, NewLineage: "bb", SwitchLsn: "0/20", More: more,
		Position: &walcastpb.Position{Lsn: "0/20", Lineage: "bb"},
	}
	for _, number := range retracted {
		event.Retracted = append(event.Retracted, &walcastpb.Retracted{Begin: begin(number).GetBegin(), Position: at(number), Changes: 1})
	}
	return &walcastpb.Event{Kind: &walcastpb.Event_TimelineChanged{TimelineChanged: event}}
}

func TestAFailoverCannotBeMissed(test *testing.T) {
	scripts := []script{func(c *connection) error {
		c.send(opened(0, 1), relation(), transaction(16, 1), transaction(48, 1))
		moved := progress(32)
		moved.GetProgress().Position.Lineage = "bb"
		c.send(fork(true, 48), fork(false, 64), moved)
		return lost
	}, func(c *connection) error {
		c.send(opened(32, 2), fork(true, 48), fork(false, 64))
		moved := transaction(64, 1)
		moved[2].GetCommit().Position.Lineage = "bb"
		c.send(relation(), moved)
		return nil
	}}
	subscription := play(test, scripts...).subscribe(SubscribeOptions{Subscriber: "s", StopAtTail: true})
	next(test, subscription)
	next(test, subscription)
	forked := fails[*TimelineChangedError](test, subscription).Event
	equal(test, []uint64{forked.Retracted[0].Transaction.XID, forked.Retracted[1].Transaction.XID}, []uint64{48, 64})
	equal(test, forked.Position, Position{LSN: "0/20", Lineage: "bb"})
	equal(test, len(all(test, subscription)), 1) // it goes on, and the same failover is not told again

	told := 0
	subscription = play(test, scripts...).subscribe(SubscribeOptions{
		Subscriber: "s", StopAtTail: true, OnTimelineChanged: func(*TimelineChanged) error { told++; return nil },
	})
	equal(test, len(all(test, subscription)), 3)
	equal(test, told, 1)
}

func TestTokensAreAskedForOnEachConnection(test *testing.T) {
	h := play(test, refusing(codes.Unavailable, "STARTING", 0, nil), func(c *connection) error {
		c.send(opened(0, 0))
		return nil
	})
	asked := 0
	client := h.client(Options{Token: func(context.Context) (string, error) {
		asked++
		return fmt.Sprint("token", asked), nil
	}})
	subscription, err := client.Subscribe(context.Background(), SubscribeOptions{StopAtTail: true, Retry: fast})
	if err != nil {
		test.Fatal(err)
	}
	all(test, subscription)
	for number, wanted := range []string{"Bearer token1", "Bearer token2"} {
		equal(test, h.connection(number).metadata.Get("authorization"), []string{wanted})
	}
	equal(test, h.connection(0).metadata.Get("client-id"), []string{"walcast-go/" + Version})
	if agent := h.connection(0).metadata.Get("user-agent"); !strings.HasPrefix(agent[0], "walcast-go/"+Version) {
		test.Fatal(agent)
	}
}

func TestNothingIsLeftBehind(test *testing.T) {
	quiet := func(c *connection) error {
		c.send(opened(0, 1), relation(), transaction(16, 1))
		c.untilEnded()
		return nil
	}
	h := play(test, quiet, quiet)
	for number, end := range []func(*Client, context.CancelFunc) error{
		func(client *Client, _ context.CancelFunc) error { return client.Close() },
		func(_ *Client, cancel context.CancelFunc) error { cancel(); return nil },
	} {
		before := clientGoroutines()
		ctx, cancel := context.WithCancel(context.Background())
		client, err := NewClient(h.address, Options{})
		if err != nil {
			test.Fatal(err)
		}
		subscription, err := client.Subscribe(ctx, SubscribeOptions{Subscriber: "s"})
		if err != nil {
			test.Fatal(err)
		}
		next(test, subscription)
		if clientGoroutines() == before {
			test.Fatal("this test looks for the wrong goroutines")
		}
		ended := make(chan error)
		go func() {
			_, err := subscription.Next()
			ended <- err
		}()
		h.connection(number).untilAcked(16)
		if err := end(client, cancel); err != nil {
			test.Fatal(err)
		}
		if err := <-ended; err != []error{io.EOF, context.Canceled}[number] {
			test.Fatal(err)
		}
		h.connection(number).untilEnded()
		for deadline := time.Now().Add(20 * time.Second); clientGoroutines() != before; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				stacks := make([]byte, 1<<20)
				test.Fatalf("%s", stacks[:runtime.Stack(stacks, true)])
			}
		}
		cancel()
		_ = client.Close() // closed already, or nothing to flush
	}
}

// clientGoroutines counts those of streams and of clients' connections.
func clientGoroutines() int {
	stacks := make([]byte, 1<<20)
	stacks = stacks[:runtime.Stack(stacks, true)]
	count := 0
	for _, stack := range strings.Split(string(stacks), "\n\n") {
		if strings.Contains(stack, "walcast.(*stream).send") || strings.Contains(stack, "newHTTP2Client") || strings.Contains(stack, "http2Client).reader") {
			count++
		}
	}
	return count
}
