/** The worker as the page sees it. */

import type { Answer, Progress, Request } from "./messages.js";

export interface Listener {
  /** Called after each step of a training. */
  progress(progress: Progress): void;
  /** Called while a bundle is read, with the bytes so far and in all. */
  loading(done: number, all: number): void;
}

export class Model {
  private readonly worker = new Worker("worker.js", { type: "module" });
  private readonly waiting = new Map<number, { resolve(result: never): void; reject(failure: Error): void }>();
  private count = 0;

  constructor(listener: Listener) {
    this.worker.onmessage = ({ data }: MessageEvent<Answer>) => {
      if ("progress" in data) return listener.progress(data.progress);
      if ("loading" in data) return listener.loading(data.loading.done, data.loading.all);
      const call = this.waiting.get(data.id);
      this.waiting.delete(data.id);
      if ("error" in data) call?.reject(new Error(data.error));
      else call?.resolve(data.result as never);
    };
  }

  /** Returns the worker's answer to a request. */
  ask<T>(request: Request): Promise<T> {
    const id = this.count++;
    this.worker.postMessage({ ...request, id });
    return new Promise((resolve, reject) => this.waiting.set(id, { resolve, reject }));
  }
}
