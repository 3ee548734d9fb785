package walcast

import (
	"context"
	"io"
	"iter"
	"time"

	"google.golang.org/grpc"

	"github.com/walcast/walcast/clients/go/walcastpb"
)

// ReadRetracted gives the transactions that a failover took back: the end of a lineage that never happened on the next
// one, for as long as the journal retains it. The lineage is [TimelineChanged].OldLineage, or that of a position which the
// hub refuses with a [*PositionDivergedError]. Of the options what selects and decodes counts. It ends by itself, and is not
// resumed when the connection breaks.
func (c *Client) ReadRetracted(ctx context.Context, lineage string, options SubscribeOptions) iter.Seq2[*Transaction, error] {
	return func(yield func(*Transaction, error) bool) {
		if err := c.readRetracted(ctx, lineage, options, func(tx *Transaction) bool { return yield(tx, nil) }); err != nil {
			yield(nil, err)
		}
	}
}

func (c *Client) readRetracted(ctx context.Context, lineage string, options SubscribeOptions, yield func(*Transaction) bool) error {
	c.mu.Lock()
	closed := c.closed
	c.mu.Unlock()
	if closed {
		return ErrClosed
	}
	core, err := newCore(options.withDefaults(c.target.options.MaxMessageBytes), c.target.options.Logger, time.Now)
	if err != nil {
		return err
	}
	core.relations = map[uint64]*Relation{}
	connection, err := c.target.dial()
	if err != nil {
		return err
	}
	defer connection.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if ctx, err = c.target.call(ctx); err != nil {
		return err
	}
	call, err := connection.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true},
		walcastpb.ChangeStreamService_ReadRetracted_FullMethodName, grpc.ForceCodecV2(rawCodec{}))
	if err != nil {
		return fromStatus(err)
	}
	if err := call.SendMsg(&walcastpb.ReadRetractedRequest{OldLineage: lineage, Filter: core.filter}); err != nil && err != io.EOF {
		return fromStatus(err)
	}
	if err := call.CloseSend(); err != nil {
		return fromStatus(err)
	}
	for {
		data := []byte{}
		if err := call.RecvMsg(&data); err == io.EOF {
			if core.open != nil {
				return protocolError("the stream ended inside a transaction")
			}
			return nil
		} else if err != nil {
			return fromStatus(err)
		}
		if err := core.receive(data); err != nil {
			return err
		}
		for next := core.poll(); next != nil; next = core.poll() {
			transaction, ok := next.(*Transaction)
			if !ok {
				continue
			}
			if err := transaction.decode(); err != nil {
				return err
			}
			if !yield(transaction) {
				return nil
			}
		}
	}
}
