/** Files as sources of bytes, of which only the part that is needed is in memory. */

import { Hasher, sha256 } from "./sha256.js";

/** Bytes of each part of a file, but the last, whose hash a manifest may list: WebCrypto hashes one at a time. */
export const PART = 2 ** 24;

/** Bytes of a file that are read at once to hash it. */
const CHUNK = 2 ** 22;
/** Largest file that is hashed in memory: WebCrypto is ten times as fast as {@link Hasher}, but hashes no stream. */
const WHOLE = 2 ** 25;

/** The bytes of a file. Offsets and sizes are below 2^53, so files may be larger than any array. */
export interface ByteSource {
  readonly size: number;
  /** Returns `length` bytes from `offset`, which lie inside the file: in `into`, of that length, or in other memory. */
  read(offset: number, length: number, into?: Uint8Array): Promise<Uint8Array>;
  /** Releases the file. */
  close?(): void | Promise<void>;
}

/** Bytes in memory. */
export function heldSource(bytes: Uint8Array): ByteSource {
  return { size: bytes.length, read: async (offset, length) => bytes.subarray(offset, offset + length) };
}

/** A file of the browser: on disk, or in the memory of the browser's own process. */
export function blobSource(blob: Blob): ByteSource {
  return {
    size: blob.size,
    read: async (offset, length) => new Uint8Array(await blob.slice(offset, offset + length).arrayBuffer()),
  };
}

/** The part of a `FileSystemSyncAccessHandle` that is used; only workers have it. */
export interface SyncHandle {
  getSize(): number;
  read(into: Uint8Array, options: { readonly at: number }): number;
  close(): void;
}

/** A file that a worker has opened for synchronous access, which reads several times as fast as a `Blob`. */
export function syncSource(handle: SyncHandle): ByteSource {
  return {
    size: handle.getSize(),
    async read(offset, length, into) {
      const bytes = into ?? new Uint8Array(length);
      const read = handle.read(bytes, { at: offset });
      if (read !== length) throw new Error(`expected ${length} bytes at ${offset}, found ${read}`);
      return bytes;
    },
    close: () => handle.close(),
  };
}

/** Returns the SHA-256 of each part of a file; `progress` is called with the bytes of each. */
export async function partHashes(source: ByteSource, progress?: (bytes: number) => void): Promise<string[]> {
  const hashes: string[] = [];
  for (let offset = 0; offset < source.size; offset += PART) {
    const length = Math.min(PART, source.size - offset);
    hashes.push(await sha256(await source.read(offset, length)));
    progress?.(length);
  }
  return hashes;
}

/** Returns the SHA-256 of a whole file. A large one is read in parts; `progress` is called with the bytes of each. */
export async function sha256Of(source: ByteSource, progress?: (bytes: number) => void): Promise<string> {
  if (source.size <= WHOLE && globalThis.crypto?.subtle !== undefined) {
    const hash = await sha256(await source.read(0, source.size));
    progress?.(source.size);
    return hash;
  }
  const hasher = new Hasher();
  for (let offset = 0; offset < source.size; offset += CHUNK) {
    const length = Math.min(CHUNK, source.size - offset);
    hasher.update(await source.read(offset, length));
    progress?.(length);
  }
  return hasher.hex();
}
