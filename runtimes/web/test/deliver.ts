/**
 * Devices of fleets: `node deliver.js PLANS.json`; prints for each plan what each action returned, or the code of its error, as JSON. What
 * a device remembers is kept in a file, from one run to the next.
 */

import { readFile, writeFile } from "node:fs/promises";
import { existsSync } from "node:fs";
import * as ort from "onnxruntime-node";
import {
  Bundle,
  EdgepeftError,
  FleetDevice,
  type Memory,
  type MemoryStore,
  Trainer,
  identityOf,
} from "edgepeft-runtime";
import { folder } from "edgepeft-runtime/node";
import { cut, tensorsIn } from "./support.js";

interface Plan {
  readonly bundle: string;
  readonly data: string;
  /** The link that the host printed. */
  readonly link: string;
  readonly memory: string;
  readonly actions: readonly ("join" | "train" | "deliver")[];
  /** Where the update is left that is trained. */
  readonly update: string;
}

/** Bytes become hexadecimal digits in the file. */
function fileMemory(path: string): MemoryStore {
  const nothing: Memory = { rounds: [], adapter: null, sequence: 0, signed: {} };
  const revived = (_: string, value: unknown): unknown => {
    return typeof value === "string" && value.startsWith("bytes:")
      ? new Uint8Array(Buffer.from(value.slice(6), "hex"))
      : value;
  };
  const plain = (_: string, value: unknown): unknown => {
    return value instanceof Uint8Array ? `bytes:${Buffer.from(value).toString("hex")}` : value;
  };
  const read = async (): Promise<Memory> => {
    return existsSync(path) ? (JSON.parse(await readFile(path, "utf8"), revived) as Memory) : nothing;
  };
  return {
    read,
    async change(next) {
      const changed = next(await read());
      await writeFile(path, JSON.stringify(changed, plain));
      return changed;
    },
  };
}

const plans = JSON.parse(await readFile(process.argv[2]!, "utf8")) as Plan[];

async function attempted(work: () => Promise<unknown>): Promise<unknown> {
  try {
    return (await work()) ?? null;
  } catch (failure) {
    if (!(failure instanceof EdgepeftError)) throw failure;
    return { code: failure.code, message: failure.message };
  }
}

async function followed(plan: Plan): Promise<unknown> {
  const device = new FleetDevice(identityOf(new URL(plan.link).hash)!, fileMemory(plan.memory));
  const data = await tensorsIn(plan.data);
  const { labels, ...inputs } = cut(data, 0, 4);
  const bundle = await Bundle.open(folder(plan.bundle), ort);
  const opened = async (): Promise<Trainer> => {
    const adapter = await device.adapter(bundle);
    return Trainer.open(bundle, { ort, ...(adapter === null ? {} : { adapter }) });
  };
  const actions = {
    async join() {
      const trainer = await opened();
      return device.join(trainer, inputs).finally(() => trainer.close());
    },
    async train() {
      const trainer = await opened();
      for (let step = 0; step < 2; step++) await trainer.step({ ...inputs, labels: labels! });
      await writeFile(plan.update, await trainer.saveUpdate());
      return trainer.close();
    },
    deliver: async () => device.deliver(new Uint8Array(await readFile(plan.update))),
  };
  const found = [];
  for (const action of plan.actions) found.push(await attempted(actions[action]));
  return found;
}

const found = [];
for (const plan of plans) found.push(await attempted(() => followed(plan)));
console.log(JSON.stringify(found));
