package walcast

import (
	"bytes"
	"errors"
	"math"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
)

// Changes make up nearly all of a stream, and generated code would make an object of each value of each row only for
// it to be turned into another. So changes are read off the wire here, and everything else by generated code.

var errWire = errors.New("malformed message")

// field is one field of a message: a number for varints and fixed widths, bytes for the rest.
type field struct {
	number protowire.Number
	kind   protowire.Type
	value  uint64
	bytes  []byte
}

// nextField takes a field off data.
func nextField(data []byte, into *field) ([]byte, error) {
	var tag uint64
	var size int
	if data[0] < 0x80 {
		tag, size = uint64(data[0]), 1
	} else if tag, size = protowire.ConsumeVarint(data); size < 0 {
		return nil, errWire
	}
	data = data[size:]
	into.number, into.kind = protowire.Number(tag>>3), protowire.Type(tag&7)
	switch into.kind {
	case protowire.VarintType:
		if len(data) > 0 && data[0] < 0x80 {
			into.value, size = uint64(data[0]), 1
		} else if into.value, size = protowire.ConsumeVarint(data); size < 0 {
			return nil, errWire
		}
	case protowire.BytesType:
		var length uint64
		if len(data) > 0 && data[0] < 0x80 {
			length, size = uint64(data[0]), 1
		} else if length, size = protowire.ConsumeVarint(data); size < 0 {
			return nil, errWire
		}
		if length > uint64(len(data)-size) {
			return nil, errWire
		}
		into.bytes = data[size : size+int(length)]
		size += int(length)
	case protowire.Fixed64Type:
		if into.value, size = protowire.ConsumeFixed64(data); size < 0 {
			return nil, errWire
		}
	default:
		if size = protowire.ConsumeFieldValue(into.number, into.kind, data); size < 0 {
			return nil, errWire
		}
	}
	return data[size:], nil
}

// Field numbers of walcast.v1 that are read here; a test compares them with the generated descriptors.
const (
	responseEvents = 1
	eventChange    = 3

	changeOperation  = 1
	changeRelationID = 2
	changeOrdinal    = 3
	changeBeforeRow  = 4
	changeAfterRow   = 5
	changeTransition = 11

	rowValues = 1

	valueMissing = 1
	valueBool    = 2
	valueInt     = 3
	valueFloat   = 4
	valueBytes   = 5
	valueText    = 6
	valueRawText = 7

	missingNull      = 1
	missingUnchanged = 2
	missingAbsent    = 3
)

// eachEvent calls with each event of a response: the content of its change if it is one and nothing else, otherwise the event.
func eachEvent(response []byte, change func([]byte) error, other func([]byte) error) error {
	var at field
	var err error
	for len(response) > 0 {
		if response, err = nextField(response, &at); err != nil {
			return err
		}
		if at.number != responseEvents || at.kind != protowire.BytesType {
			continue
		}
		event := at.bytes
		if len(event) > 0 && event[0] == eventChange<<3|byte(protowire.BytesType) {
			rest, err := nextField(event, &at)
			if err != nil {
				return err
			}
			if len(rest) == 0 {
				if err := change(at.bytes); err != nil {
					return err
				}
				continue
			}
		}
		if err := other(event); err != nil {
			return err
		}
	}
	return nil
}

// rawChange is a change whose rows have not been decoded.
type rawChange struct {
	operation     uint64
	relationID    uint64
	ordinal       uint64
	transition    uint64
	before, after []byte
	// Which rows are present: an empty one is.
	hasBefore, hasAfter bool
}

func parseChange(data []byte, into *rawChange) error {
	*into = rawChange{}
	var at field
	var err error
	for len(data) > 0 {
		if data, err = nextField(data, &at); err != nil {
			return err
		}
		switch at.number {
		case changeOperation:
			into.operation = at.value
		case changeRelationID:
			into.relationID = at.value
		case changeOrdinal:
			into.ordinal = at.value
		case changeBeforeRow:
			into.before, into.hasBefore = at.bytes, true
		case changeAfterRow:
			into.after, into.hasAfter = at.bytes, true
		case changeTransition:
			into.transition = at.value
		}
	}
	return nil
}

