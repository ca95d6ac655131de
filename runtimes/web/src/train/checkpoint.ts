/** The checkpoints of a run, each with a digest (section 6 of the SPEC). */

import { type Bundle, checkedParameters, checkedTensors } from "../bundle/bundle.js";
import { StateError } from "../errors.js";
import { NEWEST, PREVIOUS, type StateStore } from "./store.js";
import { type TensorFile, readTensors, tensorBytes } from "../files/tensorfile.js";
import type { Tensors } from "../files/tensors.js";

/** A saved run: parameters, optimizer state, the best parameters (if any), and the rest as JSON. */
export interface Checkpoint {
  readonly parameters: Tensors;
  readonly optimizer: Tensors;
  readonly best: Tensors | null;
  readonly run: string;
}

/** The checkpoints in a locked store; create one with {@link Checkpoints.open}. */
export class Checkpoints {
  private keepNewest = true;

  private constructor(
    private readonly store: StateStore,
    private readonly bundle: Bundle,
    private readonly owner: Readonly<Record<string, string>>,
  ) {}

  /** @throws StateError it cannot be used, or another run uses it. */
  static async open(store: StateStore, bundle: Bundle, adapterSha256: string): Promise<Checkpoints> {
    const owner = { graphs_sha256: await bundle.graphsSha256(), adapter_sha256: adapterSha256 };
    if (await attempt(store, () => store.lock())) return new Checkpoints(store, bundle, owner);
    const hint = "end the other one, or use another state.";
    throw new StateError("state-in-use", `Cannot use ${store.name}.`, "another run uses it.", hint);
  }

  get name(): string {
    return this.store.name;
  }

  close(): Promise<void> {
    return this.store.close();
  }

  /** Writes a checkpoint, and keeps the one before it as the previous one. */
  async save({ parameters, optimizer, best, run }: Checkpoint): Promise<void> {
    const named = Object.entries({ parameter: parameters, state: optimizer, best: best ?? {} }).flatMap(
      ([group, tensors]) => {
        return Object.entries(tensors).map(([name, tensor]) => [`${group}:${name}`, tensor] as const);
      },
    );
    const metadata = { format: "edgepeft-checkpoint", version: "2", ...this.owner, run };
    const { bytes } = await tensorBytes(Object.fromEntries(named), metadata, true);
    // A damaged newest checkpoint must not replace a whole previous one.
    await attempt(this.store, () => this.store.replace(bytes, this.keepNewest));
    this.keepNewest = true;
  }

  /**
   * Returns the newest whole checkpoint; `null` in a new state.
   *
   * @throws StateError all are damaged, or the newest belongs to another bundle or adapter.
   */
  async load(): Promise<Checkpoint | null> {
    const failures: string[] = [];
    for (const name of [NEWEST, PREVIOUS] as const) {
      const bytes = await attempt(this.store, () => this.store.read(name));
      if (bytes === null) continue;
      let file: TensorFile;
      try {
        file = await readTensors(bytes, `The checkpoint ${name}`, StateError, true);
      } catch (failure) {
        if (!(failure instanceof StateError)) throw failure;
        failures.push(failure.context ?? "");
        continue;
      }
      this.keepNewest = failures.length === 0;
      return this.checked(file);
    }
    if (failures.length === 0) return null;
    const hint = "use another state; the run has to restart.";
    throw new StateError("damaged-state", `No checkpoint in ${this.name} is whole.`, failures.join("\n"), hint);
  }

  private checked({ tensors, metadata }: TensorFile): Checkpoint {
    const kind = `${metadata.get("format")} ${metadata.get("version")}`;
    const run = metadata.get("run");
    if (kind !== "edgepeft-checkpoint 2" || run === undefined) {
      throw new StateError(
        "unknown-checkpoint",
        `${this.name} has no checkpoint that this runtime can read.`,
        `found ${kind}`,
        "use another state.",
      );
    }
    for (const [key, expected] of Object.entries(this.owner)) {
      if (metadata.get(key) === expected) continue;
      const what = key === "adapter_sha256" ? "adapter" : "bundle";
      const context = `${key}: this run ${expected}, the state ${metadata.get(key)}`;
      const hint = "use the bundle and adapter that the run was started with, or another state.";
      throw new StateError("foreign-state", `The state in ${this.name} belongs to another ${what}.`, context, hint);
    }
    const { manifest } = this.bundle;
    const source = `The checkpoint in ${this.name}`;
    const best = group(tensors, "best");
    return {
      parameters: checkedParameters(group(tensors, "parameter"), manifest, source, StateError),
      optimizer: checkedTensors(group(tensors, "state"), manifest.optimizer.state, source, StateError),
      best: Object.keys(best).length === 0 ? null : checkedParameters(best, manifest, source, StateError),
      run,
    };
  }
}

function group(tensors: Tensors, name: string): Tensors {
  const entries = Object.entries(tensors).filter(([key]) => key.startsWith(`${name}:`));
  return Object.fromEntries(entries.map(([key, tensor]) => [key.slice(name.length + 1), tensor]));
}

async function attempt<T>(store: StateStore, work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (failure) {
    const hint = "check that the device has free space and that the state may be written.";
    throw new StateError("cannot-write-state", `Cannot use ${store.name}.`, String(failure), hint);
  }
}
