/** The sessions of a bundle's graphs: one per file, created on first use. */

import type { InferenceSession } from "onnxruntime-common";
import type { Bundle } from "../bundle/bundle.js";
import { WEIGHTS } from "../bundle/program_checks.js";
import { BundleError, TrainingError } from "../errors.js";
import type { Tensors } from "../files/tensors.js";
import type { Ort, Session } from "../ort.js";

/** Bytes of frozen tensors from which on ONNX Runtime must not copy them once more, re-arranged, to the heap. */
const LARGE_WEIGHTS = 1e8;

/** Runs the graphs of a bundle. */
export class Sessions {
  private readonly sessions = new Map<string, Promise<Session>>();
  private last: Promise<unknown> = Promise.resolve();

  constructor(
    private readonly bundle: Bundle,
    private readonly ort: Ort,
    private readonly options: InferenceSession.SessionOptions,
  ) {}

  /**
   * Returns these outputs of a graph by name. Graphs run one after another: a WebAssembly module does one thing at a time.
   *
   * @throws TrainingError ONNX Runtime failed.
   * @throws BundleError it cannot load the graph.
   */
  run(graph: string, outputs: readonly string[], inputs: Tensors): Promise<Tensors> {
    const turn = this.last.then(async () => {
      const session = await this.session(graph);
      try {
        return (await session.run(inputs, outputs)) as Tensors;
      } catch (failure) {
        const hint = "the node's name in the message leads to the layer; smaller batches use less memory.";
        throw new TrainingError("onnxruntime-failed", `ONNX Runtime failed in ${graph}.`, String(failure), hint);
      }
    });
    this.last = turn.catch(() => undefined);
    return turn;
  }

  /** Releases the sessions. */
  async close(): Promise<void> {
    await this.last;
    for (const session of await Promise.allSettled(this.sessions.values())) {
      if (session.status === "fulfilled") await session.value.release();
    }
    this.sessions.clear();
  }

  private session(graph: string): Promise<Session> {
    const open = this.sessions.get(graph) ?? this.open(graph);
    this.sessions.set(graph, open);
    return open;
  }

  private async open(graph: string): Promise<Session> {
    try {
      const { model, weights } = await this.bundle.graph(graph);
      const external = weights === null ? {} : { externalData: [{ path: WEIGHTS, data: weights }] };
      // Shapes change from batch to batch, and a memory plan for each takes memory.
      const fixed = { logSeverityLevel: 3 as const, enableMemPattern: false, ...external };
      const large = this.bundle.manifest.files.get(WEIGHTS)!.bytes >= LARGE_WEIGHTS;
      const extra = large ? { extra: { session: { disable_prepacking: "1" } } } : {};
      const options = { ...fixed, ...extra, ...this.options };
      const { InferenceSession: sessions } = this.ort;
      return await (typeof model === "string" ? sessions.create(model, options) : sessions.create(model, options));
    } catch (failure) {
      this.sessions.delete(graph);
      if (failure instanceof BundleError) throw failure;
      const hint = "prepare the bundle again with this version of ONNX Runtime as its minimum.";
      throw new BundleError("graph-not-loaded", `ONNX Runtime cannot load ${graph}.`, String(failure), hint);
    }
  }
}
