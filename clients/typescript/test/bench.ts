/** Iterates a table's changes, decoded to native rows, as often as it is told to: see clients/README.md. */
import { createInterface } from "node:readline";

import { Client } from "../src/index.js";

const [, , address = "", table = ""] = process.argv;
const client = new Client(address);
console.log(JSON.stringify({ ready: `Node ${process.versions.node}` }));
for await (const order of createInterface({ input: process.stdin })) {
  if (order !== "rows") throw new Error(`not known: ${order}`);
  const began = performance.now();
  let changes = 0;
  let nulls = 0;
  let digest = 0;
  for await (const { after } of client.subscribe({ tables: table, start: "earliest", stopAtTail: true }).changes()) {
    changes += 1;
    digest = (Math.imul(digest, 31) + Number(after?.["id"])) >>> 0;
    if (after?.["note"] === null) nulls += 1;
  }
  console.log(JSON.stringify({ changes, nulls, digest, seconds: (performance.now() - began) / 1000 }));
}
await client.close();
