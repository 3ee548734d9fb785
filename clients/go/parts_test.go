package walcast

import (
	"context"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/walcast/walcast/clients/go/walcastpb"
)

func TestBackOffHasFullJitterAndStartsOver(test *testing.T) {
	start := time.Now()
	b := newBackoff(Retry{Initial: 100 * time.Millisecond, Maximum: time.Second, GiveUpAfter: 100 * time.Second}, start)
	for range 1000 {
		if got := b.jitter(time.Second); got < 0 || got > time.Second {
			test.Fatal(got)
		}
	}
	b.jitter = func(ceiling time.Duration) time.Duration { return ceiling }
	var delays []int64
	for range 5 {
		delay, _ := b.delay(0, start)
		delays = append(delays, delay.Milliseconds())
	}
	equal(test, delays, []int64{100, 200, 400, 800, 1000})
	if delay, _ := b.delay(5*time.Second, start); delay != 6*time.Second {
		test.Fatal("earlier than the hub asks for")
	}
	b.succeeded(start.Add(2 * time.Second))
	if delay, _ := b.delay(0, start.Add(3*time.Second)); delay != 100*time.Millisecond {
		test.Fatal(delay)
	}
	if _, again := b.delay(0, start.Add(102*time.Second)); again {
		test.Fatal("it does not give up")
	}
}

func TestTheOutboxKeepsOnlyTheNewest(test *testing.T) {
	at := time.Now()
	o := newOutbox(func() time.Time { return at })
	taken := func() string {
		request, _ := o.take()
		return request.GetAcknowledge().GetLsn()
	}
	o.acknowledge(Position{LSN: "0/10", Lineage: "a"})
	equal(test, taken(), "0/10")
	for _, lsn := range []string{"0/20", "0/30", "0/20"} {
		o.acknowledge(Position{LSN: lsn, Lineage: "a"})
	}
	if request, wait := o.take(); request != nil || wait != ackInterval {
		test.Fatal(request, wait)
	}
	at = at.Add(2 * ackInterval)
	equal(test, taken(), "0/30")
	equal(test, taken(), "")
}

func TestAnAckThatMayHaveBeenLostGoesOutAgain(test *testing.T) {
	target, err := parseTarget("127.0.0.1:1", Options{})
	if err != nil {
		test.Fatal(err)
	}
	c, err := newCore(SubscribeOptions{Subscriber: "s"}.withDefaults(1<<20), target.options.Logger, time.Now)
	if err != nil {
		test.Fatal(err)
	}
	c.openRequest()
	data, err := proto.Marshal(&walcastpb.ConsumeResponse{Events: join(opened(0, 1), relation(), transaction(16, 1))})
	if err != nil {
		test.Fatal(err)
	}
	if err := c.receive(data); err != nil {
		test.Fatal(err)
	}
	tx := c.poll().(*Transaction)
	if err := tx.Ack(); err != nil {
		test.Fatal(err)
	}
	c.outbox.take()
	c.outbox.take()
	equal(test, c.outbox.pending(), Position{})
	c.openRequest()
	equal(test, c.outbox.pending(), tx.Position)
}

func TestStarts(test *testing.T) {
	at := Position{LSN: "1/ABC", Lineage: "00ff", Sequence: 3, Snapshot: "\x01"}
	parsed, err := ParsePosition(at.String())
	if err != nil || parsed != at {
		test.Fatal(parsed, err)
	}
	start, err := ParseStart(at.String())
	if err != nil || start != After(at) {
		test.Fatal(start, err)
	}
	for text, wanted := range map[string]Start{"earliest": Earliest, "latest": Latest, "snapshot": Snapshot{}, "0/10": AfterLSN("0/10")} {
		if got, err := ParseStart(text); err != nil || got != wanted {
			test.Fatal(text, got, err)
		}
	}
	for _, wrong := range []string{"yesterday", "a:b:c:d", "0/10:"} {
		if _, err := ParseStart(wrong); err == nil {
			test.Fatal(wrong)
		}
	}
}

func TestFilterHelpers(test *testing.T) {
	where, err := Where(map[string]any{"status": "it's", "n": []int{1, 2}, "gone": nil, "big": Numeric("1.5")})
	if err != nil {
		test.Fatal(err)
	}
	equal(test, where, `"big" = '1.5' AND "gone" IS NULL AND "n" IN (1, 2) AND "status" = 'it''s'`)
	if _, err := Where(map[string]any{"n": []int{}}); err == nil {
		test.Fatal("an empty IN")
	}
	client, err := NewClient("127.0.0.1:1", Options{})
	if err != nil {
		test.Fatal(err)
	}
	if _, err := client.Subscribe(context.Background(), SubscribeOptions{Operations: []Operation{"upsert"}}); err == nil {
		test.Fatal("an unknown operation")
	}
}
