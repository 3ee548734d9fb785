/**
 * Committed changes of a PostgreSQL database from a walcast hub, in Node.
 *
 *     const client = new Client("127.0.0.1:50051");
 *     for await (const tx of client.subscribe({ tables: "public.orders", subscriber: "billing", start: "earliest" })) {
 *       for (const change of tx.changes) console.log(change.operation, change.table, change.after);
 *     }
 *
 * @module
 */
import { Hub } from "./hub.js";
import { GrpcTransport, type NodeOptions } from "./node.js";
import type { Logger } from "./options.js";

export * from "./common.js";
export type { NodeOptions, TLS } from "./node.js";

/** A walcast hub. Cheap to make: connections are opened by calls, one for each subscription. */
export class Client extends Hub {
  /** `host:port`, or `https://host:port`, which asks for TLS. */
  constructor(address = "127.0.0.1:50051", options: NodeOptions & { log?: Logger } = {}) {
    const transport = new GrpcTransport(address, options);
    super(transport, options.log);
    if (transport.exposesToken) this.log.warn(`the token goes to ${transport.address} in clear text: use TLS`);
  }
}
