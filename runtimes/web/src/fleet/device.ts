/** A device of a fleet: joins the latest round, and delivers updates (section 8 of the SPEC). */

import type { Bundle } from "../bundle/bundle.js";
import type { Batch } from "../data/batch.js";
import { FleetError } from "../errors.js";
import { Hasher, sha256 } from "../files/sha256.js";
import { MAX_HEADER, readTensors } from "../files/tensorfile.js";
import { notFinite } from "../files/tensors.js";
import type { Trainer } from "../train/trainer.js";
import { Server } from "./http.js";
import type { Identity } from "./identity.js";
import type { KnownRound, Memory, MemoryStore } from "./memory.js";
import {
  MAX_LATEST_BYTES,
  MAX_ROUND_BYTES,
  MAX_STALENESS,
  type Round,
  type Sidecar,
  checkBundle,
  checkHash,
  folderOf,
  readLatest,
  readRound,
  sidecarBytes,
} from "./rounds.js";
import { HMAC, signedUpdate } from "./signatures.js";

const MAX_SIDECAR_BYTES = 2 ** 12;

export interface Delivered {
  readonly round: number;
  readonly sequence: number;
  readonly bytes: number;
  /** Whether the server had it already. */
  readonly repeated: boolean;
}

export class FleetDevice {
  private readonly server: Server;

  constructor(
    readonly identity: Identity,
    private readonly store: MemoryStore,
  ) {
    this.server = new Server(identity.server, identity.token);
  }

  /** Returns the adapter of the round that was joined last, to start from; `null` if there is none for this bundle. */
  async adapter(bundle: Bundle): Promise<Uint8Array | null> {
    const { adapter } = await this.store.read();
    return adapter?.baseSha256 === bundle.baseSha256 ? adapter.bytes : null;
  }

  /**
   * Brings the latest round to this device.
   *
   * @param trainer has the campaign's bundle open.
   * @param batch inputs to try the round's adapter with.
   * @returns the round, whose adapter {@link adapter} returns from now on.
   * @throws FleetError the server cannot be reached, or the round is not to be trusted; the device keeps its round.
   */
  async join(trainer: Trainer, batch: Batch): Promise<{ readonly round: number; readonly changed: boolean }> {
    const memory = await this.store.read();
    const trusted = memory.rounds.at(-1) ?? null;
    // Signatures are written before latest.json, so they are there when it is.
    const content = await this.file("latest.json", MAX_LATEST_BYTES);
    const signed = await this.file("latest.sig", MAX_LATEST_BYTES);
    const latest = await readLatest(content, signed, this.identity, trusted, Date.now() / 1000);
    const folder = folderOf(latest.round);
    const round = await readRound(await this.file(`${folder}/round.json`, MAX_ROUND_BYTES), latest, trusted);
    checkBundle(round, trainer.bundle.manifest);
    if (trusted?.sha256 === latest.round_sha256) return { round: latest.round, changed: false };
    const bytes = await this.fetched(round, trainer);
    await checkHealth(trainer, bytes, batch);
    const adapter = { baseSha256: round.base_sha256, bytes };
    const known: KnownRound = {
      round: latest.round,
      sha256: latest.round_sha256,
      adapterSha256: round.adapter.sha256,
      updateBytes: round.limits.update_bytes,
    };
    await this.store.change((before) => {
      // Another tab may have joined a later one meanwhile.
      if ((before.rounds.at(-1)?.round ?? 0) >= known.round) return before;
      return { ...before, adapter, rounds: [...before.rounds, known].slice(-MAX_STALENESS - 1) };
    });
    return { round: latest.round, changed: true };
  }

  /**
   * Leaves an update at the server. Repeating it does nothing, also where an earlier attempt was interrupted.
   *
   * @param update what `saveUpdate` returned, trained from a round that this device has joined.
   * @throws FleetError the update is of no such round or too large, or the server cannot be reached or refuses it.
   */
  async deliver(update: Uint8Array<ArrayBuffer>): Promise<Delivered> {
    const { metadata } = await readTensors(update, "The update", FleetError, true);
    const [digest, start] = [await sha256(update), metadata.get("adapter_sha256") ?? ""];
    const { signed } = await this.store.change((memory) => this.withSidecar(memory, update, digest, start));
    const content = signed[digest]!;
    const sidecar = JSON.parse(new TextDecoder().decode(content)) as Sidecar;
    const path = `inbox/${folderOf(sidecar.round)}/${this.identity.device}/${digest}`;
    const there = await this.server.get(`${path}.sig`, MAX_SIDECAR_BYTES);
    const repeated = there !== null && (await sha256(there)) === (await sha256(content));
    if (!repeated) {
      await this.server.put(`${path}.safetensors`, update);
      await this.server.put(`${path}.sig`, content);
    }
    return { round: sidecar.round, sequence: sidecar.sequence, bytes: update.length, repeated };
  }

  /** Signs an update once: its number is stored before it is used, so that a crash never repeats one. */
  private withSidecar(memory: Memory, update: Uint8Array, digest: string, start: string): Memory {
    if (Object.hasOwn(memory.signed, digest)) return memory;
    const round = memory.rounds.findLast(({ adapterSha256 }) => adapterSha256 === start);
    if (round === undefined) {
      const message = "The update was not trained from a round of this campaign.";
      const facts = `it started from the adapter ${start}`;
      throw new FleetError("unknown-round", message, facts, "train once more, which starts from the latest round.");
    }
    if (update.length > round.updateBytes) {
      const facts = `${update.length} bytes; at most ${round.updateBytes}`;
      throw new FleetError("too-large", "The update is larger than the round allows.", facts, "inform the host.");
    }
    const { campaign, device, key } = this.identity;
    const sequence = memory.sequence + 1;
    const size = update.length;
    const sidecar = { campaign, round: round.round, device, sequence, sha256: digest, size, algorithm: HMAC };
    const signature = signedUpdate(new Hasher().update(sidecarBytes(sidecar)).hex(), key);
    return { ...memory, sequence, signed: { ...memory.signed, [digest]: sidecarBytes(sidecar, signature) } };
  }

  private async fetched(round: Round, { bundle }: Trainer): Promise<Uint8Array> {
    const most = (bundle.manifest.files.get("adapter.safetensors")?.bytes ?? 0) + MAX_HEADER;
    if (round.adapter.bytes > most) {
      const facts = `${round.adapter.bytes} bytes; at most ${most} fit this bundle`;
      throw new FleetError("too-large", "The round's adapter is larger than one of this bundle.", facts, null);
    }
    const adapter = await this.file(`${folderOf(round.round)}/adapter.safetensors`, round.adapter.bytes);
    await checkHash("The adapter", adapter, round.adapter.sha256);
    return adapter;
  }

  private async file(name: string, most: number): Promise<Uint8Array> {
    const found = await this.server.get(name, most);
    if (found !== null) return found;
    const hint = "run `edgepeft publish` on the host.";
    throw new FleetError("no-such-file", "The server has no round yet.", `${name} is missing`, hint);
  }
}

/** Rule 1.13: the bundle computes finite outputs with the adapter. */
async function checkHealth(trainer: Trainer, adapter: Uint8Array, batch: Batch): Promise<void> {
  const outputs = await trainer.predict(batch, { adapter });
  for (const [name, tensor] of Object.entries(outputs)) {
    const where = notFinite(tensor);
    if (where === null) continue;
    const message = "The round's adapter does not work on this device.";
    throw new FleetError("unhealthy-adapter", message, `output ${name}: ${where}`, "inform the host.");
  }
}
