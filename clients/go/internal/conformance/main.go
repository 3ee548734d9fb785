// Command conformance is Go's runner for clients/conformance: one subscription, driven by lines on stdin.
package main

import (
	"bufio"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"os"
	"strconv"
	"strings"
	"time"

	walcast "github.com/walcast/walcast/clients/go"
)

type request struct {
	Address       string
	Token         string
	TLS           *struct{ CA, Cert, Key string }
	Subscriber    string
	Start         string
	SnapshotMode  string `json:"snapshot_mode"`
	Tables        []string
	ExcludeTables []string `json:"exclude_tables"`
	Operations    []walcast.Operation
	Columns       []string
	Where         string
	AutoAck       *bool   `json:"auto_ack"`
	WindowEvents  uint64  `json:"window_events"`
	GiveUpAfter   float64 `json:"give_up_after"`
}

var out = json.NewEncoder(os.Stdout)

func say(event string, data map[string]any) {
	if data == nil {
		data = map[string]any{}
	}
	data["event"] = event
	if err := out.Encode(data); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
}

// value writes a native value as README.md of the conformance scenario says.
func value(native any, typeName string) any {
	if walcast.IsUnchanged(native) {
		return []any{"unchanged"}
	}
	if native != nil && (typeName == "json" || typeName == "jsonb") {
		return []any{"json", native}
	}
	switch native := native.(type) {
	case nil:
		return nil
	case bool:
		return []any{"bool", native}
	case int64:
		return []any{"int", strconv.FormatInt(native, 10)}
	case float64:
		if math.IsNaN(native) {
			return []any{"float", "nan"}
		}
		return []any{"float", fmt.Sprintf("%016x", math.Float64bits(native))}
	case walcast.Numeric:
		return []any{"decimal", string(native)}
	case string:
		return []any{"text", native}
	case []byte:
		return []any{"bytes", hex.EncodeToString(native)}
	case walcast.UUID:
		return []any{"uuid", native.String()}
	case walcast.Date:
		return []any{"date", native.String()}
	case walcast.TimeOfDay:
		return []any{"time", clock(native)}
	case walcast.ZonedTimeOfDay:
		return []any{"time", clock(native.TimeOfDay) + strings.TrimPrefix(native.String(), native.TimeOfDay.String())}
	case time.Time:
		return []any{strings.TrimPrefix(typeName, "_"), native.Format("2006-01-02T15:04:05.000000")}
	case walcast.Interval:
		return []any{"interval", []any{native.Months, native.Days, native.Microseconds}}
	case walcast.Range:
		return []any{"range", native.String()}
	case walcast.Unrepresentable:
		return []any{"special", native.Text}
	case []any:
		elements := []any{}
		for _, element := range native {
			elements = append(elements, value(element, strings.TrimPrefix(typeName, "_")))
		}
		return []any{"array", elements}
	}
	panic(fmt.Sprintf("no writer for %T", native))
}

func clock(t walcast.TimeOfDay) string {
	return fmt.Sprintf("%02d:%02d:%02d.%06d", t.Hour, t.Minute, t.Second, t.Microsecond)
}

func row(change *walcast.Change, image walcast.Row) any {
	if image == nil {
		return nil
	}
	row := map[string]any{}
	for _, column := range change.Relation.Columns {
		if native, ok := image[column.Name]; ok {
			row[column.Name] = value(native, column.Type)
		}
	}
	return row
}

func sayTransaction(tx *walcast.Transaction) {
	changes := []any{}
	for _, change := range tx.Changes {
		var changed any
		if names, known := change.ChangedColumns(); known {
			changed = names
		}
		var transition any
		if change.Transition != "" {
			transition = change.Transition
		}
		changes = append(changes, map[string]any{
			"operation": change.Operation, "table": change.Table(), "ordinal": change.Ordinal,
			"before": row(change, change.Before), "after": row(change, change.After), "changed": changed, "transition": transition,
		})
	}
	var committed any
	if !tx.CommitTime.IsZero() {
		committed = tx.CommitTime.Format("2006-01-02T15:04:05.000000Z")
	}
	var snapshot any
	if tx.SnapshotID != "" {
		snapshot = tx.SnapshotID
	}
	say("transaction", map[string]any{
		"position": tx.Position.String(), "commit_lsn": tx.CommitLSN, "xid": tx.XID, "commit_time": committed,
		"snapshot": snapshot, "changes": changes,
	})
}

func saySnapshot(event walcast.Event) error {
	switch event := event.(type) {
	case *walcast.SnapshotBegin:
		tables := []string{}
		for _, table := range event.Tables {
			tables = append(tables, table.Table)
		}
		say("snapshot", map[string]any{"step": "begin", "snapshot": event.SnapshotID, "restarted": event.Restarted, "tables": tables})
	case *walcast.SnapshotTableEnd:
		say("snapshot", map[string]any{"step": "table_end", "snapshot": event.SnapshotID, "table": event.Table, "rows": event.Rows})
	case *walcast.SnapshotEnd:
		say("snapshot", map[string]any{
			"step": "end", "snapshot": event.SnapshotID, "rows": event.Rows, "position": event.Position.String(),
		})
	}
	return nil
}

// sayLoss tells what a failover took back or the hub's policy left out, which is no reason to end.
func sayLoss(err error) bool {
	var forked *walcast.TimelineChangedError
	var gap *walcast.GapError
	switch {
	case errors.As(err, &forked):
		retracted := []any{}
		for _, entry := range forked.Event.Retracted {
			retracted = append(retracted, map[string]any{
				"position": entry.Position.String(), "xid": entry.Transaction.XID, "changes": entry.Changes,
			})
		}
		say("timeline_changed", map[string]any{
			"old_lineage": forked.Event.OldLineage, "new_lineage": forked.Event.NewLineage, "switch_lsn": forked.Event.SwitchLSN,
			"position": forked.Event.Position.String(), "retracted": retracted,
		})
	case errors.As(err, &gap):
		say("gap", map[string]any{"after": gap.Event.After.String(), "up_to": gap.Event.UpTo.String()})
	default:
		return false
	}
	return true
}

