/** Small values in IndexedDB, which pages and workers share. */

/** Returns the value under a key; `undefined` if there is none. */
export function get<T>(database: string, key: string): Promise<T | undefined> {
  return transact(database, "readonly", (files) => files.get(key) as IDBRequest<T | undefined>);
}

/** @throws DOMException the storage is full. */
export async function put(database: string, key: string, value: unknown): Promise<void> {
  await transact(database, "readwrite", (files) => files.put(value, key));
}

export async function remove(database: string, key: string): Promise<void> {
  await transact(database, "readwrite", (files) => files.delete(key));
}

async function transact<T>(
  name: string,
  mode: IDBTransactionMode,
  work: (files: IDBObjectStore) => IDBRequest<T>,
): Promise<T> {
  const database = await opened(name);
  try {
    return await new Promise((resolve, reject) => {
      const transaction = database.transaction("files", mode, { durability: "strict" });
      transaction.onerror = transaction.onabort = () => reject(transaction.error);
      const request = work(transaction.objectStore("files"));
      transaction.oncomplete = () => resolve(request.result);
    });
  } finally {
    database.close();
  }
}

function opened(name: string): Promise<IDBDatabase> {
  return new Promise((resolve, reject) => {
    const opening = indexedDB.open(name, 1);
    opening.onupgradeneeded = () => opening.result.createObjectStore("files");
    opening.onerror = () => reject(opening.error);
    opening.onsuccess = () => resolve(opening.result);
  });
}
