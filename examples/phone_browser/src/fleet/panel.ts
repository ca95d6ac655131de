/** The card for delivery: asks before it connects, delivers, disconnects. */

import { type Delivered, type Identity, identityOf } from "edgepeft-runtime";
import { messageOf } from "../failures.js";
import { connect, connection, disconnect } from "./connection.js";

const MARKUP = `
  <h2>Deliver</h2>
  <p id="fleet-text"></p>
  <div class="row">
    <button id="connect" class="primary">Connect</button>
    <button id="refuse" class="quiet">Not now</button>
    <button id="deliver" class="secondary">Deliver update</button>
    <button id="disconnect" class="quiet">Disconnect</button>
  </div>
  <p id="fleet-status" class="status" role="status"></p>`;

export class Panel {
  private invited: Identity | null = null;
  private identity: Identity | null = null;
  private can = false;
  private busy = false;

  /**
   * @param card an empty section.
   * @param promise the sentence that says that nothing leaves the page.
   * @param deliver sends the update of the model that is open.
   */
  constructor(
    private readonly card: HTMLElement,
    private readonly promise: HTMLElement,
    private readonly deliver: () => Promise<Delivered>,
  ) {
    card.innerHTML = MARKUP;
    this.button("connect").onclick = () => this.run(() => this.accept());
    this.button("refuse").onclick = () => this.run(async () => void (this.invited = null));
    this.button("deliver").onclick = () => this.run(() => this.send());
    this.button("disconnect").onclick = () => this.run(() => this.end());
    addEventListener("hashchange", () => void this.open());
  }

  /** Reads the page's link, and what was connected before. */
  async open(): Promise<void> {
    await this.run(async () => {
      this.identity = await connection();
      this.show();
      const { hash, pathname, search } = location;
      if (hash.length < 2) return;
      // The keys are not to stay in the history, nor in the address that somebody may share.
      history.replaceState(null, "", pathname + search);
      this.invited = identityOf(hash);
    });
    // It is the reason why the page was opened, and may be below what the window shows.
    if (this.invited !== null) this.button("connect").focus();
  }

  /** Whether there is an update to deliver. */
  enable(can: boolean): void {
    this.can = can;
    this.show();
  }

  private async accept(): Promise<void> {
    await connect(this.invited!);
    [this.identity, this.invited] = [this.invited, null];
    this.say("Connected. Train, then deliver.");
  }

  private async send(): Promise<void> {
    this.say("Delivering…");
    const { round, bytes, repeated } = await this.deliver();
    const size = `${(bytes / 1000).toFixed(1)} kB`;
    this.say(repeated ? `The server has this update already.` : `Delivered ${size} for round ${round}.`);
  }

  private async end(): Promise<void> {
    await disconnect();
    this.identity = null;
  }

  private async run(work: () => Promise<void>): Promise<void> {
    this.busy = true;
    this.say("");
    this.show();
    try {
      await work();
    } catch (failure) {
      this.card.hidden = false;
      this.say(messageOf(failure), true);
    }
    this.busy = false;
    this.show();
  }

  private show(): void {
    const { invited, identity } = this;
    const failed = this.status.classList.contains("error");
    this.card.hidden = invited === null && identity === null && !failed;
    for (const id of ["connect", "refuse"]) this.button(id).hidden = invited === null;
    for (const id of ["deliver", "disconnect"]) this.button(id).hidden = identity === null || invited !== null;
    this.button("connect").disabled = this.busy;
    this.button("deliver").disabled = this.busy || !this.can;
    const named = invited ?? identity;
    this.card.querySelector("#fleet-text")!.textContent =
      named === null
        ? ""
        : invited !== null
          ? `${named.server} collects what phones learn, for “${named.campaign}”. Connect as “${named.device}”? Only what you deliver is sent: the adapter, not your examples.`
          : `Connected to ${named.server} (${named.campaign}) as ${named.device}.`;
    this.promise.textContent =
      identity === null ? "Nothing leaves this page." : "Nothing leaves this page until you deliver.";
  }

  private say(text: string, error = false): void {
    this.status.textContent = text;
    this.status.classList.toggle("error", error);
  }

  private get status(): HTMLElement {
    return this.card.querySelector("#fleet-status")!;
  }

  private button(id: string): HTMLButtonElement {
    return this.card.querySelector(`#${id}`)!;
  }
}
