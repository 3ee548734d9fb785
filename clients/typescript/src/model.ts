import { type Timestamp as TimestampMessage, timestampMs } from "@bufbuild/protobuf/wkt";
import { ProtocolError } from "./errors.js";
import {
  type Begin as BeginMessage,
  type LogicalMessage,
  type Opened as OpenedMessage,
  type Progress as ProgressMessage,
  type Relation as RelationMessage,
  ReplicaIdentity,
} from "./gen/walcast/v1/event_pb.js";
import type { Decoder } from "./parse.js";
import { Position } from "./position.js";
import { Timestamp } from "./values.js";
import { changedColumns, type ColumnPlan, decodeRow, parseChange, type RawChange, type Row } from "./wire.js";

export type Operation = "insert" | "update" | "delete" | "truncate" | "read";

/** By number; truncate is an event of its own. */
export const OPERATIONS: readonly (Operation | undefined)[] = [undefined, "insert", "update", "delete", undefined, "read"];

/** How a changed row stands to a `where` before and after. */
export type Transition = "enter" | "stay" | "leave";
const TRANSITIONS: readonly (Transition | undefined)[] = [undefined, "enter", "stay", "leave"];

/** A column of one relation version. */
export interface Column {
  readonly name: string;
  /** "int4", "timestamptz"; outside pg_catalog "schema.name". */
  readonly typeName: string;
  readonly typeOid: number;
  readonly typeModifier: number;
  /** Whether it is part of the replica identity. */
  readonly inIdentity: boolean;
}

/** One immutable version of a table. */
export class Relation {
  /** The hub's number of this version, within the stream. */
  readonly id: number;
  readonly oid: number;
  readonly schema: string;
  readonly name: string;
  /** "schema.table", unquoted. */
  readonly table: string;
  readonly replicaIdentity: "default" | "full" | "index" | "nothing";
  readonly columns: readonly Column[];
  /** @internal */
  readonly plan: readonly ColumnPlan[];

  /** @internal */
  constructor(message: RelationMessage, decoders: ReadonlyMap<string, Decoder>) {
    this.id = message.relationId;
    this.oid = message.oid;
    this.schema = message.schema;
    this.name = message.table;
    this.table = `${message.schema}.${message.table}`;
    this.replicaIdentity =
      message.replicaIdentity === ReplicaIdentity.FULL
        ? "full"
        : message.replicaIdentity === ReplicaIdentity.INDEX
          ? "index"
          : message.replicaIdentity === ReplicaIdentity.NOTHING
            ? "nothing"
            : "default";
    this.columns = message.columns.map(({ name, typeName, typeOid, typeModifier, inIdentity }) => ({
      name,
      typeName,
      typeOid,
      typeModifier,
      inIdentity,
    }));
    this.plan = this.columns.map((column) => ({
      name: column.name,
      column,
      decode: decoders.get(column.typeName),
      wide: column.typeName === "int8",
    }));
  }
}

/** The statement behind one or several truncate changes. */
export interface TruncateStatement {
  /** In the statement's order. */
  readonly tables: readonly string[];
  readonly cascade: boolean;
  readonly restartIdentity: boolean;
}

/** What happened to one row, or to one table of a truncate. Rows are decoded when first looked at. */
export class Change {
  readonly kind = "change";
  readonly operation: Operation;
  /** Number in its transaction, from 1, counted before filtering; 0 for rows of a snapshot. */
  readonly ordinal: number;
  private beforeRow: Row | null | undefined;
  private afterRow: Row | null | undefined;

  /** @internal */
  constructor(
    /** In `events` it is not known yet whether it will commit. */
    readonly transaction: Transaction,
    /** The version of the table that the rows fit. */
    readonly relation: Relation,
    private readonly bytes: Uint8Array | undefined,
    private readonly raw: RawChange | undefined,
    /** Of a truncate. */
    readonly truncate?: TruncateStatement,
    ordinal = 0,
  ) {
    const operation = raw === undefined ? "truncate" : OPERATIONS[raw.operation];
    if (operation === undefined) throw new ProtocolError(`operation ${raw?.operation ?? 0} is not known to this version`);
    this.operation = operation;
    this.ordinal = raw?.ordinal ?? ordinal;
  }

  /** "schema.table", unquoted. */
  get table(): string {
    return this.relation.table;
  }

  /** The row as it was: for a delete, and for an update that PostgreSQL sent the old row or key of; null otherwise. */
  get before(): Row | null {
    this.beforeRow ??= this.row(this.raw?.beforeStart ?? 0, this.raw?.beforeEnd ?? 0);
    return this.beforeRow;
  }

  /** The row as it is; null for a delete or truncate. */
  get after(): Row | null {
    this.afterRow ??= this.row(this.raw?.afterStart ?? 0, this.raw?.afterEnd ?? 0);
    return this.afterRow;
  }

