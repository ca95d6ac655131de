/** Sources of the files of a bundle: a URL, a folder that the user picked, or the origin's private folder (OPFS). */

import { BundleError } from "../errors.js";

/** The files of a bundle, by names with `/` between folders. */
export interface BundleFiles {
  /** Its name, for messages. */
  readonly name: string;
  /** Returns all bytes of a file; `size` is what the manifest says, so that a stream needs only one buffer. */
  read(name: string, size?: number): Promise<Uint8Array>;
  /** Returns names and sizes of all files, if they can be listed. */
  list?(): Promise<ReadonlyMap<string, number>>;
  /** Returns the path of a file, if there are paths: ONNX Runtime then maps the weights instead of copying them. */
  path?(name: string): string;
}

/** A bundle below a URL, streamed. */
export function urlFiles(url: string | URL): BundleFiles {
  const base = String(url).replace(/\/?$/, "/");
  return {
    name: base,
    async read(name, size) {
      const response = await fetch(base + name.split("/").map(encodeURIComponent).join("/"));
      if (!response.ok || response.body === null) throw missing(base, name, `HTTP status ${response.status}`);
      return size === undefined ? new Uint8Array(await response.arrayBuffer()) : streamed(response.body, size, name);
    },
  };
}

/** A bundle in a folder of the File System API: picked by the user, or of the origin's private file system. */
export function handleFiles(folder: FileSystemDirectoryHandle): BundleFiles {
  return {
    name: folder.name,
    async read(name) {
      const parts = name.split("/");
      try {
        let parent = folder;
        for (const part of parts.slice(0, -1)) parent = await parent.getDirectoryHandle(part);
        const file = await (await parent.getFileHandle(parts.at(-1)!)).getFile();
        return new Uint8Array(await file.arrayBuffer());
      } catch (failure) {
        throw missing(folder.name, name, String(failure));
      }
    },
  };
}

/** A bundle of files in memory, by name: bytes, or the files of a file input. */
export function heldFiles(files: ReadonlyMap<string, Uint8Array | Blob>, name = "the bundle"): BundleFiles {
  return {
    name,
    async read(file) {
      const content = files.get(file);
      if (content === undefined) throw missing(name, file, "it is not among the files passed.");
      return content instanceof Uint8Array ? content : new Uint8Array(await content.arrayBuffer());
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

/** Allocates memory for a file of the size that the manifest claims. */
function reserved(size: number, name: string): Uint8Array {
  try {
    return new Uint8Array(size);
  } catch (failure) {
    const hint = "use a smaller bundle, or another device.";
    throw new BundleError("damaged-file", `There is no room for the file ${name}.`, String(failure), hint);
  }
}

async function streamed(body: ReadableStream<Uint8Array>, size: number, name: string): Promise<Uint8Array> {
  const whole = reserved(size, name);
  const reader = body.getReader();
  let length = 0;
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return whole.subarray(0, length);
    if (length + value.length > size) {
      await reader.cancel();
      const hint = "copy the bundle to the server again.";
      throw new BundleError(
        "damaged-file",
        `The file ${name} has the wrong size.`,
        `expected ${size} bytes, found more`,
        hint,
      );
    }
    whole.set(value, length);
    length += value.length;
  }
}
