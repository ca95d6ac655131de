/** A server such as `edgepeft serve` (section 8.5 of the SPEC). */

import { FleetError } from "../errors.js";
import { joined } from "../files/sha256.js";

/** Longest time of a request. */
const MILLISECONDS = 120_000;
/** Most bytes of a server's explanation. */
const MAX_REASON = 500;

type Method = "GET" | "PUT";

export class Server {
  constructor(
    private readonly address: string,
    private readonly token: string,
  ) {}

  /** Returns a file of at most `most` bytes; `null` if there is none. */
  async get(name: string, most: number): Promise<Uint8Array | null> {
    return this.send("GET", name, async (response) => {
      if (response.status === 404) return null;
      if (!response.ok) throw await this.refused(name, response);
      return limited(response, most, name);
    });
  }

  /** Writes a file. */
  async put(name: string, content: Uint8Array<ArrayBuffer>): Promise<void> {
    const done = async (response: Response): Promise<void> => {
      if (!response.ok) throw await this.refused(name, response);
    };
    await this.send("PUT", name, done, content);
  }

  private async send<T>(
    method: Method,
    name: string,
    use: (response: Response) => Promise<T>,
    body?: Uint8Array<ArrayBuffer>,
  ): Promise<T> {
    const ending = new AbortController();
    const timer = setTimeout(() => ending.abort(new Error(`no answer in ${MILLISECONDS / 1000} s`)), MILLISECONDS);
    try {
      const headers = {
        Authorization: `Bearer ${this.token}`,
        ...(body === undefined ? {} : { "Content-Type": "application/octet-stream" }),
      };
      // Redirects are refused: the token must not go elsewhere.
      const options = { method, headers, cache: "no-store", redirect: "error", signal: ending.signal } as const;
      return await use(await fetch(`${this.address}/${name}`, body === undefined ? options : { ...options, body }));
    } catch (failure) {
      if (failure instanceof FleetError) throw failure;
      const message = `The server ${this.address} cannot be reached.`;
      const hint =
        "check that `edgepeft serve` runs there, that this device is in its network, and, on a page, that `--origin` allows it.";
      throw new FleetError("remote-unreachable", message, `${name}: ${String(failure)}`, hint);
    } finally {
      clearTimeout(timer);
    }
  }

  private async refused(name: string, response: Response): Promise<FleetError> {
    const reason = (await response.text()).trim().slice(0, MAX_REASON);
    const facts = `${response.status}: ${name}`;
    if (response.status === 401 || response.status === 403) {
      const message = `The server does not accept this device${reason && `: ${reason}`}.`;
      return new FleetError("not-allowed", message, facts, "ask the host for a new link.");
    }
    const message = `The server refuses the file: ${reason || `status ${response.status}`}.`;
    return new FleetError("remote-refused", message, facts, "try again later.");
  }
}

async function limited(response: Response, most: number, name: string): Promise<Uint8Array> {
  const tooLarge = (): FleetError => {
    return new FleetError("too-large", `The server's file ${name} is too large.`, `at most ${most} bytes`, null);
  };
  if (Number(response.headers.get("Content-Length") ?? 0) > most) throw tooLarge();
  const reader = response.body?.getReader();
  if (reader === undefined) {
    const whole = new Uint8Array(await response.arrayBuffer()); // React Native has no streams
    if (whole.length > most) throw tooLarge();
    return whole;
  }
  const parts: Uint8Array[] = [];
  for (let size = 0; ;) {
    const { done, value } = await reader.read();
    if (done) return joined(parts);
    parts.push(value);
    size += value.length;
    if (size > most) {
      await reader.cancel();
      throw tooLarge();
    }
  }
}
