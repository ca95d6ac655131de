/** Programs: lists of calls, each of which runs one graph on named values (section 3 of the SPEC). */

import { canonical } from "../files/canonical.js";
import * as f from "../files/fields.js";

const accumulation = f.object({ output: f.text, bucket: f.text, offset: f.optional(f.natural, 0) });
const names = f.optional(f.mapOf(f.text), new Map<string, string>());
const call = f.object({
  graph: f.text,
  /** The value of each input of the graph that does not have the input's own name. */
  inputs: names,
  /** The name of the value that each output becomes, if it is not the output's own. */
  outputs: names,
  /** Outputs that are gradients. They are no values unless `outputs` names them. */
  accumulate: f.optional(f.list(accumulation), []),
});
const calls = f.list(call);

/** The programs of a bundle; `select` and `generate` are `null` where there is none. */
export const programs = f.object({
  train: calls,
  eval: calls,
  infer: calls,
  select: f.optional(calls, null),
  generate: f.optional(calls, null),
});

/** The value below which nothing trains: computed once for an example, it is the same in every epoch. */
export const cacheEntry = f.object({ value: f.text });

export type Programs = f.Read<typeof programs>;
export type ProgramName = keyof Programs;
export type Call = f.Read<typeof call>;
/** A flat output of a graph that is added to a part of a bucket's accumulator, from `offset` on. */
export type Accumulation = f.Read<typeof accumulation>;

/** Returns the programs that there are, by name. */
export function byName(programs: Programs): readonly (readonly [ProgramName, readonly Call[]])[] {
  return Object.entries(programs).flatMap(([name, calls]) => (calls === null ? [] : [[name as ProgramName, calls]]));
}

/** Returns the graphs of a run, each once, in the order of their first use. */
export function graphsOfRun({ train, eval: evaluation }: Programs): readonly string[] {
  return [...new Set([...train, ...evaluation].map(({ graph }) => graph))];
}

/** Returns the programs by which a run computes, as canonical JSON: part of `graphs_sha256`. */
export function programsOfRun({ train, eval: evaluation }: Programs): string {
  return canonical({ train, eval: evaluation });
}
