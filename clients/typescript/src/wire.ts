import type { Column } from "./model.js";
import { ProtocolError } from "./errors.js";
import type { Decoder } from "./parse.js";
import { UNCHANGED } from "./values.js";

// Changes make up nearly all of a stream, and generated code would make an object of each value of each row only for it to
// be turned into another. So changes are read off the wire here, and everything else by generated code.

/** Field numbers of walcast.v1 that are read here; a test compares them with the generated descriptors. */
export const FIELDS = {
  ConsumeResponse: { events: 1 },
  Event: { change: 3 },
  Change: { operation: 1, relation_id: 2, ordinal: 3, before_row: 4, after_row: 5, transition: 11 },
  Row: { values: 1 },
  Value: { missing: 1, bool_value: 2, int_value: 3, float_value: 4, bytes_value: 5, text: 6, raw_text: 7 },
} as const;

const CHANGE_TAG = (FIELDS.Event.change << 3) | 2;
const EVENTS_TAG = (FIELDS.ConsumeResponse.events << 3) | 2;
const VALUES_TAG = (FIELDS.Row.values << 3) | 2;

function malformed(): ProtocolError {
  return new ProtocolError("malformed message");
}

const utf8 = new TextDecoder("utf-8", { fatal: true });

/** Node's Buffers read text faster than TextDecoder; in a browser there are none. */
interface Reader {
  latin1Slice?: (start: number, end: number) => string;
}

/** Reads one message, over a part of the bytes of a response. */
export class Wire {
  readonly bytes: Uint8Array;
  at: number;
  end: number;
  /** Of the field that `field` has read: its number, */
  number = 0;
  /** for a varint its lower and upper 32 bits, */
  low = 0;
  high = 0;
  /** and for bytes and fixed widths where its content starts; it ends at `at`. */
  start = 0;
  private readonly view: DataView;
  private readonly latin1: ((start: number, end: number) => string) | undefined;

  constructor(bytes: Uint8Array, at = 0, end = bytes.length) {
    this.bytes = bytes;
    this.at = at;
    this.end = end;
    this.view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    const reader = bytes as Reader;
    this.latin1 = typeof reader.latin1Slice === "function" ? reader.latin1Slice.bind(bytes) : undefined;
  }

  /** A varint into `low` and `high`. */
  private varint(): void {
    const bytes = this.bytes;
    let at = this.at;
    let byte = bytes[at++] ?? 0;
    if (byte < 0x80) {
      if (at > this.end) throw malformed();
      this.low = byte;
      this.high = 0;
      this.at = at;
      return;
    }
    let low = byte & 0x7f;
    let high = 0;
    let shift = 7;
    do {
      if (at >= this.end || shift > 63) throw malformed();
      byte = bytes[at++] ?? 0;
      if (shift < 28) low |= (byte & 0x7f) << shift;
      else if (shift === 28) {
        low |= (byte & 0x0f) << 28;
        high = (byte & 0x7f) >> 4;
      } else high |= (byte & 0x7f) << (shift - 32);
      shift += 7;
    } while (byte >= 0x80);
    this.low = low >>> 0;
    this.high = high >>> 0;
    this.at = at;
  }

  /** Reads a field, if there is one. */
  field(): boolean {
    if (this.at >= this.end) return false;
    this.varint();
    const tag = this.low;
    this.number = tag >>> 3;
    switch (tag & 7) {
      case 0:
        this.varint();
        break;
      case 2:
        this.varint();
        this.skip(this.high === 0 ? this.low : Number.POSITIVE_INFINITY);
        break;
      case 1:
        this.skip(8);
        break;
      case 5:
        this.skip(4);
        break;
      default:
        throw malformed();
    }
    return true;
  }

  private skip(length: number): void {
    this.start = this.at;
    this.at += length;
    if (this.at > this.end) throw malformed();
  }

  /** The double that `field` has read. */
  double(): number {
    return this.view.getFloat64(this.start, true);
  }

