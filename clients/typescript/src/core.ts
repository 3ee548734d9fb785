import { create, fromBinary } from "@bufbuild/protobuf";
import { durationFromMs } from "@bufbuild/protobuf/wkt";
import {
  ConnectionLostError,
  GapError,
  type HubError,
  ProtocolError,
  SnapshotRestartedError,
  TimelineChangedError,
  TransactionTooLargeError,
  WalcastError,
} from "./errors.js";
import { filterMessage } from "./filters.js";
import {
  type Begin,
  type Commit,
  type Event as EventMessage,
  EventSchema,
  type LogicalMessage,
  type TimelineChanged as TimelineMessage,
  type Truncate,
} from "./gen/walcast/v1/event_pb.js";
import {
  type AcknowledgeRequest,
  AcknowledgeRequestSchema,
  type ConsumeRequest,
  ConsumeRequestSchema,
  type Filter,
  type Start as StartMessage,
  SubscribeRequestSchema,
} from "./gen/walcast/v1/walcast_pb.js";
import {
  Change,
  changeOf,
  type Event,
  messageFrom,
  type Opened,
  openedFrom,
  type Progress,
  progressFrom,
  Relation,
  type Retracted,
  Transaction,
  transactionFrom,
  type TruncateStatement,
} from "./model.js";
import type { Logger, SubscribeOptions } from "./options.js";
import { Outbox } from "./outbox.js";
import type { Decoder } from "./parse.js";
import { Position } from "./position.js";
import { AckAheadError, CheckpointMissingError } from "./reasons.js";
import { Backoff } from "./retry.js";
import { startMessage } from "./start.js";
import { decodersOf } from "./types.js";
import { eachEvent, parseChange } from "./wire.js";

export type Item = Transaction | Event;

/**
 * The state of one subscription across its streams, without its transport: bytes of responses go in (`receive`), items for
 * the user come out (`poll`), and what is to be sent waits in the outbox. Nothing in here waits or does I/O.
 */
export class Core {
  readonly outbox: Outbox;
  opened: Opened | undefined;
  progress: Progress | undefined;
  /** Everything up to here was handed out. */
  position: Position | undefined;
  /** The newest position that was acknowledged, durable or not. */
  acked: Position | undefined;
  /** Whether events are handed out as they come rather than whole transactions. */
  streaming = false;
  private readonly backoff: Backoff;
  private readonly decoders: Map<string, Decoder>;
  private readonly filter: Filter | undefined;
  private readonly start: StartMessage | undefined;
  private readonly windowEvents: number;
  private readonly windowBytes: number;
  private useFirstStart: boolean;
  private received: Position | undefined;
  private firstAfter: Position | undefined;
  private ready: Item[] = [];
  private next = 0;
  private relations = new Map<number, Relation>();
  private open: Transaction | undefined;
  private openBytes = 0;
  private ordinal = 0;
  private skipUntil = 0;
  private interrupted: { transaction: Transaction; ordinal: number } | undefined;
  private rows: Transaction | undefined;
  private snapshotId = "";
  private retracted: Retracted[] = [];
  private readonly forks = new Set<string>();
  private spentEvents = 0;
  private spentBytes = 0;
  private openedAt = 0;
  private unsure = false;
  private handedCount = 0;
  private ackedCount = 0;
  private last: Position | undefined;
  private readonly acknowledgeTransaction = (transaction: Transaction): void =>
    this.acknowledge(transaction.position, transaction.serial);

  constructor(
    readonly options: SubscribeOptions,
    private readonly maxMessageBytes: number,
    private readonly log: Logger,
    private readonly clock: () => number = () => performance.now(),
  ) {
    this.outbox = new Outbox(clock);
    this.backoff = new Backoff(options.retry ?? {}, clock());
    this.decoders = decodersOf(options.json ?? "parsed", options.types ?? {});
    this.filter = filterMessage(options);
    this.start = options.start === undefined ? undefined : startMessage(options.start);
    this.useFirstStart = this.name === "";
    this.windowEvents = options.windowEvents ?? 100_000;
    this.windowBytes = options.windowBytes ?? 8 << 20;
    if (!(this.windowEvents >= 1 && this.windowBytes >= 1)) throw new RangeError("windows are at least 1");
  }

  private get name(): string {
    return this.options.subscriber ?? "";
  }

