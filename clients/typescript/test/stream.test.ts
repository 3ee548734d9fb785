/** What a subscription does with a stream that breaks, repeats itself, or says something new. */
import assert from "node:assert/strict";
import { existsSync, readFileSync } from "node:fs";
import { test } from "node:test";
import { create, toBinary } from "@bufbuild/protobuf";
import { Core } from "../src/core.js";
import * as walcast from "../src/index.js";
import { ACK_INTERVAL, Outbox } from "../src/outbox.js";
import * as pb from "../src/proto.js";
import { REASONS } from "../src/reasons.js";
import { Backoff } from "../src/retry.js";
import { startMessage } from "../src/start.js";
import {
  at, begin, commit, type Connection, insert, LINEAGE, lost, lsn, opened, progress, Refusal, relation, type Script,
  ScriptedHub, type Sent, transaction,
} from "./scripted.js"; // prettier-ignore

/** Runs with a hub that is closed afterwards, and whose scripts must not have failed. */
async function playing(scripts: Script[], run: (hub: ScriptedHub) => Promise<void>): Promise<void> {
  const hub = await ScriptedHub.play(...scripts);
  try {
    await run(hub);
  } finally {
    await hub[Symbol.asyncDispose]();
  }
}

function ids(tx: walcast.Transaction): unknown[] {
  return tx.changes.map((change) => change.after?.["id"]);
}

async function all(subscription: walcast.Subscription): Promise<unknown[][]> {
  const got: unknown[][] = [];
  for await (const tx of subscription) got.push(ids(tx));
  return got;
}

async function next(subscription: walcast.Subscription): Promise<walcast.Transaction> {
  const tx = await subscription.next();
  assert(tx !== undefined, "the stream ended");
  return tx;
}

const first: Script = (c) => {
  c.send(opened(0), relation(), transaction(16), transaction(32, 2));
  c.send(begin(48), insert(1, 4800));
  throw lost();
};

const second: Script = (c) => {
  const start = c.open?.start?.at;
  assert(start?.case === "after" && start.value.lsn === lsn(32), "resumes behind what was received whole");
  c.send(opened(32), relation(), transaction(32, 2), transaction(48, 2), progress(64));
};

const whole: SubscribeOptions = { start: "earliest", stopAtTail: true };
type SubscribeOptions = walcast.SubscribeOptions;

test("a broken stream goes on without loss or repeat", () =>
  playing([first, second], async (hub) => {
    const errors: walcast.HubError[] = [];
    const subscription = hub.subscribe({ ...whole, onReconnect: (error) => errors.push(error) });
    assert.deepEqual(await all(subscription), [[1600], [3200, 3201], [4800, 4801]]);
    assert(errors.length === 1 && errors[0] instanceof walcast.ConnectionLostError);
    assert(subscription.position?.equals(new walcast.Position("0/40", LINEAGE)));
  }));

test("changes are flattened", () =>
  playing([first, second], async (hub) => {
    const got: unknown[] = [];
    for await (const change of hub.subscribe(whole).changes()) got.push(change.after?.["id"]);
    assert.deepEqual(got, [1600, 3200, 3201, 4800, 4801]);
  }));

async function kinds(subscription: walcast.Subscription): Promise<string> {
  const got: string[] = [];
  for await (const event of subscription.events()) {
    got.push(event.kind === "change" ? String(event.after?.["id"]) : event.kind);
  }
  return got.join(" ");
}

test("events continue inside a transaction", () =>
  playing([first, second], async (hub) => {
    assert.equal(
      await kinds(hub.subscribe(whole)),
      "begin 1600 commit begin 3200 3201 commit begin 4800 " +
        "discard begin 3200 3201 discard begin 4800 4801 commit progress",
    );
  }));

test("events drop repeats by identity", () =>
  playing([first, (c) => c.send(opened(32), relation(), transaction(48, 3))], async (hub) => {
    const got = await kinds(hub.subscribe(whole));
    assert.equal(got, "begin 1600 commit begin 3200 3201 commit begin 4800 4801 4802 commit");
  }));

