// Package walcast reads committed changes of a PostgreSQL database from a walcast hub. Reconnecting, resuming and
// acknowledging are done right once, so that what is left is a loop:
//
//	client, err := walcast.NewClient("127.0.0.1:50051", walcast.Options{})
//	...
//	orders, err := client.Subscribe(ctx, walcast.SubscribeOptions{
//		Tables: []string{"public.orders"}, Subscriber: "billing", Start: walcast.Earliest,
//	})
//	...
//	for tx, err := range orders.Transactions() {
//		if err != nil {
//			return err
//		}
//		for _, change := range tx.Changes {
//			fmt.Println(change.Operation, change.Table(), change.After)
//		}
//	}
package walcast

import (
	"context"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/walcast/walcast/clients/go/walcastpb"
)

// Client is a walcast hub. Cheap to make: connections are opened by calls, one for each subscription.
type Client struct {
	target *target

	mu            sync.Mutex
	subscriptions map[*Subscription]bool
	connection    *grpc.ClientConn
	closed        bool
}

// NewClient for "host:port", or "https://host:port" for TLS.
func NewClient(address string, options Options) (*Client, error) {
	target, err := parseTarget(address, options)
	if err != nil {
		return nil, err
	}
	return &Client{target: target, subscriptions: map[*Subscription]bool{}}, nil
}

// Subscribe makes a subscription, which connects when it is iterated and lives until it is closed or ctx ends.
func (c *Client) Subscribe(ctx context.Context, options SubscribeOptions) (*Subscription, error) {
	core, err := newCore(options.withDefaults(c.target.options.MaxMessageBytes), c.target.options.Logger, time.Now)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, ErrClosed
	}
	subscription := &Subscription{target: c.target, core: core, ctx: ctx, forget: c.forget}
	subscription.closed, subscription.cancel = context.WithCancel(ctx)
	c.subscriptions[subscription] = true
	return subscription, nil
}

func (c *Client) forget(subscription *Subscription) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.subscriptions, subscription)
}

// Close closes every subscription and connection.
func (c *Client) Close() error {
	c.mu.Lock()
	c.closed = true
	connection := c.connection
	c.connection = nil
	var open []*Subscription
	for subscription := range c.subscriptions {
		open = append(open, subscription)
	}
	c.mu.Unlock()
	var failed error
	for _, subscription := range open {
		if err := subscription.Close(); err != nil && failed == nil {
			failed = err
		}
	}
	if connection != nil {
		_ = connection.Close() // says only that it was closed before
	}
	return failed
}

// unary makes a call with the deadline of unary calls, unless ctx has an earlier one.
func unary[Response any](
	ctx context.Context, c *Client, method func(context.Context, grpc.ClientConnInterface) (Response, error),
) (response Response, err error) {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return response, ErrClosed
	}
	if c.connection == nil {
		if c.connection, err = c.target.dial(); err != nil {
			c.mu.Unlock()
			return response, err
		}
	}
	connection := c.connection
	c.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, UnaryDeadline)
	defer cancel()
	if ctx, err = c.target.call(ctx); err != nil {
		return response, err
	}
	if response, err = method(ctx, connection); err != nil {
		return response, fromStatus(err)
	}
	return response, nil
}

// Status is the state of the source, the journal and the streams.
func (c *Client) Status(ctx context.Context) (*walcastpb.GetStatusResponse, error) {
	return unary(ctx, c, func(ctx context.Context, connection grpc.ClientConnInterface) (*walcastpb.GetStatusResponse, error) {
		return walcastpb.NewAdminServiceClient(connection).GetStatus(ctx, &walcastpb.GetStatusRequest{})
	})
}

// Subscribers are the named ones, with checkpoint and lag.
func (c *Client) Subscribers(ctx context.Context) ([]*walcastpb.Subscriber, error) {
	response, err := unary(ctx, c, func(ctx context.Context, connection grpc.ClientConnInterface) (*walcastpb.ListSubscribersResponse, error) {
		return walcastpb.NewAdminServiceClient(connection).ListSubscribers(ctx, &walcastpb.ListSubscribersRequest{})
	})
	return response.GetSubscribers(), err
}

