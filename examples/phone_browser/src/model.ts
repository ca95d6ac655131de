/** The worker as the page sees it. */

import type { Answer, Progress, Request } from "./messages.js";

export class Model {
  private readonly worker = new Worker("worker.js", { type: "module" });
  private readonly waiting = new Map<number, { resolve(result: never): void; reject(failure: Error): void }>();
  private count = 0;

  /** @param progress called after each step of a training. */
  constructor(progress: (progress: Progress) => void) {
    this.worker.onmessage = ({ data }: MessageEvent<Answer>) => {
      if ("progress" in data) return progress(data.progress);
      const call = this.waiting.get(data.id);
      this.waiting.delete(data.id);
      if ("error" in data) call?.reject(new Error(data.error));
      else call?.resolve(data.result as never);
    };
  }

  /** The answer of the worker to a request. */
  ask<T>(request: Request): Promise<T> {
    const id = this.count++;
    this.worker.postMessage({ ...request, id });
    return new Promise((resolve, reject) => this.waiting.set(id, { resolve, reject }));
  }
}
