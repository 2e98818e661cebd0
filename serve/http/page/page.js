// The page: a form, a stream of events that paints, a viewer, a history. No framework, nothing from elsewhere.
"use strict";

const $ = (id) => document.getElementById(id);
const PREVIEWS = 12; // partial pictures asked for; the server skips those that it has no time for

let options = null; // GET v1/images/options
let running = null; // AbortController of the drawing under way
let current = null; // {url, name} of the finished picture in the viewer

// ---- viewer: the picture is placed by a scale and an offset ----

const view = { scale: 1, x: 0, y: 0, width: 0, height: 0, fitted: true };

function place() {
  const picture = $("picture");
  picture.style.transform = `translate(${view.x}px, ${view.y}px) scale(${view.scale})`;
  picture.classList.toggle("pixels", view.scale >= 3);
}

function fitScale() {
  const box = $("viewer").getBoundingClientRect();
  return Math.min(box.width / view.width, box.height / view.height);
}

function keepInside() {
  const box = $("viewer").getBoundingClientRect();
  for (const [at, side, room] of [["x", "width", box.width], ["y", "height", box.height]]) {
    const size = view[side] * view.scale;
    view[at] = size <= room ? (room - size) / 2 : Math.min(0, Math.max(room - size, view[at]));
  }
}

function fit() {
  if (!view.width) return;
  view.fitted = true;
  view.scale = fitScale();
  keepInside();
  place();
}

function zoom(factor, x, y) {
  if (!view.width) return;
  const box = $("viewer").getBoundingClientRect();
  const [cx, cy] = [x ?? box.width / 2, y ?? box.height / 2];
  const least = fitScale();
  const scale = Math.min(16, Math.max(least, view.scale * factor));
  view.x = cx - ((cx - view.x) * scale) / view.scale;
  view.y = cy - ((cy - view.y) * scale) / view.scale;
  view.scale = scale;
  view.fitted = scale === least;
  keepInside();
  place();
}

function move(dx, dy) {
  view.x += dx;
  view.y += dy;
  keepInside();
  place();
}

function showPicture(url, alt) {
  return new Promise((done) => {
    const picture = $("picture");
    picture.onload = () => {
      const changed = view.width !== picture.naturalWidth || view.height !== picture.naturalHeight;
      [view.width, view.height] = [picture.naturalWidth, picture.naturalHeight];
      $("viewer").style.aspectRatio = `${view.width} / ${view.height}`;
      picture.hidden = false;
      $("empty").hidden = true;
      if (changed || view.fitted) fit();
      done();
    };
    picture.alt = alt;
    picture.src = url;
  });
}

function setUpViewer() {
  const viewer = $("viewer");
  const touches = new Map(); // pointerId -> [x, y]
  let spread = 0;
  viewer.addEventListener("pointerdown", (event) => {
    viewer.setPointerCapture(event.pointerId);
    touches.set(event.pointerId, [event.clientX, event.clientY]);
    spread = 0;
    viewer.classList.add("dragging");
  });
  viewer.addEventListener("pointermove", (event) => {
    const before = touches.get(event.pointerId);
    if (!before) return;
    touches.set(event.pointerId, [event.clientX, event.clientY]);
    if (touches.size === 1) return move(event.clientX - before[0], event.clientY - before[1]);
    const [[ax, ay], [bx, by]] = touches.values();
    const distance = Math.hypot(ax - bx, ay - by);
    const box = viewer.getBoundingClientRect();
    if (spread) zoom(distance / spread, (ax + bx) / 2 - box.left, (ay + by) / 2 - box.top);
    spread = distance;
  });
  for (const kind of ["pointerup", "pointercancel"]) {
    viewer.addEventListener(kind, (event) => {
      touches.delete(event.pointerId);
      spread = 0;
      viewer.classList.toggle("dragging", touches.size > 0);
    });
  }
  viewer.addEventListener("wheel", (event) => {
    if (!view.width) return;
    event.preventDefault();
    const box = viewer.getBoundingClientRect();
    zoom(Math.exp(-event.deltaY / 400), event.clientX - box.left, event.clientY - box.top);
  }, { passive: false });
  viewer.addEventListener("dblclick", (event) => {
    const box = viewer.getBoundingClientRect();
    zoom(2, event.clientX - box.left, event.clientY - box.top);
  });
  viewer.addEventListener("keydown", (event) => {
    const step = 80;
    const actions = {
      ArrowLeft: () => move(step, 0), ArrowRight: () => move(-step, 0),
      ArrowUp: () => move(0, step), ArrowDown: () => move(0, -step),
      "+": () => zoom(1.25), "=": () => zoom(1.25), "-": () => zoom(0.8), 0: fit,
    };
    if (event.ctrlKey || event.metaKey || event.altKey || !actions[event.key]) return;
    event.preventDefault();
    actions[event.key]();
  });
  $("zoom-in").addEventListener("click", () => zoom(1.5));
  $("zoom-out").addEventListener("click", () => zoom(1 / 1.5));
  $("fit").addEventListener("click", fit);
  new ResizeObserver(() => {
    if (!view.width) return;
    if (view.fitted || view.scale < fitScale()) fit(); else { keepInside(); place(); }
  }).observe(viewer);
}

