/** Reads JSON by a schema, and says which field is wrong, missing or unknown. */

import { quoted } from "../shown.js";

/** Most levels of objects and lists inside one another. */
const MAX_DEPTH = 64;

/** A defect of the JSON being read, which callers turn into an error of their own. */
export class Wrong extends Error {
  constructor(
    readonly where: string,
    readonly problem: string,
  ) {
    super(`${where}: ${problem}`);
  }
}

/** Returns the value as its type, or throws {@link Wrong}; `undefined` stands for a missing field. */
export type Reader<T> = (value: unknown, where: string) => T;
export type Read<R> = R extends Reader<infer T> ? T : never;

export const text: Reader<string> = check("a string", (v): v is string => typeof v === "string");
export const flag: Reader<boolean> = check("true or false", (v): v is boolean => typeof v === "boolean");
export const number: Reader<number> = check("a number", (v): v is number => Number.isFinite(v));
export const integer: Reader<number> = check("a whole number", (v): v is number => Number.isSafeInteger(v));
export const natural: Reader<number> = check("a whole number of at least 0", isNatural);
export const sha256Text: Reader<string> = check(
  "64 lower-case hexadecimal digits",
  (v): v is string => typeof v === "string" && /^[0-9a-f]{64}$/.test(v),
);
export const anyObject: Reader<Record<string, unknown>> = check("an object", isObject);

export function isNatural(value: unknown): value is number {
  return Number.isSafeInteger(value) && (value as number) >= 0;
}

export function check<T>(expected: string, accepts: (value: unknown) => value is T): Reader<T> {
  return (value, where) => {
    if (accepts(value)) return value;
    throw new Wrong(
      where,
      value === undefined ? "the field is missing." : `expected ${expected}, found ${quoted(value)}`,
    );
  };
}

export function oneOf<const T extends string>(choices: readonly T[]): Reader<T> {
  return check(`one of ${choices.join(", ")}`, (v): v is T => choices.includes(v as T));
}

/** A list of exactly `length` items, or of at most `most`; without either, of any length. */
export function list<T>(item: Reader<T>, length?: number, most = Infinity): Reader<readonly T[]> {
  const size = length === undefined ? (most === Infinity ? "" : ` of at most ${most}`) : ` of ${length}`;
  const whole = check(`a list${size}`, (v): v is unknown[] => {
    return Array.isArray(v) && (length === undefined ? v.length <= most : v.length === length);
  });
  return (value, where) => whole(value, where).map((v, i) => item(v, `${where}[${i}]`));
}

/** A map from any name: a `Map`, because names of a file may be those of an object's own methods. */
export function mapOf<T>(item: Reader<T>): Reader<ReadonlyMap<string, T>> {
  return (value, where) => {
    return new Map(
      Object.entries(anyObject(value, where)).map(([key, v]) => [key, item(v, `${where}[${key.slice(0, 80)}]`)]),
    );
  };
}

/** A field that may be `null`; with `fallback` it may also be missing. */
export function nullable<T>(reader: Reader<T>): Reader<T | null> {
  return (value, where) => (value === null ? null : reader(value, where));
}

export function optional<T, F>(reader: Reader<T>, fallback: F): Reader<T | F> {
  return (value, where) => (value === null || value === undefined ? fallback : reader(value, where));
}

type Readers = Readonly<Record<string, Reader<unknown>>>;
type Fields<S extends Readers> = { readonly [K in keyof S]: Read<S[K]> };

/** An object of exactly these fields: a misspelt one must not be ignored. */
export function object<S extends Readers>(readers: S): Reader<Fields<S>> {
  return (value, where) => {
    const unknown = Object.keys(anyObject(value, where)).filter((name) => !Object.hasOwn(readers, name));
    if (unknown.length > 0) throw new Wrong(where, `unknown fields: ${quoted(unknown)}`);
    return record(readers)(value, where);
  };
}

/** An object of these fields and any others, which are left out. */
export function record<S extends Readers>(readers: S): Reader<Fields<S>> {
  return (value, where) => {
    const given = anyObject(value, where);
    const read = ([name, reader]: [string, Reader<unknown>]): [string, unknown] => {
      return [name, reader(Object.hasOwn(given, name) ? given[name] : undefined, `${where}: ${name}`)];
    };
    return Object.fromEntries(Object.entries(readers).map(read)) as Fields<S>;
  };
}

/**
 * Parses JSON strictly, as every runtime does: no repeated key, no half of a surrogate pair, no deep nesting.
 *
 * @throws Wrong it is something else.
 */
export function parseJson(bytes: Uint8Array, where: string): unknown {
  try {
    const source = new TextDecoder("utf-8", { fatal: true }).decode(bytes);
    const value: unknown = JSON.parse(source);
    checkNames(source, where);
    if (/\\u[dD][89a-fA-F]/.test(source) && hasHalfPair(value))
      throw new Wrong(where, "a text contains half of a surrogate pair.");
    return value;
  } catch (failure) {
    throw failure instanceof Wrong ? failure : new Wrong(where, `it is not JSON: ${String(failure)}`);
  }
}

/** Refuses repeated keys of a JSON object, which `JSON.parse` accepts, and deep nesting. */
function checkNames(source: string, where: string): void {
  const open: Set<string>[] = [];
  for (const [token, key] of source.matchAll(/("[^"\\]*(?:\\.[^"\\]*)*")(?:\s*(:))?|[{}[\]]/g)) {
    if (token === "{" || token === "[") open.push(new Set());
    else if (token === "}" || token === "]") open.pop();
    else if (token.endsWith(":")) {
      const name = JSON.parse(key!) as string;
      if (open.at(-1)?.has(name)) throw new Wrong(where, `it names ${quoted(name)} twice.`);
      open.at(-1)?.add(name);
    }
    if (open.length > MAX_DEPTH) throw new Wrong(where, `it is nested more than ${MAX_DEPTH} levels deep.`);
  }
}

/** Returns whether it contains a text that cannot be encoded: JSON writes half of a pair as an escape. */
function hasHalfPair(value: unknown): boolean {
  return /\\ud[89a-f]/.test(JSON.stringify(value).replaceAll("\\\\", ""));
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
