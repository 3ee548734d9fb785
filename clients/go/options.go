package walcast

import (
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/walcast/walcast/clients/go/walcastpb"
)

// SubscribeOptions say what a subscription selects, where it starts and how it behaves. The zero value is everything from now
// on, anonymously.
type SubscribeOptions struct {
	// Tables are globs over "schema.table"; none is all. A name without wildcards must be published.
	Tables []string
	// ExcludeTables are left out, whatever Tables says.
	ExcludeTables []string
	// Operations; none is all.
	Operations []Operation
	// Columns are globs over "schema.table.column"; none is all. Columns of the replica identity always come.
	Columns []string
	// Where is a predicate over columns. [Where], [Identifier] and [Literal] help to write one.
	Where string
	// Messages are globs over prefixes of logical messages. Without any filter all come; with one, none but these.
	Messages []string
	// Origins are names of replication origins; none is all, and "" names the source itself.
	Origins []string
	// Rules hold instead of Columns, Where and Operations for the tables that match; the first that matches holds.
	Rules []Rule

	// Subscriber is a durable name; empty for an anonymous subscription, which has no checkpoint.
	Subscriber string
	// Start: a named subscriber goes on at its checkpoint and begins here only if it has none. An anonymous one begins
	// here; nil is [Latest].
	Start Start
	// ManualAck: nothing is acknowledged but by [Transaction.Ack] and [Subscription.Ack]. Otherwise a transaction is
	// acknowledged when the next one is asked for, that is after the loop's body succeeded.
	ManualAck bool
	// StopAtTail ends the loop when what had been committed when the stream opened has come.
	StopAtTail bool

	// JSONText gives json and jsonb as [json.RawMessage] rather than parsed.
	JSONText bool
	// Types adds decoders by type name, as "public.mood".
	Types map[string]Decoder

	// WindowEvents and WindowBytes are what the hub may send ahead; 0 is 100,000 and 8 MiB.
	WindowEvents, WindowBytes uint64
	// MaxTransactionBytes bounds a transaction that is gathered, in bytes on the wire; 0 is 1 GiB.
	MaxTransactionBytes int64
	// ProgressInterval is the time between two progress events; 0 leaves it to the hub.
	ProgressInterval time.Duration
	// Retry says when to try again.
	Retry Retry

	// The hooks run in the goroutine that iterates. An error of theirs ends the iteration with it; iterating again goes on.

	// OnProgress is told how far the stream is.
	OnProgress func(*Progress) error
	// OnTimelineChanged is told about a failover; without it the loop ends with a [*TimelineChangedError].
	OnTimelineChanged func(*TimelineChanged) error
	// OnGap is told about missing changes; without it the loop ends with a [*GapError].
	OnGap func(*Gap) error
	// OnSnapshot is told about [*SnapshotBegin], [*SnapshotTableEnd] and [*SnapshotEnd]; without it a snapshot that
	// starts over ends the loop with a [*SnapshotRestartedError].
	OnSnapshot func(Event) error
	// OnReconnect is told about each loss and how long it takes to the next attempt.
	OnReconnect func(err error, delay time.Duration)

	maxMessageBytes uint32
}

func (o SubscribeOptions) withDefaults(maxMessageBytes uint32) *SubscribeOptions {
	if o.WindowEvents == 0 {
		o.WindowEvents = 100_000
	}
	if o.WindowBytes == 0 {
		o.WindowBytes = 8 << 20
	}
	if o.MaxTransactionBytes == 0 {
		o.MaxTransactionBytes = 1 << 30
	}
	o.maxMessageBytes = maxMessageBytes
	return &o
}

// filter is nil where nothing was said, which selects everything.
func (o *SubscribeOptions) filter() (*walcastpb.Filter, error) {
	numbers, err := numbersOf(o.Operations)
	if err != nil {
		return nil, err
	}
	filter := &walcastpb.Filter{
		Tables: o.Tables, ExcludeTables: o.ExcludeTables, Operations: numbers, Columns: o.Columns, Where: o.Where,
		MessagePrefixes: o.Messages, Origins: o.Origins,
	}
	for _, rule := range o.Rules {
		numbers, err := numbersOf(rule.Operations)
		if err != nil {
			return nil, err
		}
		filter.Rules = append(filter.Rules, &walcastpb.TableRule{
			Tables: rule.Tables, Columns: rule.Columns, Where: rule.Where, Operations: numbers,
		})
	}
	if proto.Size(filter) == 0 {
		return nil, nil
	}
	return filter, nil
}

func numbersOf(operations []Operation) ([]walcastpb.Operation, error) {
	var numbers []walcastpb.Operation
	for _, operation := range operations {
		number, known := operationNumbers[operation]
		if !known {
			return nil, fmt.Errorf("walcast: %q is no operation", operation)
		}
		numbers = append(numbers, number)
	}
	return numbers, nil
}

var errEventsFirst = errors.New("walcast: Events must be the first use of a subscription")
