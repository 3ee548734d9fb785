/**
 * Committed changes from a walcast hub, in a browser: gRPC-web over `fetch`. Streams go one way there, so they are opened by Subscribe,
 * acknowledgements are calls of their own, and back-pressure is that of HTTP.
 *
 * @module
 */
import { toBinary } from "@bufbuild/protobuf";
import { ConnectionLostError, HubError } from "./errors.js";
import {
  type AcknowledgeRequest,
  AcknowledgeRequestSchema,
  type ConsumeRequest,
  SubscribeRequestSchema,
} from "./gen/walcast/v1/walcast_pb.js";
import { Hub } from "./hub.js";
import { type Logger, WARNINGS } from "./options.js";
import { Position } from "./position.js";
import { fromStatus } from "./status.js";
import {
  type Call, type Connection, metadataOf, PATHS, type Responses, type Token, type Transport, UNARY_DEADLINE,
} from "./transport.js"; // prettier-ignore

export * from "./common.js";

function frame(message: Uint8Array): Uint8Array<ArrayBuffer> {
  const framed = new Uint8Array(5 + message.length);
  new DataView(framed.buffer).setUint32(1, message.length);
  framed.set(message, 5);
  return framed;
}

function lostBy(error: unknown): HubError {
  return new ConnectionLostError(error instanceof Error ? error.message : String(error), { code: "UNAVAILABLE" });
}

function bytesOf(base64: string): Uint8Array {
  return Uint8Array.from(atob(base64.replace(/-/g, "+").replace(/_/g, "/")), (char) => char.charCodeAt(0));
}

/** The error that headers or trailers say; undefined for OK or where they say nothing. */
function errorIn(get: (name: string) => string | null): HubError | undefined {
  const status = get("grpc-status");
  if (status === null || status === "0") return undefined;
  const details = get("grpc-status-details-bin");
  return fromStatus(Number(status), decodeURIComponent(get("grpc-message") ?? ""), details === null ? undefined : bytesOf(details));
}

/** Takes a gRPC-web response apart: messages, then trailers. */
class Frames {
  private buffer = new Uint8Array();
  private readonly reader: ReadableStreamDefaultReader<Uint8Array> | undefined;

  constructor(
    response: Response,
    private readonly limit: number,
  ) {
    this.reader = response.body?.getReader();
  }

  /** The next message; undefined at the end with OK. */
  async next(): Promise<Uint8Array | undefined> {
    const header = await this.take(5);
    const view = new DataView(header.buffer, header.byteOffset);
    const length = view.getUint32(1);
    if (length > this.limit) throw fromStatus(8, `a message of ${length} bytes; the limit is ${this.limit}`, undefined);
    const content = await this.take(length);
    if ((view.getUint8(0) & 0x80) === 0) return content;
    const trailers = new Map(
      new TextDecoder()
        .decode(content)
        .split("\r\n")
        .map((line): [string, string] => [line.slice(0, line.indexOf(":")).toLowerCase(), line.slice(line.indexOf(":") + 1).trim()]),
    );
    const error = errorIn((name) => trailers.get(name) ?? null);
    if (error !== undefined) throw error;
    return undefined;
  }

  private async take(length: number): Promise<Uint8Array> {
    const parts: Uint8Array[] = [this.buffer];
    let have = this.buffer.length;
    while (have < length) {
      const { value } = (await this.reader?.read()) ?? {};
      if (value === undefined) throw lostBy("the response ended in the middle");
      parts.push(value);
      have += value.length;
    }
    const whole = parts.length === 1 ? this.buffer : new Uint8Array(have);
    if (parts.length > 1) {
      let at = 0;
      for (const part of parts) {
        whole.set(part, at);
        at += part.length;
      }
    }
    this.buffer = whole.subarray(length);
    return whole.subarray(0, length);
  }
}

class WebConnection implements Connection {
  private readonly stop = new AbortController();

  constructor(
    private readonly base: string,
    private readonly metadata: Record<string, string>,
    private readonly limit: number,
    private readonly log: Logger,
  ) {}

  private async post(path: string, message: Uint8Array, signal: AbortSignal): Promise<Frames> {
    const response = await fetch(this.base + path, {
      method: "POST",
      headers: { ...this.metadata, "content-type": "application/grpc-web+proto", "x-grpc-web": "1" },
      body: frame(message),
      signal,
    });
    const error = errorIn((name) => response.headers.get(name));
    if (error !== undefined) throw error;
    if (!response.ok) throw fromStatus(response.status === 404 ? 12 : 14, `HTTP ${response.status}`, undefined);
    return new Frames(response, this.limit);
  }

  consume(first: ConsumeRequest, acknowledgement: (position: Position) => AcknowledgeRequest | undefined): Call {
    if (first.request.case !== "open") throw new TypeError("the first request opens");
    return {
      ...this.stream(PATHS.subscribe, toBinary(SubscribeRequestSchema, first.request.value)),
      send: ({ request }) => {
        if (request.case === "acknowledge") this.acknowledge(acknowledgement(Position.fromMessage(request.value)));
      },
    };
  }

  stream(path: string, request: Uint8Array): Responses {
    const stop = new AbortController();
    const frames = this.post(path, request, AbortSignal.any([stop.signal, this.stop.signal]));
    frames.catch(() => undefined); // read tells
    return {
      read: async () => {
        try {
          return await (await frames).next();
        } catch (error) {
          throw error instanceof HubError ? error : lostBy(error);
        }
      },
      close: () => stop.abort(),
    };
  }

  private acknowledge(request: AcknowledgeRequest | undefined): void {
    if (request === undefined) return;
    const sent = this.unary(PATHS.acknowledge, toBinary(AcknowledgeRequestSchema, request), UNARY_DEADLINE);
    // A connection that breaks or a newer session ends the stream too, and what was not acknowledged is sent again.
    sent.catch((error: unknown) => this.log.info(`an acknowledgement was not confirmed: ${String(error)}`));
  }

  async unary(path: string, request: Uint8Array, deadline: number): Promise<Uint8Array> {
    try {
      const signal = AbortSignal.any([this.stop.signal, AbortSignal.timeout(deadline)]);
      const frames = await this.post(path, request, signal);
      const message = await frames.next();
      if (message === undefined) throw lostBy("no response");
      await frames.next();
      return message;
    } catch (error) {
      throw error instanceof HubError ? error : lostBy(error);
    }
  }

  close(): void {
    this.stop.abort();
  }
}

/** What `WebClient` needs besides the address. */
export interface WebOptions {
  token?: Token;
  /** The largest response that is received; default 64 MiB. */
  maxMessageBytes?: number;
  log?: Logger;
}

/** A walcast hub, spoken to in gRPC-web. */
export class WebClient extends Hub {
  /** `https://host[:port]` of the hub, which has to let the page in: `web_origins` in its configuration. */
  constructor(base: string, options: WebOptions = {}) {
    const log = options.log ?? WARNINGS;
    const maxMessageBytes = options.maxMessageBytes ?? 64 << 20;
    const transport: Transport = {
      maxMessageBytes,
      connect: async () => new WebConnection(base.replace(/\/+$/, ""), await metadataOf(options.token), maxMessageBytes, log),
    };
    super(transport, log);
    const { protocol, hostname } = new URL(base);
    if (options.token !== undefined && protocol === "http:" && !/^(?:localhost|127\.[\d.]+|\[::1\])$/.test(hostname)) {
      log.warn(`the token goes to ${hostname} in clear text: use https`);
    }
  }
}
