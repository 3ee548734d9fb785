import { readFile } from "node:fs/promises";
import { toBinary } from "@bufbuild/protobuf";
import {
  type ChannelCredentials, Client, type ClientDuplexStream, type ClientReadableStream, credentials, Metadata, type ServiceError,
} from "@grpc/grpc-js"; // prettier-ignore
import { type HubError, WalcastError } from "./errors.js";
import { type ConsumeRequest, ConsumeRequestSchema } from "./gen/walcast/v1/walcast_pb.js";
import { fromStatus } from "./status.js";
import {
  type Call, type Connection, IDENTIFICATION, metadataOf, PATHS, type Responses, type Token, type Transport,
} from "./transport.js"; // prettier-ignore

/** How to connect with TLS. Files are PEM and read anew for each connection, so that renewed certificates are used. */
export interface TLS {
  /** Authorities to trust; the system's where there is none. */
  ca?: string;
  /** The client's certificate chain and key, for mutual TLS. */
  cert?: string;
  key?: string;
  /** The name that the hub's certificate must have, where it is not the host. */
  serverName?: string;
}

function errorOf(error: ServiceError): HubError {
  const details = error.metadata.get("grpc-status-details-bin")[0];
  return fromStatus(error.code, error.details, typeof details === "string" ? undefined : details);
}

function same(bytes: Buffer): Buffer {
  return bytes;
}

class GrpcResponses<S extends ClientReadableStream<Buffer>> implements Responses {
  private failure: HubError | undefined;
  private ended = false;
  private wake: () => void = () => undefined;

  constructor(protected readonly stream: S) {
    stream.on("readable", () => this.wake());
    stream.on("end", () => {
      this.ended = true;
      this.wake();
    });
    stream.on("error", (error) => {
      this.failure = errorOf(error as ServiceError);
      this.wake();
    });
  }

  async read(): Promise<Uint8Array | undefined> {
    for (;;) {
      const message = this.stream.read() as Buffer | null;
      if (message !== null) return message;
      if (this.failure !== undefined) throw this.failure;
      if (this.ended) {
        // Whether it ended with OK comes after the end.
        await new Promise<void>((resolve) => {
          this.stream.once("status", () => resolve());
          setImmediate(resolve);
        });
        // eslint-disable-next-line @typescript-eslint/no-unnecessary-condition -- set by the listener meanwhile
        if (this.failure !== undefined) throw this.failure as HubError;
        return undefined;
      }
      await new Promise<void>((resolve) => {
        this.wake = resolve;
      });
    }
  }

  protected get over(): boolean {
    return this.ended || this.failure !== undefined;
  }

  close(): void {
    this.stream.cancel();
  }
}

class GrpcCall extends GrpcResponses<ClientDuplexStream<Buffer, Buffer>> implements Call {
  send(request: ConsumeRequest): void {
    if (!this.over) this.stream.write(Buffer.from(toBinary(ConsumeRequestSchema, request)));
  }
}

class GrpcConnection implements Connection {
  constructor(
    private readonly client: Client,
    private readonly metadata: Metadata,
  ) {}

  consume(first: ConsumeRequest): Call {
    const call = new GrpcCall(this.client.makeBidiStreamRequest(PATHS.consume, same, same, this.metadata));
    call.send(first);
    return call;
  }

  stream(path: string, request: Uint8Array): Responses {
    return new GrpcResponses(this.client.makeServerStreamRequest(path, same, same, Buffer.from(request), this.metadata));
  }

  unary(path: string, request: Uint8Array, deadline: number): Promise<Uint8Array> {
    return new Promise((resolve, reject) => {
      const options = { deadline: Date.now() + deadline };
      this.client.makeUnaryRequest(path, same, same, Buffer.from(request), this.metadata, options, (error, response) => {
        if (error !== null) reject(errorOf(error));
        else resolve(response ?? new Uint8Array());
      });
    });
  }

  close(): void {
    this.client.close();
  }
}

/** What `Client` needs besides the address, in Node. */
export interface NodeOptions {
  tls?: TLS | undefined;
  token?: Token | undefined;
  /** The largest response that is received; default 64 MiB. */
  maxMessageBytes?: number;
}

/** gRPC over HTTP/2, in Node. */
export class GrpcTransport implements Transport {
  readonly maxMessageBytes: number;
  readonly address: string;
  private readonly tls: TLS | undefined;

  /** `host:port`, or `https://host:port`, which asks for TLS. */
  constructor(
    address: string,
    private readonly options: NodeOptions,
  ) {
    this.maxMessageBytes = options.maxMessageBytes ?? 64 << 20;
    let tls = options.tls;
    if (address.includes("://")) {
      const url = new URL(address);
      if (url.protocol !== "http:" && url.protocol !== "https:") throw new WalcastError(`${address}: the scheme is http or https`);
      if (url.protocol === "http:" && tls !== undefined) throw new WalcastError("TLS needs https://, or an address without a scheme");
      if (url.protocol === "https:") tls ??= {};
      // An URL leaves out the port that is its scheme's default.
      address = `${url.hostname}:${url.port || (url.protocol === "https:" ? "443" : /:80(?:\/|$)/.test(address) ? "80" : "50051")}`;
    }
    this.address = address;
    this.tls = tls;
  }

  /** Whether a token would go over a network in clear text. */
  get exposesToken(): boolean {
    const loopback = /^(?:localhost|127\.[\d.]+|\[::1\]):\d+$/.test(this.address) || this.address.startsWith("unix:");
    return this.options.token !== undefined && this.tls === undefined && !loopback;
  }

  private async credentials(): Promise<ChannelCredentials> {
    if (this.tls === undefined) return credentials.createInsecure();
    const read = (path: string | undefined): Promise<Buffer> | null => (path === undefined ? null : readFile(path));
    const [ca, key, cert] = await Promise.all([read(this.tls.ca), read(this.tls.key), read(this.tls.cert)]);
    return credentials.createSsl(ca, key, cert);
  }

  async connect(): Promise<Connection> {
    const metadata = new Metadata();
    for (const [key, value] of Object.entries(await metadataOf(this.options.token))) metadata.set(key, value);
    const serverName = this.tls?.serverName;
    const client = new Client(this.address, await this.credentials(), {
      "grpc.use_local_subchannel_pool": 1,
      "grpc.primary_user_agent": IDENTIFICATION,
      "grpc.max_receive_message_length": this.maxMessageBytes,
      "grpc.keepalive_time_ms": 30_000,
      "grpc.keepalive_timeout_ms": 20_000,
      "grpc.keepalive_permit_without_calls": 0,
      "grpc.enable_retries": 0,
      "grpc.service_config_disable_resolution": 1,
      "grpc-node.flow_control_window": 1 << 20,
      ...(serverName === undefined ? {} : { "grpc.ssl_target_name_override": serverName }),
    });
    return new GrpcConnection(client, metadata);
  }
}
