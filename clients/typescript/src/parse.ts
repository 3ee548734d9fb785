import { Interval, PlainDate, PlainTime, Range, Timestamp, Unrepresentable } from "./values.js";

/** Makes a value of the text that PostgreSQL prints: ISO dates, UTC, IntervalStyle postgres. Throws where it cannot. */
export type Decoder = (text: string) => unknown;

/** Two digits at a place, or NaN. */
function two(text: string, at: number): number {
  const tens = text.charCodeAt(at) - 48;
  const ones = text.charCodeAt(at + 1) - 48;
  return tens >= 0 && tens <= 9 && ones >= 0 && ones <= 9 ? tens * 10 + ones : Number.NaN;
}

/** Days since 1970 of a day in the proleptic Gregorian calendar. */
function days(year: number, month: number, day: number): number {
  const y = month <= 2 ? year - 1 : year;
  const era = Math.floor(y / 400);
  const yearOfEra = y - era * 400;
  const dayOfYear = Math.floor((153 * (month + (month > 2 ? -3 : 9)) + 2) / 5) + day - 1;
  return era * 146_097 + yearOfEra * 365 + Math.floor(yearOfEra / 4) - Math.floor(yearOfEra / 100) + dayOfYear - 719_468;
}

/** YYYY-MM-DD at the start of a text: the years 1 to 9999. */
function dateAt(text: string): [number, number, number] | undefined {
  const year = two(text, 0) * 100 + two(text, 2);
  const month = two(text, 5);
  const day = two(text, 8);
  const valid = year >= 1 && month >= 1 && month <= 12 && day >= 1 && day <= 31;
  return valid && text.charCodeAt(4) === 45 && text.charCodeAt(7) === 45 ? [year, month, day] : undefined;
}

interface Clock {
  hour: number;
  minute: number;
  second: number;
  micros: number;
  /** Where it ends in the text. */
  end: number;
}

/** HH:MM:SS[.ffffff] at a place, up to 23:59:59.999999. */
function clockAt(text: string, at: number): Clock | undefined {
  const hour = two(text, at);
  const minute = two(text, at + 3);
  const second = two(text, at + 6);
  if (!(hour < 24 && minute < 60 && second < 60)) return undefined;
  if (text.charCodeAt(at + 2) !== 58 || text.charCodeAt(at + 5) !== 58) return undefined;
  let end = at + 8;
  let micros = 0;
  if (text.charCodeAt(end) === 46) {
    end += 1;
    let scale = 1_000_000;
    for (let digit = text.charCodeAt(end) - 48; digit >= 0 && digit <= 9; digit = text.charCodeAt(end) - 48) {
      scale /= 10;
      micros += digit * scale;
      end += 1;
    }
    if (scale < 1 || scale === 1_000_000) return undefined;
  }
  return { hour, minute, second, micros, end };
}

/** [+-]HH[:MM[:SS]] from a place to the end, in seconds. */
function offsetAt(text: string, at: number): number | undefined {
  const parts = /^([+-])(\d\d)(?::(\d\d))?(?::(\d\d))?$/.exec(text.slice(at));
  if (parts === null) return undefined;
  const seconds = Number(parts[2]) * 3600 + Number(parts[3] ?? 0) * 60 + Number(parts[4] ?? 0);
  return parts[1] === "-" ? -seconds : seconds;
}

export function date(text: string): PlainDate | Unrepresentable {
  const parts = text.length === 10 ? dateAt(text) : undefined;
  return parts === undefined ? new Unrepresentable("date", text) : new PlainDate(...parts);
}

export function time(text: string): PlainTime | Unrepresentable {
  const clock = clockAt(text, 0);
  if (clock?.end !== text.length) return new Unrepresentable("time", text);
  return new PlainTime(clock.hour, clock.minute, clock.second, clock.micros);
}

export function timetz(text: string): PlainTime | Unrepresentable {
  const clock = clockAt(text, 0);
  const offset = clock === undefined ? undefined : offsetAt(text, clock.end);
  if (clock === undefined || offset === undefined) return new Unrepresentable("timetz", text);
  return new PlainTime(clock.hour, clock.minute, clock.second, clock.micros, offset);
}

function stamp(text: string, hasZone: boolean): Timestamp | Unrepresentable {
  const typeName = hasZone ? "timestamptz" : "timestamp";
  const parts = text.charCodeAt(10) === 32 ? dateAt(text) : undefined;
  const clock = parts === undefined ? undefined : clockAt(text, 11);
  if (parts === undefined || clock === undefined) return new Unrepresentable(typeName, text);
  let offset: number | undefined = 0;
  if (!hasZone) {
    if (clock.end !== text.length) return new Unrepresentable(typeName, text);
  } else if (!(text.endsWith("+00") && clock.end === text.length - 3)) {
    offset = offsetAt(text, clock.end);
    if (offset === undefined) return new Unrepresentable(typeName, text);
  }
  const seconds = days(...parts) * 86_400 + (clock.hour * 60 + clock.minute) * 60 + clock.second - offset;
  return new Timestamp(seconds * 1000 + Math.floor(clock.micros / 1000), clock.micros % 1000, hasZone);
}

export function timestamp(text: string): Timestamp | Unrepresentable {
  return stamp(text, false);
}

export function timestamptz(text: string): Timestamp | Unrepresentable {
  return stamp(text, true);
}

