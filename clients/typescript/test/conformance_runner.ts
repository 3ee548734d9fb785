/** TypeScript's runner for clients/conformance: one subscription, driven by lines on stdin. */
import { createInterface } from "node:readline";
import {
  Client,
  HubError,
  Interval,
  parseLsn,
  PlainDate,
  PlainTime,
  Range,
  type Row,
  type Change,
  type SubscribeOptions,
  Timestamp,
  type TLS,
  type Transaction,
  UNCHANGED,
  Unrepresentable,
} from "../src/index.js";

interface Request {
  address: string;
  token?: string;
  tls?: TLS;
  subscriber?: string;
  start?: string;
  tables?: string[];
  exclude_tables?: string[];
  operations?: Change["operation"][];
  columns?: string[];
  where?: string;
  auto_ack?: boolean;
  window_events?: number;
  give_up_after?: number;
}

function say(event: string, data: Record<string, unknown> = {}): void {
  process.stdout.write(`${JSON.stringify({ event, ...data })}\n`);
}

const INTEGERS = ["int2", "int4", "int8", "oid"];

/** A value as README.md of the conformance scenario writes it. */
function value(native: unknown, typeName: string): unknown {
  if (native === null) return null;
  if (native === UNCHANGED) return ["unchanged"];
  if (typeName === "json" || typeName === "jsonb") return ["json", native];
  if (Array.isArray(native)) return ["array", native.map((element) => value(element, typeName.replace(/^_/, "")))];
  if (native instanceof Uint8Array) return ["bytes", Buffer.from(native).toString("hex")];
  if (native instanceof PlainDate) return ["date", native.toString()];
  if (native instanceof PlainTime) return ["time", native.toString()];
  if (native instanceof Timestamp) return [native.hasZone ? "timestamptz" : "timestamp", native.toString().replace("Z", "")];
  if (native instanceof Interval) return ["interval", [native.months, native.days, native.microseconds]];
  if (native instanceof Range) return ["range", native.toString()];
  if (native instanceof Unrepresentable) return ["special", native.text];
  switch (typeof native) {
    case "boolean":
      return ["bool", native];
    case "bigint":
      return ["int", String(native)];
    case "number": {
      if (INTEGERS.includes(typeName)) return ["int", String(native)];
      const bits = Buffer.alloc(8);
      bits.writeDoubleBE(native);
      return ["float", Number.isNaN(native) ? "nan" : bits.toString("hex")];
    }
    case "string":
      return [typeName === "numeric" ? "decimal" : typeName === "uuid" ? "uuid" : "text", native];
    default:
      throw new TypeError(`no writer for ${typeof native}`);
  }
}

function row(change: Change, image: Row | null): unknown {
  if (image === null) return null;
  const known = change.relation.columns.filter(({ name }) => name in image);
  return Object.fromEntries(known.map(({ name, typeName }) => [name, value(image[name], typeName)]));
}

function sayTransaction(tx: Transaction): void {
  say("transaction", {
    position: tx.position.toString(),
    commit_lsn: tx.commitLsn,
    xid: Number(tx.xid),
    commit_time: tx.commitTime?.toString() ?? null,
    changes: tx.changes.map((change) => ({
      operation: change.operation,
      table: change.table,
      ordinal: change.ordinal,
      before: row(change, change.before),
      after: row(change, change.after),
      changed: change.changedColumns ?? null,
      transition: change.transition ?? null,
    })),
  });
}

class Reached extends Error {}

async function main(): Promise<number> {
  const request = JSON.parse(process.argv[2] ?? "") as Request;
  let goal: bigint | undefined;
  const log = { info: (text: string) => console.error(text), warn: (text: string) => console.error(text) };
  const client = new Client(request.address, {
    log,
    ...(request.token === undefined ? {} : { token: request.token }),
    ...(request.tls === undefined ? {} : { tls: request.tls }),
  });
  const options: SubscribeOptions = {
    tables: request.tables ?? [],
    excludeTables: request.exclude_tables ?? [],
    operations: request.operations ?? [],
    columns: request.columns ?? [],
    where: request.where ?? "",
    subscriber: request.subscriber ?? "",
    autoAck: request.auto_ack ?? true,
    progressInterval: 200,
    retry: request.give_up_after === undefined ? {} : { giveUpAfter: request.give_up_after * 1000 },
    onProgress: (progress) => {
      if (goal !== undefined && parseLsn(progress.position.lsn) >= goal) throw new Reached();
    },
    onReconnect: (error) => say("reconnect", { reason: error.reason }),
    ...(request.start === undefined ? {} : { start: request.start }),
    ...(request.window_events === undefined ? {} : { windowEvents: request.window_events }),
  };
  const stream = client.subscribe(options);
  try {
    for await (const line of createInterface({ input: process.stdin })) {
      const [command, argument = ""] = line.trim().split(" ");
      if (command === "close") break;
      if (command === "next") {
        for (let left = Number(argument); left > 0; left -= 1) {
          const tx = await stream.next();
          if (tx === undefined) throw new Error("the stream ended");
          sayTransaction(tx);
        }
      } else if (command === "until") {
        goal = parseLsn(argument);
        try {
          for await (const tx of stream) sayTransaction(tx);
        } catch (error) {
          if (!(error instanceof Reached)) throw error;
        }
        goal = undefined;
      } else if (command === "ack") stream.ack();
      else if (command === "flush") say("flushed", { checkpoint: String(await stream.flush()) });
      else throw new Error(`no such command: ${command ?? ""}`);
      say("done");
    }
  } catch (error) {
    const hub = error instanceof HubError ? error : undefined;
    say("error", {
      reason: hub?.reason ?? (error instanceof Error ? error.name : ""),
      metadata: hub?.metadata ?? {},
      violations: (hub?.violations ?? []).map(({ field, description }) => [field, description]),
      message: String(error),
    });
    await client.close();
    return 1;
  }
  await client.close();
  say("closed");
  return 0;
}

// Without process.exit: nothing may be left that would keep the process alive.
process.exitCode = await main();
process.stdin.destroy();