test("events come first", () =>
  playing([first, second], async (hub) => {
    const subscription = hub.subscribe(whole);
    await next(subscription);
    await assert.rejects(kinds(subscription), walcast.WalcastError);
  }));

test("a discarded transaction never comes", () =>
  playing(
    [
      (c) => {
        c.send(opened(0), relation(), begin(16), insert(1, 1));
        c.send({ kind: { case: "discard", value: { reason: "made anew" } } }, transaction(16));
      },
    ],
    async (hub) => {
      assert.deepEqual(await all(hub.subscribe(whole)), [[1600]]);
    },
  ));

const twoOfThem = async (c: Connection): Promise<void> => {
  c.send(opened(0, 3), relation(), transaction(16), transaction(32));
  await c.untilEnded();
};

test("auto ack follows the loop's body", () =>
  playing(
    [twoOfThem, twoOfThem],
    async (hub) => {
      const left = hub.subscribe({ subscriber: "s" });
      await next(left);
      await left.close(); // makes durable what was acknowledged
      await hub.connection(0).untilEnded();
      assert.deepEqual([hub.connection(0).acks, hub.unaryAcks], [[], []], "it was still in the user's hands");
      const subscription = hub.subscribe({ subscriber: "s" });
      await next(subscription);
      for await (const tx of subscription) {
        assert.deepEqual(ids(tx), [3200]);
        break;
      }
      await hub.connection(1).untilAcked(16);
      await subscription.close();
      await hub.connection(1).untilEnded();
      assert.deepEqual(hub.connection(1).acks, ["0/10"]);
      assert.deepEqual(hub.unaryAcks.map(({ position, session }) => [position?.lsn, session]), [["0/10", 3n]]);
    },
  ));

test("acknowledgements are gathered", () =>
  playing(
    [
      async (c) => {
        c.send(opened(0, 1), relation());
        for (let number = 1; number <= 500; number += 1) c.send(transaction(number * 16));
        c.send(progress(501 * 16));
        await c.untilAcked(501 * 16);
      },
    ],
    async (hub) => {
      assert.equal((await all(hub.subscribe({ subscriber: "s", stopAtTail: true }))).length, 500);
      const acks = hub.connection(0).acks.map(walcast.parseLsn);
      assert(acks.length < 100, `${acks.length} acknowledgements`);
      acks.forEach((ack, index) => assert(index === 0 || ack > (acks[index - 1] ?? 0n)));
    },
  ));

test("explicit acknowledgements hold progress back", () =>
  playing(
    [
      async (c) => {
        c.send(opened(0, 1), relation(), progress(8));
        await c.untilAcked(8);
        c.send(transaction(16), progress(32), transaction(48));
        await c.untilEnded();
      },
    ],
    async (hub) => {
      const subscription = hub.subscribe({ subscriber: "s", autoAck: false });
      const one = await next(subscription);
      const two = await next(subscription);
      one.ack();
      await hub.connection(0).untilAcked(16);
      // Acknowledgements only go forward: one of 0/20 would have kept this one back.
      assert.deepEqual(hub.connection(0).acks, ["0/8", "0/10"]);
      assert.throws(() => subscription.ack(new walcast.Position("0/50", LINEAGE)), walcast.AckAheadError);
      two.ack();
      assert((await subscription.flush())?.equals(two.position));
    },
  ));

test("an anonymous subscription has nothing to acknowledge", () =>
  playing([first, second], async (hub) => {
    const tx = await next(hub.subscribe(whole));
    assert.throws(() => tx.ack(), /anonymous/);
  }));

