// Prompts along the picture: markers on a strip, each with a prompt that holds from its place to the next marker.

import { $ } from "./dom.js";

const LAST = 0.99; // a prompt from the very end on would hold nowhere
const STEPS = { ArrowLeft: -0.01, ArrowDown: -0.01, ArrowRight: 0.01, ArrowUp: 0.01, PageDown: -0.1, PageUp: 0.1 };

let markers = []; // {place: 0 to LAST, slider, span, row, input}, in the order in which they were added

const inOrder = () => [...markers].sort((a, b) => a.place - b.place);

// Along the longer side: the field of `prompts` that the places are.
const side = () => (Number($("height").value) > Number($("width").value) ? "top" : "left");

function put(element, from, to) {
  element.style.left = `${from * 100}%`;
  element.style.width = `${(to - from) * 100}%`;
}

function layOut() {
  const ordered = inOrder();
  $("strip").hidden = $("places").hidden = $("blend-field").hidden = !ordered.length;
  $("first-span").textContent = $("prompt").value;
  put($("first-span"), 0, ordered[0]?.place ?? 1);
  ordered.forEach((marker, index) => {
    const [number, percent] = [markers.indexOf(marker) + 1, Math.round(marker.place * 100)];
    put(marker.span, marker.place, ordered[index + 1]?.place ?? 1);
    marker.span.textContent = marker.input.value;
    marker.slider.style.left = `${percent}%`;
    marker.slider.textContent = number;
    marker.slider.setAttribute("aria-label", `Place of prompt ${number}`);
    marker.slider.setAttribute("aria-valuenow", percent);
    marker.slider.setAttribute("aria-valuetext", `${percent} % from the ${side()}`);
    marker.row.querySelector(".number").textContent = number;
    marker.row.querySelector(".place").textContent = `from ${percent} %`;
    marker.row.querySelector(".remove").setAttribute("aria-label", `Remove prompt ${number}`);
    marker.input.setAttribute("aria-label", `Prompt ${number} along the picture`);
  });
}

function move(marker, place) {
  marker.place = Math.round(Math.min(LAST, Math.max(0, place)) * 100) / 100;
  layOut();
}

function remove(marker) {
  markers = markers.filter((other) => other !== marker);
  for (const part of [marker.slider, marker.span, marker.row]) part.remove();
  layOut();
  (markers.at(-1)?.slider ?? $("add-marker")).focus();
}

function placeOf(event) {
  const box = $("strip").getBoundingClientRect();
  return (event.clientX - box.left) / box.width;
}

// The middle of the widest stretch of one prompt.
function roomiest() {
  const edges = [0, ...inOrder().map((marker) => marker.place), 1];
  const widths = edges.slice(1).map((edge, index) => edge - edges[index]);
  const widest = widths.indexOf(Math.max(...widths));
  return edges[widest] + widths[widest] / 2;
}

function add(place, prompt = "") {
  const [span, slider, row] = $("marker").content.cloneNode(true).children;
  const marker = { place: 0, slider, span, row, input: row.querySelector("input") };
  marker.input.value = prompt;
  marker.input.addEventListener("input", layOut);
  row.querySelector(".remove").addEventListener("click", () => remove(marker));
  slider.addEventListener("pointerdown", (event) => slider.setPointerCapture(event.pointerId));
  slider.addEventListener("pointermove", (event) => {
    if (slider.hasPointerCapture(event.pointerId)) move(marker, placeOf(event));
  });
  slider.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key in STEPS) move(marker, marker.place + STEPS[event.key]);
    else if (event.key === "Home") move(marker, 0);
    else if (event.key === "End") move(marker, LAST);
    else if (event.key === "Delete" || event.key === "Backspace") remove(marker);
    else return;
    event.preventDefault();
  });
  markers.push(marker);
  $("strip").append(span, slider);
  $("places").append(row);
  move(marker, place);
  return marker;
}

// The field `prompts` of a request, in the order of their places: the last one that holds at a place wins.
export function promptsAlong() {
  return inOrder().map((marker) => ({ prompt: marker.input.value, [side()]: marker.place }));
}

// Put the `prompts` of an earlier request on the strip.
export function fillMarkers(prompts = []) {
  for (const marker of markers) for (const part of [marker.slider, marker.span, marker.row]) part.remove();
  markers = [];
  for (const { prompt, left, top } of prompts) add(left ?? top ?? 0, prompt);
  layOut();
}

export function setUpMarkers() {
  $("add-marker").addEventListener("click", () => add(roomiest()).input.focus());
  $("strip").addEventListener("click", (event) => {
    if (!event.target.closest(".marker")) add(placeOf(event)).input.focus();
  });
  for (const id of ["prompt", "width", "height"]) $(id).addEventListener("input", layOut);
}