func sayError(err error) {
	reason, metadata, violations := strings.TrimPrefix(fmt.Sprintf("%T", err), "*walcast."), map[string]string{}, [][2]string{}
	var hub *walcast.HubError
	if errors.As(err, &hub) {
		reason = hub.Reason
		if hub.Metadata != nil {
			metadata = hub.Metadata
		}
		for _, violation := range hub.Violations {
			violations = append(violations, [2]string{violation.Field, violation.Description})
		}
	}
	say("error", map[string]any{"reason": reason, "metadata": metadata, "violations": violations, "message": err.Error()})
}

var errReached = errors.New("the asked-for LSN has been reached")

func main() {
	slog.SetDefault(slog.New(slog.NewTextHandler(os.Stderr, nil)))
	if err := run(); err != nil {
		sayError(err)
		os.Exit(1)
	}
	say("closed", nil)
}

func run() error {
	var asked request
	if err := json.Unmarshal([]byte(os.Args[1]), &asked); err != nil {
		return err
	}
	options := walcast.Options{}
	if asked.Token != "" {
		options.Token = walcast.StaticToken(asked.Token)
	}
	if asked.TLS != nil {
		options.TLS = &walcast.TLS{CA: asked.TLS.CA, Cert: asked.TLS.Cert, Key: asked.TLS.Key}
	}
	client, err := walcast.NewClient(asked.Address, options)
	if err != nil {
		return err
	}
	defer client.Close()
	var goal uint64
	until := false
	subscribe := walcast.SubscribeOptions{
		Tables: asked.Tables, ExcludeTables: asked.ExcludeTables, Operations: asked.Operations, Columns: asked.Columns,
		Where: asked.Where, Subscriber: asked.Subscriber, ManualAck: asked.AutoAck != nil && !*asked.AutoAck,
		WindowEvents: asked.WindowEvents, ProgressInterval: 200 * time.Millisecond,
		Retry: walcast.Retry{GiveUpAfter: time.Duration(asked.GiveUpAfter * float64(time.Second))},
		OnProgress: func(progress *walcast.Progress) error {
			if at, err := walcast.ParseLSN(progress.Position.LSN); until && (err != nil || at >= goal) {
				return errReached
			}
			return nil
		},
		OnSnapshot: saySnapshot,
		OnReconnect: func(err error, _ time.Duration) {
			var hub *walcast.HubError
			errors.As(err, &hub)
			say("reconnect", map[string]any{"reason": hub.Reason})
		},
	}
	if asked.Start != "" {
		if subscribe.Start, err = walcast.ParseStart(asked.Start); err != nil {
			return err
		}
	}
	if asked.SnapshotMode != "" {
		modes := map[string]walcast.SnapshotMode{"consistent": walcast.Consistent, "incremental": walcast.Incremental}
		subscribe.Start = walcast.Snapshot{Mode: modes[asked.SnapshotMode]}
	}
	stream, err := client.Subscribe(context.Background(), subscribe)
	if err != nil {
		return err
	}
	defer stream.Close()
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		command, argument, _ := strings.Cut(strings.TrimSpace(lines.Text()), " ")
		switch command {
		case "close":
			return nil
		case "next":
			count, err := strconv.Atoi(argument)
			if err != nil {
				return err
			}
			for range count {
				tx, err := stream.Next()
				if err == io.EOF {
					return errors.New("the stream ended")
				}
				if err != nil {
					return err
				}
				sayTransaction(tx)
			}
		case "until":
			if goal, err = walcast.ParseLSN(argument); err != nil {
				return err
			}
			for until = true; until; {
				for tx, err := range stream.Transactions() {
					if errors.Is(err, errReached) {
						until = false
						break
					}
					if sayLoss(err) {
						break
					}
					if err != nil {
						return err
					}
					sayTransaction(tx)
				}
			}
		case "ack":
			if err := stream.AckAll(); err != nil {
				return err
			}
		case "flush":
			checkpoint, err := stream.Flush(context.Background())
			if err != nil {
				return err
			}
			say("flushed", map[string]any{"checkpoint": checkpoint.String()})
		case "backfill":
			table, rate, _ := strings.Cut(argument, " ")
			perSecond, _ := strconv.ParseUint(rate, 10, 32) // none is unlimited
			snapshot, err := client.StartBackfill(context.Background(), asked.Subscriber,
				walcast.BackfillOptions{Tables: []string{table}, MaxRowsPerSecond: uint32(perSecond)})
			if err != nil {
				return err
			}
			say("backfill", map[string]any{"snapshot": snapshot})
		case "pause", "resume", "cancel":
			control := map[string]func(context.Context, string, string) error{
				"pause": client.PauseBackfill, "resume": client.ResumeBackfill, "cancel": client.CancelBackfill,
			}[command]
			if err := control(context.Background(), asked.Subscriber, argument); err != nil {
				return err
			}
		case "retracted":
			for tx, err := range client.ReadRetracted(context.Background(), argument, walcast.SubscribeOptions{}) {
				if err != nil {
					return err
				}
				sayTransaction(tx)
			}
		default:
			return fmt.Errorf("no such command: %s", command)
		}
		say("done", nil)
	}
	return lines.Err()
}
