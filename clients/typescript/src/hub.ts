import { create, type DescMessage, fromBinary, type MessageInitShape, type MessageShape, toBinary } from "@bufbuild/protobuf";
import { Core } from "./core.js";
import { ClosedError, ProtocolError } from "./errors.js";
import { filterMessage } from "./filters.js";
import {
  BackfillAction,
  BackfillRequestSchema,
  BackfillResponseSchema,
  DeleteSubscriberRequestSchema,
  DeleteSubscriberResponseSchema,
  type GetStatusResponse,
  GetStatusRequestSchema,
  GetStatusResponseSchema,
  ListRelationsRequestSchema,
  ListRelationsResponseSchema,
  ListSubscribersRequestSchema,
  ListSubscribersResponseSchema,
  ReadRetractedRequestSchema,
  ResetSubscriberRequestSchema,
  ResetSubscriberResponseSchema,
} from "./gen/walcast/v1/walcast_pb.js";
import { Relation, Transaction } from "./model.js";
import { type BackfillOptions, type Logger, type RetractedOptions, type SubscribeOptions, WARNINGS } from "./options.js";
import { Position } from "./position.js";
import { type Start, startMessage } from "./start.js";
import { Subscription } from "./subscription.js";
import { type Connection, PATHS, type Transport, UNARY_DEADLINE } from "./transport.js";

/** A named subscriber. */
export interface Subscriber {
  readonly name: string;
  /** Everything up to here was acknowledged. */
  readonly checkpoint: Position | undefined;
  readonly connected: boolean;
  /** WAL between the checkpoint and the journal's tail, in bytes. */
  readonly lagBytes: bigint;
  /** Remote address of the open stream; empty without one. */
  readonly peer: string;
}

/** A walcast hub, over some transport. Cheap to make: connections are opened by calls, one for each subscription. */
export class Hub implements AsyncDisposable {
  private readonly subscriptions = new Set<Subscription>();
  private connection: Promise<Connection> | undefined;
  private closed = false;

  constructor(
    protected readonly transport: Transport,
    protected readonly log: Logger = WARNINGS,
  ) {}

  /** Subscribes. Connects when iterated. */
  subscribe(options: SubscribeOptions = {}): Subscription {
    if (this.closed) throw new ClosedError();
    const subscription = new Subscription(this.transport, options, this.log, (ended) => this.subscriptions.delete(ended));
    this.subscriptions.add(subscription);
    return subscription;
  }

  private async unary<I extends DescMessage, O extends DescMessage>(
    path: string,
    input: I,
    request: MessageInitShape<I>,
    output: O,
  ): Promise<MessageShape<O>> {
    if (this.closed) throw new ClosedError();
    this.connection ??= this.transport.connect();
    const connection = await this.connection;
    return fromBinary(output, await connection.unary(path, toBinary(input, create(input, request)), UNARY_DEADLINE));
  }

  /** The state of the source, the journal and the streams. */
  status(): Promise<GetStatusResponse> {
    return this.unary(PATHS.getStatus, GetStatusRequestSchema, {}, GetStatusResponseSchema);
  }

  /** Every named subscriber with its checkpoint and lag. */
  async subscribers(): Promise<Subscriber[]> {
    const response = await this.unary(PATHS.listSubscribers, ListSubscribersRequestSchema, {}, ListSubscribersResponseSchema);
    return response.subscribers.map(({ name, checkpoint, connected, lagBytes, peer }) => ({
      name,
      checkpoint: checkpoint === undefined ? undefined : Position.fromMessage(checkpoint),
      connected,
      lagBytes,
      peer,
    }));
  }

  /** Moves a checkpoint anywhere, and ends an open stream of the subscriber. Where it stands now. */
  async resetSubscriber(subscriber: string, start: Start): Promise<Position> {
    const request = { subscriber, start: startMessage(start) };
    const response = await this.unary(
      PATHS.resetSubscriber,
      ResetSubscriberRequestSchema,
      request,
      ResetSubscriberResponseSchema,
    );
    return Position.fromMessage(response.checkpoint);
  }

  /** Forgets a subscriber, and ends its open stream. */
  async deleteSubscriber(subscriber: string): Promise<void> {
    await this.unary(PATHS.deleteSubscriber, DeleteSubscriberRequestSchema, { subscriber }, DeleteSubscriberResponseSchema);
  }

  /** The versions of tables that the hub knows: the newest of each, or all. */
  async relations(tables: readonly string[] = [], allVersions = false): Promise<Relation[]> {
    const request = { tables: [...tables], allVersions };
    const response = await this.unary(PATHS.listRelations, ListRelationsRequestSchema, request, ListRelationsResponseSchema);
    return response.relations.map((relation) => new Relation(relation, new Map()));
  }

  /**
   * The transactions that a failover took back: the end of a lineage that never happened on the next one, for as long as the
   * journal retains it. The lineage is `TimelineChanged.oldLineage`, or that of a position which the hub refuses with
   * PositionDivergedError. Ends by itself; is not resumed when the connection breaks.
   */
  async *readRetracted(lineage: string, options: RetractedOptions = {}): AsyncGenerator<Transaction, void, undefined> {
    if (this.closed) throw new ClosedError();
    const { signal } = options;
    signal?.throwIfAborted();
    const core = new Core(options, this.transport.maxMessageBytes, this.log);
    const filter = filterMessage(options);
    const request = create(ReadRetractedRequestSchema, { oldLineage: lineage, ...(filter === undefined ? {} : { filter }) });
    const connection = await this.transport.connect();
    const responses = connection.stream(PATHS.readRetracted, toBinary(ReadRetractedRequestSchema, request));
    const stop = (): void => responses.close();
    signal?.addEventListener("abort", stop, { once: true });
    try {
      for (let bytes = await responses.read(); bytes !== undefined; bytes = await responses.read()) {
        core.receive(bytes);
        for (let item = core.poll(); item !== undefined; item = core.poll()) if (item instanceof Transaction) yield item;
      }
      if (core.withinTransaction) throw new ProtocolError("the stream ended inside a transaction");
    } catch (error) {
      signal?.throwIfAborted();
      throw error;
    } finally {
      signal?.removeEventListener("abort", stop);
      responses.close();
      connection.close();
    }
  }

  /** Starts a snapshot of tables into the open stream of a subscriber, in incremental mode. Its identifier. */
  async startBackfill(subscriber: string, tables: readonly string[], options: BackfillOptions = {}): Promise<string> {
    const filter = filterMessage({ tables, where: options.where ?? "" });
    const response = await this.unary(
      PATHS.backfill,
      BackfillRequestSchema,
      {
        subscriber,
        action: BackfillAction.START,
        options: { maxRowsPerSecond: options.maxRowsPerSecond ?? 0 },
        ...(filter === undefined ? {} : { filter }),
      },
      BackfillResponseSchema,
    );
    return response.snapshotId;
  }

  /** Pauses, resumes or cancels one. */
  async controlBackfill(subscriber: string, snapshotId: string, action: "pause" | "resume" | "cancel"): Promise<void> {
    const actions = { pause: BackfillAction.PAUSE, resume: BackfillAction.RESUME, cancel: BackfillAction.CANCEL };
    const request = { subscriber, snapshotId, action: actions[action] };
    await this.unary(PATHS.backfill, BackfillRequestSchema, request, BackfillResponseSchema);
  }

  /** Closes every subscription and connection. */
  async close(): Promise<void> {
    this.closed = true;
    await Promise.all([...this.subscriptions].map((subscription) => subscription.close()));
    const connection = await this.connection;
    connection?.close();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}
