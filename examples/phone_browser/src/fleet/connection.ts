/** The server that this page delivers to: which one, and what the worker does there. */

import {
  type Batch,
  type Delivered,
  FleetDevice,
  FleetError,
  type Identity,
  type Trainer,
  databaseMemory,
} from "edgepeft-runtime";
import { get, put, remove } from "../storage.js";

const DATABASE = "connection";
const KEY = "identity";

/** Returns the identity that was accepted; `null` if there is none. */
export async function connection(): Promise<Identity | null> {
  return (await get<Identity>(DATABASE, KEY)) ?? null;
}

export async function connect(identity: Identity): Promise<void> {
  await put(DATABASE, KEY, identity);
}

/** Forgets the keys. What was delivered is remembered, so that no number is ever used twice. */
export async function disconnect(): Promise<void> {
  await remove(DATABASE, KEY);
}

async function device(): Promise<FleetDevice | null> {
  const identity = await connection();
  if (identity === null) return null;
  const { campaign, device: name, hostKey } = identity;
  const host = Array.from(hostKey.subarray(0, 8), (byte) => byte.toString(16).padStart(2, "0")).join("");
  return new FleetDevice(identity, databaseMemory(`${campaign}:${name}:${host}`));
}

/** An adapter to start from, and what to say about it. */
export interface Start {
  /** `null`: the bundle's own. */
  readonly adapter: Uint8Array | null;
  readonly note: string | null;
}

/** Returns the adapter that a new run starts from: that of the latest round, if the server trains this model. */
export async function startOfRun(trainer: Trainer, batch: Batch): Promise<Start> {
  const joined = await device();
  if (joined === null) return { adapter: null, note: null };
  let note: string | null = null;
  try {
    await joined.join(trainer, batch);
  } catch (failure) {
    if (!(failure instanceof FleetError)) throw failure;
    // Training needs no server: it continues from the round before, or from the bundle's adapter.
    note = failure.message;
  }
  return { adapter: await joined.adapter(trainer.bundle), note };
}

/** Delivers what the trainer has learned. @throws FleetError nothing was delivered. */
export async function deliver(trainer: Trainer, batch: Batch): Promise<Delivered> {
  const joined = await device();
  if (joined === null) throw new Error("Open the link of a server first.");
  const update = await trainer.saveUpdate();
  try {
    return await joined.deliver(update);
  } catch (failure) {
    if (!(failure instanceof FleetError) || failure.code !== "unknown-round") throw failure;
    // It was trained before the page was connected: the round may start from the same adapter.
    await joined.join(trainer, batch);
    return joined.deliver(update);
  }
}
