import { BinaryReader, WireType } from "@bufbuild/protobuf/wire";
import { type Code, CODES, ConnectionLostError, HubError, type HubErrorDetails } from "./errors.js";
import { REASONS } from "./reasons.js";

/** The fields of a message: numbers and bytes by field number. */
function* fields(bytes: Uint8Array): Generator<[number, Uint8Array | bigint]> {
  const reader = new BinaryReader(bytes);
  while (reader.pos < reader.len) {
    const [number, type] = reader.tag();
    if (type === WireType.LengthDelimited) yield [number, reader.bytes()];
    else if (type === WireType.Varint) yield [number, BigInt(reader.int64())];
    else reader.skip(type, number);
  }
}

function text(value: Uint8Array | bigint | undefined): string {
  return value instanceof Uint8Array ? new TextDecoder().decode(value) : "";
}

function inner(value: Uint8Array | bigint): Generator<[number, Uint8Array | bigint]> {
  return fields(typeof value === "bigint" ? new Uint8Array() : value);
}

/** A message of two texts: an entry of a map, or a field violation. */
function pair(value: Uint8Array | bigint): [string, string] {
  const parts = new Map(inner(value));
  return [text(parts.get(1)), text(parts.get(2))];
}

/** What the parts of google.rpc.Status.details say that clients know: ErrorInfo, RetryInfo, BadRequest. */
function details(status: Uint8Array): Partial<HubErrorDetails> & { answered: boolean } {
  let answered = false;
  let reason = "";
  let retryAfter: number | undefined;
  const metadata: Record<string, string> = {};
  const violations: { field: string; description: string }[] = [];
  for (const [number, any] of fields(status)) {
    if (number !== 3) continue;
    const parts = new Map(inner(any));
    const content = parts.get(2) ?? new Uint8Array();
    const type = text(parts.get(1));
    if (type.endsWith("/google.rpc.ErrorInfo")) {
      const info = [...inner(content)];
      if (!info.some(([field, value]) => field === 2 && text(value) === "walcast")) continue;
      answered = true;
      for (const [field, value] of info) {
        if (field === 1) reason = text(value);
        if (field === 3) {
          const [key, entry] = pair(value);
          metadata[key] = entry;
        }
      }
    } else if (type.endsWith("/google.rpc.RetryInfo")) {
      retryAfter = 0;
      for (const [, delay] of inner(content)) {
        for (const [field, value] of inner(delay)) retryAfter += Number(value) * (field === 1 ? 1000 : 1e-6);
      }
    } else if (type.endsWith("/google.rpc.BadRequest")) {
      for (const [, violation] of inner(content)) {
        const [field, description] = pair(violation);
        violations.push({ field, description });
      }
    }
  }
  return { answered, reason, retryAfter, metadata, violations };
}

/** The error for how a call ended: its code, its message, and the content of grpc-status-details-bin. */
export function fromStatus(code: number, message: string, status: Uint8Array | undefined): HubError {
  const name: Code = CODES[code] ?? "UNKNOWN";
  const { answered, ...rest } = details(status ?? new Uint8Array());
  const kind = answered ? (REASONS[rest.reason ?? ""] ?? HubError) : ConnectionLostError;
  return new kind(message, { code: name, ...rest });
}
