// A live picture of which experts fire: a row for each layer, a column for each expert, fading as time goes on.

import { firedExperts } from "./stream.js";

const FADING = 0.88; // of the brightness that is left after each event
const CELL = 4;

export class ExpertsPicture {
  constructor(canvas, caption) {
    this.canvas = canvas;
    this.caption = caption;
    this.heat = [];
  }

  /** Watches until `signal` is aborted or the server ends it; throws what the server refuses. */
  async watch(key, signal) {
    this.caption.textContent = "Waiting for the next token…";
    for await (const { first_layer: first, counts } of firedExperts(key, signal)) {
      this.add(counts);
      this.draw();
      const fired = counts.flat().filter((count) => count > 0).length;
      this.caption.textContent =
        `Layers ${first} to ${first + counts.length - 1} from top to bottom, ${counts[0]?.length ?? 0} experts from left ` +
        `to right; ${fired} fired just now.`;
    }
  }

  add(counts) {
    if (this.heat.length !== counts.length) this.heat = counts.map((layer) => layer.map(() => 0));
    counts.forEach((layer, row) =>
      layer.forEach((count, expert) => {
        const heat = this.heat[row][expert] * FADING;
        this.heat[row][expert] = Math.max(heat, count ? Math.min(1, 0.55 + 0.15 * count) : 0);
      }),
    );
  }

  draw() {
    const rows = this.heat.length;
    const columns = this.heat[0]?.length ?? 0;
    this.canvas.width = columns * CELL;
    this.canvas.height = rows * CELL;
    const context = this.canvas.getContext("2d");
    context.fillStyle = getComputedStyle(document.documentElement).getPropertyValue("--accent");
    this.heat.forEach((layer, row) =>
      layer.forEach((heat, expert) => {
        if (heat < 0.02) return;
        context.globalAlpha = heat;
        context.fillRect(expert * CELL, row * CELL, CELL - 1, CELL - 1);
      }),
    );
  }
}
