/**
 * Does what a plan says, for comparison with other runtimes: `node drive.js PLAN.json [node|wasm]`, the result as JSON.
 */

import { readFile } from "node:fs/promises";
import { type FitOptions, type Tensors, EdgepeftError, Trainer } from "edgepeft-runtime";
import { folder, stateFolder, writeAtomically } from "edgepeft-runtime/node";
import { PACKAGES, cut, tensorsIn } from "./support.js";

/** Files are safetensors; what is missing is not done. */
interface Plan {
  readonly bundle: string;
  readonly data: string;
  readonly seed?: number;
  readonly state?: string;
  readonly adapter?: string;
  /** Rows of each step, first and last (exclusive). */
  readonly steps?: readonly (readonly [number, number])[];
  readonly fit?: FitOptions;
  /** Rows of the data that `fit` trains on, and those held out. */
  readonly train?: readonly [number, number];
  readonly validate?: readonly [number, number];
  /** Ends `fit` as a power cut would, after so many steps. */
  readonly die?: number;
  readonly evaluate?: readonly [number, number];
  readonly predict?: readonly [number, number];
  readonly update?: string;
}

async function follow(plan: Plan, ort: (typeof PACKAGES)[number][1]): Promise<unknown> {
  const data = await tensorsIn(plan.data);
  const adapter = plan.adapter === undefined ? {} : { adapter: new Uint8Array(await readFile(plan.adapter)) };
  const state = plan.state === undefined ? {} : { state: stateFolder(plan.state) };
  const options = { ort, seed: plan.seed ?? 0, session: { intraOpNumThreads: 1 }, ...adapter, ...state };
  const trainer = await Trainer.open(folder(plan.bundle), options);
  const losses: number[] = [];
  for (const rows of plan.steps ?? []) losses.push(await trainer.step(cut(data, ...rows)));
  if (plan.fit !== undefined) await fitted(trainer, data, plan, losses);
  const evaluation = plan.evaluate && (await trainer.evaluate(cut(data, ...plan.evaluate)));
  const outputs = plan.predict && (await trainer.predict(cut(data, ...plan.predict)));
  if (plan.update !== undefined) await writeAtomically(plan.update, await trainer.saveUpdate());
  await trainer.close();
  return { losses, steps: trainer.steps, history: trainer.history, evaluation, outputs: outputs && listed(outputs) };
}

async function fitted(trainer: Trainer, data: Tensors, plan: Plan, losses: number[]): Promise<void> {
  const progress = ({ step, loss }: { step: number; loss: number }): void => {
    losses.push(loss);
    if (step === plan.die) process.exit(0);
  };
  const all = [0, Object.values(data)[0]!.dims[0]!] as const;
  const validate = plan.validate === undefined ? {} : { validate: cut(data, ...plan.validate) };
  await trainer.fit(cut(data, ...(plan.train ?? all)), { ...plan.fit, ...validate, progress });
}

function listed(outputs: Tensors): unknown {
  return Object.fromEntries(
    Object.entries(outputs).map(([name, tensor]) => [
      name,
      { dims: tensor.dims, data: Array.from(tensor.data as Float32Array) },
    ]),
  );
}

const [path, name = "node"] = process.argv.slice(2);
const [, ort] = PACKAGES[name === "wasm" ? 1 : 0]!;
try {
  const result = await follow(JSON.parse(await readFile(path!, "utf8")) as Plan, ort);
  console.log(JSON.stringify(result));
} catch (failure) {
  if (!(failure instanceof EdgepeftError)) throw failure;
  console.error(failure.render());
  process.exitCode = 1;
}