  // -- opening and failing

  /** Whether a transaction has begun that is not complete. */
  get withinTransaction(): boolean {
    return this.open !== undefined;
  }

  /** The first request of a new stream. */
  openRequest(): ConsumeRequest {
    if (this.open !== undefined && this.streaming) {
      this.interrupted = { transaction: this.open, ordinal: Math.max(this.ordinal, this.skipUntil) };
    }
    this.open = this.rows = undefined;
    this.openBytes = this.ordinal = this.skipUntil = 0;
    this.relations = new Map();
    this.retracted = [];
    this.spentEvents = this.spentBytes = 0;
    this.openedAt = this.clock();
    this.outbox.reopen(this.received);
    const request = create(SubscribeRequestSchema, {
      subscriber: this.name,
      stopAtTail: this.options.stopAtTail ?? false,
      maxMessageBytes: this.maxMessageBytes,
    });
    if (this.filter !== undefined) request.filter = this.filter;
    if (this.options.progressInterval !== undefined) {
      request.progressInterval = durationFromMs(this.options.progressInterval);
    }
    if (this.received !== undefined) request.start = startMessage(this.received);
    else if (this.useFirstStart && this.start !== undefined) request.start = this.start;
    if (this.acked !== undefined && this.received?.reaches(this.acked) === true) {
      this.outbox.acknowledge(this.acked); // the last stream may have broken before it arrived
    }
    this.outbox.grant(this.windowEvents, this.windowBytes);
    return create(ConsumeRequestSchema, { request: { case: "open", value: request } });
  }

  /**
   * What to call before the next stream is opened, to learn whether a newer session has taken over meanwhile: a connection
   * that broke does not say so, and opening again would fence the other.
   */
  proof(): AcknowledgeRequest | undefined {
    const at = this.acked ?? this.firstAfter;
    return this.unsure && at !== undefined ? this.acknowledgement(at) : undefined;
  }

  /** The call succeeded: the subscriber is still ours. */
  proved(): void {
    this.unsure = false;
  }

  /** The unary request for a position. */
  acknowledgement(at: Position): AcknowledgeRequest | undefined {
    if (this.opened === undefined) return undefined;
    const { session } = this.opened;
    return create(AcknowledgeRequestSchema, { subscriber: this.name, position: at.toMessage(), session });
  }

  /** Milliseconds until the next attempt; throws the error where another one does not help. */
  failed(error: HubError): number {
    const neverOpened = this.received === undefined;
    if (error instanceof CheckpointMissingError && neverOpened && !this.useFirstStart && this.start !== undefined) {
      this.useFirstStart = true;
      this.log.info(`subscriber ${this.name} has no checkpoint: starting at the given start`);
      return 0;
    }
    const now = this.clock();
    if (this.opened !== undefined && now - this.openedAt >= 60_000) this.backoff.succeeded(now);
    const delay = error.retryable ? this.backoff.delay(error.retryAfter, now) : undefined;
    if (delay === undefined) throw error;
    if (error instanceof ConnectionLostError && this.name !== "") this.unsure = true;
    this.log.warn(`stream lost, next attempt in ${Math.round(delay)} ms: ${error.message}`);
    return delay;
  }

  /** The stream ended with OK: undefined if that was asked for. */
  ended(): HubError | undefined {
    if (this.options.stopAtTail === true) return undefined;
    return new ConnectionLostError("the stream ended", { code: "UNAVAILABLE" });
  }

  // -- acknowledging

  /** Whether something was acknowledged that no progress has confirmed. */
  get unflushed(): boolean {
    return this.acked !== undefined && this.progress?.checkpoint?.reaches(this.acked) !== true;
  }

  /** Everything up to and including the position is done. `serial`: of the transaction whose position it is. */
  acknowledge(position: Position, serial = 0): void {
    if (this.name === "") {
      throw new WalcastError("an anonymous subscription has no checkpoint; give it a subscriber name, or store tx.position");
    }
    const handed = this.position;
    if (handed === undefined || (handed.lineage === position.lineage && !handed.reaches(position))) {
      throw new AckAheadError(`position ${position.lsn} has not been handed out yet`, {
        code: "FAILED_PRECONDITION",
        reason: "ACK_AHEAD",
      });
    }
    if (serial > 0) this.ackedCount = Math.max(this.ackedCount, serial);
    else if (position.reaches(handed)) this.ackedCount = this.handedCount;
    if (this.acked?.reaches(position) === true) return;
    this.acked = position;
    this.outbox.acknowledge(position);
  }