  /** A copy of the bytes that `field` has read. */
  content(): Uint8Array {
    return Uint8Array.prototype.slice.call(this.bytes, this.start, this.at);
  }

  /** The text that `field` has read. */
  text(): string {
    const { bytes, start, at } = this;
    for (let index = start; index < at; index += 1) {
      if ((bytes[index] ?? 0) >= 0x80) {
        try {
          return utf8.decode(bytes.subarray(start, at));
        } catch {
          throw new ProtocolError("a text that is not UTF-8");
        }
      }
    }
    if (at - start < 12 || this.latin1 === undefined) {
      if (at - start > 1024) return utf8.decode(bytes.subarray(start, at));
      let text = "";
      for (let index = start; index < at; index += 1) text += String.fromCharCode(bytes[index] ?? 0);
      return text;
    }
    return this.latin1(start, at);
  }

  /** The zigzag integer that `field` has read, of up to 32 bits. */
  int32(): number {
    return this.high === 0 ? (this.low >>> 1) ^ -(this.low & 1) : Number(this.int64());
  }

  /** The zigzag integer that `field` has read. */
  int64(): bigint {
    if (this.high < 0x20_0000) {
      const zigzag = this.high * 0x1_0000_0000 + this.low; // below 2 ** 53, so a number holds it
      return BigInt((this.low & 1) === 0 ? zigzag / 2 : -(zigzag + 1) / 2);
    }
    const value = (BigInt(this.high) << 32n) | BigInt(this.low);
    return (value >> 1n) ^ -(value & 1n);
  }
}

/** Calls with where each event of a response is, and whether it is a change and nothing else; then it is the change's content. */
export function eachEvent(bytes: Uint8Array, each: (isChange: boolean, start: number, end: number) => void): void {
  const wire = new Wire(bytes);
  const inner = new Wire(bytes);
  while (wire.at < wire.end) {
    const tag = bytes[wire.at];
    wire.field();
    if (tag !== EVENTS_TAG) continue;
    const { start, at: end } = wire;
    if (bytes[start] === CHANGE_TAG) {
      inner.at = start;
      inner.end = end;
      inner.field();
      if (inner.at === end) {
        each(true, inner.start, end);
        continue;
      }
    }
    each(false, start, end);
  }
}

/** Where the parts of a change are. Rows are absent where their end is 0. */
export interface RawChange {
  operation: number;
  relationId: number;
  ordinal: number;
  transition: number;
  beforeStart: number;
  beforeEnd: number;
  afterStart: number;
  afterEnd: number;
}

/** Takes a change apart, without its rows. */
export function parseChange(bytes: Uint8Array, start: number, end: number): RawChange {
  const wire = new Wire(bytes, start, end);
  const raw: RawChange = {
    operation: 0,
    relationId: 0,
    ordinal: 0,
    transition: 0,
    beforeStart: 0,
    beforeEnd: 0,
    afterStart: 0,
    afterEnd: 0,
  };
  while (wire.field()) {
    switch (wire.number) {
      case FIELDS.Change.operation:
        raw.operation = wire.low;
        break;
      case FIELDS.Change.relation_id:
        raw.relationId = wire.low;
        break;
      case FIELDS.Change.ordinal:
        raw.ordinal = wire.high * 0x1_0000_0000 + wire.low;
        break;
      case FIELDS.Change.before_row:
        raw.beforeStart = wire.start;
        raw.beforeEnd = wire.at;
        break;
      case FIELDS.Change.after_row:
        raw.afterStart = wire.start;
        raw.afterEnd = wire.at;
        break;
      case FIELDS.Change.transition:
        raw.transition = wire.low;
        break;
    }
  }
  return raw;
}

/** How to decode a column's values. */
export interface ColumnPlan {
  readonly name: string;
  readonly column: Column;
  readonly decode: Decoder | undefined;
  /** int8, whose numbers do not fit into a number. */
  readonly wide: boolean;
}

export type Row = Record<string, unknown>;

