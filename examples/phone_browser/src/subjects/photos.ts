/** Photos from the camera, or from files. */

import type { Inputs } from "../messages.js";
import type { Changed, Subject } from "./subject.js";

/** Pixels along a side of the model's input. */
const SIDE = 48;

export class Photos implements Subject<ImageData> {
  readonly name = "photos";
  private photo: ImageData | null = null;

  /**
   * @param preview shows the photo that is entered.
   * @param video shows the camera while it is on.
   */
  constructor(
    private readonly preview: HTMLCanvasElement,
    private readonly video: HTMLVideoElement,
    private readonly changed: Changed,
  ) {
    preview.width = preview.height = SIDE;
  }

  current(): ImageData | null {
    return this.photo;
  }

  clear(): void {
    this.set(null);
  }

  /** Enters a photo from a file. @throws Error the browser cannot read it. */
  async choose(file: File): Promise<void> {
    const picture = await createImageBitmap(file).catch(() => {
      throw new Error(`${file.name} is no picture that this browser can read.`);
    });
    this.enter(picture, picture.width, picture.height);
    picture.close();
  }

  get isCameraOn(): boolean {
    return this.video.srcObject !== null;
  }

  async startCamera(): Promise<void> {
    const video = { facingMode: "environment", width: { ideal: 480 }, height: { ideal: 480 } };
    this.video.srcObject = await navigator.mediaDevices.getUserMedia({ video });
    this.video.hidden = false;
    await this.video.play();
  }

  stopCamera(): void {
    for (const track of (this.video.srcObject as MediaStream | null)?.getTracks() ?? []) track.stop();
    this.video.srcObject = null;
    this.video.hidden = true;
  }

  /** Enters what the camera sees. */
  snap(): void {
    this.enter(this.video, this.video.videoWidth, this.video.videoHeight);
  }

  inputs(photos: readonly ImageData[]): Inputs {
    return { kind: "photos", images: photos.map(({ data, width, height }) => ({ data, width, height })) };
  }

  thumbnail(photo: ImageData): HTMLElement {
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = SIDE;
    canvas.getContext("2d")!.putImageData(photo, 0, 0);
    return canvas;
  }

  /** Cuts the square in the middle, and scales it down. */
  private enter(picture: CanvasImageSource, width: number, height: number): void {
    const side = Math.min(width, height);
    const canvas = new OffscreenCanvas(SIDE, SIDE);
    const pen = canvas.getContext("2d", { willReadFrequently: true })!;
    pen.imageSmoothingQuality = "high";
    pen.drawImage(picture, (width - side) / 2, (height - side) / 2, side, side, 0, 0, SIDE, SIDE);
    this.set(pen.getImageData(0, 0, SIDE, SIDE));
  }

  private set(photo: ImageData | null): void {
    this.photo = photo;
    const pen = this.preview.getContext("2d")!;
    pen.clearRect(0, 0, SIDE, SIDE);
    if (photo !== null) pen.putImageData(photo, 0, 0);
    this.changed();
  }
}