// relationOf reads the relation of a change, without the rest.
func relationOf(data []byte) (uint64, error) {
	var at field
	var err error
	for len(data) > 0 {
		if data, err = nextField(data, &at); err != nil {
			return 0, err
		}
		if at.number == changeRelationID {
			return at.value, nil
		}
	}
	return 0, nil
}

// decode makes a row by column name; absent columns have no entry.
func (r *Relation) decode(data []byte) (Row, error) {
	row := make(Row, len(r.Columns))
	// One copy for all texts of the row: they share it, and it is not the whole response that they keep in memory.
	texts := string(data)
	whole := len(data)
	index := 0
	var element, value field
	var err error
	for len(data) > 0 {
		if data, err = nextField(data, &element); err != nil {
			return nil, err
		}
		if element.number != rowValues || element.kind != protowire.BytesType {
			continue
		}
		if index == len(r.Columns) {
			return nil, protocolError("%s: more values than its %d columns", r.Table, len(r.Columns))
		}
		content := element.bytes
		if len(content) == 0 {
			return nil, protocolError("%s.%s: a value without a kind", r.Table, r.Columns[index].Name)
		}
		for len(content) > 0 { // of a oneof the last one counts
			if content, err = nextField(content, &value); err != nil {
				return nil, err
			}
		}
		column := &r.plan[index]
		index++
		switch value.number {
		case valueMissing:
			switch value.value {
			case missingNull:
				row[column.name] = nil
			case missingUnchanged:
				row[column.name] = Unchanged
			case missingAbsent:
			default:
				return nil, protocolError("%s.%s: a value is missing for reason %d, which this version does not know", r.Table, column.name, value.value)
			}
		case valueBool:
			row[column.name] = value.value != 0
		case valueInt:
			row[column.name] = protowire.DecodeZigZag(value.value)
		case valueFloat:
			row[column.name] = math.Float64frombits(value.value)
		case valueBytes, valueRawText:
			row[column.name] = bytes.Clone(nonNil(value.bytes))
		case valueText:
			end := whole - len(data)
			text := texts[end-len(value.bytes) : end]
			if !utf8.ValidString(text) {
				return nil, protocolError("%s.%s: a text that is not UTF-8", r.Table, column.name)
			}
			if column.decode == nil {
				row[column.name] = text
				continue
			}
			decoded, err := column.decode(text)
			if err != nil {
				return nil, protocolError("%s.%s (%s): %q: %v", r.Table, column.name, column.typeName, text, err)
			}
			row[column.name] = decoded
		default:
			return nil, protocolError("%s.%s: a value of a kind that this version does not know", r.Table, column.name)
		}
	}
	if index != len(r.Columns) {
		return nil, protocolError("%s: %d values for %d columns", r.Table, index, len(r.Columns))
	}
	return row, nil
}

func nonNil(data []byte) []byte {
	if data == nil {
		return []byte{}
	}
	return data
}

// changed lists the columns whose values differ between two rows of a relation with REPLICA IDENTITY FULL; false where the
// old row is not known whole.
func (r *Relation) changed(before, after []byte) ([]string, bool) {
	columns := []string{}
	var old, new, value field
	var err error
	for index := 0; len(before) > 0 && len(after) > 0 && index < len(r.Columns); index++ {
		if before, err = nextField(before, &old); err != nil {
			return nil, false
		}
		if after, err = nextField(after, &new); err != nil {
			return nil, false
		}
		if bytes.Equal(old.bytes, new.bytes) || isMissing(new.bytes, missingUnchanged, &value) {
			continue
		}
		if isMissing(old.bytes, missingAbsent, &value) {
			return nil, false
		}
		columns = append(columns, r.Columns[index].Name)
	}
	return columns, true
}

func isMissing(content []byte, reason uint64, value *field) bool {
	if len(content) == 0 {
		return false
	}
	_, err := nextField(content, value)
	return err == nil && value.number == valueMissing && value.value == reason
}
