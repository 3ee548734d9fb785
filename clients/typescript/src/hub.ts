import { create, type DescMessage, fromBinary, type MessageInitShape, type MessageShape, toBinary } from "@bufbuild/protobuf";
import { ClosedError } from "./errors.js";
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
  ResetSubscriberRequestSchema,
  ResetSubscriberResponseSchema,
} from "./gen/walcast/v1/walcast_pb.js";
import { Relation } from "./model.js";
import { type Logger, type SubscribeOptions, WARNINGS } from "./options.js";
import { Position } from "./position.js";
import { snapshotMessage, type SnapshotOptions, type Start, startMessage } from "./start.js";
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

  /** Starts a snapshot of tables into a running subscription. Its identifier. */
  async startBackfill(subscriber: string, tables: readonly string[], options: SnapshotOptions = {}): Promise<string> {
    const filter = filterMessage({ tables });
    const response = await this.unary(
      PATHS.backfill,
      BackfillRequestSchema,
      {
        subscriber,
        action: BackfillAction.START,
        options: snapshotMessage(options),
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