  private row(start: number, end: number): Row | null {
    return end === 0 || this.bytes === undefined ? null : decodeRow(this.table, this.relation.plan, this.bytes, start, end);
  }

  /** The columns of the replica identity, of the old row where there is one. */
  get key(): Row {
    const row = this.before ?? this.after ?? {};
    return Object.fromEntries(
      this.relation.columns.filter((column) => column.inIdentity && column.name in row).map(({ name }) => [name, row[name]]),
    );
  }

  /** Columns whose value an update changed; undefined where the old row is not known whole (REPLICA IDENTITY FULL). */
  get changedColumns(): string[] | undefined {
    const { raw, bytes } = this;
    const known = this.operation === "update" && this.relation.replicaIdentity === "full";
    if (!known || raw === undefined || bytes === undefined || raw.beforeEnd === 0 || raw.afterEnd === 0) return undefined;
    return changedColumns(this.relation.plan, bytes, raw);
  }

  /** Undefined without a `where`. */
  get transition(): Transition | undefined {
    return TRANSITIONS[this.raw?.transition ?? 0];
  }

  /** LSN of the transaction's commit record, "X/Y". The compact form carries none per change. */
  get lsn(): string {
    return this.transaction.commitLsn;
  }
}

/** A logical message, pg_logical_emit_message. */
export interface Message {
  readonly prefix: string;
  readonly content: Uint8Array;
  /** Number in its transaction; 0 outside of one. */
  readonly ordinal: number;
  readonly lsn: string;
}

/** @internal */
export function messageFrom(event: LogicalMessage): Message {
  const { prefix, content, lsn } = event;
  return { prefix, content, lsn, ordinal: Number(event.ordinal) };
}

/** @internal What a transaction was gathered from: where a change is, a truncate of a table, or a message. */
export type Raw = { relation: Relation; bytes: Uint8Array; start: number; end: number } | Change | { message: Message };

/** A committed transaction with what the subscription selects of it. */
export class Transaction {
  /** Where to resume behind this transaction. Throws while it is open, in `events`. */
  get position(): Position {
    if (this.at === undefined) throw new ProtocolError("the transaction has no position yet");
    return this.at;
  }

  /** Events of the whole transaction, before filtering. */
  totalChanges = 0;
  /** @internal */
  at: Position | undefined;
  /** @internal */
  raw: Raw[] = [];
  /** @internal */
  acknowledge: ((transaction: Transaction) => void) | undefined;
  /** @internal */
  serial = 0;
  private all: Change[] | undefined;

  /** @internal */
  constructor(
    /** Where the commit record starts, "X/Y"; the LSN for a message outside transactions. */
    readonly commitLsn: string,
    readonly lineage: string,
    /** 0 for transactions from the slot. */
    readonly sequence: number,
    /** PostgreSQL's xid8; 0n for a message outside transactions and for snapshot rows. */
    readonly xid = 0n,
    /** By the source's clock; undefined for messages outside transactions and for snapshot rows. */
    readonly commitTime?: Timestamp,
    /** Name of the replication origin; empty for transactions of the source itself. */
    readonly origin = "",
    /** The snapshot that these rows belong to; empty for transactions. */
    readonly snapshotId = "",
  ) {}

  /** The same whenever this transaction comes again. */
  get identity(): string {
    return `${this.lineage}:${this.commitLsn}:${this.sequence}`;
  }

  /** In order; a truncate of several tables is one change per table. */
  get changes(): readonly Change[] {
    this.all ??= [...this.each()];
    return this.all;
  }

  /** Logical messages in it, in order. */
  get messages(): Message[] {
    return this.raw.flatMap((raw) => ("message" in raw ? [raw.message] : []));
  }

  /** @internal The changes one by one, without keeping them. */
  *each(): Generator<Change> {
    for (const raw of this.raw) {
      if (raw instanceof Change) yield raw;
      else if ("relation" in raw) yield changeOf(this, raw.relation, raw.bytes, raw.start, raw.end);
    }
  }

  [Symbol.iterator](): Iterator<Change> {
    return this.changes[Symbol.iterator]();
  }

  /** Everything up to and including this transaction is done. Returns at once; `flush` waits until it is durable. */
  ack(): void {
    if (this.acknowledge === undefined) throw new ProtocolError("only transactions of a subscription can be acknowledged");
    this.acknowledge(this);
  }
}


/** @internal */
export function changeOf(transaction: Transaction, relation: Relation, bytes: Uint8Array, start: number, end: number): Change {
  return new Change(transaction, relation, bytes, parseChange(bytes, start, end));
}

function timestampFrom(message: TimestampMessage): Timestamp {
  return new Timestamp(
    Number(message.seconds) * 1000 + Math.floor(message.nanos / 1_000_000),
    Math.floor(message.nanos / 1000) % 1000,
    true,
  );
}

