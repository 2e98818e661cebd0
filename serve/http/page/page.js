// The page: a form, a stream of events that paints, viewers, a history. No framework, nothing from elsewhere.

import { $, say } from "./dom.js";
import { drawEndless, endlessBody, steer } from "./endless.js";
import { fillForm, loadOptions, requestBody, subjectNow, titleOf } from "./form.js";
import { remember } from "./history.js";
import { setUpMarkers } from "./markers.js";
import { blobUrl, eventsOf, headers, problem } from "./server.js";
import { setUpViewer, showPicture, showPreview } from "./viewer.js";

const PREVIEWS = 12; // partial pictures asked for; the server skips those that it has no time for

let running = null; // AbortController of the drawing under way

function busy(on) {
  $("draw").disabled = $("endless").disabled = on;
  $("stop").disabled = !on;
  $("progress").hidden = !on;
  if (on) $("progress").removeAttribute("value");
}

async function draw() {
  if (running) return;
  const body = requestBody();
  if (!body) return;
  const begun = performance.now();
  const seconds = () => ((performance.now() - begun) / 1000).toFixed(1);
  const alt = titleOf(body);
  let preview = null;
  running = new AbortController();
  busy(true);
  say("Waiting for the first row …");
  try {
    const response = await fetch("v1/images/generations", {
      method: "POST",
      headers: headers(),
      body: JSON.stringify({ ...body, stream: true, partial_images: PREVIEWS }),
      signal: running.signal,
    });
    if (!response.ok) throw new Error(await problem(response));
    let finished = false;
    for await (const [kind, value] of eventsOf(response)) {
      if (kind === "comment") {
        const found = /^progress (\d+)\/(\d+)$/.exec(value);
        if (!found) continue;
        $("progress").value = found[1] / found[2];
        say(`Row ${found[1]} of ${found[2]}, ${seconds()} s`);
      } else if (value.error) {
        throw new Error(value.error.message);
      } else {
        const url = blobUrl(value.b64_json, value.output_format);
        await showPreview(url, alt);
        if (preview) URL.revokeObjectURL(preview);
        preview = url;
        if (value.type !== "image_generation.completed") continue;
        finished = true;
        preview = null;
        await finish(body, value, { url, alt, loop: Boolean(body.loop) }, seconds());
      }
    }
    if (!finished) throw new Error("The server closed the stream before the picture was complete.");
  } catch (error) {
    if (error.name === "AbortError") say("Stopped.");
    else say(error instanceof TypeError ? `The server cannot be reached (${error.message}).` : error.message, true);
  } finally {
    running = null;
    busy(false);
  }
}

async function finish(body, event, picture, seconds) {
  picture.name = `panorama-${event.seed}.${event.output_format}`;
  await showPicture(picture);
  const cut = event.prompt_truncated ? " The prompt was longer than the model reads; its end was not used." : "";
  say(`${event.size}, seed ${event.seed}, ${event.usage.output_tokens} codes, ${seconds} s.${cut}`);
  remember({
    body: { ...body, seed: event.seed },
    picture,
    facts: `${event.size} · seed ${event.seed} · ${seconds} s`,
    show: showAgain,
    again: fillForm,
  });
}

async function drawWithoutEnd() {
  if (running) return;
  const form = requestBody();
  if (!form) return;
  const begun = performance.now();
  const seconds = () => ((performance.now() - begun) / 1000).toFixed(1);
  const [body, alt] = [endlessBody(form), titleOf(form)];
  running = new AbortController();
  busy(true);
  say("Waiting for the first row …");
  try {
    const drawn = await drawEndless(body, alt, running.signal, seconds);
    if (!drawn) return say("Stopped.");
    const { width, height, kept, seed, steered, url } = drawn;
    const prompts = [...(body.prompts ?? []), ...steered];
    const picture = { url, alt, loop: false, name: `endless-${seed}.png` };
    await showPicture(picture);
    say(`Stopped at ${width}x${height}, seed ${seed}, ${seconds()} s.${kept < width ? ` The last ${kept} pixels are kept.` : ""}`);
    remember({
      body: { ...body, seed, limit: width, ...(prompts.length ? { prompts } : {}) },
      picture,
      facts: `${width}x${height} · without end · seed ${seed} · ${seconds()} s`,
      show: showAgain,
      again: () => fillForm({ ...form, seed }),
      route: "v1/images/endless",
    });
  } catch (error) {
    say(error instanceof TypeError ? `The server cannot be reached (${error.message}).` : error.message, true);
  } finally {
    running = null;
    busy(false);
  }
}

function showAgain(picture) {
  if (running) return;
  showPicture(picture);
  document.querySelector(".stage").scrollIntoView({ block: "nearest" });
}

function start() {
  setUpViewer();
  setUpMarkers();
  try { $("key").value = sessionStorage.getItem("panoserve-key") ?? ""; } catch { /* no storage: ask each time */ }
  const load = () => loadOptions().then(() => say("")).catch((error) => say(error.message, true));
  $("key").addEventListener("change", () => {
    try { sessionStorage.setItem("panoserve-key", $("key").value); } catch { /* as above */ }
    load();
  });
  $("form").addEventListener("submit", (event) => { event.preventDefault(); draw(); });
  $("endless").addEventListener("click", drawWithoutEnd);
  $("steer").addEventListener("click", () => steer(subjectNow()).catch((error) => say(error.message, true)));
  $("stop").addEventListener("click", () => running?.abort());
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) draw();
    if (event.key === "Escape") running?.abort();
  });
  load();
}

start();
