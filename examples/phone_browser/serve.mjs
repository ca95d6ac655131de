/** Serves `dist` on this machine: `node serve.mjs [PORT]`. */

import { createReadStream } from "node:fs";
import { stat } from "node:fs/promises";
import { createServer } from "node:http";
import { extname, join, normalize } from "node:path";

const TYPES = {
  ".css": "text/css",
  ".html": "text/html",
  ".js": "text/javascript",
  ".mjs": "text/javascript",
  ".json": "application/json",
  ".svg": "image/svg+xml",
  ".wasm": "application/wasm",
  ".webmanifest": "application/manifest+json",
};
/** Without them browsers give WebAssembly no threads. */
const ISOLATION = { "Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp" };

const port = Number(process.argv[2] ?? 8080);
const server = createServer(async (request, response) => {
  const { pathname } = new URL(request.url ?? "/", "http://localhost");
  const path = join("dist", normalize(decodeURIComponent(pathname)).replace(/\/$/, "/index.html"));
  const size = await stat(path).then(
    (found) => (found.isFile() ? found.size : null),
    () => null,
  );
  if (size === null) return response.writeHead(404).end("not found\n");
  const type = TYPES[extname(path)] ?? "application/octet-stream";
  response.writeHead(200, { "Content-Type": type, "Content-Length": size, "Cache-Control": "no-cache", ...ISOLATION });
  createReadStream(path).pipe(response);
});
server.listen(port, "127.0.0.1", () => console.log(`http://localhost:${port}/`));
