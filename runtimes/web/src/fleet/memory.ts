/** The memory that a device keeps of its fleet, between pages and tabs. */

import type { Trusted } from "./rounds.js";

/** A round from which an update may have started. */
export interface KnownRound extends Trusted {
  readonly adapterSha256: string;
  readonly updateBytes: number;
}

export interface Memory {
  /** The rounds that were joined, the latest last; at most 32. */
  readonly rounds: readonly KnownRound[];
  /** The adapter of the latest round, and the base that it belongs to. */
  readonly adapter: { readonly baseSha256: string; readonly bytes: Uint8Array } | null;
  /** Number of the last delivery. */
  readonly sequence: number;
  /** The sidecar of each update that was signed, by the hash of the update. */
  readonly signed: Readonly<Record<string, Uint8Array<ArrayBuffer>>>;
}

export const NOTHING: Memory = { rounds: [], adapter: null, sequence: 0, signed: {} };

/** Stores the memory of one device in one campaign. */
export interface MemoryStore {
  read(): Promise<Memory>;
  /** Replaces the memory in one transaction, which nothing comes between, and returns it when it is stored. */
  change(next: (memory: Memory) => Memory): Promise<Memory>;
}

/** Keeps memories in IndexedDB; a transaction is durable before it completes. */
export function databaseMemory(name: string): MemoryStore {
  const transact = async (
    mode: IDBTransactionMode,
    work: (store: IDBObjectStore, found: Memory) => void,
  ): Promise<void> => {
    const database = await opened(name);
    try {
      await new Promise<void>((resolve, reject) => {
        const transaction = database.transaction("memory", mode, { durability: "strict" });
        transaction.oncomplete = () => resolve();
        transaction.onerror = transaction.onabort = () => reject(transaction.error);
        const store = transaction.objectStore("memory");
        const request = store.get("memory") as IDBRequest<Memory | undefined>;
        request.onsuccess = () => {
          try {
            work(store, request.result ?? NOTHING);
          } catch (failure) {
            transaction.onabort = () => reject(failure as Error);
            transaction.abort();
          }
        };
      });
    } finally {
      database.close();
    }
  };
  return {
    async read() {
      let found = NOTHING;
      await transact("readonly", (_, memory) => (found = memory));
      return found;
    },
    async change(next) {
      let changed = NOTHING;
      await transact("readwrite", (store, memory) => void store.put((changed = next(memory)), "memory"));
      return changed;
    },
  };
}

function opened(name: string): Promise<IDBDatabase> {
  return new Promise((resolve, reject) => {
    const opening = indexedDB.open(`edgepeft-fleet:${name}`, 1);
    opening.onupgradeneeded = () => opening.result.createObjectStore("memory");
    opening.onsuccess = () => resolve(opening.result);
    opening.onerror = () => reject(opening.error);
  });
}
