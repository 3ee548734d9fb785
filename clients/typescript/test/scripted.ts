/** A gRPC server that plays scripts: what each connection sends, and how it ends. */
import { create, fromBinary, type MessageInitShape, toBinary } from "@bufbuild/protobuf";
import { BinaryWriter, WireType } from "@bufbuild/protobuf/wire";
import { Metadata, type sendUnaryData, Server, ServerCredentials, type ServerDuplexStream, type ServerUnaryCall } from "@grpc/grpc-js";
import { Client, type SubscribeOptions, type Subscription } from "../src/index.js";
import { CODES, type Code } from "../src/errors.js";
import * as pb from "../src/proto.js";
import { PATHS } from "../src/transport.js";

export const LINEAGE = "00000000000000aa";
export type EventInit = MessageInitShape<typeof pb.EventSchema>;
export type Sent = EventInit | Sent[];

export const lsn = (number: number): string => `0/${number.toString(16).toUpperCase()}`;
export const at = (number: number, lineage = LINEAGE): { lsn: string; lineage: string } => ({ lsn: lsn(number), lineage });

export function opened(after: number, session = 0, lineage = LINEAGE): EventInit {
  const value = { after: at(after, lineage), earliest: at(0), tail: at(0xffff), session: BigInt(session) };
  return { kind: { case: "opened", value } };
}

export function relation(): EventInit {
  const columns = [
    { name: "id", typeName: "int4", inIdentity: true },
    { name: "v", typeName: "text" },
  ];
  const value = { relationId: 7, schema: "public", table: "t", columns, replicaIdentity: pb.ReplicaIdentity.DEFAULT };
  return { kind: { case: "relation", value } };
}

export type ValueInit = MessageInitShape<typeof pb.ValueSchema>;
export const text = (value: string): ValueInit => ({ kind: { case: "text", value } });
export const int = (value: number | bigint): ValueInit => ({ kind: { case: "intValue", value: BigInt(value) } });

export function insert(ordinal: number, id: number, relationId = 7, operation = pb.Operation.INSERT): EventInit {
  const afterRow = { values: [int(id), text(`v${id}`)] };
  return { kind: { case: "change", value: { operation, relationId, ordinal: BigInt(ordinal), afterRow } } };
}

export function begin(number: number): EventInit {
  return { kind: { case: "begin", value: { commitLsn: lsn(number - 1), lineage: LINEAGE, xid: BigInt(number) } } };
}

export function commit(number: number, changes: number, lineage = LINEAGE): EventInit {
  const count = BigInt(changes);
  return { kind: { case: "commit", value: { position: at(number, lineage), changes: count, totalChanges: count } } };
}

export function transaction(number: number, changes = 1, lineage = LINEAGE): EventInit[] {
  const inserts = Array.from({ length: changes }, (_, index) => insert(index + 1, number * 100 + index));
  return [begin(number), ...inserts, commit(number, changes, lineage)];
}

export function progress(number: number, lineage = LINEAGE): EventInit {
  return { kind: { case: "progress", value: { position: at(number, lineage), tail: at(0xffff), sourceConnected: true } } };
}

/** Ends a stream with an error of the hub; without a reason the connection is as good as lost. */
export class Refusal extends Error {
  constructor(
    readonly code: Code,
    readonly reason = "",
    readonly retryAfter?: number,
    readonly metadata: Record<string, string> = {},
  ) {
    super(`because of ${reason}`);
  }

  private any(type: string, content: BinaryWriter): Uint8Array {
    const any = new BinaryWriter().tag(1, WireType.LengthDelimited).string(`type.googleapis.com/google.rpc.${type}`);
    return any.tag(2, WireType.LengthDelimited).bytes(content.finish()).finish();
  }

  trailers(): Metadata {
    const status = new BinaryWriter().tag(1, WireType.Varint).int32(CODES.indexOf(this.code));
    if (this.reason !== "") {
      const info = new BinaryWriter().tag(1, WireType.LengthDelimited).string(this.reason);
      info.tag(2, WireType.LengthDelimited).string("walcast");
      for (const [key, value] of Object.entries(this.metadata)) {
        info.tag(3, WireType.LengthDelimited).fork();
        info.tag(1, WireType.LengthDelimited).string(key).tag(2, WireType.LengthDelimited).string(value).join();
      }
      status.tag(3, WireType.LengthDelimited).bytes(this.any("ErrorInfo", info));
    }
    if (this.retryAfter !== undefined) {
      const delay = new BinaryWriter().tag(1, WireType.LengthDelimited).fork();
      delay.tag(1, WireType.Varint).int64(Math.floor(this.retryAfter / 1000));
      delay.tag(2, WireType.Varint).int32((this.retryAfter % 1000) * 1_000_000).join();
      status.tag(3, WireType.LengthDelimited).bytes(this.any("RetryInfo", delay));
    }
    const metadata = new Metadata();
    metadata.set("grpc-status-details-bin", Buffer.from(status.finish()));
    return metadata;
  }
}

export const lost = (): Refusal => new Refusal("UNAVAILABLE");

/** What one stream asked for, as it comes. */
export class Connection {
  open: pb.SubscribeRequest | undefined;
  events = 0n;
  acks: string[] = [];
  ended = false;
  metadata = new Metadata();
  private watchers: (() => void)[] = [];

  constructor(readonly send: (...events: Sent[]) => void) {}

