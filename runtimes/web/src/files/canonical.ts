/** Canonical JSON: hashed content has exactly one form (section 8.1 of the SPEC). */

/** A value of JSON; a `Map` is an object of any names. */
export type Json =
  string | number | boolean | null | readonly Json[] | ReadonlyMap<string, Json> | { readonly [name: string]: Json };

/** Returns the canonical form: keys in the order of their code points, no white space, a newline at the end. */
export function canonical(value: Json): string {
  return `${written(value)}\n`;
}

function written(value: Json): string {
  if (typeof value !== "object" || value === null) return JSON.stringify(value);
  if (Array.isArray(value)) return `[${value.map(written).join(",")}]`;
  const entries = [...(value instanceof Map ? (value as Map<string, Json>) : Object.entries(value as object))];
  entries.sort(([a], [b]) => byCodePoint(a, b));
  return `{${entries.map(([name, item]) => `${JSON.stringify(name)}:${written(item as Json)}`).join(",")}}`;
}

/** Compares texts by their code points: JavaScript's own order is that of UTF-16's units. */
function byCodePoint(a: string, b: string): number {
  const [left, right] = [Array.from(a), Array.from(b)];
  const at = left.findIndex((sign, i) => sign !== right[i]);
  if (at < 0) return left.length - right.length;
  return left[at]!.codePointAt(0)! - (right[at]?.codePointAt(0) ?? -1);
}