test("credit is granted as the user reads", () =>
  playing(
    [
      async (c) => {
        c.send(opened(0), relation());
        await c.wait(() => c.events === 10n);
        c.send(transaction(16, 5));
        await c.wait(() => c.events === 15n);
        c.send(begin(32));
        for (let ordinal = 1; ordinal <= 10; ordinal += 1) c.send(insert(ordinal, ordinal));
        await c.wait(() => c.events === 25n);
        c.send(commit(32, 10));
      },
    ],
    async (hub) => {
      const subscription = hub.subscribe({ ...whole, windowEvents: 10 });
      assert.equal((await next(subscription)).changes.length, 5);
      assert(hub.connection(0).events <= 15n);
      assert.equal((await next(subscription)).changes.length, 10);
      assert.deepEqual(await all(subscription), []);
    },
  ));

test("the checkpoint goes before the given start", () => {
  const none: Script = (c) => {
    assert.equal(c.open?.start, undefined);
    throw new Refusal("NOT_FOUND", "CHECKPOINT_MISSING");
  };
  const fresh: Script = async (c) => {
    assert.equal(c.open?.start?.at.case, "latest");
    c.send(opened(16, 1));
    await c.untilAcked(16);
    c.send(relation(), transaction(32));
  };
  return playing([none, fresh, none], async (hub) => {
    assert.deepEqual(await all(hub.subscribe({ subscriber: "s", start: "latest", stopAtTail: true })), [[3200]]);
    await assert.rejects(hub.subscribe({ subscriber: "s" }).next(), walcast.CheckpointMissingError);
  });
});

function refusing(...refusal: ConstructorParameters<typeof Refusal>): Script {
  return () => {
    throw new Refusal(...refusal);
  };
}

test("each reason has its class", async () => {
  for (const [reason, kind] of Object.entries(REASONS)) {
    await playing([refusing("FAILED_PRECONDITION", reason, undefined, { earliest: "0/5" })], async (hub) => {
      const caught = await hub.subscribe().next().catch((error: unknown) => error);
      assert(caught instanceof kind && caught instanceof walcast.HubError, `${reason}: ${String(caught)}`);
      assert.deepEqual([caught.reason, caught.metadata], [reason, { earliest: "0/5" }]);
      assert.equal(hub.connections.length, 1, "without RetryInfo it is not tried again");
    });
  }
});

const README = new URL("../../../../README.md", import.meta.url);

test("the classes are those of the documented table", { skip: !existsSync(README) && "not in the repository" }, () => {
  const rows = readFileSync(README, "utf8").matchAll(/^\| `([A-Z_]+)` \| [A-Z_]+ \|/gm);
  assert.deepEqual([...rows].map((row) => row[1]).sort(), Object.keys(REASONS).sort());
});

test("RetryInfo is obeyed", () =>
  playing([refusing("UNAVAILABLE", "STARTING", 400), (c) => c.send(opened(0), relation(), transaction(16))], async (hub) => {
    const started = performance.now();
    assert.equal((await all(hub.subscribe(whole))).length, 1);
    assert(performance.now() - started >= 399, "too early");
  }));

test("a fenced twin is not tried again", () =>
  playing([refusing("ABORTED", "SUBSCRIBER_FENCED")], async (hub) => {
    const subscription = hub.subscribe({ subscriber: "s" });
    await assert.rejects(subscription.next(), walcast.SubscriberFencedError);
    await assert.rejects(subscription.next(), walcast.ClosedError);
  }));

test("a twin that lost its connection does not take over again", () =>
  playing(
    [
      (c) => {
        c.send(opened(0, 3), relation(), transaction(16));
        throw lost();
      },
    ],
    async (hub) => {
      hub.fencedBelow = 4n;
      const subscription = hub.subscribe({ subscriber: "s" });
      await next(subscription);
      await assert.rejects(subscription.next(), walcast.SubscriberFencedError);
      assert.equal(hub.connections.length, 1);
    },
  ));