/** An interval as IntervalStyle postgres prints it: "-1 years -2 mons +3 days -04:05:06.7". */
export function interval(text: string): Interval | Unrepresentable {
  if (text === "infinity" || text === "-infinity") return new Unrepresentable("interval", text);
  const parts =
    /^(?:([+-]?\d+) years?)? ?(?:([+-]?\d+) mons?)? ?(?:([+-]?\d+) days?)? ?(?:([+-]?)(\d+):(\d\d):(\d\d)(?:\.(\d{1,6}))?)?$/.exec(
      text,
    );
  if (parts === null || text === "") throw new RangeError("not an interval");
  const [, years, months, daysText, sign, hours, minutes, seconds, fraction = ""] = parts;
  const clock = (Number(hours ?? 0) * 60 + Number(minutes ?? 0)) * 60 + Number(seconds ?? 0);
  const micros = clock * 1_000_000 + Number(fraction.padEnd(6, "0"));
  return new Interval(
    Number(years ?? 0) * 12 + Number(months ?? 0),
    Number(daysText ?? 0),
    sign === "-" ? -micros : micros,
  );
}

export function uuid(text: string): string {
  if (!/^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/.test(text)) throw new RangeError("not a UUID");
  return text;
}

export function plain(text: string): string {
  return text;
}

export function integer(text: string): number {
  const value = Number(text);
  if (!Number.isSafeInteger(value) || text.trim() === "") throw new RangeError("not an integer");
  return value;
}

export function float(text: string): number {
  const value = Number(text);
  if (text === "" || (Number.isNaN(value) && text !== "NaN")) throw new RangeError("not a number");
  return value;
}

export function bool(text: string): boolean {
  if (text !== "t" && text !== "f") throw new RangeError("not a bool");
  return text === "t";
}

export function bytea(text: string): Uint8Array {
  if (!/^\\x(?:[0-9a-f]{2})*$/.test(text)) throw new RangeError("not a bytea in hexadecimal");
  return Uint8Array.from(text.slice(2).match(/../g) ?? [], (pair) => Number.parseInt(pair, 16));
}

const UNESCAPE = /\\([\s\S])|""/g;

function unquote(quoted: string): string {
  return quoted.replace(UNESCAPE, (_, escaped: string | undefined) => escaped ?? '"');
}

/** A decoder for arrays whose elements another decodes: nested arrays, NULL as null, lower bounds dropped. */
export function arrayOf(element: Decoder, delimiter = ","): Decoder {
  const token = new RegExp(`"((?:[^"\\\\]|\\\\[\\s\\S])*)"|([^{}"${delimiter}]+)`, "y");
  return (text) => {
    let at = text.startsWith("[") ? text.indexOf("=") + 1 : 0;
    const array = (): unknown[] => {
      if (text[at] !== "{") throw new RangeError("not an array");
      at += 1;
      const values: unknown[] = [];
      if (text[at] === "}") {
        at += 1;
        return values;
      }
      for (;;) {
        values.push(value());
        const next = text[at];
        at += 1;
        if (next === "}") return values;
        if (next !== delimiter) throw new RangeError("not an array");
      }
    };
    const value = (): unknown => {
      if (text[at] === "{") return array();
      token.lastIndex = at;
      const match = token.exec(text);
      if (match === null) throw new RangeError("not an array");
      at += match[0].length;
      const [, quoted, bare] = match;
      if (quoted !== undefined) return element(unquote(quoted));
      return bare === undefined || bare === "NULL" ? null : element(bare);
    };
    const whole = array();
    if (at !== text.length) throw new RangeError("not an array");
    return whole;
  };
}

const RANGE = /([[(])(?:"((?:[^"\\]|\\[\s\S]|"")*)"|([^",\])]*)),(?:"((?:[^"\\]|\\[\s\S]|"")*)"|([^",\])]*))([\])])/y;

function rangeAt(text: string, at: number, element: Decoder): [Range, number] {
  RANGE.lastIndex = at;
  const match = RANGE.exec(text);
  if (match === null) throw new RangeError("not a range");
  const [whole, opening, quotedLower, lower, quotedUpper, upper, closing] = match;
  const bound = (quoted: string | undefined, bare: string | undefined): unknown => {
    if (quoted !== undefined) return element(unquote(quoted));
    return bare === undefined || bare === "" ? undefined : element(bare);
  };
  const value = new Range(bound(quotedLower, lower), bound(quotedUpper, upper), opening === "[", closing === "]");
  return [value, at + whole.length];
}

/** A decoder for ranges whose bounds another decodes. */
export function rangeOf(element: Decoder): Decoder {
  return (text) => {
    if (text === "empty") return new Range(undefined, undefined, false, false, true);
    const [value, end] = rangeAt(text, 0, element);
    if (end !== text.length) throw new RangeError("not a range");
    return value;
  };
}

/** A decoder for multiranges: an array of ranges. */
export function multirangeOf(element: Decoder): Decoder {
  return (text) => {
    const values: Range[] = [];
    if (!text.startsWith("{") || !text.endsWith("}")) throw new RangeError("not a multirange");
    for (let at = 1; at < text.length - 1; ) {
      const [value, end] = rangeAt(text, at, element);
      values.push(value);
      if (end !== text.length - 1 && text[end] !== ",") throw new RangeError("not a multirange");
      at = end + 1;
    }
    return values;
  };
}
