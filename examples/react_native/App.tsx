/** The smallest app that trains: a bundle in the app's documents, made-up data, a line per step, an update to share. */

import { useState } from "react";
import { Button, SafeAreaView, ScrollView, StyleSheet, Text } from "react-native";
import { DocumentDirectoryPath } from "@dr.pogodin/react-native-fs";
import * as ort from "onnxruntime-react-native";
import { type ArrayLike, EdgepeftError, Trainer } from "edgepeft-runtime";
import { folder, stateFolder, write } from "./storage";

const EXAMPLES = 40;
const PIXELS = 64;

/** Bright and dark squares of 8 x 8, for the bundle of `tests/golden`; put your own data here. */
function data(): Record<string, ArrayLike> {
  const labels = Array.from({ length: EXAMPLES }, (_, i) => i % 2);
  const image = Float32Array.from({ length: EXAMPLES * PIXELS }, (_, i) => {
    return (labels[Math.floor(i / PIXELS)] === 1 ? 1 : -1) + 0.5 * Math.sin(i);
  });
  return { image: { data: image, dims: [EXAMPLES, 1, 8, 8] }, labels };
}

/** Trains on the data, and leaves the update in the app's documents. */
async function train(say: (line: string) => void): Promise<void> {
  const trainer = await Trainer.open(folder(`${DocumentDirectoryPath}/bundle`), {
    ort,
    state: stateFolder(`${DocumentDirectoryPath}/state`),
  });
  try {
    await trainer.fit(data(), {
      epochs: 5,
      saveEvery: 5,
      progress: ({ step, total, loss }) => say(`step ${step} of ${total}: loss ${loss.toFixed(4)}`),
    });
    await write(`${DocumentDirectoryPath}/update.safetensors`, await trainer.saveUpdate());
    say("update.safetensors is in the app's documents.");
  } finally {
    await trainer.close();
  }
}

export default function App() {
  const [lines, setLines] = useState<readonly string[]>([]);
  const [busy, setBusy] = useState(false);
  const say = (line: string): void => setLines((before) => [line, ...before]);
  const start = (): void => {
    setBusy(true);
    train(say)
      .catch((failure: unknown) => say(failure instanceof EdgepeftError ? failure.render() : String(failure)))
      .finally(() => setBusy(false));
  };
  return (
    <SafeAreaView style={styles.page}>
      <Button title="Train" onPress={start} disabled={busy} />
      <ScrollView>
        {lines.map((line, i) => (
          <Text key={lines.length - i} style={styles.line}>
            {line}
          </Text>
        ))}
      </ScrollView>
    </SafeAreaView>
  );
}

const styles = StyleSheet.create({
  page: { flex: 1, margin: 16 },
  line: { fontVariant: ["tabular-nums"], paddingVertical: 2 },
});
