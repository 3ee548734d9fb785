package walcast

import (
	"errors"
	"fmt"
	"sort"
	"strconv"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const errorDomain = "walcast"

// ErrClosed: the client or subscription was closed and cannot be used any more.
var ErrClosed = errors.New("walcast: closed")

// ProtocolError: the hub sent something that this version does not know, or that does not fit. Skipping it would lose
// data, so the subscription ends.
type ProtocolError struct{ Message string }

func (e *ProtocolError) Error() string { return "walcast: " + e.Message }

func protocolError(format string, arguments ...any) error {
	return &ProtocolError{fmt.Sprintf(format, arguments...)}
}

// TransactionTooLargeError: a transaction exceeds MaxTransactionBytes. [Subscription.Events] streams it without holding it.
type TransactionTooLargeError struct{ CommitLSN string }

func (e *TransactionTooLargeError) Error() string {
	return "walcast: the transaction at " + e.CommitLSN + " exceeds MaxTransactionBytes; stream it with Events"
}

// TimelineChangedError: the source failed over. Undo Event.Retracted, then iterate again: the stream goes on behind
// Event.Position.
type TimelineChangedError struct{ Event *TimelineChanged }

func (e *TimelineChangedError) Error() string {
	return fmt.Sprintf("walcast: history forked at %s: lineage %s ended, %s goes on; %d transactions were taken back",
		e.Event.SwitchLSN, e.Event.OldLineage, e.Event.NewLineage, len(e.Event.Retracted))
}

// GapError: changes are missing by the hub's policy. Iterate again to go on behind Event.UpTo.
type GapError struct{ Event *Gap }

func (e *GapError) Error() string {
	return fmt.Sprintf("walcast: changes are missing from %s to %s: %s", e.Event.After.LSN, e.Event.UpTo.LSN, e.Event.Reason)
}

// SnapshotRestartedError: a snapshot starts over. Drop the rows that an earlier attempt delivered, then iterate again.
type SnapshotRestartedError struct{ Event *SnapshotBegin }

func (e *SnapshotRestartedError) Error() string {
	return "walcast: snapshot " + e.Event.SnapshotID + " starts over: drop the rows that it delivered before"
}

// Violation names a field of a request and what is wrong there.
type Violation struct{ Field, Description string }

// HubError is an error from the hub. One whose reason is known is of the type of that reason; [errors.As] finds the
// HubError in each of them.
type HubError struct {
	// Message is for people.
	Message string
	// Code is the status code. Decide by Reason: several reasons share a code.
	Code codes.Code
	// Reason is ErrorInfo.reason; empty where the connection failed and no hub answered.
	Reason string
	// Metadata is ErrorInfo.metadata.
	Metadata map[string]string
	// RetryAfter is RetryInfo's delay; nil where trying again does not help.
	RetryAfter *time.Duration
	// Violations are from BadRequest.
	Violations []Violation
}

func (e *HubError) Error() string {
	text := e.Reason
	if text == "" {
		text = e.Code.String()
	}
	text = "walcast: " + text + ": " + e.Message
	if len(e.Metadata) > 0 {
		parts := make([]string, 0, len(e.Metadata))
		for key, value := range e.Metadata {
			parts = append(parts, key+" "+value)
		}
		sort.Strings(parts)
		text += " (" + strings.Join(parts, ", ") + ")"
	}
	for _, violation := range e.Violations {
		text += "\n  " + violation.Field + ": " + violation.Description
	}
	return text
}

// As makes [errors.As] find the HubError inside the type of a reason.
func (e *HubError) As(target any) bool {
	if hub, ok := target.(**HubError); ok {
		*hub = e
		return true
	}
	return false
}

// Retryable says whether trying again may help.
func (e *HubError) Retryable() bool {
	if e.RetryAfter != nil || e.Reason != "" {
		return e.RetryAfter != nil
	}
	switch e.Code {
	case codes.Unavailable, codes.Unknown, codes.Internal, codes.Canceled, codes.Aborted, codes.DeadlineExceeded:
		return true
	}
	return false
}

func (e *HubError) number(key string) uint64 {
	value, _ := strconv.ParseUint(e.Metadata[key], 10, 64) // absent is 0
	return value
}

// hubError is any of the types of reasons.
type hubError interface {
	error
	base() *HubError
}

func (e *HubError) base() *HubError { return e }

// fromStatus makes an error of how a call ended.
func fromStatus(err error) hubError {
	ended := status.Convert(err)
	hub := &HubError{Message: ended.Message(), Code: ended.Code()}
	answered := false
	for _, detail := range ended.Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			if detail.GetDomain() == errorDomain {
				answered = true
				hub.Reason = detail.GetReason()
				hub.Metadata = detail.GetMetadata()
			}
		case *errdetails.RetryInfo:
			delay := detail.GetRetryDelay().AsDuration()
			hub.RetryAfter = &delay
		case *errdetails.BadRequest:
			for _, violation := range detail.GetFieldViolations() {
				hub.Violations = append(hub.Violations, Violation{violation.GetField(), violation.GetDescription()})
			}
		}
	}
	if !answered {
		return &ConnectionLostError{hub}
	}
	if wrap, ok := reasons[hub.Reason]; ok {
		return wrap(hub)
	}
	return hub
}