  /** The user asks for the next item, so the last one is done. */
  nextRequested(): void {
    const last = this.last;
    this.last = undefined;
    if (last !== undefined && this.options.autoAck !== false && this.name !== "") this.acknowledge(last);
  }

  private hand(position: Position): void {
    this.handedCount += 1;
    this.position = this.last = position;
  }

  /** Progress is acknowledged for the user when nothing before it is outstanding. */
  private passed(progress: Progress): void {
    this.progress = progress;
    this.position = progress.position;
    if (this.ackedCount < this.handedCount || this.name === "" || this.acked?.reaches(progress.position) === true) return;
    this.acked = progress.position;
    this.outbox.acknowledge(progress.position);
  }

  // -- handing out

  /** The next item for the user, undefined until more was received. */
  poll(): Item | undefined {
    const item = this.ready[this.next];
    if (item === undefined) return undefined;
    this.next += 1;
    if (this.next === this.ready.length) {
      this.ready = [];
      this.next = 0;
    }
    if (item instanceof Transaction) {
      this.hand(item.position);
      item.serial = this.handedCount;
    } else if (item.kind === "progress") this.passed(item);
    else if (item.kind === "commit") this.hand(item.transaction.position);
    else if (item.kind === "gap") this.hand(item.upTo);
    else if (item.kind === "timelineChanged") {
      this.forks.add(`${item.oldLineage} ${item.newLineage} ${item.switchLsn}`);
      this.hand(item.position);
    }
    return item;
  }

  /** Gives an item that is not a transaction to the user's hook. Throws where there is none and it matters. */
  async handle(item: Event): Promise<void> {
    const { onProgress, onTimelineChanged, onGap, onSnapshot } = this.options;
    if (item.kind === "progress") await onProgress?.(item);
    else if (item.kind === "timelineChanged") {
      if (onTimelineChanged === undefined) throw new TimelineChangedError(item);
      await onTimelineChanged(item);
    } else if (item.kind === "gap") {
      if (onGap === undefined) throw new GapError(item);
      await onGap(item);
    } else if (item.kind === "snapshotBegin" || item.kind === "snapshotTableEnd" || item.kind === "snapshotEnd") {
      if (item.kind === "snapshotBegin" && item.restarted && onSnapshot === undefined) throw new SnapshotRestartedError(item);
      await onSnapshot?.(item);
    }
  }

  // -- receiving

  /** A response message, whose bytes are kept. */
  receive(bytes: Uint8Array): void {
    const received = this.received;
    let counted = 0;
    let free = 0;
    eachEvent(bytes, (isChange, start, end) => {
      if (isChange) {
        counted += 1;
        this.changed(bytes, start, end);
        return;
      }
      const event = fromBinary(EventSchema, bytes.subarray(start, end));
      const kind = event.kind.case;
      if (kind === "change") throw new ProtocolError("a change with something more in its event");
      if (kind === "truncate" || kind === "message") counted += 1;
      if (kind === "progress" || kind === "opened") free += framed(end - start);
      this.event(event);
    });
    this.flushRows();
    if (this.open !== undefined && !this.streaming) {
      this.openBytes += bytes.length;
      if (this.openBytes > (this.options.maxTransactionBytes ?? 2 ** 30)) {
        throw new TransactionTooLargeError(
          `the transaction at ${this.open.commitLsn} exceeds maxTransactionBytes; stream it with events()`,
        );
      }
    }
    if (received !== undefined && received !== this.received) this.backoff.succeeded(this.clock());
    this.spentEvents += counted;
    this.spentBytes += bytes.length - free;
    if (this.spentEvents * 2 >= this.windowEvents || this.spentBytes * 2 >= this.windowBytes) {
      this.outbox.grant(this.spentEvents, this.spentBytes);
      this.spentEvents = this.spentBytes = 0;
    }
  }

  private relation(id: number): Relation {
    const relation = this.relations.get(id);
    if (relation === undefined) throw new ProtocolError(`relation ${id} was not sent`);
    return relation;
  }

