package walcast

import (
	"errors"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/walcast/walcast/clients/go/walcastpb"
)

// item is what a core hands out: *Transaction, or an Event.
type item any

// core is the state of one subscription across its streams, without its transport: bytes of responses go in (receive), items
// for the user come out (poll), and what is to be sent waits in the outbox. Nothing in here waits or does I/O.
type core struct {
	options  *SubscribeOptions
	filter   *walcastpb.Filter
	start    *walcastpb.Start
	log      *slog.Logger
	now      func() time.Time
	outbox   *outbox
	backoff  *backoff
	decoders map[string]Decoder

	// Of the goroutine that iterates.
	streaming     bool
	useFirstStart bool
	ready         []item
	received      Position
	firstAfter    Position
	relations     map[uint64]*Relation
	open          *Transaction
	// typical is about how many events the last transactions had.
	typical       int
	openBytes     int64
	ordinal       uint64
	skipUntil     uint64
	interrupted   *Transaction
	interruptedAt uint64
	rows          *Transaction
	snapshotID    string
	retracted     []Retracted
	forks         map[[3]string]bool
	spentEvents   uint64
	spentBytes    uint64
	openedAt      time.Time
	unsure        bool
	last          Position

	mu       sync.Mutex
	opened   *Opened
	progress *Progress
	handed   uint64
	acked    uint64
	handedAt Position
	ackedAt  Position
}

func newCore(options *SubscribeOptions, log *slog.Logger, now func() time.Time) (*core, error) {
	c := &core{
		options: options, log: log, now: now, outbox: newOutbox(now), backoff: newBackoff(options.Retry, now()),
		decoders: decodersOf(options.JSONText, options.Types), useFirstStart: options.Subscriber == "",
		forks: map[[3]string]bool{},
	}
	var err error
	if c.filter, err = options.filter(); err != nil {
		return nil, err
	}
	if options.Start != nil {
		if c.start, err = options.Start.startMessage(); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// openRequest is the first request of a new stream.
func (c *core) openRequest() *walcastpb.ConsumeRequest {
	if c.open != nil && c.streaming {
		c.interrupted, c.interruptedAt = c.open, max(c.ordinal, c.skipUntil)
	}
	c.open, c.rows, c.openBytes = nil, nil, 0
	c.skipUntil, c.ordinal = 0, 0
	c.relations = map[uint64]*Relation{}
	c.retracted = nil
	c.spentEvents, c.spentBytes = 0, 0
	c.openedAt = c.now()
	c.outbox.reopen(c.received)
	request := &walcastpb.SubscribeRequest{
		Subscriber: c.options.Subscriber, StopAtTail: c.options.StopAtTail, Filter: c.filter,
		MaxMessageBytes: c.options.maxMessageBytes,
	}
	if c.options.ProgressInterval > 0 {
		request.ProgressInterval = durationpb.New(c.options.ProgressInterval)
	}
	if !c.received.IsZero() {
		request.Start, _ = c.received.startMessage()
	} else if c.useFirstStart {
		request.Start = c.start
	}
	c.mu.Lock()
	acked := c.ackedAt
	c.mu.Unlock()
	if !acked.IsZero() && c.received.Reaches(acked) {
		c.outbox.acknowledge(acked) // the last stream may have broken before it arrived
	}
	c.outbox.grant(c.options.WindowEvents, c.options.WindowBytes)
	return &walcastpb.ConsumeRequest{Request: &walcastpb.ConsumeRequest_Open{Open: request}}
}

// proof is what to call before the next stream is opened, to learn whether a newer session has taken over meanwhile: a
// connection that broke does not say so, and opening again would fence the other.
func (c *core) proof() *walcastpb.AcknowledgeRequest {
	c.mu.Lock()
	defer c.mu.Unlock()
	at := c.ackedAt
	if at.IsZero() {
		at = c.firstAfter
	}
	if !c.unsure || c.opened == nil || at.IsZero() {
		return nil
	}
	return &walcastpb.AcknowledgeRequest{Subscriber: c.options.Subscriber, Position: at.Proto(), Session: c.opened.Session}
}

// failed gives the time until the next attempt, or the error where another one does not help.
func (c *core) failed(failure hubError) (time.Duration, error) {
	var missing *CheckpointMissingError
	if errors.As(failure, &missing) && c.received.IsZero() && !c.useFirstStart && c.start != nil {
		c.useFirstStart = true
		c.log.Info("no checkpoint: starting at the given start", "subscriber", c.options.Subscriber)
		return 0, nil
	}
	now := c.now()
	if c.Opened() != nil && now.Sub(c.openedAt) >= time.Minute {
		c.backoff.succeeded(now)
	}
	base := failure.base()
	if !base.Retryable() {
		return 0, failure
	}
	var asked time.Duration
	if base.RetryAfter != nil {
		asked = *base.RetryAfter
	}
	delay, again := c.backoff.delay(asked, now)
	if !again {
		return 0, failure
	}
	if base.Reason == "" && c.options.Subscriber != "" {
		c.unsure = true
	}
	c.log.Warn("stream lost", "error", failure, "next_attempt_in", delay)
	return delay, nil
}

// ended: the stream ended with OK. nil if that was asked for.
func (c *core) ended() hubError {
	if c.options.StopAtTail {
		return nil
	}
	return &ConnectionLostError{&HubError{Message: "the stream ended", Code: codes.Unavailable}}
}

// Opened is how the present stream was opened.
func (c *core) Opened() *Opened {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.opened
}

// unflushed says whether something was acknowledged that no progress has confirmed.
func (c *core) unflushed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !c.ackedAt.IsZero() && (c.progress == nil || !c.progress.Checkpoint.Reaches(c.ackedAt))
}

// acknowledge: everything up to and including the position is done. serial is of the item whose position it is, or 0.
func (c *core) acknowledge(position Position, serial uint64) error {
	if c.options.Subscriber == "" {
		return errors.New("walcast: an anonymous subscription has no checkpoint; give it a Subscriber name, or store tx.Position")
	}
	c.mu.Lock()
	if c.handedAt.IsZero() || (c.handedAt.Lineage == position.Lineage && !c.handedAt.Reaches(position)) {
		c.mu.Unlock()
		return &AckAheadError{&HubError{
			Message: "position " + position.LSN + " has not been handed out yet", Code: codes.FailedPrecondition, Reason: "ACK_AHEAD",
		}}
	}
	if serial > 0 {
		c.acked = max(c.acked, serial)
	} else if position.Reaches(c.handedAt) {
		c.acked = c.handed
	}
	if !c.ackedAt.IsZero() && c.ackedAt.Reaches(position) {
		c.mu.Unlock()
		return nil
	}
	c.ackedAt = position
	c.mu.Unlock()
	c.outbox.acknowledge(position)
	return nil
}

// nextRequested: the user asks for the next item, so the last one is done.
func (c *core) nextRequested() error {
	last := c.last
	c.last = Position{}
	if last.IsZero() || c.options.ManualAck || c.options.Subscriber == "" {
		return nil
	}
	return c.acknowledge(last, 0)
}

func (c *core) hand(position Position) uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.handed++
	c.handedAt = position
	c.last = position
	return c.handed
}

