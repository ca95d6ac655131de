/** Bundles and states in folders, for Node. */

import { lstat, mkdir, open, readFile, readdir, rename, rm, stat, writeFile } from "node:fs/promises";
import { dirname, join, resolve } from "node:path";
import { BundleError } from "./errors.js";
import { type BundleFiles, missing } from "./bundle/files.js";
import { NEWEST, PREVIOUS, type StateStore } from "./train/store.js";

/** Most bytes that are read at once: the system's own limit is 2 GiB. */
const MOST = 2 ** 30;

/** A bundle in a folder; ONNX Runtime maps its weights. */
export function folder(path: string): BundleFiles {
  return {
    name: path,
    path: (name) => join(path, name),
    async open(name) {
      const file = join(path, name);
      try {
        // Reading a pipe would block, and a link may lead anywhere.
        const found = await lstat(file);
        if (found.isFile()) return { size: found.size, read: (...part) => readPart(file, ...part) };
      } catch (failure) {
        throw missing(path, name, String(failure));
      }
      throw notRegular(path, name);
    },
    async list() {
      const entries = await readdir(path, { withFileTypes: true, recursive: true });
      const files = new Map<string, number>();
      for (const entry of entries.filter((entry) => !entry.isDirectory())) {
        const whole = join(entry.parentPath ?? entry.path, entry.name);
        const name = whole.slice(join(path, "/").length).replaceAll("\\", "/");
        if (!entry.isFile()) throw notRegular(path, name);
        files.set(name, (await stat(whole)).size);
      }
      return files;
    },
  };
}

/** Reads a part of a file; what is returned is shorter if the file is. */
async function readPart(path: string, offset: number, length: number, into?: Uint8Array): Promise<Uint8Array> {
  const file = await open(path, "r");
  try {
    const bytes = into ?? new Uint8Array(length);
    let read = 0;
    while (read < length) {
      const { bytesRead } = await file.read(bytes, read, Math.min(length - read, MOST), offset + read);
      if (bytesRead === 0) break;
      read += bytesRead;
    }
    return bytes.subarray(0, read);
  } finally {
    await file.close();
  }
}

function notRegular(path: string, name: string): BundleError {
  const hint = "copy the file itself into the bundle (cp -L).";
  return new BundleError(
    "not-a-regular-file",
    `The file ${name} of the bundle is not a regular file.`,
    `in ${path}`,
    hint,
  );
}

/** A state in a folder, in the format of the Python runtime; created if it is missing. */
export function stateFolder(path: string): StateStore {
  const lock = join(path, "lock.pid");
  let locked = false;
  return {
    name: path,
    async read(file) {
      return readFile(join(path, file)).then((bytes) => new Uint8Array(bytes), absent);
    },
    async replace(bytes, keep) {
      const [newest, coming] = [join(path, NEWEST), join(path, `${NEWEST}.next`)];
      await writeAtomically(coming, bytes);
      if (keep) await rename(newest, join(path, PREVIOUS)).catch(absent);
      await rename(coming, newest);
      await flushFolder(path);
    },
    async lock() {
      await mkdir(path, { recursive: true });
      const owner = Number(await readFile(lock, "utf8").catch(absent));
      if (owner > 0 && alive(owner)) return false;
      await rm(lock, { force: true });
      // If two processes find a dead owner, only one of them creates the file.
      locked = await writeFile(lock, String(process.pid), { flag: "wx" }).then(
        () => true,
        () => false,
      );
      return locked;
    },
    async close() {
      if (locked) await rm(lock, { force: true });
      locked = false;
    },
  };
}

/** Writes a file atomically: a reader, also after a power cut, sees the old content or the new one. */
export async function writeAtomically(path: string, bytes: Uint8Array): Promise<void> {
  const partial = `${path}.partial`;
  const file = await open(partial, "w");
  try {
    await file.writeFile(bytes);
    await file.sync();
  } finally {
    await file.close();
  }
  await rename(partial, path);
  await flushFolder(dirname(resolve(path)));
}

async function flushFolder(path: string): Promise<void> {
  if (process.platform === "win32") return;
  const handle = await open(path, "r");
  await handle.sync().finally(() => handle.close());
}

function alive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (failure) {
    return (failure as NodeJS.ErrnoException).code === "EPERM";
  }
}

function absent(failure: NodeJS.ErrnoException): null {
  if (failure.code === "ENOENT") return null;
  throw failure;
}
