/**
 * Does what a plan says, for comparison with other runtimes: `node drive.js PLAN.json [node|wasm]`, the result as JSON.
 */

import { readFile } from "node:fs/promises";
import { Tokenizer } from "@huggingface/tokenizers";
import {
  type Example,
  type FitOptions,
  type Sampling,
  type Tensors,
  EdgepeftError,
  Prompter,
  Trainer,
} from "edgepeft-runtime";
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
  /** Token ids of prompts, each of which is continued. */
  readonly prompts?: readonly (readonly number[])[];
  readonly sampling?: Sampling;
  /** Prompts and answers to tokenize. */
  readonly examples?: readonly Example[];
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
  const texts: number[][] = [];
  for (const prompt of plan.prompts ?? []) texts.push(await trainer.generate(prompt, plan.sampling));
  const batch = plan.examples && tokenized(trainer, plan.examples);
  if (plan.update !== undefined) await writeAtomically(plan.update, await trainer.saveUpdate());
  await trainer.close();
  const { steps, history } = trainer;
  return { losses, steps, history, evaluation, outputs: outputs && listed(outputs), texts, batch };
}

/** One batch of all examples, as numbers. */
function tokenized(trainer: Trainer, examples: readonly Example[]): unknown {
  const { bundle } = trainer;
  const description = JSON.parse(new TextDecoder().decode(bundle.file("tokenizer.json"))) as object;
  const texts = Prompter.of(bundle.manifest, new Tokenizer(description, {})).answered(examples);
  const batch = texts.batch([...examples.keys()]) as Tensors;
  const numbers = Object.entries(batch).map(([name, tensor]) => [
    name,
    Array.from(tensor.data as BigInt64Array, Number),
  ]);
  return { ...Object.fromEntries(numbers), notices: texts.notices };
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