  changed(): void {
    const { watchers } = this;
    this.watchers = [];
    for (const watcher of watchers) watcher();
  }

  async wait(what: () => boolean): Promise<void> {
    const deadline = AbortSignal.timeout(20_000);
    while (!what()) {
      if (deadline.aborted) throw new Error("the client did not do it");
      await new Promise<void>((resolve) => {
        this.watchers.push(resolve);
        setTimeout(resolve, 1000).unref();
      });
    }
  }

  untilAcked(number: number): Promise<void> {
    return this.wait(() => this.acks.includes(lsn(number)));
  }

  untilEnded(): Promise<void> {
    return this.wait(() => this.ended);
  }
}

export type Script = (connection: Connection) => Promise<void> | void;

/** Plays one script per connection, in order. */
export class ScriptedHub implements AsyncDisposable {
  readonly connections: Connection[] = [];
  readonly unaryAcks: pb.AcknowledgeRequest[] = [];
  fencedBelow = 0n;
  readonly log: string[] = [];
  address = "";
  private readonly server = new Server();
  private readonly clients: Client[] = [];
  /** What a script got wrong. */
  readonly failures: unknown[] = [];

  static async play(...scripts: Script[]): Promise<ScriptedHub> {
    const hub = new ScriptedHub(scripts);
    const same = (bytes: Buffer): Buffer => bytes;
    const codec = { requestSerialize: same, requestDeserialize: same, responseSerialize: same, responseDeserialize: same };
    hub.server.addService(
      {
        consume: { path: PATHS.consume, requestStream: true, responseStream: true, ...codec },
        acknowledge: { path: PATHS.acknowledge, requestStream: false, responseStream: false, ...codec },
      },
      {
        consume: (stream: ServerDuplexStream<Buffer, Buffer>) => hub.consume(stream),
        acknowledge: (call: ServerUnaryCall<Buffer, Buffer>, done: sendUnaryData<Buffer>) => hub.acknowledge(call, done),
      },
    );
    const port = await new Promise<number>((resolve, reject) => {
      hub.server.bindAsync("127.0.0.1:0", ServerCredentials.createInsecure(), (error, bound) => {
        if (error === null) resolve(bound);
        else reject(error);
      });
    });
    hub.address = `127.0.0.1:${port}`;
    return hub;
  }

  private constructor(private readonly scripts: Script[]) {}

  private consume(stream: ServerDuplexStream<Buffer, Buffer>): void {
    const connection = new Connection((...sent) => {
      const events = sent.flat(Infinity as 1) as EventInit[];
      stream.write(Buffer.from(toBinary(pb.ConsumeResponseSchema, create(pb.ConsumeResponseSchema, { events }))));
    });
    connection.metadata = stream.metadata;
    const script = this.scripts[this.connections.length];
    this.connections.push(connection);
    stream.on("data", (bytes: Buffer) => {
      const { request } = fromBinary(pb.ConsumeRequestSchema, bytes);
      if (request.case === "open") {
        connection.open = request.value;
        void this.run(stream, connection, script);
      } else if (request.case === "credit") connection.events += request.value.events;
      else if (request.case === "acknowledge") connection.acks.push(request.value.lsn);
      connection.changed();
    });
    const ended = (): void => {
      connection.ended = true;
      connection.changed();
    };
    stream.on("end", ended).on("cancelled", ended).on("error", ended);
  }

  private async run(stream: ServerDuplexStream<Buffer, Buffer>, connection: Connection, script?: Script): Promise<void> {
    try {
      if (script === undefined) throw new Error("this connection was not expected");
      await script(connection);
      stream.end();
    } catch (error) {
      if (!(error instanceof Refusal)) this.failures.push(error);
      const refusal = error instanceof Refusal ? error : new Refusal("INTERNAL", "INTERNAL");
      stream.emit("error", { code: CODES.indexOf(refusal.code), details: refusal.message, metadata: refusal.trailers() });
    }
  }

  private acknowledge(call: ServerUnaryCall<Buffer, Buffer>, done: sendUnaryData<Buffer>): void {
    const request = fromBinary(pb.AcknowledgeRequestSchema, call.request);
    this.unaryAcks.push(request);
    if (request.session < this.fencedBelow) {
      const refusal = new Refusal("ABORTED", "SUBSCRIBER_FENCED");
      done({ code: CODES.indexOf(refusal.code), details: refusal.message, metadata: refusal.trailers() });
      return;
    }
    const { position: checkpoint } = request;
    const response = create(pb.AcknowledgeResponseSchema, checkpoint === undefined ? {} : { checkpoint });
    done(null, Buffer.from(toBinary(pb.AcknowledgeResponseSchema, response)));
  }

  connection(number: number): Connection {
    const connection = this.connections[number];
    if (connection === undefined) throw new Error(`there is no connection ${number}`);
    return connection;
  }

  client(options: ConstructorParameters<typeof Client>[1] = {}): Client {
    const note = (line: string): void => void this.log.push(line);
    const client = new Client(this.address, { log: { info: note, warn: note }, ...options });
    this.clients.push(client);
    return client;
  }

  subscribe(options: SubscribeOptions = {}): Subscription {
    return this.client().subscribe({ retry: { initial: 1, maximum: 10 }, ...options });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all(this.clients.map((client) => client.close()));
    this.server.forceShutdown();
    if (this.failures.length > 0) throw this.failures[0];
  }
}
