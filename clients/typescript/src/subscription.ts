import { fromBinary, toBinary } from "@bufbuild/protobuf";
import { Core } from "./core.js";
import { ClosedError, HubError, WalcastError } from "./errors.js";
import { type AcknowledgeRequest, AcknowledgeRequestSchema, AcknowledgeResponseSchema } from "./gen/walcast/v1/walcast_pb.js";
import { type Change, type Event, type Opened, type Progress, Transaction } from "./model.js";
import type { Logger, SubscribeOptions } from "./options.js";
import { Position } from "./position.js";
import { type Call, type Connection, PATHS, type Transport, UNARY_DEADLINE } from "./transport.js";

/**
 * Transactions in commit order, across reconnects: `for await (const tx of subscription)`. Breaking out of the loop does
 * not acknowledge the last transaction, and iterating again goes on. One loop at a time.
 */
export class Subscription implements AsyncIterable<Transaction>, AsyncDisposable {
  private readonly core: Core;
  private connection: Connection | undefined;
  private call: Call | undefined;
  private timer: NodeJS.Timeout | undefined;
  private used = false;
  private finished = false;
  private closed = false;
  private closing: Promise<void> | undefined;
  private readonly stop = new AbortController();
  private readonly aborted = (): void => void this.close();

  /** @internal */
  constructor(
    private readonly transport: Transport,
    private readonly options: SubscribeOptions,
    private readonly log: Logger,
    private readonly forget: (subscription: Subscription) => void,
  ) {
    this.core = new Core(options, transport.maxMessageBytes, log);
    options.signal?.addEventListener("abort", this.aborted, { once: true });
  }

  // -- iterating

  /** The next transaction; under automatic acknowledgement the one before is done by asking for it. Undefined at the end. */
  async next(): Promise<Transaction | undefined> {
    if (this.core.streaming) throw new WalcastError("after events() only events() can be used");
    for (;;) {
      const item = await this.item();
      if (item === undefined || item instanceof Transaction) return item;
      await this.core.handle(item);
    }
  }

  [Symbol.asyncIterator](): AsyncIterator<Transaction, undefined> {
    return {
      next: async () => {
        const value = await this.next();
        return value === undefined ? { done: true, value } : { done: false, value };
      },
    };
  }

  /** Single changes of complete transactions. Under automatic acknowledgement a transaction is done when the next one's first change is asked for. */
  async *changes(): AsyncGenerator<Change, void, undefined> {
    for await (const transaction of this) yield* transaction.each();
  }

  /**
   * Everything as it comes, without waiting for a transaction's end: for transactions that do not fit into memory. Must be
   * the first use of a subscription.
   */
  async *events(): AsyncGenerator<Event, void, undefined> {
    if (this.used && !this.core.streaming) throw new WalcastError("events() must be the first use of a subscription");
    this.core.streaming = true;
    for (;;) {
      const item = await this.item();
      if (item === undefined) return;
      if (!(item instanceof Transaction)) yield item;
    }
  }

  private async item(): Promise<Transaction | Event | undefined> {
    this.used = true;
    if (this.closed) {
      this.options.signal?.throwIfAborted();
      throw new ClosedError();
    }
    this.options.signal?.throwIfAborted();
    this.core.nextRequested();
    for (;;) {
      const item = this.core.poll();
      if (item !== undefined) return item;
      if (this.finished) return undefined;
      if (this.isClosed()) {
        this.options.signal?.throwIfAborted();
        return undefined;
      }
      try {
        await this.receive();
      } catch (error) {
        await this.close();
        throw error;
      }
    }
  }

  /** As a call, since it changes while others wait. */
  private isClosed(): boolean {
    return this.closed;
  }