// ---- talking to the server ----

function headers() {
  const key = $("key").value;
  return { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
}

async function problem(response) {
  if (response.status === 401) {
    $("key").closest("details").open = true;
    return "The server wants an API key: enter it under More options.";
  }
  try {
    const { error } = await response.json();
    return error.message ?? String(error);
  } catch {
    return `The server answered ${response.status} ${response.statusText}.`;
  }
}

// Yields [kind, value] for each event of a server-sent stream: comments as ["comment", text], data as ["data", object].
async function* eventsOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const data = [];
      for (const line of block.split("\n")) {
        if (line.startsWith(":")) yield ["comment", line.slice(1).trim()];
        else if (line.startsWith("data:")) data.push(line.slice(5).trim());
      }
      if (data.length) yield ["data", JSON.parse(data.join("\n"))];
    }
  }
}

function blobUrl(base64, format) {
  const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  return URL.createObjectURL(new Blob([bytes], { type: `image/${format}` }));
}

// ---- drawing ----

function numberIn(id) {
  const text = $(id).value.trim();
  return text === "" ? undefined : Number(text);
}

function requestBody() {
  const body = {
    prompt: options.condition === "class" ? "" : $("prompt").value,
    size: `${numberIn("width")}x${numberIn("height")}`,
    output_format: $("format").value,
  };
  if (options.condition === "class") body.label = numberIn("label");
  if ($("loop").checked) body.loop = true;
  if ($("context").value !== options.defaults.context) body.context = $("context").value;
  const fields = {
    seed: "seed", guidance: "guidance_scale", temperature: "temperature", top_k: "top_k", top_p: "top_p", stride: "stride",
  };
  for (const [id, name] of Object.entries(fields)) {
    if (numberIn(id) !== undefined) body[name] = numberIn(id);
  }
  return body;
}

function say(text, bad = false) {
  $("status").textContent = text;
  $("status").classList.toggle("bad", bad);
}

function busy(on) {
  $("draw").disabled = on;
  $("stop").disabled = !on;
  $("progress").hidden = !on;
  if (on) $("progress").removeAttribute("value");
}

async function draw() {
  if (running || !options || !$("form").reportValidity()) return;
  const body = requestBody();
  const begun = performance.now();
  const seconds = () => ((performance.now() - begun) / 1000).toFixed(1);
  const alt = body.prompt || `class ${body.label}`;
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
        await showPicture(url, alt);
        if (preview) URL.revokeObjectURL(preview);
        preview = url;
        if (value.type !== "image_generation.completed") continue;
        finished = true;
        preview = null;
        finish(body, value, url, seconds());
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

function finish(body, event, url, seconds) {
  const name = `panorama-${event.seed}.${event.output_format}`;
  setCurrent({ url, name });
  const cut = event.prompt_truncated ? " The prompt was longer than the model reads; its end was not used." : "";
  say(`${event.size}, seed ${event.seed}, ${event.usage.output_tokens} codes, ${seconds} s.${cut}`);
  remember({ ...body, seed: event.seed }, event, url, name, seconds);
}

function setCurrent(picture) {
  current = picture;
  const link = $("download");
  link.href = current.url;
  link.download = current.name;
  link.removeAttribute("aria-disabled");
}

// ---- history ----

function curlOf(body) {
  const key = $("key").value ? " \\\n  -H 'Authorization: Bearer YOUR_KEY'" : "";
  const data = JSON.stringify(body).replaceAll("'", "'\\''");
  const file = `panorama-${body.seed}.${body.output_format}`;
  const address = new URL("v1/images/generations", location.href);
  return `curl -s ${address} \\\n  -H 'Content-Type: application/json'${key} \\\n  -d '${data}' \\\n` +
    `  | python3 -c 'import base64, json, sys; sys.stdout.buffer.write(base64.b64decode(json.load(sys.stdin)["data"][0]["b64_json"]))' > ${file}`;
}

async function copy(text, button) {
  const label = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Copy it below";
    button.closest("li").querySelector("details").open = true;
    button.closest("li").querySelector("pre").textContent = text;
  }
  setTimeout(() => { button.textContent = label; }, 1500);
}

