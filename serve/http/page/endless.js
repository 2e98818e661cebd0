// A panorama without an end: its pieces are laid side by side while they come, and another prompt can be sent meanwhile.

import { $, say } from "./dom.js";
import { eventsOf, headers, problem } from "./server.js";
import { showEnd } from "./viewer.js";

const MOST = 16384; // pixels that are kept; what is older leaves on the left
const SEGMENT = 2; // crops a segment: soon there, at the price of speed

let running = null; // {id, steered} of the panorama under way

async function bitmapOf(event) {
  const bytes = Uint8Array.from(atob(event.b64_json), (character) => character.charCodeAt(0));
  return createImageBitmap(new Blob([bytes], { type: `image/${event.output_format}` }));
}

// The picture as far as it is there: final tiles, and the rest that changes with the next strip.
class Band {
  tiles = []; // {start, bitmap}
  rest = null;
  canvas = document.createElement("canvas");

  async add(event) {
    const piece = { start: event.start, bitmap: await bitmapOf(event) };
    this.rest?.bitmap.close();
    this.rest = null;
    if (event.type.endsWith(".rest")) this.rest = piece;
    else this.tiles.push(piece);
    this.paint();
  }

  get end() {
    const last = this.rest ?? this.tiles.at(-1);
    return last ? last.start + last.bitmap.width : 0;
  }

  paint() {
    const first = Math.max(0, this.end - MOST);
    while (this.tiles.length && this.tiles[0].start + this.tiles[0].bitmap.width <= first) this.tiles.shift().bitmap.close();
    const pieces = this.rest ? [...this.tiles, this.rest] : this.tiles;
    this.canvas.width = this.end - first;
    this.canvas.height = pieces[0].bitmap.height;
    const paint = this.canvas.getContext("2d", { alpha: false });
    for (const { start, bitmap } of pieces) paint.drawImage(bitmap, start - first, 0);
  }

  async url() {
    return URL.createObjectURL(await new Promise((done) => this.canvas.toBlob(done)));
  }
}

// The request of an endless panorama that looks as the form says: places in pixels, since there is no width to share.
export function endlessBody({ size, loop, prompts, ...body }) {
  const [width, height] = size.split("x").map(Number);
  if (prompts) {
    body.prompts = prompts.map(({ prompt, left, top }) => ({ prompt, left: Math.round((left ?? top) * width) }));
  }
  return { ...body, height, crops: SEGMENT };
}

// Draw until `signal` stops it. The result is {url, width, height, seed, steered}, or null if nothing came of it.
export async function drawEndless(body, alt, signal, seconds) {
  const band = new Band();
  let [shown, seed] = [null, null];
  try {
    const response = await fetch("v1/images/endless", {
      method: "POST", headers: headers(), body: JSON.stringify(body), signal,
    });
    if (!response.ok) throw new Error(await problem(response));
    for await (const [kind, value] of eventsOf(response)) {
      const row = kind === "comment" && /^progress (\d+)\/(\d+)$/.exec(value);
      if (row) {
        $("progress").value = row[1] / row[2];
        const last = running?.steered.at(-1);
        const then = last ? ` · from ${last.left} px: ${last.prompt ?? `class ${last.label}`}` : "";
        say(`${band.end} px, row ${row[1]} of ${row[2]} of the next, ${seconds()} s${then}`);
      } else if (value.error) {
        throw new Error(value.error.message);
      } else if (value.type === "image_endless.started") {
        running = { id: value.id, steered: [] };
        seed = value.seed;
        $("steer").hidden = false;
      } else if (value.b64_json) {
        await band.add(value);
        const url = await band.url();
        await showEnd(url, alt);
        if (shown) URL.revokeObjectURL(shown);
        shown = url;
      }
    }
  } catch (error) {
    if (error.name !== "AbortError") throw error;
  } finally {
    $("steer").hidden = true;
  }
  const steered = running?.steered ?? [];
  running = null;
  if (!shown) return null;
  return { url: shown, width: band.end, height: band.canvas.height, kept: band.canvas.width, seed, steered };
}

// Another prompt (or class) from the next crop on that is not drawn yet.
export async function steer(subject) {
  if (!running) return;
  const { id, steered } = running;
  const response = await fetch(`v1/images/endless/${id}/steer`, {
    method: "POST", headers: headers(), body: JSON.stringify(subject),
  });
  if (!response.ok) return say(await problem(response), true);
  const { at } = await response.json();
  steered.push({ ...subject, left: at });
  say(`From pixel ${at} on: ${subject.prompt ?? `class ${subject.label}`}`);
}
