/** Bundles, adapters and tensor files that are damaged or foreign are refused, each with its reason. */

import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { readFile, rename, rm, symlink, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, it } from "node:test";
import { BundleError, Tensor, Trainer, readTensors, tensorBytes } from "edgepeft-runtime";
import { folder } from "edgepeft-runtime/node";
import { BUNDLE, copyOfBundle, cut, data, inFolder, ort, refused } from "./support.js";

interface Graphs {
  checkedGraph(model: Uint8Array): { readonly locations: Set<string> };
}
const { checkedGraph } = (await import(new URL("../../dist/bundle/graphfile.js", import.meta.url).href)) as Graphs;

interface Json {
  [name: string]: Json;
}

/** Writes a bundle whose manifest was changed. */
async function withManifest(bundle: string, change: (manifest: Json) => void): Promise<void> {
  const path = join(bundle, "manifest.json");
  const manifest = JSON.parse(await readFile(path, "utf8")) as Json;
  change(manifest);
  await writeFile(path, JSON.stringify(manifest));
}

const set = (path: string, value: unknown): ((manifest: Json) => void) => {
  const [last, ...before] = path.split(" ").reverse() as [string, ...string[]];
  return (manifest) => {
    const place = before.reverse().reduce((part, name) => part[name]!, manifest) as unknown as Record<string, unknown>;
    if (value === undefined) delete place[last];
    else place[last] = value;
  };
};

const GRADIENT = { output: "gradients.0.gradient", bucket: "gradients.0", offset: 0 };
const MANIFESTS: readonly (readonly [string, string, (manifest: Json) => void])[] = [
  ["of a later version", "bundle-version", set("version", 3)],
  ["of another format", "bad-manifest", set("format", "zip")],
  ["with a field missing", "bad-manifest", set("loss", undefined)],
  ["with a field too many", "bad-manifest", set("inputs 0 shpae", [1])],
  ["with a dtype that is none", "bad-manifest", set("inputs 0 dtype", "float128")],
  ["with a size below 0", "bad-manifest", set("parameters 0 shape", [2, -6, 3, 3])],
  ["with a dimension that is not described", "bad-manifest", set("dimensions", {})],
  ["with a name that an object has by itself", "bad-manifest", set("inputs 0 shape 0", "constructor")],
  ["with two tensors of one name", "bad-manifest", set("labels 0 name", "image")],
  ["with a bucket of another size", "bad-manifest", set("buckets 0 size", 1)],
  ["with a bucket of unknown members", "bad-manifest", set("buckets 0 members 0", "nobody")],
  ["with indices that belong to nothing", "bad-manifest", set("parameters 0 role", "indices")],
  ["without the layout of its adapter", "bad-manifest", set("adapter", undefined)],
  ["with a pair of another rank", "bad-manifest", set("adapter pairs 0 rank", 3)],
  ["with a pair of another layout", "bad-manifest", set("adapter pairs 0 layout", "graph")],
  ["with a trained parameter that does not train", "bad-manifest", set("adapter non_trainable 0", "nobody")],
  ["without programs", "bad-manifest", set("programs", undefined)],
  ["with a program of a graph that it does not list", "bad-manifest", set("programs eval 0 graph", "other.onnx")],
  ["with a program of a file that is no graph", "bad-manifest", set("programs eval 0 graph", "weights.bin")],
  ["with a gradient of no bucket", "bad-manifest", set("programs train 0 accumulate 0 bucket", "nobody")],
  ["with a gradient beyond its bucket", "bad-manifest", set("programs train 0 accumulate 0 offset", 192)],
  ["with gradients where nothing trains", "bad-manifest", set("programs eval 0 accumulate", [GRADIENT])],
  ["with a bucket that gets no gradient", "bad-manifest", set("programs train 0 accumulate", [GRADIENT])],
  ["with a program that nothing asks for", "bad-manifest", set("programs generate", [])],
  ["with a frozen tensor beyond the weights", "bad-manifest", set("frozen 0 offset", 2 ** 40)],
  ["with a frozen tensor of another size", "bad-manifest", set("frozen 0 bytes", 4)],
  ["that reads a value that does not exist", "bad-program", set("programs eval 0 inputs", { image: "picture" })],
  ["that writes a value that exists", "bad-program", set("programs eval 0 outputs", { output: "image" })],
  ["that writes a value twice", "bad-program", set("programs eval 0 outputs", { output: "loss_sum" })],
  ["that names an input that is none", "bad-program", set("programs eval 0 inputs", { nothing: "image" })],
  ["that adds an output that is none", "bad-program", set("programs train 0 accumulate 0 output", "nothing")],
  ["that caches what trained parameters change", "bad-program", set("cache", { value: "loss_sum" })],
  ["that caches what no call writes", "bad-program", set("cache", { value: "image" })],
  ["without a call that writes a result", "bad-program", set("programs infer", [])],
  ["without a file that is needed", "missing-file", set("files optimizer.onnx", undefined)],
  ["with a file outside of it", "path-escape", set("files ../x", { sha256: "0".repeat(64), bytes: 1 })],
  ["with a file of another hash", "damaged-file", set("files train.onnx sha256", "0".repeat(64))],
  ["with a file of another number of parts", "bad-manifest", set("files weights.bin parts", [])],
  ["with a file with another part", "damaged-file", set("files weights.bin parts", ["0".repeat(64)])],
  ["with a file of another size", "damaged-file", set("files train.onnx bytes", 7)],
  ["for a later ONNX Runtime", "onnxruntime-too-old", set("min_onnxruntime", "9.1")],
  ["for something that is no version", "bad-manifest", set("min_onnxruntime", "new")],
];

