package walcast

import (
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/walcast/walcast/clients/go/walcastpb"
)

// Start is where a subscription begins: [Earliest], [Latest], [After], [AfterLSN], [Since], [Snapshot], or a
// [Position], which is the same as After. [ParseStart] reads one from text.
type Start interface {
	startMessage() (*walcastpb.Start, error)
}

type plainStart bool

const (
	// Earliest begins with the oldest change that the journal has.
	Earliest plainStart = true
	// Latest begins with whatever commits from now on.
	Latest plainStart = false
)

func (s plainStart) startMessage() (*walcastpb.Start, error) {
	if s == Earliest {
		return &walcastpb.Start{At: &walcastpb.Start_Earliest{Earliest: &emptypb.Empty{}}}, nil
	}
	return &walcastpb.Start{At: &walcastpb.Start_Latest{Latest: &emptypb.Empty{}}}, nil
}

func (p Position) startMessage() (*walcastpb.Start, error) {
	return &walcastpb.Start{At: &walcastpb.Start_After{After: p.Proto()}}, nil
}

// After begins behind a position (exclusive).
func After(position Position) Start { return position }

type afterLSN string

// AfterLSN begins behind an LSN "X/Y" of the current lineage (exclusive).
func AfterLSN(lsn string) Start { return afterLSN(lsn) }

func (s afterLSN) startMessage() (*walcastpb.Start, error) {
	if _, err := ParseLSN(string(s)); err != nil {
		return nil, err
	}
	return &walcastpb.Start{At: &walcastpb.Start_AfterLsn{AfterLsn: string(s)}}, nil
}

type since time.Time

// Since begins with the first block that holds a commit at or after this time; somewhat earlier commits may come too.
func Since(at time.Time) Start { return since(at) }

func (s since) startMessage() (*walcastpb.Start, error) {
	return &walcastpb.Start{At: &walcastpb.Start_Since{Since: timestamppb.New(time.Time(s))}}, nil
}

// SnapshotMode is how the rows of a snapshot are read.
type SnapshotMode int

const (
	// HubChooses by the size of the tables.
	HubChooses SnapshotMode = iota
	// Consistent reads all tables as of one point, in front of all changes.
	Consistent
	// Incremental reads in chunks between changes, which go on meanwhile.
	Incremental
)

// Snapshot begins with the rows that are there, then the changes that follow them without a gap.
type Snapshot struct {
	Mode SnapshotMode
	// MaxRowsPerSecond bounds the load on the source; 0 is unlimited.
	MaxRowsPerSecond uint32
}

func (s Snapshot) options() *walcastpb.SnapshotOptions {
	mode := walcastpb.SnapshotMode_SNAPSHOT_MODE_UNSPECIFIED
	switch s.Mode {
	case Consistent:
		mode = walcastpb.SnapshotMode_SNAPSHOT_MODE_CONSISTENT
	case Incremental:
		mode = walcastpb.SnapshotMode_SNAPSHOT_MODE_INCREMENTAL
	}
	return &walcastpb.SnapshotOptions{Mode: mode, MaxRowsPerSecond: s.MaxRowsPerSecond}
}

func (s Snapshot) startMessage() (*walcastpb.Start, error) {
	return &walcastpb.Start{At: &walcastpb.Start_Snapshot{Snapshot: s.options()}}, nil
}

// ParseStart reads "earliest", "latest", "snapshot", an LSN "X/Y", or a position as text.
func ParseStart(text string) (Start, error) {
	switch {
	case text == "earliest":
		return Earliest, nil
	case text == "latest":
		return Latest, nil
	case text == "snapshot":
		return Snapshot{}, nil
	case strings.Contains(text, ":"):
		position, err := ParsePosition(text)
		if err != nil {
			return nil, err
		}
		return position, nil
	}
	if _, err := ParseLSN(text); err != nil {
		return nil, fmt.Errorf("walcast: %q is neither earliest, latest, snapshot, an LSN nor a position", text)
	}
	return AfterLSN(text), nil
}
