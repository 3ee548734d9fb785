import type { HubError } from "./errors.js";
import type { Gap, Operation, Progress, SnapshotEvent, TimelineChanged } from "./model.js";
import type { Decoder } from "./parse.js";
import type { Retry } from "./retry.js";
import type { Start } from "./start.js";

/** What is selected of the tables that match, instead of the subscription's columns, where and operations. */
export interface Rule {
  /** One glob over "schema.table". */
  tables: string;
  columns?: readonly string[];
  where?: string;
  operations?: readonly Operation[];
}

/** What a subscription selects. All conditions hold together. */
export interface Selection {
  /** Globs over "schema.table"; none is all. A name without wildcards must be published. */
  tables?: string | readonly string[];
  excludeTables?: string | readonly string[];
  /** None is all. */
  operations?: readonly Operation[];
  /** Globs over "schema.table.column"; none is all. Columns of the replica identity always come. */
  columns?: string | readonly string[];
  /** A predicate over columns; `where()` helps to write one. */
  where?: string;
  /** Globs over prefixes of logical messages. Without any filter all come; with one, none but these. */
  messages?: string | readonly string[];
  /** Names of replication origins; none is all, and "" names the source itself. */
  origins?: string | readonly string[];
  /** The first that matches a table holds. */
  rules?: readonly Rule[];
}

/** What of the retracted transactions is wanted, and how values are decoded. */
export interface RetractedOptions extends Selection {
  /** json and jsonb parsed (default), or as text, which keeps numbers exact. */
  json?: "parsed" | "text";
  /** Decoders by type name, as "public.mood". */
  types?: Readonly<Record<string, Decoder>>;
  /** Ends it; the loop throws its reason. */
  signal?: AbortSignal;
}

/** Which rows of a table a backfill reads, and how fast. */
export interface BackfillOptions {
  /** Only rows for which this holds. */
  where?: string;
  /** Upper bound for the load on the source; 0 is unlimited. */
  maxRowsPerSecond?: number;
}

/** What a subscription selects, where it starts and how it behaves. Times are in milliseconds. */
export interface SubscribeOptions extends Selection {
  /** A durable name; none for an anonymous subscription, which has no checkpoint. */
  subscriber?: string;
  /** A named subscriber goes on at its checkpoint and begins here only if it has none. Anonymous: default "latest". */
  start?: Start;
  /** Acknowledge a transaction when the next one is asked for, that is after the loop's body succeeded. Default true. */
  autoAck?: boolean;
  /** End the loop when what had been committed when the stream opened has come. */
  stopAtTail?: boolean;
  /** json and jsonb parsed (default), or as text, which keeps numbers exact. */
  json?: "parsed" | "text";
  /** Decoders by type name, as "public.mood". */
  types?: Readonly<Record<string, Decoder>>;
  /** Events that the hub may send ahead; default 100,000. */
  windowEvents?: number;
  /** Bytes that the hub may send ahead; default 8 MiB. */
  windowBytes?: number;
  /** Bounds a transaction that is gathered, in bytes on the wire; default 1 GiB. */
  maxTransactionBytes?: number;
  /** Time between two progress events; default as the hub sees fit. */
  progressInterval?: number;
  retry?: Retry;
  /** Ends the subscription; the loop throws its reason. */
  signal?: AbortSignal;
  /** Hooks. What they throw comes out of the loop; iterating again goes on. */
  onProgress?: (progress: Progress) => void | Promise<void>;
  /** Without it a failover is thrown as TimelineChangedError. */
  onTimelineChanged?: (event: TimelineChanged) => void | Promise<void>;
  /** Without it missing changes are thrown as GapError. */
  onGap?: (event: Gap) => void | Promise<void>;
  /** Without it a snapshot that starts over is thrown as SnapshotRestartedError. */
  onSnapshot?: (event: SnapshotEvent) => void | Promise<void>;
  /** Each loss, and how long it takes to the next attempt. */
  onReconnect?: (error: HubError, delay: number) => void;
}

/** What a client logs to; `console` is one. */
export interface Logger {
  info(text: string): void;
  warn(text: string): void;
}

/** Warnings to the console, and nothing else: Node's console.info writes to stdout. */
export const WARNINGS: Logger = { info: () => undefined, warn: (text) => console.warn(text) };
