/** Stores for the state of a run in a browser: IndexedDB, or a folder of the origin's private file system. */

export const NEWEST = "checkpoint.safetensors";
export const PREVIOUS = "checkpoint.previous.safetensors";

/** Keeps two checkpoints; at no moment is there none. */
export interface StateStore {
  /** Its name, for messages. */
  readonly name: string;
  /** Returns a checkpoint; `null` if there is none. */
  read(file: typeof NEWEST | typeof PREVIOUS): Promise<Uint8Array | null>;
  /** Makes the bytes the newest checkpoint; with `keep`, the newest so far becomes the previous one. */
  replace(bytes: Uint8Array<ArrayBuffer>, keep: boolean): Promise<void>;
  /** Locks the store until {@link close}; returns whether nobody else uses it. */
  lock(): Promise<boolean>;
  close(): Promise<void>;
}

/** Keeps a state in IndexedDB, which every browser has, in pages and workers. Transactions are atomic. */
export function databaseStore(name: string): StateStore {
  const lock = webLock(`edgepeft:${name}`);
  const transact = async <T>(mode: IDBTransactionMode, work: (store: IDBObjectStore) => IDBRequest<T>): Promise<T> => {
    const opening = indexedDB.open(`edgepeft:${name}`, 1);
    opening.onupgradeneeded = () => opening.result.createObjectStore("files");
    const database = await result(opening);
    try {
      const transaction = database.transaction("files", mode, { durability: "strict" });
      const request = work(transaction.objectStore("files"));
      await new Promise<void>((resolve, reject) => {
        transaction.oncomplete = () => resolve();
        transaction.onerror = transaction.onabort = () => reject(transaction.error);
      });
      return request.result;
    } finally {
      database.close();
    }
  };
  return {
    name: `the database ${name}`,
    ...lock,
    async read(file) {
      return ((await transact("readonly", (store) => store.get(file))) as Uint8Array | undefined) ?? null;
    },
    async replace(bytes, keep) {
      const newest = keep ? await this.read(NEWEST) : null;
      await transact("readwrite", (store) => {
        if (newest !== null) store.put(newest, PREVIOUS);
        return store.put(bytes, NEWEST);
      });
    },
  };
}

/** Keeps a state in a folder: a written file replaces the old one when it is closed, not before. */
export function handleStore(folder: FileSystemDirectoryHandle): StateStore {
  const read = async (file: string): Promise<Uint8Array<ArrayBuffer> | null> => {
    try {
      return new Uint8Array(await (await (await folder.getFileHandle(file)).getFile()).arrayBuffer());
    } catch (failure) {
      if (failure instanceof DOMException && failure.name === "NotFoundError") return null;
      throw failure;
    }
  };
  const write = async (file: string, bytes: Uint8Array<ArrayBuffer>): Promise<void> => {
    const stream = await (await folder.getFileHandle(file, { create: true })).createWritable();
    await stream.write(bytes);
    await stream.close();
  };
  return {
    name: `the folder ${folder.name}`,
    ...webLock(`edgepeft:folder:${folder.name}`),
    read,
    async replace(bytes, keep) {
      const newest = keep ? await read(NEWEST) : null;
      if (newest !== null) await write(PREVIOUS, newest);
      await write(NEWEST, bytes);
    },
  };
}

/** Locks a store for one tab or worker of an origin; a tab that is closed releases its lock. */
function webLock(name: string): Pick<StateStore, "lock" | "close"> {
  let release: (() => void) | null = null;
  return {
    lock: () =>
      new Promise((resolve, reject) => {
        const granted = (lock: Lock | null): Promise<void> | undefined => {
          resolve(lock !== null);
          return lock === null ? undefined : new Promise((end) => (release = end));
        };
        navigator.locks.request(name, { ifAvailable: true }, granted).catch(reject);
      }),
    async close() {
      release?.();
    },
  };
}

function result<T>(request: IDBRequest<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}
