/** Converts pixels to the image input of a bundle. */

import { DataError } from "../errors.js";
import type { Manifest } from "../bundle/manifest.js";
import { Tensor } from "../files/tensors.js";

/** RGBA bytes in rows, as in the `ImageData` of a canvas. */
export interface Pixels {
  readonly data: Uint8ClampedArray | Uint8Array;
  readonly width: number;
  readonly height: number;
}

/**
 * Returns the input `[images, channels, height, width]`: scaled to 0..1, normalized by mean and deviation, in the
 * bundle's order of channels; one channel is luma (ITU-R 601, as in Pillow).
 *
 * @param images of the bundle's size: resize them to `manifest.image.resize` and crop them at their center to
 *   `manifest.image.size` on a canvas first. A canvas has its own filter, so values differ a little from Pillow's.
 * @throws DataError the bundle does not accept images, or they have another size.
 */
export function imagesOf(images: readonly Pixels[], manifest: Manifest): Tensor {
  const spec = manifest.image;
  if (spec === null)
    throw new DataError("no-images", "The bundle does not accept images.", null, "give the data as arrays.");
  const [height, width] = spec.size as [number, number];
  const values = new Float32Array(images.length * spec.channels * height * width);
  let next = 0;
  for (const image of images) {
    if (image.width !== width || image.height !== height) {
      const context = `expected ${width} x ${height}, found ${image.width} x ${image.height}`;
      throw new DataError(
        "wrong-shape",
        "An image does not have the size that the bundle requires.",
        context,
        "draw it on a canvas of that size.",
      );
    }
    for (let channel = 0; channel < spec.channels; channel++) {
      const [mean, std] = [spec.mean[channel]!, spec.std[channel]!];
      const source = spec.channel_order === "BGR" ? spec.channels - 1 - channel : channel;
      for (let pixel = 0; pixel < width * height; pixel++) {
        values[next++] = (level(image.data, 4 * pixel, spec.channels, source) / 255 - mean) / std;
      }
    }
  }
  return new Tensor("float32", values, [images.length, spec.channels, height, width]);
}

function level(data: Pixels["data"], start: number, channels: number, channel: number): number {
  if (channels !== 1) return data[start + channel]!;
  return (data[start]! * 19595 + data[start + 1]! * 38470 + data[start + 2]! * 7471 + 0x8000) >> 16;
}
