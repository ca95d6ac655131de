/** Counts the elements of untrusted shapes with bounded work. */

/** Most axes of a tensor in any file. */
export const MAX_AXES = 32;

/**
 * Returns the product of the sizes; `null` if it is more than `most`, or there are too many axes. It is checked as it
 * grows, with axes of size 0 counted as 1, so that every runtime refuses the same shapes.
 */
export function elements(shape: readonly number[], most = Number.MAX_SAFE_INTEGER): number | null {
  if (shape.length > MAX_AXES) return null;
  const sizes = shape.filter((size) => size !== 0);
  const empty = sizes.length < shape.length;
  let product = 1;
  for (const size of sizes) {
    product *= size;
    if (product > (empty ? Number.MAX_SAFE_INTEGER : most)) return null;
  }
  return empty ? 0 : product;
}