function put(row: Row, name: string, value: unknown): void {
  if (name === "__proto__") Object.defineProperty(row, name, { value, enumerable: true, configurable: true, writable: true });
  else row[name] = value;
}

/** A row by column name; absent columns have no entry. */
export function decodeRow(table: string, plan: readonly ColumnPlan[], bytes: Uint8Array, start: number, end: number): Row {
  const wire = new Wire(bytes, start, end);
  const row: Row = {};
  let index = 0;
  while (wire.at < end) {
    const tag = bytes[wire.at];
    wire.field();
    if (tag !== VALUES_TAG) continue;
    const column = plan[index++];
    if (column === undefined) throw new ProtocolError(`${table}: more values than its ${plan.length} columns`);
    const after = wire.at;
    wire.at = wire.start;
    wire.end = after;
    if (!wire.field()) throw new ProtocolError(`${table}.${column.name}: a value without a kind`);
    while (wire.at < after) wire.field(); // of a oneof the last one counts
    wire.end = end;
    decodeValue(table, column, wire, row);
  }
  if (index !== plan.length) throw new ProtocolError(`${table}: ${index} values for ${plan.length} columns`);
  return row;
}

function decodeValue(table: string, column: ColumnPlan, wire: Wire, row: Row): void {
  switch (wire.number) {
    case FIELDS.Value.int_value:
      put(row, column.name, column.wide ? wire.int64() : wire.int32());
      return;
    case FIELDS.Value.text: {
      const text = wire.text();
      if (column.decode === undefined) {
        put(row, column.name, text);
        return;
      }
      try {
        put(row, column.name, column.decode(text));
      } catch (error) {
        const shown = `${table}.${column.name} (${column.column.typeName}): ${JSON.stringify(text)}`;
        throw new ProtocolError(`${shown}: ${error instanceof Error ? error.message : String(error)}`, { cause: error });
      }
      return;
    }
    case FIELDS.Value.bool_value:
      put(row, column.name, wire.low !== 0);
      return;
    case FIELDS.Value.float_value:
      put(row, column.name, wire.double());
      return;
    case FIELDS.Value.bytes_value:
    case FIELDS.Value.raw_text:
      put(row, column.name, new Uint8Array(wire.content()));
      return;
    case FIELDS.Value.missing:
      if (wire.low === MISSING.NULL) put(row, column.name, null);
      else if (wire.low === MISSING.UNCHANGED) put(row, column.name, UNCHANGED);
      else if (wire.low !== MISSING.ABSENT) {
        throw new ProtocolError(`${table}.${column.name}: missing for reason ${wire.low}, which this version does not know`);
      }
      return;
    default:
      throw new ProtocolError(`${table}.${column.name}: a value of a kind that this version does not know`);
  }
}

export const MISSING = { NULL: 1, UNCHANGED: 2, ABSENT: 3 } as const;

function missing(bytes: Uint8Array, start: number, end: number): number {
  return end - start === 2 && bytes[start] === FIELDS.Value.missing << 3 ? (bytes[start + 1] ?? 0) : 0;
}

/** The columns whose values differ between two rows; undefined where the old row is not known whole. */
export function changedColumns(plan: readonly ColumnPlan[], bytes: Uint8Array, raw: RawChange): string[] | undefined {
  const before = new Wire(bytes, raw.beforeStart, raw.beforeEnd);
  const after = new Wire(bytes, raw.afterStart, raw.afterEnd);
  const names: string[] = [];
  for (const { name } of plan) {
    if (!before.field() || !after.field()) return undefined;
    if (missing(bytes, after.start, after.at) === MISSING.UNCHANGED) continue;
    if (missing(bytes, before.start, before.at) === MISSING.ABSENT) return undefined;
    const length = before.at - before.start;
    let differs = length !== after.at - after.start;
    for (let at = 0; !differs && at < length; at += 1) differs = bytes[before.start + at] !== bytes[after.start + at];
    if (differs) names.push(name);
  }
  return names;
}
