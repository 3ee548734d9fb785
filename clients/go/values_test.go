package walcast

import (
	"encoding/json"
	"errors"
	"math"
	"math/big"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/walcast/walcast/clients/go/walcastpb"
)

func TestTextBecomesTheNativeType(test *testing.T) {
	utc := func(year int, month time.Month, day, hour, minute, second, micros int) time.Time {
		return time.Date(year, month, day, hour, minute, second, micros*1000, time.UTC)
	}
	decoders := decodersOf(false, nil)
	for _, one := range []struct {
		typeName, text string
		wanted         any
	}{
		{"numeric", "12345678901234567890.00010", Numeric("12345678901234567890.00010")},
		{"numeric", "-Infinity", Numeric("-Infinity")},
		{"date", "2024-02-29", Date{2024, 2, 29}},
		{"date", "0044-03-15 BC", Unrepresentable{"date", "0044-03-15 BC"}},
		{"date", "10000-01-01", Unrepresentable{"date", "10000-01-01"}},
		{"date", "infinity", Unrepresentable{"date", "infinity"}},
		{"time", "23:59:59.9", TimeOfDay{23, 59, 59, 900000}},
		{"time", "24:00:00", Unrepresentable{"time", "24:00:00"}},
		{"timetz", "12:00:00.5-03:30", ZonedTimeOfDay{TimeOfDay{12, 0, 0, 500000}, -12600}},
		{"timetz", "12:00:00+05", ZonedTimeOfDay{TimeOfDay{12, 0, 0, 0}, 18000}},
		{"timetz", "12:00:00+00:00:30", ZonedTimeOfDay{TimeOfDay{12, 0, 0, 0}, 30}},
		{"timestamp", "2024-02-29 12:34:56.78", utc(2024, 2, 29, 12, 34, 56, 780000)},
		{"timestamp", "0001-01-01 00:00:00", utc(1, 1, 1, 0, 0, 0, 0)},
		{"timestamp", "0044-03-15 00:00:00 BC", Unrepresentable{"timestamp", "0044-03-15 00:00:00 BC"}},
		{"timestamp", "294276-12-31 23:59:59", Unrepresentable{"timestamp", "294276-12-31 23:59:59"}},
		{"timestamptz", "2024-02-29 12:34:56.789012+00", utc(2024, 2, 29, 12, 34, 56, 789012)},
		{"timestamptz", "2024-02-29 12:34:56+02", utc(2024, 2, 29, 10, 34, 56, 0)},
		{"timestamptz", "-infinity", Unrepresentable{"timestamptz", "-infinity"}},
		{"timestamptz", "10000-01-01 00:00:00+00", Unrepresentable{"timestamptz", "10000-01-01 00:00:00+00"}},
		{"interval", "1 year 2 mons 3 days 04:05:06.7", Interval{14, 3, 14_706_700_000}},
		{"interval", "-1 years -2 mons +3 days -04:05:06.000001", Interval{-14, 3, -14_706_000_001}},
		{"interval", "00:00:00", Interval{}},
		{"interval", "1 day", Interval{0, 1, 0}},
		{"interval", "123456:00:00", Interval{0, 0, 123456 * 3_600_000_000}},
		{"interval", "infinity", Unrepresentable{"interval", "infinity"}},
		{"uuid", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", UUID{0xa0, 0xee, 0xbc, 0x99, 0x9c, 0x0b, 0x4e, 0xf8, 0xbb, 0x6d, 0x6b, 0xb9, 0xbd, 0x38, 0x0a, 0x11}},
		{"jsonb", `{"a": [1, null, "x"], "big": 12345678901234567890}`, map[string]any{
			"a": []any{json.Number("1"), nil, "x"}, "big": json.Number("12345678901234567890"),
		}},
		{"_int4", "{1,NULL,-3}", []any{int64(1), nil, int64(-3)}},
		{"_int4", "{}", []any{}},
		{"_int4", "{{1,2},{3,4}}", []any{[]any{int64(1), int64(2)}, []any{int64(3), int64(4)}}},
		{"_int4", "[0:1][-1:0]={{1,2},{3,4}}", []any{[]any{int64(1), int64(2)}, []any{int64(3), int64(4)}}},
		{"_text", `{a,"b,c","d\"e","f\\g","NULL",NULL,"","{x}"," y"}`, []any{"a", "b,c", `d"e`, `f\g`, "NULL", nil, "", "{x}", " y"}},
		{"_bool", "{t,f,NULL}", []any{true, false, nil}},
		{"_bytea", `{"\\x00ff"}`, []any{[]byte{0, 255}}},
		{"_numeric", "{NaN,1.50}", []any{Numeric("NaN"), Numeric("1.50")}},
		{"_timestamptz", `{"2024-01-01 00:00:00+00",infinity}`, []any{utc(2024, 1, 1, 0, 0, 0, 0), Unrepresentable{"timestamptz", "infinity"}}},
		{"_jsonb", `{"{\"a\": true}"}`, []any{map[string]any{"a": true}}},
		{"_box", "{(1,1),(0,0);(3,3),(2,2)}", []any{"(1,1),(0,0)", "(3,3),(2,2)"}},
		{"int4range", "[1,5)", Range{Lower: int64(1), Upper: int64(5), LowerInclusive: true}},
		{"int4range", "empty", Range{Empty: true}},
		{"int8range", "(,5)", Range{Upper: int64(5)}},
		{"tstzrange", `["2024-01-01 00:00:00+00",)`, Range{Lower: utc(2024, 1, 1, 0, 0, 0, 0), LowerInclusive: true}},
		{"int4multirange", "{[1,3),[5,9)}", []Range{
			{Lower: int64(1), Upper: int64(3), LowerInclusive: true}, {Lower: int64(5), Upper: int64(9), LowerInclusive: true},
		}},
		{"_int4range", `{"[1,3)",empty}`, []any{Range{Lower: int64(1), Upper: int64(3), LowerInclusive: true}, Range{Empty: true}}},
	} {
		got, err := decoders[one.typeName](one.text)
		if err != nil {
			test.Fatalf("%s %s: %v", one.typeName, one.text, err)
		}
		equal(test, got, one.wanted)
	}
}

func TestWhatIsNotOfTheTypeIsRefused(test *testing.T) {
	decoders := decodersOf(false, nil)
	for typeName, texts := range map[string][]string{
		"_int4":     {"", "{", "{1}}", "1,2", `{"a}`, "{1}x{", "{1,}", "{,1}", "{a}"},
		"int4range": {"", "[", "[1", "[1,2", "1,2)", "[1,2)x", "[a,2)"},
		"uuid":      {"zzz", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380axx"},
		"interval":  {"", "1", "1 parsec", "04:05", "x:00:00"},
		"json":      {"{", "1 2"},
		"_bool":     {"{x}"},
	} {
		for _, text := range texts {
			if value, err := decoders[typeName](text); err == nil {
				test.Errorf("%s %q became %v", typeName, text, value)
			}
		}
	}
}

func relationWith(columns ...string) *Relation {
	message := &walcastpb.Relation{RelationId: 1, Schema: "public", Table: "t", ReplicaIdentity: walcastpb.ReplicaIdentity_REPLICA_IDENTITY_FULL}
	for i := 0; i < len(columns); i += 2 {
		message.Columns = append(message.Columns, &walcastpb.Column{Name: columns[i], TypeName: columns[i+1]})
	}
	return newRelation(message, decodersOf(false, nil))
}

func wire(test *testing.T, values ...*walcastpb.Value) []byte {
	test.Helper()
	data, err := proto.Marshal(&walcastpb.Row{Values: values})
	if err != nil {
		test.Fatal(err)
	}
	return data
}

func missing(reason walcastpb.Missing) *walcastpb.Value {
	return &walcastpb.Value{Kind: &walcastpb.Value_Missing{Missing: reason}}
}

func number(value int64) *walcastpb.Value {
	return &walcastpb.Value{Kind: &walcastpb.Value_IntValue{IntValue: value}}
}

func TestNullUnchangedAndAbsentAreThreeThings(test *testing.T) {
	row, err := relationWith("a", "text", "b", "text", "c", "text").decode(wire(test, missing(1), missing(2), missing(3)))
	if err != nil {
		test.Fatal(err)
	}
	equal(test, row, Row{"a": nil, "b": Unchanged})
	if !IsUnchanged(row["b"]) || IsUnchanged(row["a"]) || IsUnchanged([]any{}) || row["b"] == nil {
		test.Fatal("unchanged")
	}
}

func TestZerosAreValues(test *testing.T) {
	row, err := relationWith("a", "int4", "b", "text", "c", "bool", "d", "float8", "e", "bytea", "f", "text", "g", "int8").decode(wire(test,
		number(0), text(""), &walcastpb.Value{Kind: &walcastpb.Value_BoolValue{}}, &walcastpb.Value{Kind: &walcastpb.Value_FloatValue{FloatValue: math.Inf(-1)}},
		&walcastpb.Value{Kind: &walcastpb.Value_BytesValue{BytesValue: []byte{}}}, &walcastpb.Value{Kind: &walcastpb.Value_RawText{RawText: []byte{255}}}, number(math.MinInt64)))
	if err != nil {
		test.Fatal(err)
	}
	equal(test, row, Row{"a": int64(0), "b": "", "c": false, "d": math.Inf(-1), "e": []byte{}, "f": []byte{255}, "g": int64(math.MinInt64)})
}

func TestAnUnknownKindOfValueIsAnError(test *testing.T) {
	for _, row := range [][]byte{
		wire(test, &walcastpb.Value{}), wire(test), wire(test, number(1), number(2)), wire(test, missing(9)), wire(test, text("zzz")),
		{0x0a, 0x02, 0x78, 0x01},       // a Value with a field 15
		{0x0a, 0x03, 0x32, 0x01, 0xff}, // text that is not UTF-8
		{0x0a, 0x7f},                   // shorter than it says
	} {
		if value, err := relationWith("a", "uuid").decode(row); err == nil {
			test.Errorf("%x became %v", row, value)
		}
	}
	var protocol *ProtocolError
	if _, err := relationWith("a", "uuid").decode(wire(test, text("zzz"))); !errors.As(err, &protocol) || protocol.Message[:17] != "public.t.a (uuid)" {
		test.Fatal(err)
	}
}

func TestChangedColumns(test *testing.T) {
	relation := relationWith("a", "int4", "b", "text", "c", "text")
	before := wire(test, number(1), text("x"), text("long"))
	changed, known := relation.changed(before, wire(test, number(1), missing(1), missing(2)))
	if !known {
		test.Fatal("not known")
	}
	equal(test, changed, []string{"b"})
	if changed, known := relation.changed(before, before); !known || len(changed) != 0 {
		test.Fatal(changed, known)
	}
	if _, known := relation.changed(wire(test, number(1), missing(3), missing(3)), before); known {
		test.Fatal("known without the old row")
	}
}

func TestJSONMayStayTextAndTypesMayBeAdded(test *testing.T) {
	decoders := decodersOf(true, map[string]Decoder{"public.mood": func(text string) (any, error) { return len(text), nil }})
	got, err := decoders["_jsonb"](`{"{\"a\": 1}"}`)
	if err != nil {
		test.Fatal(err)
	}
	equal(test, got, []any{json.RawMessage(`{"a": 1}`)})
	if got, _ := decoders["public.mood"]("ok"); got != 2 {
		test.Fatal(got)
	}
}

func TestNumeric(test *testing.T) {
	exact, ok := Numeric("-0.10").Rat()
	if !ok || exact.Cmp(big.NewRat(-1, 10)) != 0 {
		test.Fatal(exact)
	}
	if _, ok := Numeric("NaN").Rat(); ok || !Numeric("NaN").IsNaN() || !math.IsNaN(Numeric("NaN").Float64()) {
		test.Fatal("NaN")
	}
}

// wire.go reads changes by these numbers.
func TestTheFieldNumbersAreThoseOfTheProto(test *testing.T) {
	for _, one := range []struct {
		message proto.Message
		field   string
		number  int
	}{
		{&walcastpb.ConsumeResponse{}, "events", responseEvents}, {&walcastpb.Event{}, "change", eventChange},
		{&walcastpb.Change{}, "operation", changeOperation}, {&walcastpb.Change{}, "relation_id", changeRelationID},
		{&walcastpb.Change{}, "ordinal", changeOrdinal}, {&walcastpb.Change{}, "before_row", changeBeforeRow},
		{&walcastpb.Change{}, "after_row", changeAfterRow}, {&walcastpb.Change{}, "transition", changeTransition},
		{&walcastpb.Row{}, "values", rowValues}, {&walcastpb.Value{}, "missing", valueMissing},
		{&walcastpb.Value{}, "bool_value", valueBool}, {&walcastpb.Value{}, "int_value", valueInt},
		{&walcastpb.Value{}, "float_value", valueFloat}, {&walcastpb.Value{}, "bytes_value", valueBytes},
		{&walcastpb.Value{}, "text", valueText}, {&walcastpb.Value{}, "raw_text", valueRawText},
	} {
		descriptor := one.message.ProtoReflect().Descriptor().Fields().ByName(protoreflect.Name(one.field))
		if descriptor == nil || int(descriptor.Number()) != one.number {
			test.Errorf("%T.%s is not %d", one.message, one.field, one.number)
		}
	}
	if walcastpb.Missing_MISSING_NULL != missingNull || walcastpb.Missing_MISSING_UNCHANGED != missingUnchanged || walcastpb.Missing_MISSING_ABSENT != missingAbsent {
		test.Error("reasons for missing values")
	}
	if len(operations) != len(walcastpb.Operation_name) || operations[uint64(walcastpb.Operation_OPERATION_READ)] != Read {
		test.Error("operations")
	}
}