  private changed(bytes: Uint8Array, start: number, end: number): void {
    if (this.open !== undefined && !this.streaming) {
      // Operation and relation are the first two fields of a change, in one byte each up to 127.
      const quick = bytes[start] === 8 && bytes[start + 2] === 16 ? (bytes[start + 3] ?? 128) : 128;
      const id = quick < 128 ? quick : parseChange(bytes, start, end).relationId;
      this.open.raw.push({ relation: this.relation(id), bytes, start, end });
      return;
    }
    const raw = parseChange(bytes, start, end);
    const relation = this.relation(raw.relationId);
    if (this.open !== undefined) {
      if (raw.ordinal <= this.skipUntil) return;
      this.ordinal = raw.ordinal;
      this.ready.push(changeOf(this.open, relation, bytes, start, end));
      return;
    }
    if (raw.operation !== 5) throw new ProtocolError("a change outside a transaction");
    if (this.received === undefined) throw new ProtocolError("a row before opened");
    if (this.rows === undefined) {
      const { lsn, lineage, sequence } = this.received;
      this.rows = new Transaction(lsn, lineage, sequence, 0n, undefined, "", this.snapshotId);
      this.rows.at = this.received;
      this.rows.acknowledge = this.acknowledgeTransaction;
    }
    if (this.streaming) this.ready.push(changeOf(this.rows, relation, bytes, start, end));
    else this.rows.raw.push({ relation, bytes, start, end });
  }

  private event({ kind }: EventMessage): void {
    switch (kind.case) {
      case "begin":
        this.begin(kind.value);
        return;
      case "commit":
        this.commit(kind.value);
        return;
      case "discard":
        this.discard(kind.value.reason);
        return;
      case "relation":
        this.relations.set(kind.value.relationId, new Relation(kind.value, this.decoders));
        return;
      case "truncate":
        this.truncate(kind.value);
        return;
      case "message":
        this.message(kind.value);
        return;
      case "opened":
        this.openedEvent(openedFrom(kind.value));
        return;
      case undefined:
        throw new ProtocolError("the hub sent an event of a kind that this version does not know");
    }
    if (this.open !== undefined) throw new ProtocolError(`${kind.case} inside a transaction`);
    this.flushRows();
    this.settleInterrupted();
    switch (kind.case) {
      case "progress": {
        const progress = progressFrom(kind.value);
        this.received = progress.position;
        this.ready.push(progress);
        return;
      }
      case "timelineChanged":
        this.timelineChanged(kind.value);
        return;
      case "gap": {
        this.received = Position.fromMessage(kind.value.upTo);
        const after = Position.fromMessage(kind.value.after);
        this.ready.push({ kind: "gap", after, upTo: this.received, reason: kind.value.reason });
        return;
      }
      case "snapshotBegin": {
        const { snapshotId, restarted, tables } = kind.value;
        this.snapshotId = snapshotId;
        const listed = tables.map(({ table, estimatedRows }) => ({ table, estimatedRows }));
        this.ready.push({ kind: "snapshotBegin", snapshotId, restarted, tables: listed });
        return;
      }
      case "snapshotTableEnd": {
        const { snapshotId, table, rows } = kind.value;
        this.ready.push({ kind: "snapshotTableEnd", snapshotId, table, rows });
        return;
      }
      case "snapshotEnd": {
        const { snapshotId, rows } = kind.value;
        this.received = Position.fromMessage(kind.value.position);
        this.ready.push({ kind: "snapshotEnd", snapshotId, rows, position: this.received });
        return;
      }
      default:
        throw new ProtocolError(`the hub sent ${kind.case}, which this version does not know`);
    }
  }

  private openedEvent(opened: Opened): void {
    this.opened = opened;
    if (opened.filterChanged) this.log.warn(`subscriber ${this.name}: the filter differs from the checkpoint's`);
    if (this.received !== undefined) return;
    this.received = this.firstAfter = this.position = opened.after;
    // From now on the subscriber has a place of its own, whatever happens before its first transaction.
    if (this.name !== "" && this.useFirstStart) this.acknowledge(opened.after);
  }

  private settleInterrupted(): void {
    if (this.interrupted === undefined) return;
    const { transaction } = this.interrupted;
    this.interrupted = undefined;
    this.ready.push({ kind: "discard", transaction, reason: "it did not come again after a reconnect" });
  }