// passed: progress is acknowledged for the user when nothing before it is outstanding.
func (c *core) passed(progress *Progress) {
	c.mu.Lock()
	c.progress = progress
	c.handedAt = progress.Position
	outstanding := c.acked < c.handed || c.options.Subscriber == ""
	if outstanding || (!c.ackedAt.IsZero() && c.ackedAt.Reaches(progress.Position)) {
		c.mu.Unlock()
		return
	}
	c.ackedAt = progress.Position
	c.mu.Unlock()
	c.outbox.acknowledge(progress.Position)
}

// poll gives the next item for the user, nil until more was received.
func (c *core) poll() item {
	if len(c.ready) == 0 {
		return nil
	}
	next := c.ready[0]
	c.ready[0] = nil
	if c.ready = c.ready[1:]; len(c.ready) == 0 {
		c.ready = nil
	}
	switch next := next.(type) {
	case *Transaction:
		next.serial = c.hand(next.Position)
	case *Progress:
		c.passed(next)
	case *Commit:
		c.hand(next.Transaction.Position)
	case *TimelineChanged:
		c.forks[[3]string{next.OldLineage, next.NewLineage, next.SwitchLSN}] = true
		c.hand(next.Position)
	case *Gap:
		c.hand(next.UpTo)
	}
	return next
}

// handle gives an item that is not a transaction to the user's callback, or makes an error of it where none was given and
// it matters.
func (c *core) handle(next item) error {
	options := c.options
	switch event := next.(type) {
	case *Progress:
		if options.OnProgress != nil {
			return options.OnProgress(event)
		}
	case *TimelineChanged:
		if options.OnTimelineChanged == nil {
			return &TimelineChangedError{event}
		}
		return options.OnTimelineChanged(event)
	case *Gap:
		if options.OnGap == nil {
			return &GapError{event}
		}
		return options.OnGap(event)
	case *SnapshotBegin:
		if event.Restarted && options.OnSnapshot == nil {
			return &SnapshotRestartedError{event}
		}
	}
	switch event := next.(type) {
	case *SnapshotBegin, *SnapshotTableEnd, *SnapshotEnd:
		if options.OnSnapshot != nil {
			return options.OnSnapshot(event.(Event))
		}
	}
	return nil
}
