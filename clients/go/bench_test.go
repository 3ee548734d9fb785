package walcast

import (
	"fmt"
	"log/slog"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/walcast/walcast/clients/go/walcastpb"
)

// eightColumns is a response like those of the suite `clients` of `make bench`: transactions of 100 inserts.
func eightColumns(transactions int) []byte {
	var columns []*walcastpb.Column
	for _, column := range [][2]string{
		{"id", "int8"}, {"branch", "int4"}, {"account", "int4"}, {"delta", "numeric"}, {"ratio", "float8"}, {"paid", "bool"},
		{"mtime", "timestamptz"}, {"note", "text"},
	} {
		columns = append(columns, &walcastpb.Column{Name: column[0], TypeName: column[1]})
	}
	all := events{opened(0, 0), {Kind: &walcastpb.Event_Relation{Relation: &walcastpb.Relation{
		RelationId: 7, Schema: "public", Table: "t", ReplicaIdentity: walcastpb.ReplicaIdentity_REPLICA_IDENTITY_DEFAULT, Columns: columns,
	}}}}
	integer := func(value int) *walcastpb.Value {
		return &walcastpb.Value{Kind: &walcastpb.Value_IntValue{IntValue: int64(value)}}
	}
	for n := range transactions {
		all = append(all, begin(uint64(n+1)*1000))
		for ordinal := range 100 {
			id := n*100 + ordinal
			change := insert(uint64(ordinal+1), 0)
			change.GetChange().AfterRow = &walcastpb.Row{Values: []*walcastpb.Value{
				integer(id), integer(id % 10), integer(id % 100_000), text(fmt.Sprintf("%.2f", float64(id%10_000)/100)),
				{Kind: &walcastpb.Value_FloatValue{FloatValue: float64(id) / 7}}, {Kind: &walcastpb.Value_BoolValue{BoolValue: id%2 == 0}},
				text(fmt.Sprintf("2026-01-01 00:%02d:%02d.%03d+00", id/60_000%60, id/1000%60, id%1000)),
				text(fmt.Sprintf("note %032x", id)),
			}}
			all = append(all, change)
		}
		all = append(all, commit(uint64(n+1)*1000, 100))
	}
	data, err := proto.Marshal(&walcastpb.ConsumeResponse{Events: all})
	if err != nil {
		panic(err)
	}
	return data
}

// BenchmarkChanges is what the client itself spends on a change, without its transport.
func BenchmarkChanges(bench *testing.B) {
	const transactions = 20
	data := eightColumns(transactions)
	bench.ReportAllocs()
	seen := 0
	for seen < bench.N {
		core, err := newCore((SubscribeOptions{}).withDefaults(64<<20), slog.Default(), time.Now)
		if err != nil {
			bench.Fatal(err)
		}
		core.openRequest()
		if err := core.receive(append([]byte{}, data...)); err != nil {
			bench.Fatal(err)
		}
		for next := core.poll(); next != nil; next = core.poll() {
			if tx, ok := next.(*Transaction); ok {
				if err := tx.each(func(change *Change) bool { seen += len(change.After) / 8; return true }, func(Message) {}); err != nil {
					bench.Fatal(err)
				}
			}
		}
	}
}
