import type { AcknowledgeRequest, ConsumeRequest } from "./gen/walcast/v1/walcast_pb.js";
import type { Position } from "./position.js";

export const VERSION = "0.1.0";
export const IDENTIFICATION = `walcast-typescript/${VERSION}`;
/** Deadline of unary calls in milliseconds. Streams have none. */
export const UNARY_DEADLINE = 30_000;

/** A stream of responses. */
export interface Responses {
  /** The next one; undefined when the stream ended with OK. Rejects with HubError. */
  read(): Promise<Uint8Array | undefined>;
  /** Ends it; `read` ends too. */
  close(): void;
}

/** The stream of a subscription. */
export interface Call extends Responses {
  send(request: ConsumeRequest): void;
}

/** One connection, shared with nobody. */
export interface Connection {
  /** `acknowledgement` makes a unary request of a position, for transports whose streams go one way. */
  consume(first: ConsumeRequest, acknowledgement: (position: Position) => AcknowledgeRequest | undefined): Call;
  /** The responses to one request. */
  stream(path: string, request: Uint8Array): Responses;
  /** Rejects with HubError. */
  unary(path: string, request: Uint8Array, deadline: number): Promise<Uint8Array>;
  close(): void;
}

/** How to get to a hub. */
export interface Transport {
  readonly maxMessageBytes: number;
  connect(): Promise<Connection>;
}

/** A bearer token, or what gives one and is asked for each connection. */
export type Token = string | (() => string | Promise<string>);

export async function metadataOf(token: Token | undefined): Promise<Record<string, string>> {
  const metadata: Record<string, string> = { "client-id": IDENTIFICATION };
  if (token !== undefined) metadata["authorization"] = `Bearer ${typeof token === "string" ? token : await token()}`;
  return metadata;
}

const SERVICE = "/walcast.v1.ChangeStreamService";
const ADMIN = "/walcast.v1.AdminService";

export const PATHS = {
  subscribe: `${SERVICE}/Subscribe`,
  consume: `${SERVICE}/Consume`,
  acknowledge: `${SERVICE}/Acknowledge`,
  backfill: `${SERVICE}/Backfill`,
  readRetracted: `${SERVICE}/ReadRetracted`,
  listRelations: `${SERVICE}/ListRelations`,
  getStatus: `${ADMIN}/GetStatus`,
  listSubscribers: `${ADMIN}/ListSubscribers`,
  resetSubscriber: `${ADMIN}/ResetSubscriber`,
  deleteSubscriber: `${ADMIN}/DeleteSubscriber`,
} as const;