  private begin(begin: Begin): void {
    if (this.open !== undefined) throw new ProtocolError("a transaction begins inside another");
    this.flushRows();
    let transaction = transactionFrom(begin);
    this.skipUntil = this.ordinal = 0;
    if (this.interrupted?.transaction.identity === transaction.identity) {
      transaction = this.interrupted.transaction;
      this.skipUntil = this.interrupted.ordinal;
      this.interrupted = undefined;
    } else {
      this.settleInterrupted();
      if (this.streaming) this.ready.push({ kind: "begin", transaction });
    }
    transaction.acknowledge = this.acknowledgeTransaction;
    this.open = transaction;
    this.openBytes = 0;
  }

  private commit(commit: Commit): void {
    const transaction = this.open;
    if (transaction === undefined) throw new ProtocolError("commit without begin");
    this.open = undefined;
    const position = Position.fromMessage(commit.position);
    transaction.at = position;
    transaction.totalChanges = Number(commit.totalChanges);
    if (this.received?.reaches(position) === true) {
      if (this.streaming) this.ready.push({ kind: "discard", transaction, reason: "it came before" });
      return;
    }
    this.received = position;
    this.ready.push(this.streaming ? { kind: "commit", transaction } : transaction);
  }

  private discard(reason: string): void {
    const transaction = this.open;
    if (transaction === undefined) throw new ProtocolError("discard without begin");
    this.open = undefined;
    if (this.streaming) this.ready.push({ kind: "discard", transaction, reason });
  }

  private flushRows(): void {
    if (this.rows !== undefined && !this.streaming) this.ready.push(this.rows);
    this.rows = undefined;
  }

  private truncate(event: Truncate): void {
    const relations = event.relationIds.map((id) => this.relation(id));
    const transaction = this.open;
    if (transaction === undefined) throw new ProtocolError("a truncate outside a transaction");
    const { cascade, restartIdentity } = event;
    const statement: TruncateStatement = { tables: relations.map(({ table }) => table), cascade, restartIdentity };
    const ordinal = Number(event.ordinal);
    if (this.streaming) {
      if (ordinal <= this.skipUntil) return;
      this.ordinal = ordinal;
    }
    const into: (Item | Change)[] = this.streaming ? this.ready : transaction.raw as Change[];
    for (const relation of relations) into.push(new Change(transaction, relation, undefined, undefined, statement, ordinal));
  }

  private message(event: LogicalMessage): void {
    const message = messageFrom(event);
    let transaction = this.open;
    if (transaction !== undefined) {
      if (!this.streaming) transaction.raw.push({ message });
      else if (message.ordinal > this.skipUntil) {
        this.ordinal = message.ordinal;
        this.ready.push({ kind: "message", transaction, message });
      }
      return;
    }
    if (event.position === undefined) throw new ProtocolError("a transactional message outside a transaction");
    this.flushRows();
    this.settleInterrupted();
    const position = Position.fromMessage(event.position);
    if (this.received?.reaches(position) === true) return;
    this.received = position;
    transaction = new Transaction(event.lsn, position.lineage, position.sequence);
    transaction.totalChanges = 1;
    transaction.at = position;
    transaction.acknowledge = this.acknowledgeTransaction;
    transaction.raw.push({ message });
    if (this.streaming) this.ready.push({ kind: "message", transaction, message }, { kind: "commit", transaction });
    else this.ready.push(transaction);
  }

  private timelineChanged(message: TimelineMessage): void {
    for (const entry of message.retracted) {
      const transaction = transactionFrom(entry.begin);
      const position = Position.fromMessage(entry.position);
      transaction.at = position;
      this.retracted.push({ transaction, position, changes: entry.changes });
    }
    if (message.more) return;
    const { oldLineage, newLineage, switchLsn } = message;
    const retracted = this.retracted;
    this.retracted = [];
    this.received = Position.fromMessage(message.position);
    if (this.forks.has(`${oldLineage} ${newLineage} ${switchLsn}`)) return;
    const position = this.received;
    this.ready.push({ kind: "timelineChanged", oldLineage, newLineage, switchLsn, retracted, position });
  }
}

/** Bytes of an event of this size as an element of a response: tag, length and content. */
function framed(size: number): number {
  let length = 1;
  for (let rest = size >>> 7; rest > 0; rest >>>= 7) length += 1;
  return 1 + length + size;
}
