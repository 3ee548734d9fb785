/** A TOASTed value that the update did not touch and PostgreSQL did not send: it is what it was. Never null. */
export const UNCHANGED: unique symbol = Symbol("walcast.UNCHANGED");

function pad(value: number, width: number): string {
  return String(value).padStart(width, "0");
}

/** A valid PostgreSQL value that the type here cannot hold, as PostgreSQL prints it: infinite dates, years before 1 or after 9999, 24:00:00. */
export class Unrepresentable {
  constructor(
    readonly typeName: string,
    readonly text: string,
  ) {}

  get isInfinite(): boolean {
    return this.text === "infinity" || this.text === "-infinity";
  }

  get isBC(): boolean {
    return this.text.endsWith(" BC");
  }

  toString(): string {
    return this.text;
  }
}

/** A day without a time zone. */
export class PlainDate {
  constructor(
    readonly year: number,
    /** 1 to 12. */
    readonly month: number,
    readonly day: number,
  ) {}

  toString(): string {
    return `${pad(this.year, 4)}-${pad(this.month, 2)}-${pad(this.day, 2)}`;
  }

  toJSON(): string {
    return this.toString();
  }
}

/** PostgreSQL's time, and timetz where there is an offset. */
export class PlainTime {
  constructor(
    readonly hour: number,
    readonly minute: number,
    readonly second: number,
    readonly microsecond: number,
    /** Seconds east of UTC; undefined for time. */
    readonly offset?: number,
  ) {}

  toString(): string {
    const text = `${pad(this.hour, 2)}:${pad(this.minute, 2)}:${pad(this.second, 2)}.${pad(this.microsecond, 6)}`;
    if (this.offset === undefined) return text;
    const offset = Math.abs(this.offset);
    const seconds = offset % 60 === 0 ? "" : `:${pad(offset % 60, 2)}`;
    return `${text}${this.offset < 0 ? "-" : "+"}${pad(Math.floor(offset / 3600), 2)}:${pad(Math.floor(offset / 60) % 60, 2)}${seconds}`;
  }

  toJSON(): string {
    return this.toString();
  }
}

/** PostgreSQL's timestamptz, in UTC, or timestamp, of no zone: milliseconds as a Date has them, and the microseconds beyond. */
export class Timestamp {
  constructor(
    /** As of Date, in UTC. Of a timestamp without time zone: as if it were in UTC. */
    readonly epochMilliseconds: number,
    /** 0 to 999, beyond the milliseconds. */
    readonly microseconds: number,
    /** Whether it is a point in time (timestamptz) rather than what a calendar and clock show. */
    readonly hasZone: boolean,
  ) {}

  /** Microseconds since 1970, exactly. */
  get epochMicroseconds(): bigint {
    return BigInt(this.epochMilliseconds) * 1000n + BigInt(this.microseconds);
  }

  /** Cut to milliseconds. */
  toDate(): Date {
    return new Date(this.epochMilliseconds);
  }

  /** ISO 8601 with six digits, and Z if it has a zone. */
  toString(): string {
    const text = this.toDate().toISOString().slice(0, -1) + pad(this.microseconds, 3);
    return this.hasZone ? `${text}Z` : text;
  }

  toJSON(): string {
    return this.toString();
  }
}

/** PostgreSQL's interval. A month has no fixed number of days, nor has a day a fixed number of hours. */
export class Interval {
  constructor(
    readonly months = 0,
    readonly days = 0,
    /** Exact up to 285 years. */
    readonly microseconds = 0,
  ) {}
}

/** A range. A bound that is undefined is unbounded; of an empty range both are. */
export class Range {
  constructor(
    readonly lower?: unknown,
    readonly upper?: unknown,
    readonly lowerInclusive = false,
    readonly upperInclusive = false,
    readonly empty = false,
  ) {}

  toString(): string {
    if (this.empty) return "empty";
    // eslint-disable-next-line @typescript-eslint/no-base-to-string -- decoders of bounds make values with a text form
    const [lower, upper] = [this.lower, this.upper].map((bound) => (bound === undefined ? "" : String(bound)));
    return `${this.lowerInclusive ? "[" : "("}${lower ?? ""},${upper ?? ""}${this.upperInclusive ? "]" : ")"}`;
  }
}
