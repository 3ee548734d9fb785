package walcast

import (
	"context"
	"errors"
	"io"
	"iter"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"

	"github.com/walcast/walcast/clients/go/walcastpb"
)

// stream is one connection with one Consume call. Requests go out from a goroutine that ends with the call.
type stream struct {
	connection *grpc.ClientConn
	call       grpc.ClientStream
	cancel     context.CancelFunc
	sent       chan struct{}
}

// rawCodec hands out the bytes of responses: core takes them apart itself.
type rawCodec struct{}

func (rawCodec) Name() string { return "proto" }

func (rawCodec) Marshal(message any) (mem.BufferSlice, error) {
	data, err := proto.Marshal(message.(proto.Message))
	return mem.BufferSlice{mem.SliceBuffer(data)}, err
}

func (rawCodec) Unmarshal(data mem.BufferSlice, into any) error {
	*into.(*[]byte) = data.Materialize()
	return nil
}

func openStream(ctx context.Context, target *target, core *core) (*stream, error) {
	first := core.openRequest()
	connection, err := target.dial()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	metadata, err := target.call(ctx)
	if err != nil {
		cancel()
		return nil, errors.Join(err, connection.Close())
	}
	call, err := connection.NewStream(metadata, &walcastpb.ChangeStreamService_ServiceDesc.Streams[1],
		walcastpb.ChangeStreamService_Consume_FullMethodName, grpc.ForceCodecV2(rawCodec{}))
	if err != nil {
		cancel()
		_ = connection.Close() // says only that it was closed before
		return nil, fromStatus(err)
	}
	s := &stream{connection, call, cancel, make(chan struct{})}
	go s.send(ctx, core.outbox, first)
	return s, nil
}

func (s *stream) send(ctx context.Context, outbox *outbox, request *walcastpb.ConsumeRequest) {
	defer close(s.sent)
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		if request != nil {
			if s.call.SendMsg(request) != nil {
				return // RecvMsg tells why
			}
		}
		var wait time.Duration
		if request, wait = outbox.take(); request != nil {
			continue
		}
		var due <-chan time.Time
		if wait > 0 {
			timer.Reset(wait)
			due = timer.C
		}
		select {
		case <-ctx.Done():
			return
		case <-outbox.wake:
		case <-due:
		}
	}
}

func (s *stream) close() {
	s.cancel()
	_ = s.connection.Close() // says only that it was closed before
	<-s.sent
}

// Subscription gives transactions in commit order, across reconnects. One goroutine iterates; Ack, Flush, Close and the
// state may be used from any.
type Subscription struct {
	target *target
	core   *core
	// ctx is that of Subscribe; closed ends with it or with Close.
	ctx    context.Context
	closed context.Context
	cancel context.CancelFunc

	finished bool
	used     bool

	mu     sync.Mutex
	stream *stream
	once   sync.Once
	forget func(*Subscription)
}

// Next gives the next transaction. Under automatic acknowledgement the one before is done by asking for it. [io.EOF] at the
// end: of StopAtTail, or when the subscription is closed meanwhile.
func (s *Subscription) Next() (*Transaction, error) {
	transaction, err := s.nextTransaction()
	if err != nil {
		return nil, err
	}
	if err := transaction.decode(); err != nil {
		return nil, s.end(err)
	}
	return transaction, nil
}

// Transactions iterates over whole transactions. Breaking out of the loop does not acknowledge the last one; iterating
// again goes on. The loop ends after an error, or without one after StopAtTail or Close.
func (s *Subscription) Transactions() iter.Seq2[*Transaction, error] {
	return func(yield func(*Transaction, error) bool) {
		for {
			transaction, err := s.Next()
			if err == io.EOF {
				return
			}
			if !yield(transaction, err) || err != nil {
				return
			}
		}
	}
}

