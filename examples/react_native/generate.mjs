/** Writes `android/` and `ios/`: the template of React Native, with this app's name. Run it again after an upgrade. */

import { cp, readFile, readdir, rename, rm, writeFile } from "node:fs/promises";
import { extname, join } from "node:path";
import { fileURLToPath } from "node:url";

const HERE = fileURLToPath(new URL(".", import.meta.url));
const TEMPLATE = join(HERE, "node_modules/@react-native-community/template/template");
const { name, displayName } = JSON.parse(await readFile(join(HERE, "app.json"), "utf8"));
const NAMES = [
  ["Hello App Display Name", displayName],
  ["HelloWorld", name],
  ["helloworld", name.toLowerCase()],
];
/** Files that are not text. */
const BINARY = [".png", ".jar", ".keystore"];
/** The Finder and the Files app may copy a bundle into the documents of the app, and take the update out of them. */
const SHARING =
  "\t<key>UIFileSharingEnabled</key>\n\t<true/>\n\t<key>LSSupportsOpeningDocumentsInPlace</key>\n\t<true/>\n";

const renamed = (text) => NAMES.reduce((found, [from, to]) => found.replaceAll(from, to), text);

async function personalize(folder) {
  for (const entry of await readdir(folder, { withFileTypes: true })) {
    const path = join(folder, renamed(entry.name));
    if (path !== join(folder, entry.name)) await rename(join(folder, entry.name), path);
    if (entry.isDirectory()) await personalize(path);
    else if (!BINARY.includes(extname(path))) await writeFile(path, renamed(await readFile(path, "utf8")));
  }
}

for (const platform of ["android", "ios"]) {
  const out = join(HERE, platform);
  await rm(out, { recursive: true, force: true });
  await cp(join(TEMPLATE, platform), out, { recursive: true });
  await personalize(out);
}
const plist = join(HERE, "ios", name, "Info.plist");
const content = await readFile(plist, "utf8");
const end = content.lastIndexOf("</dict>");
await writeFile(plist, content.slice(0, end) + SHARING + content.slice(end));
console.log(`android/ and ios/ are those of ${name}.`);
