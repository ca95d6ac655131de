/** Reads JSON by a description of it, and says which field is wrong: none is missed, none is left over. */

/** What is wrong with the JSON being read; becomes an error of the caller's room at the edge. */
export class Wrong extends Error {
  constructor(
    readonly where: string,
    readonly what: string,
  ) {
    super(`${where}: ${what}`);
  }
}

/** Gives the value as its type, or throws {@link Wrong}; `undefined` stands for a field that is not there. */
export type Reader<T> = (value: unknown, where: string) => T;
export type Read<R> = R extends Reader<infer T> ? T : never;

export const text: Reader<string> = check("a string", (v): v is string => typeof v === "string");
export const flag: Reader<boolean> = check("true or false", (v): v is boolean => typeof v === "boolean");
export const number: Reader<number> = check("a number", (v): v is number => typeof v === "number");
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
      value === undefined ? "the field is missing." : `expected ${expected}, found ${short(value)}`,
    );
  };
}

export function oneOf<const T extends string>(choices: readonly T[]): Reader<T> {
  return check(`one of ${choices.join(", ")}`, (v): v is T => choices.includes(v as T));
}

export function list<T>(item: Reader<T>, length?: number): Reader<readonly T[]> {
  const whole = check(length === undefined ? "a list" : `a list of ${length}`, (v): v is unknown[] => {
    return Array.isArray(v) && (length === undefined || v.length === length);
  });
  return (value, where) => whole(value, where).map((v, i) => item(v, `${where}[${i}]`));
}

/** A map from any name: a `Map`, because names of a file may be those of an object's own methods. */
export function mapOf<T>(item: Reader<T>): Reader<ReadonlyMap<string, T>> {
  return (value, where) => {
    return new Map(Object.entries(anyObject(value, where)).map(([key, v]) => [key, item(v, `${where}[${key}]`)]));
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
    if (unknown.length > 0) throw new Wrong(where, `fields that are not known: ${unknown.join(", ")}`);
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

/** JSON without a name twice in one object, which `JSON.parse` would let pass; throws {@link Wrong}. */
export function parseJson(bytes: Uint8Array, where: string): unknown {
  let source: string;
  let value: unknown;
  try {
    source = new TextDecoder("utf-8", { fatal: true }).decode(bytes);
    value = JSON.parse(source);
  } catch (failure) {
    throw new Wrong(where, `it is not JSON: ${String(failure)}`);
  }
  const twice = nameTwice(source);
  if (twice !== null) throw new Wrong(where, `it names ${twice} twice.`);
  return value;
}

/** The first name that one object of a JSON text holds twice; the text must be JSON. */
function nameTwice(source: string): string | null {
  const open: Set<string>[] = [];
  for (const [token, key] of source.matchAll(/("(?:[^"\\]|\\.)*")\s*:|"(?:[^"\\]|\\.)*"|[{}]/g)) {
    if (token === "{") open.push(new Set());
    else if (token === "}") open.pop();
    else if (key !== undefined) {
      const name = JSON.parse(key) as string;
      if (open.at(-1)?.has(name)) return key;
      open.at(-1)?.add(name);
    }
  }
  return null;
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function short(value: unknown): string {
  const found = JSON.stringify(value) ?? String(value);
  return found.length <= 80 ? found : `${found.slice(0, 77)}...`;
}