// ResetSubscriber moves a checkpoint anywhere and ends an open stream of the subscriber. Gives where it stands now.
func (c *Client) ResetSubscriber(ctx context.Context, subscriber string, start Start) (Position, error) {
	message, err := start.startMessage()
	if err != nil {
		return Position{}, err
	}
	response, err := unary(ctx, c, func(ctx context.Context, connection grpc.ClientConnInterface) (*walcastpb.ResetSubscriberResponse, error) {
		request := &walcastpb.ResetSubscriberRequest{Subscriber: subscriber, Start: message}
		return walcastpb.NewAdminServiceClient(connection).ResetSubscriber(ctx, request)
	})
	return PositionFromProto(response.GetCheckpoint()), err
}

// DeleteSubscriber forgets a subscriber and ends its open stream.
func (c *Client) DeleteSubscriber(ctx context.Context, subscriber string) error {
	_, err := unary(ctx, c, func(ctx context.Context, connection grpc.ClientConnInterface) (*walcastpb.DeleteSubscriberResponse, error) {
		return walcastpb.NewAdminServiceClient(connection).DeleteSubscriber(ctx, &walcastpb.DeleteSubscriberRequest{Subscriber: subscriber})
	})
	return err
}

// Relations are the versions of tables that the hub knows: the newest of each, or all.
func (c *Client) Relations(ctx context.Context, allVersions bool, tables ...string) ([]*Relation, error) {
	response, err := unary(ctx, c, func(ctx context.Context, connection grpc.ClientConnInterface) (*walcastpb.ListRelationsResponse, error) {
		request := &walcastpb.ListRelationsRequest{Tables: tables, AllVersions: allVersions}
		return walcastpb.NewChangeStreamServiceClient(connection).ListRelations(ctx, request)
	})
	var relations []*Relation
	for _, message := range response.GetRelations() {
		relations = append(relations, newRelation(message, nil))
	}
	return relations, err
}

// BackfillOptions says which rows a backfill reads, and how fast.
type BackfillOptions struct {
	// Tables are globs over "schema.table"; none is all that the subscription has.
	Tables []string
	// Where selects rows; empty is all.
	Where string
	// MaxRowsPerSecond bounds the load on the source; 0 is unlimited.
	MaxRowsPerSecond uint32
}

// StartBackfill starts a snapshot of tables into the open stream of a subscriber, in incremental mode, and gives its
// identifier.
func (c *Client) StartBackfill(ctx context.Context, subscriber string, options BackfillOptions) (string, error) {
	return c.backfill(ctx, &walcastpb.BackfillRequest{
		Subscriber: subscriber, Action: walcastpb.BackfillAction_BACKFILL_ACTION_START,
		Filter:  &walcastpb.Filter{Tables: options.Tables, Where: options.Where},
		Options: &walcastpb.SnapshotOptions{MaxRowsPerSecond: options.MaxRowsPerSecond},
	})
}

// PauseBackfill stops reading for now.
func (c *Client) PauseBackfill(ctx context.Context, subscriber, snapshotID string) error {
	return c.control(ctx, subscriber, snapshotID, walcastpb.BackfillAction_BACKFILL_ACTION_PAUSE)
}

// ResumeBackfill goes on where it was paused.
func (c *Client) ResumeBackfill(ctx context.Context, subscriber, snapshotID string) error {
	return c.control(ctx, subscriber, snapshotID, walcastpb.BackfillAction_BACKFILL_ACTION_RESUME)
}

// CancelBackfill gives it up.
func (c *Client) CancelBackfill(ctx context.Context, subscriber, snapshotID string) error {
	return c.control(ctx, subscriber, snapshotID, walcastpb.BackfillAction_BACKFILL_ACTION_CANCEL)
}

func (c *Client) control(ctx context.Context, subscriber, snapshotID string, action walcastpb.BackfillAction) error {
	_, err := c.backfill(ctx, &walcastpb.BackfillRequest{Subscriber: subscriber, Action: action, SnapshotId: snapshotID})
	return err
}

func (c *Client) backfill(ctx context.Context, request *walcastpb.BackfillRequest) (string, error) {
	response, err := unary(ctx, c, func(ctx context.Context, connection grpc.ClientConnInterface) (*walcastpb.BackfillResponse, error) {
		return walcastpb.NewChangeStreamServiceClient(connection).Backfill(ctx, request)
	})
	return response.GetSnapshotId(), err
}