/** @internal */
export function transactionFrom(begin: BeginMessage | undefined): Transaction {
  if (begin === undefined) throw new ProtocolError("a transaction without its begin");
  const time = begin.commitTime === undefined ? undefined : timestampFrom(begin.commitTime);
  return new Transaction(begin.commitLsn, begin.lineage, begin.sequence, begin.xid, time, begin.origin);
}

/** How a stream was opened. */
export interface Opened {
  /** The start that was resolved (exclusive). */
  readonly after: Position;
  readonly earliest: Position;
  readonly tail: Position;
  /** Fencing token of a named subscriber. */
  readonly session: bigint;
  readonly created: boolean;
  readonly filterChanged: boolean;
}

/** @internal */
export function openedFrom(message: OpenedMessage): Opened {
  const { session, created, filterChanged } = message;
  const [after, earliest, tail] = [message.after, message.earliest, message.tail].map((at) => Position.fromMessage(at)) as [
    Position,
    Position,
    Position,
  ];
  return { after, earliest, tail, session, created, filterChanged };
}

/** Every selected change at or before `position` has been sent. */
export interface Progress {
  readonly kind: "progress";
  readonly position: Position;
  readonly tail: Position;
  readonly caughtUp: boolean;
  /** Whether the hub streams from PostgreSQL now. */
  readonly sourceConnected: boolean;
  /** By the hub's clock. */
  readonly time: Date | undefined;
  /** The durable checkpoint of a named subscriber. */
  readonly checkpoint: Position | undefined;
  /** When the position falls off the journal at the present rate, in milliseconds; undefined while that is far. */
  readonly expiresIn: number | undefined;
  /** WAL between the position and the journal's tail, in bytes. */
  readonly lagBytes: bigint;
}

/** @internal */
export function progressFrom(message: ProgressMessage): Progress {
  const position = Position.fromMessage(message.position);
  const tail = Position.fromMessage(message.tail);
  const lag = position.lineage === tail.lineage ? tail.offset() - position.offset() : 0n;
  return {
    kind: "progress",
    position,
    tail,
    caughtUp: message.caughtUp,
    sourceConnected: message.sourceConnected,
    time: message.time === undefined ? undefined : new Date(timestampMs(message.time)),
    checkpoint: message.checkpoint === undefined ? undefined : Position.fromMessage(message.checkpoint),
    expiresIn:
      message.expiresIn === undefined ? undefined : Number(message.expiresIn.seconds) * 1000 + message.expiresIn.nanos / 1e6,
    lagBytes: lag > 0n ? lag : 0n,
  };
}

/** A transaction that a failover took back. */
export interface Retracted {
  readonly transaction: Transaction;
  readonly position: Position;
  readonly changes: bigint;
}

/** The source failed over: what the old lineage has from `switchLsn` on never happened. */
export interface TimelineChanged {
  readonly kind: "timelineChanged";
  readonly oldLineage: string;
  readonly newLineage: string;
  readonly switchLsn: string;
  /** Transactions that this subscription may have received and that never happened, oldest first. */
  readonly retracted: readonly Retracted[];
  /** Where the new lineage goes on. */
  readonly position: Position;
}

/** Changes are missing between `after` (exclusive) and `upTo` (inclusive). */
export interface Gap {
  readonly kind: "gap";
  readonly after: Position;
  readonly upTo: Position;
  readonly reason: string;
}

/** A snapshot starts. Its rows come as transactions with a `snapshotId` and changes of operation "read". */
export interface SnapshotBegin {
  readonly kind: "snapshotBegin";
  readonly snapshotId: string;
  /** With the planner's estimate of rows, -1n where it has none. */
  readonly tables: readonly { readonly table: string; readonly estimatedRows: bigint }[];
  /** Drop the rows that an earlier attempt delivered. */
  readonly restarted: boolean;
}

/** A snapshot has read one table to its end. */
export interface SnapshotTableEnd {
  readonly kind: "snapshotTableEnd";
  readonly snapshotId: string;
  readonly table: string;
  readonly rows: bigint;
}

/** A snapshot is complete; changes follow from `position`. */
export interface SnapshotEnd {
  readonly kind: "snapshotEnd";
  readonly snapshotId: string;
  readonly position: Position;
  readonly rows: bigint;
}

export type SnapshotEvent = SnapshotBegin | SnapshotTableEnd | SnapshotEnd;

/**
 * What `events` hands out. What came since a begin counts only when its commit has come; a discard takes it back.
 */
export type Event =
  | { readonly kind: "begin"; readonly transaction: Transaction }
  | Change
  | { readonly kind: "message"; readonly transaction: Transaction; readonly message: Message }
  | { readonly kind: "commit"; readonly transaction: Transaction }
  | { readonly kind: "discard"; readonly transaction: Transaction; readonly reason: string }
  | Progress
  | TimelineChanged
  | Gap
  | SnapshotEvent;
