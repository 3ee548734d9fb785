/** A gRPC-web server over HTTP/1.1 that plays scripts: Connect's implementation. */
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { create } from "@bufbuild/protobuf";
import { Code, ConnectError, type HandlerContext } from "@connectrpc/connect";
import { connectNodeAdapter } from "@connectrpc/connect-node";
import * as pb from "../src/proto.js";
import * as walcast from "../src/web.js";
import type { EventInit } from "./scripted.js";

export type Script = (request: pb.SubscribeRequest, context: HandlerContext) => AsyncGenerator<EventInit[]>;

/** Serves while `run` runs; each connection gets the next script. */
export async function serving(
  scripts: Script[],
  run: (client: walcast.WebClient, acks: pb.AcknowledgeRequest[], address: string) => Promise<void>,
): Promise<void> {
  const acks: pb.AcknowledgeRequest[] = [];
  let connections = 0;
  const handler = connectNodeAdapter({
    grpc: false,
    connect: false,
    grpcWeb: true,
    routes: (router) => {
      router.service(pb.ChangeStreamService, {
        async *subscribe(request, context) {
          const script = scripts[connections];
          connections += 1;
          if (script === undefined) throw new ConnectError("not expected", Code.InvalidArgument);
          for await (const events of script(request, context)) yield create(pb.SubscribeResponseSchema, { events });
        },
        acknowledge(request) {
          acks.push(request);
          return create(pb.AcknowledgeResponseSchema, request.position === undefined ? {} : { checkpoint: request.position });
        },
      });
    },
  });
  const server = createServer(handler);
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as AddressInfo;
  const quiet = { info: () => undefined, warn: () => undefined };
  const address = `http://127.0.0.1:${port}`;
  const client = new walcast.WebClient(`${address}/`, { token: "secret", log: quiet });
  try {
    await run(client, acks, address);
  } finally {
    await client.close();
    server.closeAllConnections();
    server.close();
  }
}
