/** Keeps the page for the time without a network. */

declare const self: ServiceWorkerGlobalScope;
/** Set when the page is built. */
declare const FILES: readonly string[];
declare const VERSION: string;

self.addEventListener("install", (event) => {
  event.waitUntil(caches.open(VERSION).then((cache) => cache.addAll(FILES)));
  void self.skipWaiting();
});

self.addEventListener("activate", (event) => {
  const clean = async (): Promise<void> => {
    for (const name of await caches.keys()) if (name !== VERSION) await caches.delete(name);
    await self.clients.claim();
  };
  event.waitUntil(clean());
});

self.addEventListener("fetch", (event) => {
  // What goes to a server that the page delivers to is none of the page's files.
  if (new URL(event.request.url).origin !== self.location.origin) return;
  const answer = async (): Promise<Response> => {
    const kept = await (await caches.open(VERSION)).match(event.request, { ignoreSearch: true });
    return kept ?? fetch(event.request);
  };
  event.respondWith(answer());
});

export {};
