/** Lets other work of this thread run: ONNX Runtime's WebAssembly computes without ever returning to the event loop. */

/** Resolves once messages and events that wait have been handled. */
export function nextTask(): Promise<void> {
  const { setImmediate } = globalThis as { setImmediate?: (done: () => void) => unknown };
  if (setImmediate !== undefined) return new Promise((resolve) => setImmediate(resolve));
  // Timers are delayed by browsers, messages are not.
  const { port1, port2 } = new MessageChannel();
  return new Promise((resolve) => {
    port1.onmessage = (): void => {
      port1.close();
      resolve();
    };
    port2.postMessage(null);
  });
}
