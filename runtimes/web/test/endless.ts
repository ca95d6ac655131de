/** Trains without end, to be killed: `node endless.js BUNDLE STATE`; prints a line per step, saves every fourth. */

import { Trainer } from "edgepeft-runtime";
import { folder, stateFolder } from "edgepeft-runtime/node";
import { data, ort } from "./support.js";

const [bundle, state] = process.argv.slice(2) as [string, string];
const trainer = await Trainer.open(folder(bundle), { ort, state: stateFolder(state) });
await trainer.fit(await data(), {
  epochs: 1_000_000,
  saveEvery: 4,
  progress: ({ step }) => void process.stdout.write(`${step}\n`),
});
