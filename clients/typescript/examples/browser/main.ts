/** A page that shows the changes of tables as they are committed. `npm run example` serves it. */
import { type Change, type Row, UNCHANGED, WebClient } from "walcast/web";

const KEPT = 200;

function element(id: string): HTMLElement {
  const found = document.getElementById(id);
  if (found === null) throw new Error(`the page has no #${id}`);
  return found;
}

const status = element("status");
const changes = element("changes");

function text(row: Row): string {
  const shown = (value: unknown): string => {
    if (value === UNCHANGED) return "(unchanged)";
    if (typeof value === "object" && value !== null && Object.getPrototypeOf(value) === Object.prototype) return JSON.stringify(value);
    return String(value);
  };
  return Object.entries(row)
    .map(([name, value]) => `${name}: ${shown(value)}`)
    .join("  ");
}

function show(change: Change): void {
  const item = document.createElement("li");
  const row = change.after ?? change.before;
  item.textContent = `${change.operation} ${change.table}  ${row === null ? "" : text(row)}`;
  changes.prepend(item);
  while (changes.childElementCount > KEPT) changes.lastElementChild?.remove();
}

async function watch(hub: string, tables: string, token: string, signal: AbortSignal): Promise<void> {
  const client = new WebClient(hub, token === "" ? {} : { token });
  try {
    const stream = client.subscribe({
      tables,
      signal,
      progressInterval: 1000,
      onProgress: ({ position, lagBytes }) => void (status.textContent = `At ${position.lsn}, ${lagBytes} bytes behind.`),
      onReconnect: (error, delay) => void (status.textContent = `${error.message}; again in ${(delay / 1000).toFixed(1)} s`),
    });
    for await (const change of stream.changes()) show(change);
  } catch (error) {
    if (!signal.aborted) status.textContent = String(error);
  } finally {
    await client.close();
  }
}

let present: AbortController | undefined;

element("form").addEventListener("submit", (event) => {
  event.preventDefault();
  present?.abort();
  present = new AbortController();
  const value = (id: string): string => (element(id) as HTMLInputElement).value.trim();
  status.textContent = "Connecting.";
  void watch(value("hub"), value("tables"), value("token"), present.signal);
});
