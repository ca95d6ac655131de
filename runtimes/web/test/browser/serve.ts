/** A server for the pages under test, on this machine alone. */

import { createReadStream } from "node:fs";
import { realpath, stat } from "node:fs/promises";
import { type IncomingMessage, type ServerResponse, createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { extname, join, sep } from "node:path";

const TYPES: Readonly<Record<string, string>> = {
  ".css": "text/css",
  ".html": "text/html",
  ".js": "text/javascript",
  ".json": "application/json",
  ".mjs": "text/javascript",
  ".png": "image/png",
  ".svg": "image/svg+xml",
  ".wasm": "application/wasm",
  ".webmanifest": "application/manifest+json",
};
/** Without them browsers give WebAssembly no threads. */
const ISOLATION = { "Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp" };

export interface Server {
  readonly url: string;
  close(): Promise<void>;
}

/**
 * @param folders by the path that they are found below: `{ "/": "dist" }`; of several that fit, the longest counts.
 * @param options `port`: 0 takes a free one; `isolated`: whether pages may use threads.
 */
export async function serve(
  folders: Readonly<Record<string, string>>,
  { port = 0, isolated = true }: { readonly port?: number; readonly isolated?: boolean } = {},
): Promise<Server> {
  const mounts = Object.entries(folders).sort(([a], [b]) => b.length - a.length);
  const server = createServer((request, response) => {
    answer(request, response, mounts, isolated ? ISOLATION : {}).catch(() =>
      response.writeHead(404).end("not found\n"),
    );
  });
  await new Promise<void>((resolve, reject) => server.once("error", reject).listen(port, "127.0.0.1", resolve));
  const url = `http://localhost:${(server.address() as AddressInfo).port}/`;
  const close = (): Promise<void> => {
    server.closeAllConnections();
    return new Promise((resolve) => server.close(() => resolve()));
  };
  return { url, close };
}

async function answer(
  request: IncomingMessage,
  response: ServerResponse,
  mounts: readonly (readonly [string, string])[],
  headers: Readonly<Record<string, string>>,
): Promise<void> {
  const asked = decodeURIComponent(new URL(request.url ?? "/", "http://localhost").pathname);
  const [prefix, folder] = mounts.find(([path]) => asked.startsWith(path))!;
  const root = await realpath(folder);
  const name = asked.slice(prefix.length);
  const file = await realpath(join(root, name.endsWith("/") || name === "" ? join(name, "index.html") : name));
  if (!file.startsWith(root + sep)) throw new Error("outside of the folder");
  const type = TYPES[extname(file)] ?? "application/octet-stream";
  const { size } = await stat(file);
  response.writeHead(200, { "Content-Type": type, "Content-Length": size, "Cache-Control": "no-cache", ...headers });
  createReadStream(file).pipe(response);
}