describe("a bundle", () => {
  for (const [what, code, change] of MANIFESTS) {
    it(`${what} is refused`, () =>
      inFolder(async (work) => {
        const bundle = await copyOfBundle(work);
        await withManifest(bundle, change);
        await assert.rejects(Trainer.open(folder(bundle), { ort }), refused(code));
      }));
  }

  it("whose gradient does not fit is refused when it is computed, and the run stays as it was", () =>
    inFolder(async (work) => {
      const bundle = await copyOfBundle(work);
      await withManifest(bundle, set("programs train 0 accumulate 0 offset", 1));
      const trainer = await Trainer.open(folder(bundle), { ort });
      await assert.rejects(trainer.step(cut(await data(), 0, 4)), refused("bad-program"));
      assert.equal(trainer.steps, 0);
      await trainer.close();
    }));

  it("with one bit changed in any of its files is refused", () =>
    inFolder(async (work) => {
      const bundle = await copyOfBundle(work);
      for (const name of [
        "train.onnx",
        "optimizer.onnx",
        "eval.onnx",
        "infer.onnx",
        "weights.bin",
        "adapter.safetensors",
      ]) {
        const bytes = await readFile(join(bundle, name));
        bytes[bytes.length >> 1]! ^= 4;
        await writeFile(join(bundle, name), bytes);
        await assert.rejects(Trainer.open(folder(bundle), { ort }), refused("damaged-file"));
        bytes[bytes.length >> 1]! ^= 4;
        await writeFile(join(bundle, name), bytes);
      }
      await (await Trainer.open(folder(bundle), { ort })).close();
    }));

  it("with a file missing, a link, a file too many, or a name twice in its manifest is refused", () =>
    inFolder(async (work) => {
      const bundle = await copyOfBundle(work);
      const weights = join(bundle, "weights.bin");
      await rename(weights, join(work, "weights.bin"));
      await assert.rejects(Trainer.open(folder(bundle), { ort }), refused("missing-file"));
      await symlink(join(work, "weights.bin"), weights);
      await assert.rejects(Trainer.open(folder(bundle), { ort }), refused("not-a-regular-file"));
      await rm(weights);
      await rename(join(work, "weights.bin"), weights);
      await writeFile(join(bundle, "extra.bin"), "x");
      await assert.rejects(Trainer.open(folder(bundle), { ort }), refused("undeclared-file"));
      await rm(join(bundle, "extra.bin"));
      const manifest = await readFile(join(bundle, "manifest.json"), "utf8");
      await writeFile(join(bundle, "manifest.json"), manifest.replace('"version": 2', '"version": 2, "version": 2'));
      await assert.rejects(Trainer.open(folder(bundle), { ort }), refused("bad-manifest"));
      await assert.rejects(Trainer.open(folder(work), { ort }), refused("missing-file"));
    }));

  it("whose graph reads another file is refused, though every hash is right", () =>
    inFolder(async (work) => {
      const bundle = await copyOfBundle(work);
      const path = join(bundle, "train.onnx");
      const text = (await readFile(path)).toString("latin1").replace("weights.bin", "/etc/passwd");
      await writeFile(path, text, "latin1");
      const sha256 = createHash("sha256").update(text, "latin1").digest("hex");
      await withManifest(bundle, set("files train.onnx sha256", sha256));
      await assert.rejects(Trainer.open(folder(bundle), { ort }), refused("path-escape"));
    }));
});