test("an unknown reason is a HubError", () =>
  playing([refusing("INTERNAL", "NEW_IN_2030")], async (hub) => {
    const caught = await hub.subscribe().next().catch((error: unknown) => error);
    assert(caught instanceof walcast.HubError && caught.constructor === walcast.HubError && caught.reason === "NEW_IN_2030");
  }));

test("what the client does not know is an error", async () => {
  const wrong: Sent[] = [
    {}, insert(1, 1), commit(16, 0), [begin(16), begin(32)], [begin(16), progress(32)], [begin(16), insert(1, 1, 99)],
    [begin(16), { kind: { case: "truncate", value: { relationIds: [99], ordinal: 1n } } }],
    [begin(16), insert(1, 1, 7, 77 as pb.Operation), commit(16, 1)],
    [begin(16), { kind: { case: "commit", value: {} } }],
    ...["", "20", "0/x", "-0/1", "0/123456789"].map((lsn) => [{ kind: { case: "progress" as const, value: { position: { lsn } } } }]),
  ]; // prettier-ignore
  for (const events of wrong) {
    await playing([(c) => c.send(opened(0), relation(), events)], async (hub) => {
      const asked = hub.subscribe().next().then((tx) => tx?.changes);
      await assert.rejects(asked, walcast.ProtocolError, JSON.stringify(events, (_, value: unknown) => String(value)));
    });
  }
});

function fork(more: boolean, ...retracted: number[]): Sent {
  const entries = retracted.map((number) => {
    const { kind } = begin(number);
    return { begin: kind?.case === "begin" ? kind.value : {}, position: at(number), changes: 1n };
  });
  const position = at(32, "bb");
  const value = { oldLineage: LINEAGE, newLineage: "bb", switchLsn: "0/20", more, position, retracted: entries };
  return { kind: { case: "timelineChanged", value } };
}

test("a failover cannot be missed", async () => {
  const before: Script = (c) => {
    c.send(opened(0, 1), relation(), transaction(16), transaction(48));
    c.send(fork(true, 48), fork(false, 64), progress(32, "bb"));
    throw lost();
  };
  const after: Script = (c) => {
    c.send(opened(32, 2, "bb"), fork(true, 48), fork(false, 64));
    c.send(relation(), transaction(64, 1, "bb"));
  };
  await playing([before, after], async (hub) => {
    const subscription = hub.subscribe({ ...whole, subscriber: "s" });
    await next(subscription);
    await next(subscription);
    const caught = await subscription.next().catch((error: unknown) => error);
    assert(caught instanceof walcast.TimelineChangedError);
    assert.deepEqual(caught.event.retracted.map((entry) => entry.transaction.xid), [48n, 64n]);
    assert(caught.event.position.equals(new walcast.Position("0/20", "bb")));
    assert.equal((await all(subscription)).length, 1, "it goes on, and the same failover is not told again");
  });
  await playing([before, after], async (hub) => {
    const told: walcast.TimelineChanged[] = [];
    const onTimelineChanged = (event: walcast.TimelineChanged): void => void told.push(event);
    assert.equal((await all(hub.subscribe({ ...whole, subscriber: "s", onTimelineChanged }))).length, 3);
    assert.equal(told.length, 1);
  });
});

const snapshotBegin = (restarted: boolean): Sent => ({ kind: { case: "snapshotBegin", value: { snapshotId: "s1", restarted } } });
const snapshotEnd: Sent = { kind: { case: "snapshotEnd", value: { snapshotId: "s1", position: at(16), rows: 2n } } };

test("rows of a snapshot are transactions that name it", () => {
  const rows = [insert(0, 1, 7, pb.Operation.READ), insert(0, 2, 7, pb.Operation.READ)];
  const script = (restarted: boolean): Script => (c) =>
    c.send(opened(8), snapshotBegin(restarted), relation(), rows, snapshotEnd, transaction(32));
  return playing([script(false), script(true)], async (hub) => {
    const told: string[] = [];
    const subscription = hub.subscribe({ ...whole, onSnapshot: (event) => void told.push(event.kind) });
    const tx = await next(subscription);
    assert.deepEqual([ids(tx), tx.snapshotId, tx.changes[0]?.operation, tx.xid], [[1, 2], "s1", "read", 0n]);
    assert.deepEqual(await all(subscription), [[3200]]);
    assert.deepEqual(told, ["snapshotBegin", "snapshotEnd"]);
    await assert.rejects(hub.subscribe(whole).next(), walcast.SnapshotRestartedError);
  });
});

