/**
 * Counts the changes per second that one process iterates, decoded to native rows, against a hub that has a table
 * public.bench: ADDRESS ROWS. clients/conformance/throughput.py starts it.
 */
import { Client, type Subscription } from "../src/index.js";

const [, , address = "", expected = ""] = process.argv;
const client = new Client(address);

async function timed(name: string, run: (stream: Subscription) => Promise<number>): Promise<void> {
  const wall = performance.now();
  const cpu = process.cpuUsage();
  const count = await run(client.subscribe({ tables: "public.bench", start: "earliest", stopAtTail: true }));
  const took = (performance.now() - wall) / 1000;
  const { user, system } = process.cpuUsage(cpu);
  if (count !== Number(expected)) throw new Error(`${count} changes instead of ${expected}`);
  const rate = (seconds: number): string => (count / seconds).toFixed(0).padStart(10);
  console.log(`${name.padEnd(22)} ${rate(took)} changes/s, ${rate((user + system) / 1e6)} per second of the client's CPU`);
}

for (let round = 0; round < 2; round += 1) {
  await timed("changes", async (stream) => {
    let count = 0;
    for await (const change of stream.changes()) if (change.after?.["id"] !== undefined) count += 1;
    return count;
  });
  await timed("transactions", async (stream) => {
    let count = 0;
    for await (const tx of stream) for (const change of tx.changes) if (change.after?.["id"] !== undefined) count += 1;
    return count;
  });
}
await client.close();