describe("a graph that every hash fits", () => {
  const varint = (value: number): number[] => (value < 128 ? [value] : [(value & 127) | 128, ...varint(value >> 7)]);
  const field = (number: number, content: Uint8Array): number[] => {
    return [...varint((number << 3) | 2), ...varint(content.length), ...content];
  };
  const text = (content: string): Uint8Array => new TextEncoder().encode(content);
  const entry = (key: string, value: string): number[] => {
    return field(13, Uint8Array.from([...field(1, text(key)), ...field(2, text(value))]));
  };
  /** A model of one tensor, which lies in another file. */
  const model = (...more: number[]): Uint8Array => {
    const tensor = [8, 1, 16, 1, ...field(8, text("w")), ...entry("location", "weights.bin"), ...more, 112, 1];
    return Uint8Array.from(field(7, Uint8Array.from(field(5, Uint8Array.from(tensor)))));
  };
  /** A model with a Loop whose trip count is the initializer `n`, an int64. */
  const loop = (count: number, name = "n"): Uint8Array => {
    const body = field(5, Uint8Array.from([...field(1, text("body")), ...field(6, new Uint8Array())]));
    const node = [...field(1, text(name)), ...field(4, text("Loop")), ...body];
    const tensor = [16, 7, 56, ...varint(count), ...field(8, text("n"))];
    return Uint8Array.from(
      field(7, Uint8Array.from([...field(1, Uint8Array.from(node)), ...field(5, Uint8Array.from(tensor))])),
    );
  };
  const graph = model().slice(2);
  const bad: readonly (readonly [string, string, Uint8Array])[] = [
    ["with a tag beyond 32 bits", "bad-graph", Uint8Array.from([0xba, 0x80, 0x80, 0x80, 0x10, ...model().slice(1)])],
    ["with a tag in more bytes than it needs", "bad-graph", Uint8Array.from([0xba, 0x00, ...model().slice(1)])],
    ["with its graph twice", "bad-graph", Uint8Array.from([...model(), ...model()])],
    ["with a group", "bad-graph", Uint8Array.from([...model(), 0x3b, ...graph, 0x3c])],
    ["with a field of number 0", "bad-graph", Uint8Array.from([...model(), 2, 1, 120])],
    ["with an unknown field", "bad-graph", Uint8Array.from([...model(), ...field(99, graph)])],
    ["with a function", "bad-graph", Uint8Array.from([...model(), ...field(25, new Uint8Array())])],
    ["with a number of 11 bytes", "bad-graph", Uint8Array.from([...model(), 40, ...Array<number>(10).fill(255), 1])],
    ["cut short", "bad-graph", model().slice(0, -1)],
    ["without a graph", "bad-graph", new Uint8Array()],
    ["that could be of another format", "bad-graph", Uint8Array.from([18, 6, 0, 0, ...text("ORTM"), ...model()])],
    ["with two places for a tensor", "bad-graph", model(...entry("location", "../secret"))],
    ["with a tensor here and elsewhere", "bad-graph", model(112, 0)],
    ["with a loop of unknown length", "unbounded-loop", loop(3, "x")],
    ["with a loop that hardly ends", "unbounded-loop", loop(2 ** 17)],
  ];
  for (const [what, code, bytes] of bad) {
    it(`${what} is refused`, async () => {
      assert.throws(() => checkedGraph(bytes), refused(code));
    });
  }

  it("with a loop of constant length is taken, and its files are told", () => {
    assert.deepEqual([...checkedGraph(model()).locations], ["weights.bin"]);
    assert.deepEqual([...checkedGraph(loop(3)).locations], []);
  });
});

