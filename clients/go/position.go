package walcast

import (
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"

	"github.com/walcast/walcast/clients/go/walcastpb"
)

// ParseLSN gives an LSN "X/Y" as a number of bytes.
func ParseLSN(text string) (uint64, error) {
	high, low, found := strings.Cut(text, "/")
	if !found {
		return 0, fmt.Errorf("walcast: %q is no LSN", text)
	}
	h, err := strconv.ParseUint(high, 16, 32)
	if err != nil {
		return 0, fmt.Errorf("walcast: %q is no LSN: %w", text, err)
	}
	l, err := strconv.ParseUint(low, 16, 32)
	if err != nil {
		return 0, fmt.Errorf("walcast: %q is no LSN: %w", text, err)
	}
	return h<<32 | l, nil
}

// Position is a resume point: everything up to and including it is done. Store it whole; [Position.String] and
// [ParsePosition] are inverse. Positions are comparable with ==.
type Position struct {
	// LSN is the end LSN of the commit record, "X/Y".
	LSN string
	// Lineage names one unbroken course of history, 16 hexadecimal digits. Equal or not; never compared for order.
	Lineage string
	// Sequence is 0 for transactions from the slot.
	Sequence uint32
	// Snapshot is the opaque progress of running snapshots: bytes, empty without.
	Snapshot string
}

// String is the text form, LINEAGE:X/Y:SEQUENCE:SNAPSHOT with the last in hexadecimal.
func (p Position) String() string {
	return p.Lineage + ":" + p.LSN + ":" + strconv.FormatUint(uint64(p.Sequence), 10) + ":" + hex.EncodeToString([]byte(p.Snapshot))
}

// ParsePosition is the inverse of [Position.String].
func ParsePosition(text string) (Position, error) {
	parts := strings.Split(text, ":")
	if len(parts) != 4 {
		return Position{}, fmt.Errorf("walcast: %q is no position", text)
	}
	if _, err := ParseLSN(parts[1]); err != nil {
		return Position{}, err
	}
	sequence, err := strconv.ParseUint(parts[2], 10, 32)
	if err != nil {
		return Position{}, fmt.Errorf("walcast: %q is no position: %w", text, err)
	}
	snapshot, err := hex.DecodeString(parts[3])
	if err != nil {
		return Position{}, fmt.Errorf("walcast: %q is no position: %w", text, err)
	}
	return Position{LSN: parts[1], Lineage: parts[0], Sequence: uint32(sequence), Snapshot: string(snapshot)}, nil
}

// Reaches says whether p is on the same lineage as other and at or behind it.
func (p Position) Reaches(other Position) bool {
	if p.Lineage != other.Lineage {
		return false
	}
	if p.LSN == other.LSN {
		return p.Sequence >= other.Sequence
	}
	mine, err := ParseLSN(p.LSN)
	if err != nil {
		return false
	}
	its, err := ParseLSN(other.LSN)
	return err == nil && mine > its
}

// IsZero says whether p is no position at all.
func (p Position) IsZero() bool { return p.Lineage == "" && p.LSN == "" }

// PositionFromProto converts the position of a message, as those of [Client.Subscribers].
func PositionFromProto(message *walcastpb.Position) Position {
	return Position{
		LSN: message.GetLsn(), Lineage: message.GetLineage(), Sequence: message.GetSequence(),
		Snapshot: string(message.GetSnapshot()),
	}
}

// positionFrom converts the position of an event, and refuses what cannot be resumed from.
func positionFrom(message *walcastpb.Position) (Position, error) {
	position := PositionFromProto(message)
	if _, err := ParseLSN(position.LSN); err != nil {
		return Position{}, protocolError("the hub sent a position whose LSN is %q", position.LSN)
	}
	return position, nil
}

// positionsFrom converts several.
func positionsFrom(messages ...*walcastpb.Position) ([]Position, error) {
	positions := make([]Position, len(messages))
	var err error
	for i, message := range messages {
		if positions[i], err = positionFrom(message); err != nil {
			return nil, err
		}
	}
	return positions, nil
}

// Proto is the message for p.
func (p Position) Proto() *walcastpb.Position {
	message := &walcastpb.Position{Lsn: p.LSN, Lineage: p.Lineage, Sequence: p.Sequence}
	if p.Snapshot != "" {
		message.Snapshot = []byte(p.Snapshot)
	}
	return message
}
