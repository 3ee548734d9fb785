import { create } from "@bufbuild/protobuf";
import { timestampFromDate } from "@bufbuild/protobuf/wkt";
import { SnapshotMode } from "./gen/walcast/v1/event_pb.js";
import { SnapshotOptionsSchema, StartSchema } from "./gen/walcast/v1/walcast_pb.js";
import type { SnapshotOptions as SnapshotMessage, Start as StartMessage } from "./gen/walcast/v1/walcast_pb.js";
import { parseLsn, Position } from "./position.js";

/** How a snapshot is taken. */
export interface SnapshotOptions {
  /** In chunks between changes, which go on meanwhile; false: all tables as of one point. Without it the hub chooses by size. */
  incremental?: boolean;
  /** Upper bound for the load on the source; 0 is unlimited. */
  maxRowsPerSecond?: number;
}

/**
 * Where a subscription begins: "earliest", "latest", "snapshot", an LSN "X/Y" or a position (as such or as text) behind
 * which it does (exclusive), a Date whose commits are the first to come, or how to take a snapshot.
 */
export type Start = string | Position | Date | { snapshot: SnapshotOptions };

/** @internal */
export function snapshotMessage(options: SnapshotOptions): SnapshotMessage {
  return create(SnapshotOptionsSchema, {
    mode: options.incremental === undefined ? SnapshotMode.UNSPECIFIED : options.incremental ? SnapshotMode.INCREMENTAL : SnapshotMode.CONSISTENT,
    maxRowsPerSecond: options.maxRowsPerSecond ?? 0,
  });
}

/** @internal */
export function startMessage(start: Start): StartMessage {
  if (start instanceof Position) return create(StartSchema, { at: { case: "after", value: start.toMessage() } });
  if (start instanceof Date) return create(StartSchema, { at: { case: "since", value: timestampFromDate(start) } });
  if (typeof start === "object") {
    return create(StartSchema, { at: { case: "snapshot", value: snapshotMessage(start.snapshot) } });
  }
  if (start === "earliest" || start === "latest") return create(StartSchema, { at: { case: start, value: {} } });
  if (start === "snapshot") return startMessage({ snapshot: {} });
  if (start.includes(":")) return startMessage(Position.parse(start));
  parseLsn(start);
  return create(StartSchema, { at: { case: "afterLsn", value: start } });
}