// Changes iterates over single changes of complete transactions, and decodes them one by one. Under automatic
// acknowledgement a transaction is done when the next one's first change is asked for. After breaking out of the loop in
// the middle of a transaction, the rest of it does not come by iterating again, but after the next start.
func (s *Subscription) Changes() iter.Seq2[*Change, error] {
	return func(yield func(*Change, error) bool) {
		for {
			transaction, err := s.nextTransaction()
			if err == io.EOF {
				return
			}
			if err == nil {
				broken := false
				err = transaction.each(func(change *Change) bool {
					broken = !yield(change, nil)
					return !broken
				}, func(Message) {})
				if broken {
					return
				}
				if err != nil {
					err = s.end(err)
				}
			}
			if err != nil {
				yield(nil, err)
				return
			}
		}
	}
}

// Events iterates over everything as it comes, without waiting for a transaction's end: for transactions that do not fit
// into memory. What came since a [*Begin] counts only when its [*Commit] has come; a [*Discard] takes it back. Must be
// the first use of a subscription.
func (s *Subscription) Events() iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		if s.used && !s.core.streaming {
			yield(nil, errEventsFirst)
			return
		}
		s.core.streaming = true
		for {
			next, err := s.next()
			if err == io.EOF {
				return
			}
			event, _ := next.(Event)
			if !yield(event, err) || err != nil {
				return
			}
		}
	}
}

func (s *Subscription) nextTransaction() (*Transaction, error) {
	if s.core.streaming {
		return nil, errors.New("walcast: after Events only Events can be used")
	}
	for {
		next, err := s.next()
		if err != nil {
			return nil, err
		}
		if transaction, ok := next.(*Transaction); ok {
			return transaction, nil
		}
		if err := s.core.handle(next); err != nil {
			return nil, err
		}
	}
}

func (s *Subscription) next() (item, error) {
	s.used = true
	if s.closed.Err() != nil {
		if err := s.ctx.Err(); err != nil {
			return nil, err
		}
		return nil, ErrClosed
	}
	if err := s.core.nextRequested(); err != nil {
		return nil, err
	}
	for {
		if next := s.core.poll(); next != nil {
			return next, nil
		}
		if s.finished {
			return nil, io.EOF
		}
		if s.closed.Err() != nil {
			if err := s.ctx.Err(); err != nil {
				return nil, s.end(err)
			}
			return nil, io.EOF
		}
		if err := s.receive(); err != nil {
			return nil, s.end(err)
		}
	}
}

// end closes the subscription because of an error.
func (s *Subscription) end(err error) error {
	_ = s.Close() // logs what went wrong
	return err
}

func (s *Subscription) receive() error {
	data, failure, err := s.read()
	if err != nil || failure == nil && data == nil {
		return err
	}
	if failure == nil {
		return s.core.receive(data)
	}
	s.disconnect()
	if s.closed.Err() != nil {
		return nil
	}
	delay, err := s.core.failed(failure)
	if err != nil {
		return err
	}
	if s.core.options.OnReconnect != nil {
		s.core.options.OnReconnect(failure, delay)
	}
	timer := time.NewTimer(delay)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-s.closed.Done():
	}
	return nil
}

// read gives a response, or why the stream was lost; neither where it ended as asked.
func (s *Subscription) read() ([]byte, hubError, error) {
	current, err := s.connected()
	if err != nil {
		var lost hubError
		if errors.As(err, &lost) {
			return nil, lost, nil
		}
		return nil, nil, err
	}
	if current == nil {
		return nil, nil, nil
	}
	var data []byte
	err = current.call.RecvMsg(&data)
	switch {
	case err == io.EOF:
		if lost := s.core.ended(); lost != nil {
			return nil, lost, nil
		}
		s.finished = true
		s.disconnect()
		return nil, nil, nil
	case err != nil:
		return nil, fromStatus(err), nil
	case data == nil:
		data = []byte{}
	}
	return data, nil, nil
}

