export * from "./errors.js";
export { identifier, type Literal, literal, where } from "./filters.js";
export type { Hub, Subscriber } from "./hub.js";
export type {
  Change, Column, Event, Gap, Message, Opened, Operation, Progress, Relation, Retracted, SnapshotBegin, SnapshotEnd,
  SnapshotEvent, SnapshotTableEnd, TimelineChanged, Transaction, Transition, TruncateStatement,
} from "./model.js"; // prettier-ignore
export type { BackfillOptions, Logger, RetractedOptions, Rule, Selection, SubscribeOptions } from "./options.js";
export { arrayOf, type Decoder, multirangeOf, rangeOf } from "./parse.js";
export { parseLsn, Position } from "./position.js";
export * from "./reasons.js";
export type { Retry } from "./retry.js";
export type { SnapshotOptions, Start } from "./start.js";
export { Subscription } from "./subscription.js";
export { type Token, VERSION } from "./transport.js";
export { Interval, PlainDate, PlainTime, Range, Timestamp, UNCHANGED, Unrepresentable } from "./values.js";
export type { Row } from "./wire.js";