test("truncates, messages, gaps and transactions that are too large", () => {
  const other: Sent = { kind: { case: "relation", value: { relationId: 8, schema: "public", table: "u" } } };
  const truncate: Sent = { kind: { case: "truncate", value: { relationIds: [8, 7], ordinal: 1n, cascade: true } } };
  const message = (ordinal: number, position?: ReturnType<typeof at>): Sent => ({
    kind: { case: "message", value: { prefix: "p", ordinal: BigInt(ordinal), lsn: "0/5", ...(position && { position }) } },
  });
  const gap: Sent = { kind: { case: "gap", value: { after: at(32), upTo: at(48), reason: "lost" } } };
  const script: Script = (c) =>
    c.send(opened(0), relation(), other, begin(16), truncate, message(2), commit(16, 2), message(0, at(32)), gap, transaction(64));
  const large: Script = (c) => c.send(opened(0), relation(), begin(16), insert(1, 1));
  return playing([script, large], async (hub) => {
    const subscription = hub.subscribe(whole);
    const tx = await next(subscription);
    assert.deepEqual(tx.changes.map(({ table }) => table), ["public.u", "public.t"]);
    assert.deepEqual(tx.changes[1]?.truncate, { tables: ["public.u", "public.t"], cascade: true, restartIdentity: false });
    assert.deepEqual(tx.messages.map(({ prefix, ordinal }) => [prefix, ordinal]), [["p", 2]]);
    const alone = await next(subscription);
    assert.deepEqual([alone.changes.length, alone.messages.length, alone.position.lsn], [0, 1, "0/20"]);
    await assert.rejects(subscription.next(), walcast.GapError);
    assert.deepEqual(await all(subscription), [[6400]]);
    await assert.rejects(hub.subscribe({ maxTransactionBytes: 10 }).next(), walcast.TransactionTooLargeError);
  });
});

test("tokens are asked for on each connection", () =>
  playing([refusing("UNAVAILABLE", "STARTING", 0), (c) => c.send(opened(0))], async (hub) => {
    let asked = 0;
    const client = hub.client({ token: () => `token${(asked += 1)}` });
    await all(client.subscribe({ stopAtTail: true, retry: { initial: 1 } }));
    const sent = hub.connections.map((connection) => connection.metadata.get("authorization")[0]);
    assert.deepEqual(sent, ["Bearer token1", "Bearer token2"]);
    const [agent] = hub.connection(0).metadata.get("user-agent");
    assert(String(agent).startsWith(`walcast-typescript/${walcast.VERSION}`));
    assert.deepEqual(hub.connection(0).metadata.get("client-id"), [`walcast-typescript/${walcast.VERSION}`]);
  }));

const quiet = async (c: Connection): Promise<void> => {
  c.send(opened(0, 1), relation(), transaction(16));
  await c.untilEnded();
};

test("closing from elsewhere ends the loop, and aborting throws the reason", () =>
  playing([quiet, quiet], async (hub) => {
    const closed = hub.subscribe({ subscriber: "s" });
    await next(closed);
    const waiting = all(closed);
    await hub.connection(0).untilAcked(16);
    await closed.close();
    assert.deepEqual(await waiting, []);
    await hub.connection(0).untilEnded();

    const abort = new AbortController();
    const aborted = hub.subscribe({ subscriber: "s", signal: abort.signal });
    await next(aborted);
    const rejected = assert.rejects(all(aborted), /enough/);
    await hub.connection(1).untilAcked(16);
    abort.abort(new Error("enough"));
    await rejected;
    await hub.connection(1).untilEnded();
    await assert.rejects(aborted.next(), /enough/);
  }));