describe("an adapter", () => {
  it("is refused where it is cut short, changed, not finite, or of another bundle", async () => {
    const trainer = await Trainer.open(folder(BUNDLE), { ort });
    const update = await trainer.saveUpdate();
    const open = (adapter: Uint8Array): Promise<Trainer> => Trainer.open(folder(BUNDLE), { ort, adapter });
    await (await open(update)).close();
    await assert.rejects(open(update.slice(0, -4)), refused("wrong-digest"));
    const changed = update.slice();
    changed[changed.length - 1]! ^= 1;
    await assert.rejects(open(changed), refused("wrong-digest"));
    const values = trainer.parameters();
    const [first, ...others] = Object.keys(values);
    const { [first!]: left, ...rest } = values;
    await assert.rejects(open((await tensorBytes(rest)).bytes), refused("wrong-tensors"));
    const bad = new Tensor("float32", new Float32Array(left!.size).fill(Infinity), left!.dims);
    await assert.rejects(open((await tensorBytes({ ...rest, [first!]: bad })).bytes), refused("not-finite"));
    const flat = new Tensor("float32", left!.data as Float32Array, [left!.size]);
    await assert.rejects(open((await tensorBytes({ ...rest, [first!]: flat })).bytes), refused("wrong-tensors"));
    assert.ok(others.length > 0);
    await trainer.close();
  });
});

