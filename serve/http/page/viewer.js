// What the picture is shown in: the flat viewer or, for a loop, the view all around; and the buttons of both.

import { openAround } from "./around.js";
import { $, say } from "./dom.js";
import { fit, setUpFlat, showFlat, view, zoom } from "./flat.js";

export let around = null; // the view all around, while it is open

function closeAround() {
  around?.close();
  around = null;
  $("around").hidden = true;
  $("around").replaceChildren();
  $("viewer").hidden = false;
  $("all-around").setAttribute("aria-pressed", "false");
  fit();
}

async function toggleAround() {
  if (around) return closeAround();
  const button = $("all-around");
  button.disabled = true;
  $("around").hidden = false;
  $("viewer").hidden = true;
  try {
    around = await openAround($("around"), $("picture"));
    button.setAttribute("aria-pressed", "true");
  } catch (error) {
    closeAround();
    say(error.message, true);
  } finally {
    button.disabled = false;
  }
}

// A picture that is still being drawn.
export async function showPreview(url, alt) {
  $("all-around").hidden = true;
  if (around) closeAround();
  await showFlat(url, alt);
  $("strip").style.backgroundImage = view.width > view.height ? `url("${url}")` : ""; // so that places are seen
}

// A picture that grows to the right.
export async function showEnd(url, alt) {
  $("all-around").hidden = true;
  if (around) closeAround();
  await showFlat(url, alt, true);
}

async function toggleFull() {
  if (document.fullscreenElement) await document.exitFullscreen();
  else await document.querySelector(".stage").requestFullscreen();
}

// A finished picture: {url, name, alt, loop}.
export async function showPicture(picture) {
  await showPreview(picture.url, picture.alt);
  $("all-around").hidden = !picture.loop;
  const link = $("download");
  link.href = picture.url;
  link.download = picture.name;
  link.removeAttribute("aria-disabled");
}

export function setUpViewer() {
  setUpFlat();
  $("zoom-in").addEventListener("click", () => (around ?? { zoom }).zoom(1.5));
  $("zoom-out").addEventListener("click", () => (around ?? { zoom }).zoom(1 / 1.5));
  $("fit").addEventListener("click", () => (around ? around.reset() : fit()));
  $("all-around").addEventListener("click", toggleAround);
  $("full").hidden = !document.fullscreenEnabled;
  $("full").addEventListener("click", toggleFull);
  document.addEventListener("fullscreenchange", () => $("full").setAttribute("aria-pressed", Boolean(document.fullscreenElement)));
  for (const box of [$("viewer"), $("around")]) {
    box.addEventListener("keydown", (event) => {
      if (event.key === "f" && !event.ctrlKey && !event.metaKey && !event.altKey && document.fullscreenEnabled) toggleFull();
    });
  }
}
