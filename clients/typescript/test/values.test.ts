import assert from "node:assert/strict";
import { test } from "node:test";
import { create, toBinary } from "@bufbuild/protobuf";
import { Interval, PlainDate, PlainTime, ProtocolError, Range, Timestamp, UNCHANGED, Unrepresentable } from "../src/index.js";
import { Relation } from "../src/model.js";
import * as pb from "../src/proto.js";
import { decodersOf } from "../src/types.js";
import { changedColumns, decodeRow, FIELDS, MISSING, type Row } from "../src/wire.js";
import { int, text, type ValueInit } from "./scripted.js";

const stamp = (iso: string, micros: number, zone: boolean): Timestamp => new Timestamp(Date.parse(iso), micros, zone);

const CASES: [string, string, unknown][] = [
  ["date", "2024-02-29", new PlainDate(2024, 2, 29)],
  ["date", "0044-03-15 BC", new Unrepresentable("date", "0044-03-15 BC")],
  ["date", "10000-01-01", new Unrepresentable("date", "10000-01-01")],
  ["date", "infinity", new Unrepresentable("date", "infinity")],
  ["time", "23:59:59.9", new PlainTime(23, 59, 59, 900000)],
  ["time", "24:00:00", new Unrepresentable("time", "24:00:00")],
  ["timetz", "12:00:00.5-03:30", new PlainTime(12, 0, 0, 500000, -12600)],
  ["timetz", "12:00:00+05", new PlainTime(12, 0, 0, 0, 18000)],
  ["timestamp", "2024-02-29 12:34:56.78", stamp("2024-02-29T12:34:56.780Z", 0, false)],
  ["timestamp", "0001-01-01 00:00:00", stamp("0001-01-01T00:00:00Z", 0, false)],
  ["timestamp", "1969-12-31 23:59:59.999999", stamp("1969-12-31T23:59:59.999Z", 999, false)],
  ["timestamp", "0044-03-15 00:00:00 BC", new Unrepresentable("timestamp", "0044-03-15 00:00:00 BC")],
  ["timestamp", "294276-12-31 23:59:59", new Unrepresentable("timestamp", "294276-12-31 23:59:59")],
  ["timestamptz", "2024-02-29 12:34:56.789012+00", stamp("2024-02-29T12:34:56.789Z", 12, true)],
  ["timestamptz", "2024-02-29 12:34:56+02", stamp("2024-02-29T10:34:56Z", 0, true)],
  ["timestamptz", "-infinity", new Unrepresentable("timestamptz", "-infinity")],
  ["timestamptz", "10000-01-01 00:00:00+00", new Unrepresentable("timestamptz", "10000-01-01 00:00:00+00")],
  ["interval", "1 year 2 mons 3 days 04:05:06.7", new Interval(14, 3, 14_706_700_000)],
  ["interval", "-1 years -2 mons +3 days -04:05:06.000001", new Interval(-14, 3, -14_706_000_001)],
  ["interval", "00:00:00", new Interval()],
  ["interval", "123456:00:00", new Interval(0, 0, 123456 * 3_600_000_000)],
  ["interval", "infinity", new Unrepresentable("interval", "infinity")],
  ["uuid", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"],
  ["jsonb", '{"a": [1, null, "x"]}', { a: [1, null, "x"] }],
  ["_int4", "{1,NULL,-3}", [1, null, -3]],
  ["_int8", "{9223372036854775807}", [9223372036854775807n]],
  ["_int4", "{}", []],
  ["_int4", "{{1,2},{3,4}}", [[1, 2], [3, 4]]], // prettier-ignore
  ["_int4", "[0:1][-1:0]={{1,2},{3,4}}", [[1, 2], [3, 4]]], // prettier-ignore
  ["_text", String.raw`{a,"b,c","d\"e","f\\g","NULL",NULL,"","{x}"," y"}`, ["a", "b,c", 'd"e', "f\\g", "NULL", null, "", "{x}", " y"]],
  ["_bool", "{t,f,NULL}", [true, false, null]],
  ["_bytea", String.raw`{"\\x00ff"}`, [Uint8Array.of(0, 255)]],
  ["_numeric", "{NaN,1.50}", ["NaN", "1.50"]],
  ["_float8", "{NaN,-Infinity,1e-300}", [Number.NaN, Number.NEGATIVE_INFINITY, 1e-300]],
  ["_timestamptz", '{"2024-01-01 00:00:00+00",infinity}', [stamp("2024-01-01T00:00:00Z", 0, true), new Unrepresentable("timestamptz", "infinity")]],
  ["_jsonb", String.raw`{"{\"a\": 1}"}`, [{ a: 1 }]],
  ["_box", "{(1,1),(0,0);(3,3),(2,2)}", ["(1,1),(0,0)", "(3,3),(2,2)"]],
  ["int4range", "[1,5)", new Range(1, 5, true)],
  ["int4range", "empty", new Range(undefined, undefined, false, false, true)],
  ["int8range", "(,5)", new Range(undefined, 5n)],
  ["tstzrange", '["2024-01-01 00:00:00+00",)', new Range(stamp("2024-01-01T00:00:00Z", 0, true), undefined, true)],
  ["int4multirange", "{[1,3),[5,9)}", [new Range(1, 3, true), new Range(5, 9, true)]],
  ["int4multirange", "{}", []],
  ["_int4range", '{"[1,3)",empty}', [new Range(1, 3, true), new Range(undefined, undefined, false, false, true)]],
];

for (const [typeName, written, wanted] of CASES) {
  test(`${typeName} ${written}`, () => assert.deepStrictEqual(decodersOf("parsed", {}).get(typeName)?.(written), wanted));
}

test("what is not of the type is refused", () => {
  const wrong: Record<string, string[]> = {
    _int4: ["", "{", "{1}}", "1,2", '{"a}', "{1}x{", "{1,}", "{,1}", "{a}"],
    int4range: ["", "[", "[1", "[1,2", "1,2)", "[1,2)x", "[a,2)"],
    uuid: ["zzz"],
    interval: ["", "1", "1 parsec", "04:05"],
    json: ["{", "1 2"],
    _bool: ["{x}"],
  };
  const decoders = decodersOf("parsed", {});
  for (const [typeName, texts] of Object.entries(wrong)) {
    for (const written of texts) assert.throws(() => decoders.get(typeName)?.(written), `${typeName} ${written}`);
  }
});

function relation(...columns: [string, string][]): Relation {
  const listed = columns.map(([name, typeName]) => ({ name, typeName }));
  const message = create(pb.RelationSchema, { relationId: 1, schema: "public", table: "t", columns: listed });
  return new Relation(message, decodersOf("parsed", {}));
}

function wire(...values: ValueInit[]): Uint8Array {
  return toBinary(pb.RowSchema, create(pb.RowSchema, { values }));
}

function decode(of: Relation, bytes: Uint8Array): Row {
  const plain = decodeRow(of.table, of.plan, bytes, 0, bytes.length);
  const buffer = Buffer.from(bytes);
  assert.deepStrictEqual(decodeRow(of.table, of.plan, buffer, 0, buffer.length), plain, "Node's Buffers are read alike");
  return plain;
}

const missing = (value: pb.Missing): ValueInit => ({ kind: { case: "missing", value } });

test("null, unchanged and absent are three things", () => {
  const of = relation(["a", "text"], ["b", "text"], ["c", "text"]);
  const row = decode(of, wire(missing(pb.Missing.NULL), missing(pb.Missing.UNCHANGED), missing(pb.Missing.ABSENT)));
  assert.deepStrictEqual(row, { a: null, b: UNCHANGED });
});

test("zeros are values, and numbers are exact", () => {
  const of = relation(["a", "int4"], ["b", "text"], ["c", "bool"], ["d", "float8"], ["e", "bytea"], ["f", "text"], ["g", "int8"], ["h", "oid"], ["i", "int4"], ["__proto__", "int4"]); // prettier-ignore
  const row = decode(
    of,
    wire(
      int(0), text(""), { kind: { case: "boolValue", value: false } }, { kind: { case: "floatValue", value: Number.NaN } },
      { kind: { case: "bytesValue", value: new Uint8Array() } }, { kind: { case: "rawText", value: Uint8Array.of(255) } },
      int(-(2n ** 63n)), int(4294967295), int(-2147483648), int(7),
    ), // prettier-ignore
  );
  assert.deepStrictEqual(Object.entries(row), [
    ["a", 0], ["b", ""], ["c", false], ["d", Number.NaN], ["e", new Uint8Array()], ["f", Uint8Array.of(255)],
    ["g", -(2n ** 63n)], ["h", 4294967295], ["i", -2147483648], ["__proto__", 7],
  ]); // prettier-ignore
});

test("int8 is exact on both sides of what a number holds", () => {
  for (const edge of [0n, 2n ** 31n, 2n ** 32n, 2n ** 51n, 2n ** 52n, 2n ** 53n, 2n ** 62n]) {
    for (const value of [edge - 1n, edge, edge + 1n, -edge - 1n, -edge, -edge + 1n]) {
      assert.deepStrictEqual(decode(relation(["a", "int8"]), wire(int(value))), { a: value });
    }
  }
});

test("texts of every length and script", () => {
  for (const written of ["x", "x".repeat(11), "x".repeat(12), "x".repeat(5000), "grüße 😀", `${"x".repeat(2000)}é`]) {
    assert.deepStrictEqual(decode(relation(["a", "text"]), wire(text(written))), { a: written });
  }
});

test("an unknown kind of value is an error", () => {
  const of = relation(["a", "uuid"]);
  const wrong = [
    wire({}), wire(), wire(int(1), int(2)), wire(missing(9 as pb.Missing)), wire(text("zzz")),
    Uint8Array.of(0x0a, 0x02, 0x78, 0x01), Uint8Array.of(0x0a, 0x03, 0x32, 0x01, 0xff), Uint8Array.of(0x0a, 0x7f),
  ]; // prettier-ignore
  for (const bytes of wrong) assert.throws(() => decode(of, bytes), ProtocolError, Buffer.from(bytes).toString("hex"));
  assert.throws(() => decode(of, wire(text("zzz"))), /public\.t\.a \(uuid\)/);
});

test("changed columns", () => {
  const of = relation(["a", "int4"], ["b", "text"], ["c", "text"]);
  const compare = (before: Uint8Array, after: Uint8Array): string[] | undefined => {
    const none = { operation: 2, relationId: 1, ordinal: 1, transition: 0 };
    const ends = { beforeStart: 0, beforeEnd: before.length, afterStart: before.length, afterEnd: before.length + after.length };
    return changedColumns(of.plan, Buffer.concat([before, after]), { ...none, ...ends });
  };
  const before = wire(int(1), text("x"), text("long"));
  assert.deepEqual(compare(before, wire(int(1), missing(pb.Missing.NULL), missing(pb.Missing.UNCHANGED))), ["b"]);
  assert.deepEqual(compare(before, before), []);
  assert.equal(compare(wire(int(1), missing(pb.Missing.ABSENT), missing(pb.Missing.ABSENT)), before), undefined);
});

test("json may stay text, and types may be added", () => {
  const decoders = decodersOf("text", { "public.mood": (written) => written.toUpperCase() });
  assert.deepEqual(decoders.get("_jsonb")?.(String.raw`{"{\"a\": 1}"}`), ['{"a": 1}']);
  assert.equal(decoders.get("public.mood")?.("ok"), "OK");
});

test("timestamps keep their microseconds", () => {
  const at = stamp("2024-02-29T12:34:56.789Z", 12, true);
  assert.equal(at.toString(), "2024-02-29T12:34:56.789012Z");
  assert.equal(at.epochMicroseconds, 1709210096789012n);
});

test("the field numbers of wire.ts are those of the proto", () => {
  const schemas = { ConsumeResponse: pb.ConsumeResponseSchema, Event: pb.EventSchema, Change: pb.ChangeSchema, Row: pb.RowSchema, Value: pb.ValueSchema }; // prettier-ignore
  for (const [name, fields] of Object.entries(FIELDS)) {
    const schema = schemas[name as keyof typeof schemas];
    for (const [field, number] of Object.entries(fields)) {
      assert.equal(schema.fields.find((entry) => entry.name === field)?.number, number, `${name}.${field}`);
    }
  }
  assert.deepEqual([MISSING.NULL, MISSING.UNCHANGED, MISSING.ABSENT], [pb.Missing.NULL, pb.Missing.UNCHANGED, pb.Missing.ABSENT]);
});
