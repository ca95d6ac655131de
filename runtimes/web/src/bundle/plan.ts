/**
 * A program with all its names resolved: what each call reads and writes, and when a value is no longer needed.
 *
 * A graph's inputs and outputs are known only from the file, so this is the second half of the checks of a program; the
 * first half, which needs the manifest alone, is in `program_checks.ts`.
 */

import { BundleError } from "../errors.js";
import { quoted } from "../shown.js";
import type { Manifest } from "./manifest.js";
import type { Accumulation, Call, ProgramName } from "./programs.js";

export const LOSS_SUM = "loss_sum";
export const LOSS_WEIGHT = "loss_weight";
export const LOGITS = "logits";

/** The names of a graph's inputs and outputs. */
export interface Interface {
  readonly inputs: readonly string[];
  readonly outputs: readonly string[];
}

/** One call of a plan. */
export interface PlannedCall {
  /** The file. */
  readonly graph: string;
  /** The value of each input. */
  readonly reads: ReadonlyMap<string, string>;
  /** The value of each output that is needed. */
  readonly writes: ReadonlyMap<string, string>;
  /** Further outputs, which are added to accumulators. */
  readonly accumulate: readonly Accumulation[];
  /** Values that no later call reads and that are no results. */
  readonly frees: readonly string[];
}

export type Plan = readonly PlannedCall[];

/**
 * Returns the calls of a program that are needed for some results.
 *
 * @param interfaceOf returns a graph's inputs and outputs.
 * @param results the values to compute; by default all results of the program.
 * @throws BundleError a call reads a value that does not exist, or writes one that exists; no call writes a result; a
 *     name is not an input or output of its graph.
 */
export function plan(
  manifest: Manifest,
  program: ProgramName,
  interfaceOf: (graph: string) => Interface,
  results: readonly string[] = resultsOf(manifest, program),
): Plan {
  const given = givenTo(manifest, program);
  const calls = manifest.programs[program]!.map((call, index) => {
    return resolved(`${program}[${index}]`, call, interfaceOf(call.graph));
  });
  checkOrder(program, calls, given, results);
  if (program === "train") checkCache(manifest, calls);
  return withFrees(needed(calls, given, results), new Set([...results, ...given]));
}

/** Returns the names of the values that exist before the first call of a program. */
function givenTo({ inputs, labels, parameters, frozen, generation }: Manifest, program: ProgramName): Set<string> {
  const always = [...parameters, ...frozen].map(({ name }) => name);
  if (program !== "generate") {
    return new Set([...(program === "infer" ? inputs : [...inputs, ...labels]).map(({ name }) => name), ...always]);
  }
  const { ids, attention_mask, cache } = generation!;
  return new Set([ids, attention_mask!, ...cache.map(({ past }) => past), ...always]);
}

/** Returns the values that a program must compute, besides what it adds to accumulators. */
export function resultsOf(manifest: Manifest, program: ProgramName): readonly string[] {
  const outputs = manifest.outputs.map(({ name }) => name);
  if (program === "generate") return [LOGITS, ...manifest.generation!.cache.map(({ present }) => present)];
  if (program === "select") return manifest.sparse.flatMap(({ gradient }) => (gradient === null ? [] : [gradient]));
  if (program === "infer") return outputs;
  return program === "train" ? [LOSS_SUM, LOSS_WEIGHT] : [LOSS_SUM, LOSS_WEIGHT, ...outputs];
}

/** Returns a call with all inputs and outputs. @throws BundleError the graph does not have one of its names. */
function resolved(where: string, call: Call, { inputs, outputs }: Interface): PlannedCall {
  const added = new Set(call.accumulate.map(({ output }) => output));
  checkNames("input", where, call, [...call.inputs.keys()], inputs);
  checkNames("output", where, call, [...call.outputs.keys(), ...added], outputs);
  const values = outputs.filter((name) => call.outputs.has(name) || !added.has(name));
  const writes = new Map(values.map((name) => [name, call.outputs.get(name) ?? name]));
  if (new Set(writes.values()).size < writes.size) {
    throw badProgram("A program writes a value twice.", at(where, call, [...writes.values()]));
  }
  const reads = new Map(inputs.map((name) => [name, call.inputs.get(name) ?? name]));
  return { graph: call.graph, reads, writes, accumulate: call.accumulate, frees: [] };
}