  private async receive(): Promise<void> {
    let failure: HubError | undefined;
    try {
      const call = this.call ?? (await this.open());
      if (call === undefined) return;
      const bytes = await call.read();
      if (bytes !== undefined) {
        this.core.receive(bytes);
        return;
      }
      failure = this.core.ended();
    } catch (error) {
      if (this.isClosed()) return;
      if (!(error instanceof HubError)) throw error;
      failure = error;
    }
    this.disconnect();
    if (this.isClosed()) return;
    if (failure === undefined) {
      this.finished = true;
      return;
    }
    const delay = this.core.failed(failure);
    this.options.onReconnect?.(failure, delay);
    await this.sleep(delay);
  }

  private sleep(delay: number): Promise<void> {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, delay);
      const stopped = (): void => {
        clearTimeout(timer);
        resolve();
      };
      if (this.closed) stopped();
      else this.stop.signal.addEventListener("abort", stopped, { once: true });
    });
  }

  private async open(): Promise<Call | undefined> {
    const proof = this.core.proof();
    if (proof !== undefined) {
      await this.acknowledge(proof, undefined, UNARY_DEADLINE);
      this.core.proved();
    }
    if (this.isClosed()) return undefined;
    const first = this.core.openRequest();
    const connection = await this.transport.connect();
    if (this.isClosed()) {
      connection.close();
      return undefined;
    }
    this.connection = connection;
    const call = connection.consume(first, (position) => this.core.acknowledgement(position));
    this.call = call;
    this.core.outbox.wake = () => this.pump();
    this.pump();
    return call;
  }

  /** Sends what there is, and comes again when there may be more. */
  private pump(): void {
    const { call } = this;
    if (call === undefined) return;
    for (;;) {
      const request = this.core.outbox.take();
      if (request === undefined) return;
      if (typeof request === "number") {
        clearTimeout(this.timer);
        this.timer = setTimeout(() => this.pump(), request);
        return;
      }
      call.send(request);
    }
  }

  private disconnect(): void {
    clearTimeout(this.timer);
    this.core.outbox.wake = () => undefined;
    const { call, connection } = this;
    this.call = this.connection = undefined;
    call?.close();
    connection?.close();
  }

  // -- acknowledging

  /** Everything up to and including the position is done; without one: everything that was handed out. Returns at once. */
  ack(position = this.core.position): void {
    if (position === undefined) throw new WalcastError("nothing was received yet");
    this.core.acknowledge(position);
  }

  /** Waits until what was acknowledged is durable; the checkpoint, undefined where nothing was acknowledged. Rejects with HubError. */
  async flush(timeout = UNARY_DEADLINE): Promise<Position | undefined> {
    const request = this.core.acked === undefined ? undefined : this.core.acknowledgement(this.core.acked);
    return request === undefined ? undefined : this.acknowledge(request, this.connection, timeout);
  }

  private async acknowledge(request: AcknowledgeRequest, open: Connection | undefined, timeout: number): Promise<Position> {
    const connection = open ?? (await this.transport.connect());
    try {
      const bytes = await connection.unary(PATHS.acknowledge, toBinary(AcknowledgeRequestSchema, request), timeout);
      return Position.fromMessage(fromBinary(AcknowledgeResponseSchema, bytes).checkpoint);
    } finally {
      if (open === undefined) connection.close();
    }
  }

  // -- state

  /** Everything up to here was handed out: what an anonymous subscriber resumes after. */
  get position(): Position | undefined {
    return this.core.position;
  }

  /** How the present stream was opened. */
  get opened(): Opened | undefined {
    return this.core.opened;
  }

  /** The newest progress that was reached. */
  get progress(): Progress | undefined {
    return this.core.progress;
  }

  // -- closing

  /** Makes durable what was acknowledged, as far as the hub answers within 5 s, and closes the connection. A loop elsewhere ends. */
  close(): Promise<void> {
    this.closing ??= this.end();
    return this.closing;
  }

  private async end(): Promise<void> {
    if (this.core.unflushed) {
      try {
        await this.flush(5000);
      } catch (error) {
        this.log.warn(`the last acknowledgement was not confirmed: ${error instanceof Error ? error.message : String(error)}`);
      }
    }
    this.closed = true;
    this.options.signal?.removeEventListener("abort", this.aborted);
    this.stop.abort();
    this.disconnect();
    this.forget(this);
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}
