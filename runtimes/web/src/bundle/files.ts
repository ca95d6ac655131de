/** Sources of the files of a bundle: a URL, a folder that the user picked, or the origin's private folder (OPFS). */

import { BundleError } from "../errors.js";
import { type ByteSource, type SyncHandle, blobSource, heldSource, syncSource } from "../files/source.js";

/** Bytes of a download that are held before they are handed to the browser. */
const PIECE = 2 ** 22;

/** The files of a bundle, by names with `/` between folders. */
export interface BundleFiles {
  /** Its name, for messages. */
  readonly name: string;
  /** Opens a file; one of more than `most` bytes need not be read to its end. */
  open(name: string, most: number): Promise<ByteSource>;
  /** Returns names and sizes of all files, if they can be listed. */
  list?(): Promise<ReadonlyMap<string, number>>;
  /** Returns the path of a file, if there are paths: ONNX Runtime then maps the weights instead of copying them. */
  path?(name: string): string;
}

/**
 * A bundle below a URL. A file is downloaded once, when it is opened, and then held by the browser as a `Blob`: outside
 * of the page's memory, and on disk if it is large. What is read later is therefore what was verified.
 */
export function urlFiles(url: string | URL): BundleFiles {
  const base = String(url).replace(/\/?$/, "/");
  return {
    name: base,
    async open(name, most) {
      const response = await fetch(base + name.split("/").map(encodeURIComponent).join("/"));
      if (!response.ok || response.body === null) throw missing(base, name, `HTTP status ${response.status}`);
      return blobSource(await passedOn(response.body, most, name));
    },
  };
}

/** A bundle in a folder of the File System API: picked by the user, or of the origin's private file system. */
export function handleFiles(folder: FileSystemDirectoryHandle): BundleFiles {
  return {
    name: folder.name,
    async open(name) {
      try {
        const file = await fileHandle(folder, name);
        return (await openedForSync(file)) ?? blobSource(await file.getFile());
      } catch (failure) {
        throw missing(folder.name, name, String(failure));
      }
    },
  };
}

/** Returns a file of a folder, or of a folder in it. */
export async function fileHandle(
  folder: FileSystemDirectoryHandle,
  name: string,
  options: { readonly create: boolean } = { create: false },
): Promise<FileSystemFileHandle> {
  const parts = name.split("/");
  let parent = folder;
  for (const part of parts.slice(0, -1)) parent = await parent.getDirectoryHandle(part, options);
  return parent.getFileHandle(parts.at(-1)!, options);
}

/** A bundle of files in memory, by name: bytes, or the files of a file input. */
export function heldFiles(files: ReadonlyMap<string, Uint8Array | Blob>, name = "the bundle"): BundleFiles {
  return {
    name,
    async open(file) {
      const content = files.get(file);
      if (content === undefined) throw missing(name, file, "it is not among the files passed.");
      return content instanceof Uint8Array ? heldSource(content) : blobSource(content);
    },
    async list() {
      return new Map([...files].map(([file, it]) => [file, it instanceof Uint8Array ? it.length : it.size]));
    },
  };
}

export function missing(where: string, name: string, context: string): BundleError {
  const hint = "check the address of the bundle.";
  return new BundleError("missing-file", `Cannot read the file ${name} of ${where}.`, context, hint);
}

/** Opens a file for synchronous reading; `null` on pages, for folders that the user picked, and where it is locked. */
async function openedForSync(file: FileSystemFileHandle): Promise<ByteSource | null> {
  const open = (file as { createSyncAccessHandle?(options: object): Promise<SyncHandle> }).createSyncAccessHandle;
  if (open === undefined) return null;
  return open.call(file, { mode: "read-only" }).then(syncSource, () => null);
}

/** Passes a download on to the browser, piece by piece, so that it is never in the page's memory as a whole. */
async function passedOn(body: ReadableStream<Uint8Array>, most: number, name: string): Promise<Blob> {
  const pieces: Blob[] = [];
  const reader: ReadableStreamDefaultReader<Uint8Array> = body.getReader();
  let [held, count, length]: [Uint8Array<ArrayBuffer>[], number, number] = [[], 0, 0];
  const hand = (): void => {
    pieces.push(new Blob(held));
    [held, count] = [[], 0];
  };
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    length += value.length;
    if (length > most) {
      await reader.cancel();
      const [context, hint] = [`expected ${most} bytes, found more`, "copy the bundle to the server again."];
      throw new BundleError("damaged-file", `The file ${name} has the wrong size.`, context, hint);
    }
    held.push(value as Uint8Array<ArrayBuffer>);
    count += value.length;
    if (count >= PIECE) hand();
  }
  hand();
  return new Blob(pieces);
}
