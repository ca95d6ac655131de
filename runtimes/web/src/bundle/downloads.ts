/** Downloads a bundle into a folder of the origin's private file system (OPFS), where it is read in parts. */

import { BundleError } from "../errors.js";
import { sha256 } from "../files/sha256.js";
import { type BundleFiles, fileHandle, handleFiles, missing } from "./files.js";
import { MANIFEST, MAX_MANIFEST, checkDeclared } from "./declared.js";
import type { Manifest } from "./manifest.js";
import { readManifest } from "./manifest_checks.js";

/**
 * Makes a folder contain the bundle below a URL. Files that are there already are kept, so that an interrupted download
 * is continued with the next file, and a page opens without a network once it has its bundle.
 *
 * @param progress called with the bytes that are there and the bytes in all.
 * @returns the files, which `Trainer.open` checks.
 * @throws BundleError the bundle cannot be downloaded, or its manifest is wrong.
 */
export async function downloaded(
  url: string | URL,
  folder: FileSystemDirectoryHandle,
  progress?: (read: number, all: number) => void,
): Promise<BundleFiles> {
  const base = String(url).replace(/\/?$/, "/");
  const [stored, coming] = [await storedManifest(folder), await fetchedManifest(base)];
  if (coming === null && stored === null) throw missing(base, MANIFEST, "there is no answer.");
  if (coming === null || (stored !== null && (await sha256(stored)) === (await sha256(coming))))
    return handleFiles(folder);
  const manifest = readManifest(coming);
  checkDeclared(manifest);
  await copy(base, manifest, folder, stored === null, progress);
  // It is written last: a folder with a manifest has all files of it.
  await write(folder, MANIFEST, new Blob([coming]).stream());
  return handleFiles(folder);
}

async function copy(
  base: string,
  { files }: Manifest,
  folder: FileSystemDirectoryHandle,
  keep: boolean,
  progress?: (read: number, all: number) => void,
): Promise<void> {
  const all = [...files.values()].reduce((sum, { bytes }) => sum + bytes, 0);
  let read = 0;
  for (const [name, { bytes }] of files) {
    if (keep && (await sizeIn(folder, name)) === bytes) {
      progress?.((read += bytes), all);
      continue;
    }
    const body = await fetched(base, name);
    if (body === null) throw missing(base, name, "there is no answer.");
    const counted = (part: number): void => progress?.((read += part), all);
    await write(folder, name, body.pipeThrough(bounded(name, bytes, counted)));
  }
}

/** Passes at most `most` bytes on. */
function bounded(
  name: string,
  most: number,
  count: (bytes: number) => void,
): TransformStream<Uint8Array<ArrayBuffer>, Uint8Array<ArrayBuffer>> {
  let length = 0;
  return new TransformStream({
    transform(part, controller): void {
      length += part.length;
      if (length > most) {
        const [context, hint] = [`expected ${most} bytes, found more`, "copy the bundle to the server again."];
        throw new BundleError("damaged-file", `The file ${name} has the wrong size.`, context, hint);
      }
      controller.enqueue(part);
      count(part.length);
    },
  });
}

/** Returns the content of a file below a URL; `null` without a network, and where the server has none. */
async function fetched(base: string, name: string): Promise<ReadableStream<Uint8Array<ArrayBuffer>> | null> {
  const response = await fetch(base + name.split("/").map(encodeURIComponent).join("/")).catch(() => null);
  return response?.ok ? (response.body as ReadableStream<Uint8Array<ArrayBuffer>> | null) : null;
}

async function fetchedManifest(base: string): Promise<Uint8Array<ArrayBuffer> | null> {
  const body = await fetched(base, MANIFEST);
  if (body === null) return null;
  return bytesOf(new Response(body.pipeThrough(bounded(MANIFEST, MAX_MANIFEST, () => undefined))));
}

async function storedManifest(folder: FileSystemDirectoryHandle): Promise<Uint8Array<ArrayBuffer> | null> {
  const file = await fileIn(folder, MANIFEST);
  return file === null ? null : bytesOf(file);
}

async function bytesOf(content: Response | Blob): Promise<Uint8Array<ArrayBuffer>> {
  return new Uint8Array(await content.arrayBuffer());
}

async function sizeIn(folder: FileSystemDirectoryHandle, name: string): Promise<number | null> {
  return (await fileIn(folder, name))?.size ?? null;
}

/** Returns a file; `null` if there is none. */
async function fileIn(folder: FileSystemDirectoryHandle, name: string): Promise<File | null> {
  const handle = await fileHandle(folder, name).catch((failure: unknown) => {
    if (failure instanceof DOMException && failure.name === "NotFoundError") return null;
    throw failure;
  });
  return handle === null ? null : handle.getFile();
}

/** Replaces a file once all of its content has come. */
async function write(folder: FileSystemDirectoryHandle, name: string, content: ReadableStream): Promise<void> {
  await content.pipeTo(await (await fileHandle(folder, name, { create: true })).createWritable());
}