// connected gives the stream and opens one where there is none; nil when closed.
func (s *Subscription) connected() (*stream, error) {
	s.mu.Lock()
	current := s.stream
	s.mu.Unlock()
	if s.closed.Err() != nil || current != nil {
		return current, nil
	}
	if proof := s.core.proof(); proof != nil {
		if _, err := s.acknowledge(s.closed, nil, proof); err != nil {
			return nil, err
		}
		s.core.unsure = false
	}
	opened, err := openStream(s.closed, s.target, s.core)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	if s.closed.Err() == nil {
		s.stream = opened
	}
	s.mu.Unlock()
	if s.closed.Err() != nil { // closed meanwhile, by somebody who may have seen no stream
		opened.close()
		return nil, nil
	}
	return opened, nil
}

// acknowledge makes the unary call, over a connection of its own where none is given.
func (s *Subscription) acknowledge(ctx context.Context, connection *grpc.ClientConn, request *walcastpb.AcknowledgeRequest) (Position, error) {
	if connection == nil {
		temporary, err := s.target.dial()
		if err != nil {
			return Position{}, err
		}
		defer temporary.Close()
		connection = temporary
	}
	ctx, cancel := context.WithTimeout(ctx, UnaryDeadline)
	defer cancel()
	ctx, err := s.target.call(ctx)
	if err != nil {
		return Position{}, err
	}
	response, err := walcastpb.NewChangeStreamServiceClient(connection).Acknowledge(ctx, request)
	if err != nil {
		return Position{}, fromStatus(err)
	}
	return PositionFromProto(response.GetCheckpoint()), nil
}

// Ack says that everything up to and including a position is done. Returns at once; acknowledgements are gathered and sent
// a few times per second.
func (s *Subscription) Ack(position Position) error { return s.core.acknowledge(position, 0) }

// AckAll says that everything that was handed out is done.
func (s *Subscription) AckAll() error { return s.core.acknowledge(s.Position(), 0) }

// Flush waits until what was acknowledged is durable, and gives the checkpoint; zero where nothing was acknowledged.
func (s *Subscription) Flush(ctx context.Context) (Position, error) {
	s.core.mu.Lock()
	position, opened := s.core.ackedAt, s.core.opened
	s.core.mu.Unlock()
	if position.IsZero() || opened == nil {
		return Position{}, nil
	}
	s.mu.Lock()
	var connection *grpc.ClientConn
	if s.stream != nil {
		connection = s.stream.connection
	}
	s.mu.Unlock()
	return s.acknowledge(ctx, connection, &walcastpb.AcknowledgeRequest{
		Subscriber: s.core.options.Subscriber, Position: position.Proto(), Session: opened.Session,
	})
}

// Position is what an anonymous subscriber resumes after: everything up to here was handed out.
func (s *Subscription) Position() Position {
	s.core.mu.Lock()
	defer s.core.mu.Unlock()
	return s.core.handedAt
}

// Opened is how the present stream was opened; nil before that.
func (s *Subscription) Opened() *Opened { return s.core.Opened() }

// Progress is the newest that was reached; nil before that.
func (s *Subscription) Progress() *Progress {
	s.core.mu.Lock()
	defer s.core.mu.Unlock()
	return s.core.progress
}

func (s *Subscription) disconnect() {
	s.mu.Lock()
	current := s.stream
	s.stream = nil
	s.mu.Unlock()
	if current != nil {
		current.close()
	}
}

// Close makes durable what was acknowledged, as far as the hub answers within 5 s, and closes the connection. The error is
// that of making it durable. A loop in another goroutine ends.
func (s *Subscription) Close() error {
	var failed error
	s.once.Do(func() {
		if s.core.unflushed() {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(s.ctx), 5*time.Second)
			defer cancel()
			if _, failed = s.Flush(ctx); failed != nil {
				s.core.log.Warn("the last acknowledgement was not confirmed", "error", failed)
			}
		}
		s.cancel()
		s.disconnect()
		s.forget(s)
	})
	return failed
}
