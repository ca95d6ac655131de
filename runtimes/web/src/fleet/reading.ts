/** Reads and writes the files of a fleet, which have one form each (section 8.1 of the SPEC). */

import { FleetError } from "../errors.js";
import * as f from "../files/fields.js";

const VERSION = 2;
const NAME = /^[a-z0-9](?:[a-z0-9_-]{0,62}[a-z0-9])?$/;
/** Exponents of the floats that canonical JSON writes without one. */
const [SMALLEST_PLAIN, LARGEST_PLAIN] = [-4, 15];

/** The name of a campaign or a device. It becomes part of paths. */
export const name: f.Reader<string> = f.check("at most 64 of a..z, 0..9, - and _", (v): v is string => {
  return typeof v === "string" && NAME.test(v);
});

export function hex(digits: number): f.Reader<string> {
  const form = new RegExp(`^[0-9a-f]{${digits}}$`);
  return f.check(`${digits} lower-case hexadecimal digits`, (v): v is string => typeof v === "string" && form.test(v));
}

/** A whole number from 1 to `most`. */
export function count(most: number): f.Reader<number> {
  return f.check(`a number from 1 to ${most}`, (v): v is number => f.isNatural(v) && v >= 1 && v <= most);
}

/** A number that canonical JSON writes with a point or an exponent, as Python does. */
export class Float {
  constructor(readonly value: number) {}
}

/** Returns the canonical form: sorted keys, no white space, a newline at the end. */
export function canonical(value: unknown): Uint8Array<ArrayBuffer> {
  return new TextEncoder().encode(`${textOf(value)}\n`);
}

/** Returns the canonical form of a file's fields. */
export function fileBytes(format: string, fields: object): Uint8Array<ArrayBuffer> {
  return canonical({ format, version: VERSION, ...fields });
}

/**
 * Reads a file of this version in canonical form.
 *
 * @param code of the error that is thrown: `bad-latest`, `bad-round`, ...
 * @param floats paths of the fields that are floats, which JSON does not distinguish from whole numbers.
 */
export function readFile<T extends object>(
  reader: f.Reader<T>,
  bytes: Uint8Array,
  format: string,
  code: string,
  floats: readonly string[] = [],
): T {
  try {
    const { format: found, version, ...fields } = f.anyObject(f.parseJson(bytes, format), format);
    if (found !== format || version !== VERSION)
      throw new f.Wrong(format, `it is not ${format} of version ${VERSION}.`);
    const value = reader(fields, format);
    if (!same(fileBytes(format, withFloats(fields, floats)), bytes)) {
      throw new f.Wrong(format, "it is not canonical JSON.");
    }
    return value;
  } catch (failure) {
    if (!(failure instanceof f.Wrong)) throw failure;
    throw new FleetError(code, `The server's file ${format} cannot be read.`, failure.message, "inform the host.");
  }
}

function withFloats(fields: Record<string, unknown>, floats: readonly string[]): object {
  const changed = floats.map((key) => [key, typeof fields[key] === "number" ? new Float(fields[key]) : fields[key]]);
  return { ...fields, ...(Object.fromEntries(changed) as object) };
}

function textOf(value: unknown): string {
  if (value instanceof Float) return floatText(value.value);
  if (Array.isArray(value)) return `[${value.map(textOf).join(",")}]`;
  if (typeof value !== "object" || value === null) return JSON.stringify(value);
  const fields = Object.entries(value).sort(([a], [b]) => (a < b ? -1 : 1));
  return `{${fields.map(([key, field]) => `${JSON.stringify(key)}:${textOf(field)}`).join(",")}}`;
}

/** Returns the shortest form that round-trips, with the exponents of Python. */
function floatText(value: number): string {
  const [mantissa, exponent] = value.toExponential().split("e") as [string, string];
  const power = Number(exponent);
  if (power < SMALLEST_PLAIN || power > LARGEST_PLAIN) {
    return `${mantissa}e${power < 0 ? "-" : "+"}${String(Math.abs(power)).padStart(2, "0")}`;
  }
  return Number.isInteger(value) ? `${value}.0` : String(value);
}

function same(a: Uint8Array, b: Uint8Array): boolean {
  return a.length === b.length && a.every((byte, i) => byte === b[i]);
}
