/** Keeps the pages for the time without a network. */

/** Resolves when they are kept; at once where a browser cannot. */
export async function keepOffline(pill: HTMLElement): Promise<void> {
  if (!("serviceWorker" in navigator)) return;
  await navigator.serviceWorker.register(new URL("service.js", document.baseURI));
  await navigator.serviceWorker.ready;
  pill.hidden = false;
}
