/** The lessons of each subject: the user's words and examples, kept in IndexedDB. */

import type { Examples, SubjectName } from "./messages.js";
import { get, put } from "./storage.js";
import type { Subject } from "./subjects/subject.js";

/** The model distinguishes this many words. */
export const MOST_WORDS = 10;
/** Words that have to have examples, and examples to train on, before a training starts. */
export const LEAST_WORDS = 2;
export const LEAST_EXAMPLES = 4;
/** One of so many examples of a word is held back, to test the model on examples it was not trained on. */
const HELD_BACK = 4;

export interface Example {
  readonly content: unknown;
  /** Index of its word. */
  readonly word: number;
}

/** Words by index, `null` where one was removed, and examples. They are replaced as a whole, never changed. */
export class Lessons {
  constructor(
    readonly words: readonly (string | null)[] = [],
    readonly examples: readonly Example[] = [],
  ) {}

  /** Returns the lessons with another word, and its index. @throws Error there is such a word, or there is no room. */
  withWord(word: string): [Lessons, number] {
    const name = word.trim();
    if (this.words.includes(name)) throw new Error(`There is a word “${name}” already.`);
    const free = this.words.indexOf(null);
    const index = free < 0 ? this.words.length : free;
    if (index >= MOST_WORDS) throw new Error(`The model distinguishes ${MOST_WORDS} words. Remove one first.`);
    const words = [...this.words];
    words[index] = name;
    return [new Lessons(words, this.examples), index];
  }

  withoutWord(index: number): Lessons {
    const words = this.words.map((word, i) => (i === index ? null : word));
    return new Lessons(
      words,
      this.examples.filter(({ word }) => word !== index),
    );
  }

  withExample(example: Example): Lessons {
    return new Lessons(this.words, [...this.examples, example]);
  }

  withoutExample(example: Example): Lessons {
    return new Lessons(
      this.words,
      this.examples.filter((other) => other !== example),
    );
  }

  /** The words that are there, with their indices. */
  get named(): readonly { readonly index: number; readonly word: string }[] {
    return this.words.flatMap((word, index) => (word === null ? [] : [{ index, word }]));
  }

  count(index: number): number {
    return this.examples.filter(({ word }) => word === index).length;
  }

  /** For each example, whether it is held back. */
  get heldBack(): readonly boolean[] {
    const seen = new Map<number, number>();
    return this.examples.map(({ word }) => {
      const count = (seen.get(word) ?? 0) + 1;
      seen.set(word, count);
      return count % HELD_BACK === 0;
    });
  }

  /** Returns why a training cannot start; `null` if it can. */
  get missing(): string | null {
    const taught = this.named.filter(({ index }) => this.count(index) > 0).length;
    if (taught < LEAST_WORDS) return `Add at least ${LEAST_WORDS} words, and examples of each.`;
    const training = this.heldBack.filter((held) => !held).length;
    return training < LEAST_EXAMPLES ? `Keep at least ${LEAST_EXAMPLES} examples.` : null;
  }

  /** Returns the examples to train on, or those that are held back. */
  part(subject: Subject, held: boolean): Examples {
    const chosen = this.examples.filter((_, i) => this.heldBack[i] === held);
    return { inputs: subject.inputs(chosen.map(({ content }) => content)), labels: chosen.map(({ word }) => word) };
  }
}

const DATABASE = "lessons";

export async function load(subject: SubjectName): Promise<Lessons> {
  const found = await get<Lessons>(DATABASE, subject);
  return new Lessons(found?.words, found?.examples);
}

/** @throws DOMException the storage is full. */
export async function store(subject: SubjectName, { words, examples }: Lessons): Promise<void> {
  await put(DATABASE, subject, { words, examples });
}