function checkNames(
  kind: string,
  where: string,
  call: Call,
  names: readonly string[],
  existing: readonly string[],
): void {
  const unknown = names.find((name) => !existing.includes(name));
  if (unknown === undefined) return;
  throw badProgram(`A program names an ${kind} that its graph does not have.`, at(where, call, [unknown]));
}

function checkOrder(program: string, calls: Plan, given: ReadonlySet<string>, results: readonly string[]): void {
  const existing = new Set(given);
  for (const [index, call] of calls.entries()) {
    const where = `${program}[${index}]`;
    const absent = [...call.reads.values()].filter((value) => !existing.has(value));
    if (absent.length > 0) {
      throw badProgram("A program reads a value that does not exist before the call.", at(where, call, absent));
    }
    const twice = [...call.writes.values()].filter((value) => existing.has(value));
    if (twice.length > 0)
      throw badProgram("A program writes a value that exists before the call.", at(where, call, twice));
    for (const value of call.writes.values()) existing.add(value);
  }
  const missing = results.find((result) => !existing.has(result));
  if (missing === undefined) return;
  throw badProgram("No call of a program writes one of its results.", `${program}: ${quoted(missing)}`);
}

/** Refuses a value to cache that no call writes, or that may change from step to step. */
function checkCache({ cache, parameters, labels, adapter }: Manifest, calls: Plan): void {
  if (cache === null) return;
  const training = parameters.filter(({ name }) => !adapter.non_trainable.includes(name));
  const changing = new Set([...training, ...labels].map(({ name }) => name));
  const written = new Set<string>();
  for (const { reads, writes } of calls) {
    const changes = [...reads.values()].some((value) => changing.has(value));
    for (const value of writes.values()) (changes ? changing : written).add(value);
  }
  if (written.has(cache.value)) return;
  const message = "The value to cache is not one that calls compute from the inputs and frozen tensors alone.";
  throw badProgram(message, `cache: ${quoted(cache.value)}`);
}

/** Returns, in order, the calls without which a result or a gradient would be missing, with the outputs they need. */
function needed(calls: Plan, given: ReadonlySet<string>, results: readonly string[]): Plan {
  const wanted = new Set(results.filter((result) => !given.has(result)));
  const kept: PlannedCall[] = [];
  for (const call of [...calls].reverse()) {
    const writes = new Map([...call.writes].filter(([, value]) => wanted.has(value)));
    if (writes.size === 0 && call.accumulate.length === 0) continue;
    kept.unshift({ ...call, writes });
    for (const value of call.reads.values()) if (!given.has(value)) wanted.add(value);
  }
  return kept;
}

function withFrees(calls: Plan, kept: ReadonlySet<string>): Plan {
  const last = new Map(
    calls.flatMap(({ reads }, index) => [...reads.values()].map((value) => [value, index] as const)),
  );
  return calls.map((call, index) => {
    const ends = [...new Set(call.reads.values())].filter((value) => last.get(value) === index && !kept.has(value));
    return { ...call, frees: ends };
  });
}

function at(where: string, { graph }: { readonly graph: string }, names: readonly string[]): string {
  return `${where}, ${quoted(graph)}: ${names
    .slice(0, 8)
    .map((name) => quoted(name))
    .join(", ")}`;
}

/** The error of a program that does not fit its graphs. */
export function badProgram(message: string, context: string): BundleError {
  const hint = "prepare the bundle again, or copy it again if it was edited.";
  return new BundleError("bad-program", message, context, hint);
}