test("a wait for the next attempt ends with close", () =>
  playing([refusing("UNAVAILABLE", "STARTING", 3_600_000)], async (hub) => {
    let waiting = (): void => undefined;
    const reconnecting = new Promise<void>((resolve) => (waiting = resolve));
    const subscription = hub.subscribe({ onReconnect: () => waiting() });
    const ended = subscription.next();
    await reconnecting;
    await subscription.close();
    assert.equal(await ended, undefined);
  }));

test("back-off has full jitter and starts over", () => {
  const backoff = new Backoff({ initial: 100, maximum: 1000, giveUpAfter: 100_000 }, 0, () => 1);
  assert.deepEqual([1, 2, 3, 4, 5].map(() => backoff.delay(undefined, 1)), [100, 200, 400, 800, 1000]);
  assert.equal(backoff.delay(5000, 1), 6000, "never earlier than the hub asks for");
  backoff.succeeded(2000);
  assert.equal(backoff.delay(undefined, 3000), 100);
  assert.equal(backoff.delay(undefined, 102_000), undefined);
  assert.equal(new Backoff({}, 0, () => 0).delay(undefined, 0), 0);
});

test("the outbox keeps only the newest", () => {
  let now = 1000;
  const outbox = new Outbox(() => now);
  const taken = (): unknown => {
    const request = outbox.take();
    return typeof request === "object" && request.request.case === "acknowledge" ? request.request.value.lsn : request;
  };
  outbox.acknowledge(new walcast.Position("0/10", "a"));
  assert.equal(taken(), "0/10");
  for (const text of ["0/20", "0/30", "0/20"]) outbox.acknowledge(new walcast.Position(text, "a"));
  assert.equal(taken(), ACK_INTERVAL);
  now += 2 * ACK_INTERVAL;
  assert.equal(taken(), "0/30");
  assert.equal(taken(), undefined);
});

test("an acknowledgement that may have been lost goes out again", () => {
  const core = new Core({ subscriber: "s" }, 1 << 20, console);
  core.openRequest();
  const events = [opened(0, 1), relation(), ...transaction(16)];
  core.receive(toBinary(pb.ConsumeResponseSchema, create(pb.ConsumeResponseSchema, { events })));
  const tx = core.poll();
  assert(tx !== undefined && "ack" in tx);
  tx.ack();
  core.outbox.take();
  core.outbox.take();
  assert.equal(core.outbox.pending, undefined);
  core.openRequest();
  assert.equal(core.outbox.pending, tx.position);
});

test("starts", () => {
  const position = new walcast.Position("1/ABC", "00ff", 3, Uint8Array.of(1, 255));
  assert(walcast.Position.parse(position.toString()).equals(position));
  assert.deepEqual(startMessage(position.toString()), startMessage(position));
  assert.deepEqual(startMessage("0/10").at, { case: "afterLsn", value: "0/10" });
  assert.equal(startMessage("snapshot").at.case, "snapshot");
  for (const wrong of ["yesterday", "a:b:c:d", "0/10:", "1/2/3"]) assert.throws(() => startMessage(wrong), RangeError);
});

test("filter helpers", async () => {
  const said = walcast.where({ status: "it's", n: [1, 2n], gone: null, at: new Date(0) });
  assert.equal(said, `"status" = 'it''s' AND "n" IN (1, 2) AND "gone" IS NULL AND "at" = '1970-01-01T00:00:00.000Z'`);
  assert.throws(() => walcast.where({ n: [] }), RangeError);
  const client = new walcast.Client("127.0.0.1:1");
  assert.throws(() => client.subscribe({ operations: ["upsert" as "update"] }), RangeError);
  await client.close();
  assert.throws(() => client.subscribe(), walcast.ClosedError);
});
