/** The example page: bundled for browsers as it is served, run with a document of its own, against a gRPC-web server. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import vm from "node:vm";
import { build } from "esbuild";
import { opened, progress, relation, transaction } from "./scripted.js";
import { serving } from "./web_server.js";

const PAGE = new URL("../../examples/browser/", import.meta.url);

/** As much of an element as the page uses. */
class Element {
  textContent = "";
  value = "";
  readonly children: Element[] = [];
  submit: (event: { preventDefault: () => void }) => void = () => undefined;

  addEventListener(_: "submit", listener: Element["submit"]): void {
    this.submit = listener;
  }

  prepend(child: Element): void {
    this.children.unshift(child);
  }

  get childElementCount(): number {
    return this.children.length;
  }
}

test("the example page bundles for browsers and shows changes", async () => {
  const entry = fileURLToPath(new URL("main.ts", PAGE));
  const bundled = await build({ entryPoints: [entry], bundle: true, format: "iife", platform: "browser", write: false, logLevel: "silent" });
  assert.deepEqual(bundled.warnings, []);
  const code = bundled.outputFiles[0]?.text ?? "";
  assert(code.length > 10_000 && code.length < 1_000_000, `${code.length} characters`);
  const ids = [...readFileSync(new URL("index.html", PAGE), "utf8").matchAll(/ id="(\w+)"/g)].map(([, id]) => id ?? "");
  const elements = new Map(ids.map((id) => [id, new Element()]));
  const get = (id: string): Element => elements.get(id) ?? assert.fail(`no #${id}`);
  const document = { getElementById: (id: string) => elements.get(id) ?? null, createElement: () => new Element() };
  let served = (): void => undefined;
  const done = new Promise<void>((resolve) => (served = resolve));
  const script = async function* (request: { filter?: { tables: string[] } | undefined }, context: { signal: AbortSignal }) {
    assert.deepEqual(request.filter?.tables, ["public.t*"]);
    yield [opened(0), relation(), ...transaction(16), progress(16)];
    await new Promise<void>((resolve) => context.signal.addEventListener("abort", () => resolve()));
    served();
  };
  await serving([script, script], async (_client, _acks, address) => {
    const controllers: AbortController[] = [];
    class Controller extends AbortController {
      constructor() {
        super();
        controllers.push(this);
      }
    }
    const { fetch, AbortSignal, TextDecoder, TextEncoder, URL, atob, performance, setTimeout, clearTimeout, console } = globalThis;
    vm.runInNewContext(code, {
      document, fetch, AbortController: Controller, AbortSignal, TextDecoder, TextEncoder, URL, Uint8Array, atob, performance, setTimeout, clearTimeout, console,
    }); // prettier-ignore
    get("hub").value = address;
    get("tables").value = "public.t*";
    get("form").submit({ preventDefault: () => undefined });
    for (const deadline = Date.now() + 10_000; !get("status").textContent.startsWith("At 0/10"); ) {
      assert(Date.now() < deadline, get("status").textContent);
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
    assert.deepEqual(get("changes").children.map(({ textContent }) => textContent.split("  ")[0]), ["insert public.t"]);
    get("form").submit({ preventDefault: () => undefined });
    await done; // another watch ends the one before
    controllers.forEach((controller) => controller.abort());
  });
});
