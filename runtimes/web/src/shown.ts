/** Makes foreign values and texts short and printable for messages, at a cost that does not grow with them. */

/** Most characters of a message or a context; longer ones are cut. */
const MAX_TEXT = 8_000;
const MAX_QUOTED = 80;

/** Returns an untrusted value as shortened JSON. */
export function quoted(value: unknown, level = 0): string {
  if (typeof value === "string")
    return JSON.stringify(value.slice(0, MAX_QUOTED)) + (value.length > MAX_QUOTED ? "..." : "");
  if (typeof value !== "object" || value === null) return String(value);
  const items = Array.isArray(value) ? value : Object.keys(value);
  if (level === 2) return `${items.length} items`;
  const shown = items.slice(0, 6).map((item: unknown) => {
    const text = quoted(item, level + 1);
    return Array.isArray(value)
      ? text
      : `${text}: ${quoted((value as Record<string, unknown>)[item as string], level + 1)}`;
  });
  const inside = [...shown, ...(items.length > 6 ? ["..."] : [])].join(", ");
  return Array.isArray(value) ? `[${inside}]` : `{${inside}}`;
}

/** Returns the text, cut if it is long, with everything escaped that would control a terminal. */
export function printable(text: string): string {
  const more = text.length - MAX_TEXT;
  const cut = more > 0 ? `${text.slice(0, MAX_TEXT)} … (${more} more characters)` : text;
  return cut.replace(
    /[^\n\t\P{C}]|[\p{Zl}\p{Zp}]/gu,
    (sign) => `\\u${sign.charCodeAt(0).toString(16).padStart(4, "0")}`,
  );
}
