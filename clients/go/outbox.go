package walcast

import (
	"sync"
	"time"

	"github.com/walcast/walcast/clients/go/walcastpb"
)

const (
	// Acknowledgements are sent at most this often,
	ackInterval = 100 * time.Millisecond
	// or when this many have gathered.
	ackBatch = 1000
)

// outbox is what is to be sent: credit that was earned and the newest acknowledgement. Used from two goroutines.
type outbox struct {
	now func() time.Time
	// wake holds a value whenever take may answer differently than before.
	wake chan struct{}

	mu       sync.Mutex
	events   uint64
	bytes    uint64
	position Position
	count    int
	due      time.Time
}

func newOutbox(now func() time.Time) *outbox {
	return &outbox{now: now, wake: make(chan struct{}, 1)}
}

func (o *outbox) signal() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

func (o *outbox) grant(events, bytes uint64) {
	o.mu.Lock()
	o.events += events
	o.bytes += bytes
	o.mu.Unlock()
	o.signal()
}

func (o *outbox) acknowledge(position Position) {
	o.mu.Lock()
	if !o.position.IsZero() && o.position.Reaches(position) {
		o.mu.Unlock()
		return
	}
	first := o.position.IsZero()
	o.position = position
	o.count++
	urgent := o.count == ackBatch
	o.mu.Unlock()
	if first || urgent {
		o.signal()
	}
}

// pending is the newest acknowledgement that was not taken.
func (o *outbox) pending() Position {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.position
}

// reopen: a new stream. Earlier credit is void, and an acknowledgement on another lineage would be refused there.
func (o *outbox) reopen(resume Position) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.events, o.bytes = 0, 0
	if !resume.Reaches(o.position) {
		o.position = Position{}
	}
	o.count = 0
}

// take gives the next request; without one, how long until there may be one (0: not before wake).
func (o *outbox) take() (*walcastpb.ConsumeRequest, time.Duration) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.events > 0 || o.bytes > 0 {
		credit := &walcastpb.Credit{Events: o.events, Bytes: o.bytes}
		o.events, o.bytes = 0, 0
		return &walcastpb.ConsumeRequest{Request: &walcastpb.ConsumeRequest_Credit{Credit: credit}}, 0
	}
	if o.position.IsZero() {
		return nil, 0
	}
	now := o.now()
	if o.count < ackBatch && now.Before(o.due) {
		return nil, o.due.Sub(now)
	}
	request := &walcastpb.ConsumeRequest_Acknowledge{Acknowledge: o.position.Proto()}
	o.position = Position{}
	o.count = 0
	o.due = now.Add(ackInterval)
	return &walcastpb.ConsumeRequest{Request: request}, 0
}
