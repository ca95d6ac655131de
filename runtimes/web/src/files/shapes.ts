/** Sizes of tensors that somebody else wrote: bounded work on any list of numbers. */

/** Axes of a tensor in any file. */
export const MAX_AXES = 32;

/**
 * The product of the sizes, `null` where it is more than `most` or there are too many axes. It is checked as it grows;
 * axes of size 0 count as 1 in that, so that every runtime refuses the same.
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
