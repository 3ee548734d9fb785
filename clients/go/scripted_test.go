package walcast

import (
	"context"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/walcast/walcast/clients/go/walcastpb"
)

// A gRPC server that plays scripts: what each connection sends, and how it ends.

const lineage = "00000000000000aa"

type events = []*walcastpb.Event

func lsn(number uint64) string { return fmt.Sprintf("0/%X", number) }

func at(number uint64) *walcastpb.Position {
	return &walcastpb.Position{Lsn: lsn(number), Lineage: lineage}
}

func opened(after, session uint64) *walcastpb.Event {
	return &walcastpb.Event{Kind: &walcastpb.Event_Opened{Opened: &walcastpb.Opened{
		After: at(after), Earliest: at(0), Tail: at(0xFFFF), Session: session,
	}}}
}

func relation() *walcastpb.Event {
	return &walcastpb.Event{Kind: &walcastpb.Event_Relation{Relation: &walcastpb.Relation{
		RelationId: 7, Schema: "public", Table: "t", ReplicaIdentity: walcastpb.ReplicaIdentity_REPLICA_IDENTITY_DEFAULT,
		Columns: []*walcastpb.Column{{Name: "id", TypeName: "int4", InIdentity: true}, {Name: "v", TypeName: "text"}},
	}}}
}

func text(value string) *walcastpb.Value {
	return &walcastpb.Value{Kind: &walcastpb.Value_Text{Text: value}}
}

func insert(ordinal uint64, id int64) *walcastpb.Event {
	row := &walcastpb.Row{Values: []*walcastpb.Value{{Kind: &walcastpb.Value_IntValue{IntValue: id}}, text(fmt.Sprint("v", id))}}
	return &walcastpb.Event{Kind: &walcastpb.Event_Change{Change: &walcastpb.Change{
		Operation: walcastpb.Operation_OPERATION_INSERT, RelationId: 7, Ordinal: ordinal, AfterRow: row,
	}}}
}

func begin(number uint64) *walcastpb.Event {
	return &walcastpb.Event{Kind: &walcastpb.Event_Begin{Begin: &walcastpb.Begin{CommitLsn: lsn(number - 1), Lineage: lineage, Xid: number}}}
}

func commit(number, changes uint64) *walcastpb.Event {
	return &walcastpb.Event{Kind: &walcastpb.Event_Commit{Commit: &walcastpb.Commit{
		Position: at(number), Changes: changes, TotalChanges: changes,
	}}}
}

func transaction(number, changes uint64) events {
	all := events{begin(number)}
	for ordinal := uint64(1); ordinal <= changes; ordinal++ {
		all = append(all, insert(ordinal, int64(number*100+ordinal-1)))
	}
	return append(all, commit(number, changes))
}

func progress(number uint64) *walcastpb.Event {
	return &walcastpb.Event{Kind: &walcastpb.Event_Progress{Progress: &walcastpb.Progress{
		Position: at(number), Tail: at(0xFFFF), SourceConnected: true,
	}}}
}

func join(parts ...any) events {
	var all events
	for _, part := range parts {
		switch part := part.(type) {
		case *walcastpb.Event:
			all = append(all, part)
		case events:
			all = append(all, part...)
		}
	}
	return all
}

// refuse ends a stream with an error of the hub; retry below 0 is without RetryInfo.
func refuse(code codes.Code, reason string, retry time.Duration, metadata map[string]string) error {
	refusal := status.New(code, "because of "+reason)
	if reason != "" {
		refusal, _ = refusal.WithDetails(&errdetails.ErrorInfo{Reason: reason, Domain: "walcast", Metadata: metadata})
	}
	if retry >= 0 {
		refusal, _ = refusal.WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(retry)})
	}
	return refusal.Err()
}

var lost = refuse(codes.Unavailable, "", -1, nil)

// connection is what one stream asked for, as it comes.
type connection struct {
	test *testing.T
	send func(parts ...any)
	open *walcastpb.SubscribeRequest

	mu            sync.Mutex
	changed       *sync.Cond
	events, bytes uint64
	acks          []string
	ended         bool
	metadata      metadata.MD
}

