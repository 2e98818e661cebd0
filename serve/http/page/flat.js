// The flat viewer: the picture is placed by a scale and an offset.

import { $ } from "./dom.js";

const MOST = 16; // screen pixels for a pixel of the picture
const WIDE = 6; // the shape of the viewer for a picture that grows: so many times as wide as high

export const view = { scale: 1, x: 0, y: 0, width: 0, height: 0, fitted: true };

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

export function fit() {
  if (!view.width || $("viewer").hidden) return; // hidden: there is nothing to measure
  view.fitted = true;
  view.scale = fitScale();
  keepInside();
  place();
}

export function zoom(factor, x, y) {
  if (!view.width) return;
  const box = $("viewer").getBoundingClientRect();
  const [cx, cy] = [x ?? box.width / 2, y ?? box.height / 2];
  const least = fitScale();
  const scale = Math.min(Math.max(MOST, least), Math.max(least, view.scale * factor));
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

// As high as the viewer, and moved to the right end.
function toEnd() {
  const box = $("viewer").getBoundingClientRect();
  view.scale = box.height / view.height;
  view.fitted = false;
  view.x = box.width - view.width * view.scale;
  keepInside();
  place();
}

// `growing`: the picture has grown to the right, and is followed there unless somebody looks at another part of it.
export function showFlat(url, alt, growing = false) {
  return new Promise((done) => {
    const picture = $("picture");
    picture.onload = () => {
      const viewer = $("viewer");
      const following = view.fitted || view.x + view.width * view.scale <= viewer.getBoundingClientRect().width + 1;
      const changed = view.width !== picture.naturalWidth || view.height !== picture.naturalHeight;
      [view.width, view.height] = [picture.naturalWidth, picture.naturalHeight];
      viewer.style.aspectRatio = growing ? `${WIDE * view.height} / ${view.height}` : `${view.width} / ${view.height}`;
      picture.hidden = false;
      $("empty").hidden = true;
      if (growing && following) toEnd();
      else if (growing) place();
      else if (changed || view.fitted) fit();
      done();
    };
    picture.alt = alt;
    picture.src = url;
  });
}

export function setUpFlat() {
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
  new ResizeObserver(() => {
    if (!view.width || viewer.hidden) return;
    if (view.fitted || view.scale < fitScale()) fit(); else { keepInside(); place(); }
  }).observe(viewer);
}