function remember(body, event, url, name, seconds) {
  const item = $("entry").content.cloneNode(true).firstElementChild;
  const find = (selector) => item.querySelector(selector);
  const title = body.prompt || `class ${body.label}`;
  const json = JSON.stringify(body, null, 2);
  find("img").src = url;
  find(".show").setAttribute("aria-label", `Show: ${title}`);
  find(".caption").textContent = title;
  find(".facts").textContent = `${event.size} · seed ${event.seed} · ${seconds} s`;
  find("pre").textContent = json;
  find(".show").addEventListener("click", () => {
    if (running) return;
    setCurrent({ url, name });
    showPicture(url, title);
    $("viewer").scrollIntoView({ block: "nearest" });
  });
  find(".again").addEventListener("click", () => fillForm(body));
  find(".copy-json").addEventListener("click", (click) => copy(json, click.currentTarget));
  find(".copy-curl").addEventListener("click", (click) => copy(curlOf(body), click.currentTarget));
  $("history").prepend(item);
  $("no-history").hidden = true;
}

function fillForm(body) {
  const [width, height] = body.size.split("x");
  const values = {
    prompt: body.prompt, label: body.label, width, height, format: body.output_format, seed: body.seed,
    guidance: body.guidance_scale, temperature: body.temperature, top_k: body.top_k, top_p: body.top_p,
    stride: body.stride, context: body.context ?? options.defaults.context,
  };
  for (const [id, value] of Object.entries(values)) $(id).value = value ?? "";
  $("loop").checked = Boolean(body.loop);
  $("prompt").focus();
}

// ---- start ----

async function loadOptions() {
  const response = await fetch("v1/images/options", { headers: headers() });
  if (!response.ok) throw new Error(await problem(response));
  options = await response.json();
  const [width, height] = options.size.default.split("x");
  $("model").textContent = options.model;
  for (const [id, value] of [["width", width], ["height", height]]) {
    Object.assign($(id), { min: options.size.step, step: options.size.step, value });
  }
  const defaults = options.defaults;
  $("guidance").placeholder = options.guidance.available ? defaults.guidance : "not with this model";
  $("guidance").disabled = !options.guidance.available;
  $("guidance").max = options.guidance.max;
  $("temperature").placeholder = defaults.temperature;
  $("temperature").max = options.temperature.max;
  Object.assign($("top_k"), { placeholder: defaults.top_k, max: options.top_k.max });
  $("top_p").placeholder = defaults.top_p;
  Object.assign($("stride"), { placeholder: options.stride.default, max: options.stride.max });
  $("context").replaceChildren(...options.contexts.map((name) => new Option(name, name, false, name === defaults.context)));
  const byClass = options.condition === "class";
  $("prompt-field").hidden = $("prompt").disabled = byClass;
  $("label-field").hidden = $("label").disabled = !byClass; // disabled, or it would be validated unseen
  $("label").max = options.classes - 1;
  say("");
}

function start() {
  setUpViewer();
  try { $("key").value = sessionStorage.getItem("panoserve-key") ?? ""; } catch { /* no storage: ask each time */ }
  const load = () => loadOptions().catch((error) => say(error.message, true));
  $("key").addEventListener("change", () => {
    try { sessionStorage.setItem("panoserve-key", $("key").value); } catch { /* as above */ }
    load();
  });
  $("form").addEventListener("submit", (event) => { event.preventDefault(); draw(); });
  $("stop").addEventListener("click", () => running?.abort());
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) draw();
    if (event.key === "Escape") running?.abort();
  });
  load();
}

start();
