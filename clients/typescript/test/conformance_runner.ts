/** TypeScript's runner for clients/conformance: one subscription, driven by lines on stdin. With `web` before the request: the browser's client. */
import { createInterface } from "node:readline";
import {
  Client,
  type Event,
  GapError,
  type Hub,
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
  TimelineChangedError,
  type TLS,
  type Transaction,
  UNCHANGED,
  Unrepresentable,
} from "../src/index.js";
import { WebClient } from "../src/web.js";

interface Request {
  address: string;
  token?: string;
  tls?: TLS;
  subscriber?: string;
  start?: string;
  snapshot_mode?: "consistent" | "incremental";
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
    snapshot: tx.snapshotId === "" ? null : tx.snapshotId,
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

function saySnapshot(event: Event): void {
  if (event.kind === "snapshotBegin") {
    const { snapshotId: snapshot, restarted, tables } = event;
    say("snapshot", { step: "begin", snapshot, restarted, tables: tables.map(({ table }) => table) });
  } else if (event.kind === "snapshotTableEnd") {
    say("snapshot", { step: "table_end", snapshot: event.snapshotId, table: event.table, rows: Number(event.rows) });
  } else if (event.kind === "snapshotEnd") {
    say("snapshot", { step: "end", snapshot: event.snapshotId, rows: Number(event.rows), position: event.position.toString() });
  }
}

function sayLoss({ event }: TimelineChangedError | GapError): void {
  if (event.kind === "gap") {
    say("gap", { after: event.after.toString(), up_to: event.upTo.toString() });
    return;
  }
  say("timeline_changed", {
    old_lineage: event.oldLineage,
    new_lineage: event.newLineage,
    switch_lsn: event.switchLsn,
    position: event.position.toString(),
    retracted: event.retracted.map(({ position, transaction, changes }) => ({
      position: position.toString(),
      xid: Number(transaction.xid),
      changes: Number(changes),
    })),
  });
}

class Reached extends Error {}

function connect(request: Request, web: boolean): Hub {
  const log = { info: (text: string) => console.error(text), warn: (text: string) => console.error(text) };
  const token = request.token === undefined ? {} : { token: request.token };
  if (!web) return new Client(request.address, { log, ...token, ...(request.tls === undefined ? {} : { tls: request.tls }) });
  return new WebClient(request.address.includes("://") ? request.address : `http://${request.address}`, { log, ...token });
}

async function main(): Promise<number> {
  const web = process.argv[2] === "web";
  const request = JSON.parse(process.argv[web ? 3 : 2] ?? "") as Request;
  let goal: bigint | undefined;
  const client = connect(request, web);
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
    onSnapshot: saySnapshot,
    onReconnect: (error) => say("reconnect", { reason: error.reason }),
    ...(request.start === undefined ? {} : { start: request.start }),
    ...(request.snapshot_mode === undefined ? {} : { start: { snapshot: { incremental: request.snapshot_mode === "incremental" } } }),
    ...(request.window_events === undefined ? {} : { windowEvents: request.window_events }),
  };
  const stream = client.subscribe(options);
  try {
    for await (const line of createInterface({ input: process.stdin })) {
      const [command, argument = "", rate = "0"] = line.trim().split(" ");
      if (command === "close") break;
      if (command === "next") {
        for (let left = Number(argument); left > 0; left -= 1) {
          const tx = await stream.next();
          if (tx === undefined) throw new Error("the stream ended");
          sayTransaction(tx);
        }
      } else if (command === "until") {
        for (goal = parseLsn(argument); goal !== undefined; ) {
          try {
            for await (const tx of stream) sayTransaction(tx);
          } catch (error) {
            if (error instanceof Reached) goal = undefined;
            else if (error instanceof TimelineChangedError || error instanceof GapError) sayLoss(error);
            else throw error;
          }
        }
      } else if (command === "ack") stream.ack();
      else if (command === "flush") say("flushed", { checkpoint: String(await stream.flush()) });
      else if (command === "backfill") {
        say("backfill", { snapshot: await client.startBackfill(request.subscriber ?? "", [argument], { maxRowsPerSecond: Number(rate) }) });
      } else if (command === "pause" || command === "resume" || command === "cancel") {
        await client.controlBackfill(request.subscriber ?? "", argument, command);
      } else if (command === "retracted") {
        for await (const tx of client.readRetracted(argument)) sayTransaction(tx);
      }
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