describe("a tensor file", () => {
  const file = (header: string, body = 0): Uint8Array => {
    const text = new TextEncoder().encode(header);
    const bytes = new Uint8Array(8 + text.length + body);
    new DataView(bytes.buffer).setBigUint64(0, BigInt(text.length), true);
    bytes.set(text, 8);
    return bytes;
  };
  const entry = (start: number, stop: number): string =>
    `{"dtype":"F32","shape":[1],"data_offsets":[${start},${stop}]}`;
  const bad: readonly (readonly [string, string, Uint8Array])[] = [
    ["with seven bytes", "truncated-tensor-file", new Uint8Array(7)],
    ["with a header of 2 GB", "tensor-file-header", Uint8Array.of(0, 0, 0, 128, 0, 0, 0, 0)],
    ["with a header beyond its end", "truncated-tensor-file", Uint8Array.of(9, 0, 0, 0, 0, 0, 0, 0, 123)],
    ["with a header that is no JSON", "tensor-file-header", file("{oops}")],
    ["with one name twice", "tensor-file-header", file(`{"a":${entry(0, 4)},"a":${entry(0, 4)}}`, 4)],
    [
      "with one name twice, spelt otherwise",
      "tensor-file-header",
      file(`{"a":${entry(0, 4)},"\\u0061":${entry(0, 4)}}`, 4),
    ],
    ["with an unknown dtype", "tensor-file-header", file('{"a":{"dtype":"F8","shape":[1],"data_offsets":[0,1]}}', 1)],
    ["with a range that does not fit", "tensor-file-layout", file(`{"a":${entry(0, 8)}}`, 8)],
    ["with overlapping ranges", "tensor-file-layout", file(`{"a":${entry(0, 4)},"b":${entry(0, 4)}}`, 4)],
    ["with a hole", "tensor-file-layout", file(`{"a":${entry(0, 4)},"b":${entry(8, 12)}}`, 12)],
    ["with bytes behind its end", "truncated-tensor-file", file(`{"a":${entry(0, 4)}}`, 5)],
    [
      "with 5,000 axes",
      "tensor-file-header",
      file(`{"a":{"dtype":"F32","shape":[${"9,".repeat(4999)}9],"data_offsets":[0,0]}}`),
    ],
    [
      "with a product beyond all files",
      "tensor-file-layout",
      file(`{"a":{"dtype":"F32","shape":[${"9,".repeat(31)}9],"data_offsets":[0,0]}}`),
    ],
    [
      "with sizes that no runtime counts",
      "tensor-file-layout",
      file(`{"a":{"dtype":"F32","shape":[0,${2 ** 52},${2 ** 52}],"data_offsets":[0,0]}}`),
    ],
    ["with half of a surrogate pair", "tensor-file-header", file(`{"\\ud800":${entry(0, 4)}}`, 4)],
    ["with a header nested deep", "tensor-file-header", file(`{"a":${"[".repeat(100)}${"]".repeat(100)}}`)],
    ["with metadata that is no text", "tensor-file-header", file('{"__metadata__":{"a":1}}')],
  ];
  for (const [what, code, bytes] of bad) {
    it(`${what} is refused`, () => assert.rejects(readTensors(bytes, "The file", BundleError), refused(code)));
  }

  it("is refused in a message that does not grow with it", async () => {
    const long = file(`{"${"x".repeat(1_000_000)}\\u001b[2J":${JSON.stringify(Array(100_000).fill("y"))}}`);
    await assert.rejects(readTensors(long, "The file", BundleError), (failure) => {
      assert.ok(failure instanceof BundleError && String(failure).length < 1000);
      return !String(failure).includes("\u001b");
    });
  });

  it("comes back as it was written, of every dtype", async () => {
    const tensors = {
      'a name, quoted " and é': new Tensor("float32", Float32Array.of(1, -0, 3e-9), [3, 1]),
      scalar: new Tensor("int64", BigInt64Array.of(-5n), []),
      flags: new Tensor("bool", Uint8Array.of(1, 0), [2]),
      none: new Tensor("int32", new Int32Array(0), [0, 4]),
    };
    const { bytes } = await tensorBytes(tensors, { note: "a note" }, true);
    const read = await readTensors(bytes, "The file", BundleError, true);
    assert.equal(read.metadata.get("note"), "a note");
    for (const [name, tensor] of Object.entries(tensors)) {
      assert.deepEqual([read.tensors[name]!.dims, read.tensors[name]!.data], [tensor.dims, tensor.data]);
    }
  });

  it("of bfloat16 is read as float32, without loss", async () => {
    const bytes = file('{"a":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}}', 4);
    bytes.set([0xc0, 0x3f, 0x20, 0xc1], bytes.length - 4);
    assert.deepEqual((await readTensors(bytes, "The file", BundleError)).tensors["a"]!.data, Float32Array.of(1.5, -10));
  });

  it("with one byte changed anywhere is refused, if it has a digest", async () => {
    const { bytes } = await tensorBytes({ a: new Tensor("float32", Float32Array.of(1, 2), [2]) }, { b: "c" }, true);
    for (let place = 0; place < bytes.length; place++) {
      const changed = bytes.slice();
      changed[place]! ^= 1 << (place % 8);
      await assert.rejects(
        readTensors(changed, "The file", BundleError, true),
        (failure) => failure instanceof BundleError,
      );
    }
  });

  it("is hashed the same without WebCrypto", async () => {
    const message = await readFile(join(BUNDLE, "train.onnx"));
    const home = new URL("../../dist/files/sha256.js", import.meta.url).href;
    const { Hasher } = (await import(home)) as { Hasher: new () => { update(part: Uint8Array): void; hex(): string } };
    for (const length of [0, 1, 55, 56, 63, 64, 65, message.length]) {
      const part = message.subarray(0, length);
      const hasher = new Hasher();
      for (let start = 0; start < length; start += 7) hasher.update(part.subarray(start, start + 7));
      assert.equal(hasher.hex(), createHash("sha256").update(part).digest("hex"));
    }
  });
});
