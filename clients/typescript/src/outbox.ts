import { create } from "@bufbuild/protobuf";
import { type ConsumeRequest, ConsumeRequestSchema } from "./gen/walcast/v1/walcast_pb.js";
import type { Position } from "./position.js";

/** Acknowledgements are sent at most this often, in milliseconds, */
export const ACK_INTERVAL = 100;
/** or when this many have gathered. */
const ACK_BATCH = 1000;

/** What is to be sent: credit that was earned and the newest acknowledgement. */
export class Outbox {
  /** Called whenever `take` may answer differently than before. */
  wake: () => void = () => undefined;
  /** The newest acknowledgement that was not taken. */
  pending: Position | undefined;
  private events = 0;
  private bytes = 0;
  private count = 0;
  private due = 0;

  constructor(private readonly clock: () => number) {}

  grant(events: number, bytes: number): void {
    this.events += events;
    this.bytes += bytes;
    this.wake();
  }

  acknowledge(position: Position): void {
    if (this.pending?.reaches(position) === true) return;
    const first = this.pending === undefined;
    this.pending = position;
    this.count += 1;
    if (first || this.count === ACK_BATCH) this.wake();
  }

  /** A new stream: earlier credit is void, and an acknowledgement on another lineage would be refused there. */
  reopen(resume: Position | undefined): void {
    this.events = this.bytes = 0;
    if (this.pending !== undefined && resume?.reaches(this.pending) !== true) this.pending = undefined;
    this.count = 0;
  }

  /** The next request, or in how many milliseconds there may be one (undefined: not before `wake`). */
  take(): ConsumeRequest | number | undefined {
    if (this.events > 0 || this.bytes > 0) {
      const credit = { events: BigInt(this.events), bytes: BigInt(this.bytes) };
      this.events = this.bytes = 0;
      return create(ConsumeRequestSchema, { request: { case: "credit", value: credit } });
    }
    if (this.pending === undefined) return undefined;
    const now = this.clock();
    if (this.count < ACK_BATCH && now < this.due) return this.due - now;
    const value = this.pending.toMessage();
    this.pending = undefined;
    this.count = 0;
    this.due = now + ACK_INTERVAL;
    return create(ConsumeRequestSchema, { request: { case: "acknowledge", value } });
  }
}
