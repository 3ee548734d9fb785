/** The browser's client against Connect's implementation of a gRPC-web server, over HTTP/1.1. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { Code, ConnectError } from "@connectrpc/connect";
import * as walcast from "../src/web.js";
import { begin, insert, LINEAGE, lsn, opened, progress, relation, transaction } from "./scripted.js";
import { serving } from "./web_server.js";

/** ErrorInfo as Connect's errors carry details: any message will do whose name is right. */
function refusal(code: Code, reason: string, metadata: Record<string, string>): ConnectError {
  const entries = Object.entries(metadata).map(([key, value]) => field(3, [...field(1, bytes(key)), ...field(2, bytes(value))]));
  const value = Uint8Array.from([...field(1, bytes(reason)), ...field(2, bytes("walcast")), ...entries.flat()]);
  const error = new ConnectError(`bécause of ${reason}`, code);
  error.details.push({ type: "google.rpc.ErrorInfo", value });
  return error;
}

const bytes = (text: string): number[] => [...new TextEncoder().encode(text)];
const field = (number: number, content: number[]): number[] => [(number << 3) | 2, content.length, ...content];

const retry = { initial: 1, maximum: 10 };

test("a stream over gRPC-web goes on where it broke", async () => {
  await serving(
    [
      async function* (request, context) {
        assert.equal(context.requestHeader.get("authorization"), "Bearer secret");
        assert.equal(request.start?.at.case, "earliest");
        yield [opened(0), relation(), ...transaction(16), ...transaction(32, 2)];
        yield [begin(48), insert(1, 4800)];
        throw new ConnectError("gone", Code.Unavailable);
      },
      async function* (request) {
        assert(request.start?.at.case === "after" && request.start.at.value.lsn === lsn(32));
        yield [opened(32), relation(), ...transaction(48, 2), progress(64)];
      },
    ],
    async (client) => {
      const got: unknown[] = [];
      const lost: string[] = [];
      const onReconnect = (error: walcast.HubError): void => void lost.push(`${error.code} ${error.name}`);
      for await (const change of client.subscribe({ start: "earliest", stopAtTail: true, retry, onReconnect }).changes()) {
        got.push(change.after?.["id"]);
      }
      assert.deepEqual(got, [1600, 3200, 3201, 4800, 4801]);
      assert.deepEqual(lost, ["UNAVAILABLE ConnectionLostError"]);
    },
  );
});

test("a named subscriber over gRPC-web acknowledges by calls", async () => {
  let acked = (): void => undefined;
  const seen = new Promise<void>((resolve) => (acked = resolve));
  await serving(
    [
      async function* (request, context) {
        assert.equal(request.subscriber, "page");
        yield [opened(0, 5), relation(), ...transaction(16), ...transaction(32)];
        await new Promise<void>((resolve) => context.signal.addEventListener("abort", () => resolve()));
        acked();
      },
    ],
    async (client, acks) => {
      const subscription = client.subscribe({ subscriber: "page" });
      await subscription.next();
      await subscription.next();
      await subscription.close();
      assert(acks.some(({ position, session, subscriber }) => position?.lsn === "0/10" && session === 5n && subscriber === "page"));
      await seen; // closing ends the request too
    },
  );
});

test("the hub's errors come through gRPC-web as their classes", async () => {
  await serving(
    [
       
      async function* () {
        throw refusal(Code.OutOfRange, "POSITION_EXPIRED", { earliest: "0/5" });
      },
    ],
    async (client) => {
      const caught = await client.subscribe({ start: new walcast.Position("0/1", LINEAGE) }).next().catch((error: unknown) => error);
      assert(caught instanceof walcast.PositionExpiredError, String(caught));
      assert.deepEqual([caught.code, caught.earliest], ["OUT_OF_RANGE", "0/5"]);
      assert.match(caught.message, /bécause of POSITION_EXPIRED/);
    },
  );
});

test("where nobody answers gRPC-web the connection is lost", async () => {
  const client = new walcast.WebClient("http://127.0.0.1:1", { log: { info: () => undefined, warn: () => undefined } });
  await assert.rejects(client.subscribe({ retry: { giveUpAfter: 0 } }).next(), walcast.ConnectionLostError);
  await client.close();
});

test("the browser's client needs nothing of Node", () => {
  const seen = new Set<string>();
  const visit = (url: URL): void => {
    if (seen.has(url.href)) return;
    seen.add(url.href);
    for (const [, from = ""] of readFileSync(url, "utf8").matchAll(/^(?:import|export)[^;]*? from "([^"]+)";/gms)) {
      if (from.startsWith(".")) visit(new URL(from, url));
      else assert.match(from, /^@bufbuild\/protobuf/, `${url.pathname} imports ${from}`);
    }
  };
  visit(new URL("../src/web.js", import.meta.url));
  assert(seen.size > 15, "the imports were not found");
});
