import type { Gap, SnapshotBegin, TimelineChanged } from "./model.js";

/** Base of everything that this package throws. */
export class WalcastError extends Error {
  override get name(): string {
    return this.constructor.name;
  }
}

/** The hub sent something that this version does not know, or that does not fit. Skipping it would lose data. */
export class ProtocolError extends WalcastError {}

/** The client or subscription was closed and cannot be used any more. */
export class ClosedError extends WalcastError {
  constructor() {
    super("closed");
  }
}

/** A transaction exceeds maxTransactionBytes. `Subscription.events` streams it without holding it. */
export class TransactionTooLargeError extends WalcastError {}

/** The source failed over. Undo `event.retracted`, then iterate again: the stream goes on behind `event.position`. */
export class TimelineChangedError extends WalcastError {
  constructor(readonly event: TimelineChanged) {
    super(
      `history forked at ${event.switchLsn}: lineage ${event.oldLineage} ended, ${event.newLineage} goes on; ` +
        `${event.retracted.length} transactions were taken back`,
    );
  }
}

/** Changes are missing by the hub's policy. Iterate again to go on behind `event.upTo`. */
export class GapError extends WalcastError {
  constructor(readonly event: Gap) {
    super(`changes are missing from ${event.after.lsn} to ${event.upTo.lsn}: ${event.reason}`);
  }
}

/** A snapshot starts over: drop the rows that an earlier attempt delivered, then iterate again. */
export class SnapshotRestartedError extends WalcastError {
  constructor(readonly event: SnapshotBegin) {
    super(`snapshot ${event.snapshotId} starts over: drop the rows that it delivered before`);
  }
}

/** gRPC's status codes by number. */
export const CODES = [
  "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
  "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED",
  "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
] as const; // prettier-ignore

export type Code = (typeof CODES)[number];

export interface HubErrorDetails {
  code: Code;
  reason?: string;
  metadata?: Record<string, string>;
  retryAfter?: number | undefined;
  violations?: readonly { field: string; description: string }[];
}

/** An error from the hub. One whose reason has a class of its own is thrown as that class. */
export class HubError extends WalcastError {
  /** The status code. Decide by `reason`: several reasons share a code. */
  readonly code: Code;
  /** ErrorInfo.reason; empty where the connection failed and no hub answered. */
  readonly reason: string;
  /** ErrorInfo.metadata. */
  readonly metadata: Readonly<Record<string, string>>;
  /** RetryInfo's delay in milliseconds; undefined where trying again does not help. */
  readonly retryAfter: number | undefined;
  /** Field path and what is wrong there, from BadRequest. */
  readonly violations: readonly { field: string; description: string }[];

  constructor(message: string, details: HubErrorDetails) {
    const reason = details.reason ?? "";
    const metadata = Object.entries(details.metadata ?? {}).map(([key, value]) => `${key} ${value}`);
    const violations = (details.violations ?? []).map(({ field, description }) => `\n  ${field}: ${description}`);
    super(
      `${reason || details.code}: ${message}${metadata.length > 0 ? ` (${metadata.sort().join(", ")})` : ""}${violations.join("")}`,
    );
    this.code = details.code;
    this.reason = reason;
    this.metadata = details.metadata ?? {};
    this.retryAfter = details.retryAfter;
    this.violations = details.violations ?? [];
  }

  /** Whether trying again may help. */
  get retryable(): boolean {
    return this.retryAfter !== undefined;
  }
}

const LOST: readonly Code[] = ["UNAVAILABLE", "UNKNOWN", "INTERNAL", "CANCELLED", "ABORTED", "DEADLINE_EXCEEDED"];

/** No hub answered, or the connection broke: an error without ErrorInfo. */
export class ConnectionLostError extends HubError {
  override get retryable(): boolean {
    return this.retryAfter !== undefined || LOST.includes(this.code);
  }
}