// wait until something holds, which is looked at under the lock.
func (c *connection) wait(what func() bool) {
	c.test.Helper()
	timer := time.AfterFunc(20*time.Second, func() {
		c.test.Error("the client did not do it")
		c.mu.Lock()
		c.ended = true
		c.mu.Unlock()
		c.changed.Broadcast()
	})
	defer timer.Stop()
	c.mu.Lock()
	defer c.mu.Unlock()
	for !what() && !c.ended {
		c.changed.Wait()
	}
}

func (c *connection) untilAcked(number uint64) {
	c.wait(func() bool {
		for _, acked := range c.acks {
			if acked == lsn(number) {
				return true
			}
		}
		return false
	})
}

func (c *connection) untilEnded() { c.wait(func() bool { return c.ended }) }

func (c *connection) acked() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]string{}, c.acks...)
}

type script func(*connection) error

type hub struct {
	walcastpb.UnimplementedChangeStreamServiceServer
	test        *testing.T
	address     string
	fencedBelow uint64

	mu          sync.Mutex
	scripts     []script
	connections []*connection
	unaryAcks   []*walcastpb.AcknowledgeRequest
}

// play starts a hub that plays one script per connection, in order.
func play(test *testing.T, scripts ...script) *hub {
	h := &hub{test: test, scripts: scripts}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		test.Fatal(err)
	}
	server := grpc.NewServer()
	walcastpb.RegisterChangeStreamServiceServer(server, h)
	h.address = listener.Addr().String()
	go func() { _ = server.Serve(listener) }() // ends with Stop
	test.Cleanup(server.Stop)
	return h
}

func (h *hub) connection(number int) *connection {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.connections[number]
}

func (h *hub) count() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.connections)
}

func (h *hub) Consume(stream grpc.BidiStreamingServer[walcastpb.ConsumeRequest, walcastpb.ConsumeResponse]) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	c := &connection{test: h.test, open: first.GetOpen()}
	c.changed = sync.NewCond(&c.mu)
	c.metadata, _ = metadata.FromIncomingContext(stream.Context())
	c.send = func(parts ...any) {
		_ = stream.Send(&walcastpb.ConsumeResponse{Events: join(parts...)}) // the client may have left
	}
	go func() {
		for {
			request, err := stream.Recv()
			c.mu.Lock()
			c.ended = c.ended || err != nil
			c.events += request.GetCredit().GetEvents()
			c.bytes += request.GetCredit().GetBytes()
			if request.GetAcknowledge() != nil {
				c.acks = append(c.acks, request.GetAcknowledge().GetLsn())
			}
			c.mu.Unlock()
			c.changed.Broadcast()
			if err != nil {
				return
			}
		}
	}()
	h.mu.Lock()
	number := len(h.connections)
	h.connections = append(h.connections, c)
	h.mu.Unlock()
	if number >= len(h.scripts) {
		h.test.Errorf("connection %d was not expected", number)
		return refuse(codes.Internal, "INTERNAL", -1, nil)
	}
	return h.scripts[number](c)
}

func (h *hub) Acknowledge(_ context.Context, request *walcastpb.AcknowledgeRequest) (*walcastpb.AcknowledgeResponse, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.unaryAcks = append(h.unaryAcks, request)
	if request.GetSession() < h.fencedBelow {
		return nil, refuse(codes.Aborted, "SUBSCRIBER_FENCED", -1, nil)
	}
	return &walcastpb.AcknowledgeResponse{Checkpoint: request.GetPosition()}, nil
}

func (h *hub) client(options Options) *Client {
	h.test.Helper()
	client, err := NewClient(h.address, options)
	if err != nil {
		h.test.Fatal(err)
	}
	h.test.Cleanup(func() { _ = client.Close() }) // nothing that a test waits for
	return client
}

var fast = Retry{Initial: time.Millisecond, Maximum: 10 * time.Millisecond}

func (h *hub) subscribe(options SubscribeOptions) *Subscription {
	h.test.Helper()
	if options.Retry == (Retry{}) {
		options.Retry = fast
	}
	subscription, err := h.client(Options{}).Subscribe(context.Background(), options)
	if err != nil {
		h.test.Fatal(err)
	}
	return subscription
}
