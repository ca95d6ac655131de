/** Bundles and states in folders of the app, by @dr.pogodin/react-native-fs. */

import { exists, mkdir, moveFile, read, readFile, stat, unlink, writeFile } from "@dr.pogodin/react-native-fs";
import type { BundleFiles, StateStore } from "edgepeft-runtime";

const NEWEST = "checkpoint.safetensors";
const PREVIOUS = "checkpoint.previous.safetensors";

/** A bundle in a folder; ONNX Runtime opens its graphs by their paths and maps the weights. */
export function folder(path: string): BundleFiles {
  return {
    name: path,
    path: (name) => `${path}/${name}`,
    async open(name) {
      const file = `${path}/${name}`;
      const { size } = await stat(file);
      return { size, read: async (offset, length) => bytesOf(await read(file, length, offset, "base64")) };
    },
  };
}

/** A state in a folder. An app is one process, so nothing else can hold it. */
export function stateFolder(path: string): StateStore {
  const at = (name: string): string => `${path}/${name}`;
  return {
    name: path,
    read: async (file) => ((await exists(at(file))) ? bytesOf(await readFile(at(file), "base64")) : null),
    async replace(bytes, keep) {
      await writeFile(at(`${NEWEST}.next`), textOf(bytes), "base64");
      if (await exists(at(NEWEST))) {
        if (keep && (await exists(at(PREVIOUS)))) await unlink(at(PREVIOUS));
        await (keep ? moveFile(at(NEWEST), at(PREVIOUS)) : unlink(at(NEWEST)));
      }
      await moveFile(at(`${NEWEST}.next`), at(NEWEST));
    },
    async lock() {
      await mkdir(path);
      return true;
    },
    close: () => Promise.resolve(),
  };
}

export async function write(path: string, bytes: Uint8Array): Promise<void> {
  await writeFile(path, textOf(bytes), "base64");
}

function bytesOf(base64: string): Uint8Array {
  return Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
}

function textOf(bytes: Uint8Array): string {
  // In pieces: a call takes only so many arguments.
  const pieces = Array.from({ length: Math.ceil(bytes.length / 8192) }, (_, i) =>
    bytes.subarray(8192 * i, 8192 * (i + 1)),
  );
  return btoa(pieces.map((piece) => String.fromCharCode(...piece)).join(""));
}
