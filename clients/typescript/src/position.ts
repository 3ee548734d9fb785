import { create } from "@bufbuild/protobuf";
import { ProtocolError } from "./errors.js";
import { type Position as PositionMessage, PositionSchema } from "./gen/walcast/v1/event_pb.js";

/** An LSN "X/Y" as a number of bytes. Throws RangeError. */
export function parseLsn(text: string): bigint {
  const parts = /^([0-9a-fA-F]{1,8})\/([0-9a-fA-F]{1,8})$/.exec(text);
  if (parts === null) throw new RangeError(`${JSON.stringify(text)} is no LSN`);
  return (BigInt(`0x${parts[1] ?? ""}`) << 32n) | BigInt(`0x${parts[2] ?? ""}`);
}

/** A resume point: everything up to and including it is done. Store it whole; `toString` and `parse` are inverse. */
export class Position {
  private order: bigint | undefined;

  constructor(
    /** End LSN of the commit record, "X/Y". */
    readonly lsn: string,
    /** One unbroken course of history, 16 hexadecimal digits. Equal or not; never compared for order. */
    readonly lineage: string,
    /** 0 for transactions from the slot. */
    readonly sequence = 0,
    /** Opaque progress of running snapshots. */
    readonly snapshot: Uint8Array = new Uint8Array(),
  ) {}

  toString(): string {
    const snapshot = Array.from(this.snapshot, (byte) => byte.toString(16).padStart(2, "0")).join("");
    return `${this.lineage}:${this.lsn}:${this.sequence}:${snapshot}`;
  }

  /** The inverse of `toString`. Throws RangeError. */
  static parse(text: string): Position {
    const parts = /^([^:]*):([^:]*):(\d+):((?:[0-9a-f]{2})*)$/.exec(text);
    if (parts === null) throw new RangeError(`${JSON.stringify(text)} is no position`);
    const [, lineage = "", lsn = "", sequence = "", snapshot = ""] = parts;
    parseLsn(lsn);
    const bytes = Uint8Array.from(snapshot.match(/../g) ?? [], (pair) => Number.parseInt(pair, 16));
    return new Position(lsn, lineage, Number(sequence), bytes);
  }

  equals(other: Position): boolean {
    return this.toString() === other.toString();
  }

  /** Whether this position is on the same lineage and at or behind the other. */
  reaches(other: Position): boolean {
    if (this.lineage !== other.lineage) return false;
    if (this.lsn === other.lsn) return this.sequence >= other.sequence;
    return this.offset() > other.offset();
  }

  /** The LSN as a number of bytes. */
  offset(): bigint {
    this.order ??= parseLsn(this.lsn);
    return this.order;
  }

  /** @internal */
  static fromMessage(message: PositionMessage | undefined): Position {
    if (message === undefined) throw new ProtocolError("the hub sent an event without its position");
    const position = new Position(message.lsn, message.lineage, message.sequence, message.snapshot);
    try {
      position.offset();
    } catch {
      throw new ProtocolError(`the hub sent a position whose LSN is ${JSON.stringify(message.lsn)}`);
    }
    return position;
  }

  /** @internal */
  toMessage(): PositionMessage {
    const { lsn, lineage, sequence, snapshot } = this;
    return create(PositionSchema, { lsn, lineage, sequence, snapshot });
  }
}
