/** Memory for the weights of calls, used again and again: what a page drops, the browser frees late. */

/** Offsets of tensors in a slot: a multiple of the size of every element, and of a cache line. */
const ALIGNMENT = 64;

/** Memory for the weights of one call at a time. It grows to the largest. */
export class Slot {
  private memory = new Uint8Array(0);

  /** Returns parts of these lengths, which are valid until the next call. */
  parts(lengths: readonly number[]): Uint8Array[] {
    let end = 0;
    const starts = lengths.map((length) => {
      const start = end;
      end += Math.ceil(length / ALIGNMENT) * ALIGNMENT;
      return start;
    });
    if (end > this.memory.length) this.memory = new Uint8Array(end);
    return starts.map((start, i) => this.memory.subarray(start, start + lengths[i]!));
  }
}
