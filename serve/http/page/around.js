// The view all around in a loop, by Pannellum (`make page` copies it here).
//
// A loop is a picture on the inside of a cylinder: its width is once around, so width / 2 pi is the radius, and a pixel h
// above the middle is seen at an elevation of atan(h / radius). Pannellum turns spheres, whose rows stand for equal angles:
// the rows are drawn anew at equal angles, and what Pannellum then shows is what the cylinder would show.

const MOST_WIDE = 8192; // twice the largest texture of the weakest graphics there are
const MOST_PIXELS = 2 ** 24; // larger canvases stay empty on some phones
const WIDEST = 100; // degrees across the view at first

// A canvas with the loop's rows at equal angles, as wide as the loop or as wide as can be; and the degrees they span.
async function atEqualAngles(picture) {
  const [width, height] = [picture.naturalWidth ?? picture.width, picture.naturalHeight ?? picture.height];
  const span = 2 * Math.atan((height * Math.PI) / width);
  const radius = width / (2 * Math.PI);
  const scale = Math.min(1, MOST_WIDE / width, Math.sqrt(MOST_PIXELS / (width * radius * span)));
  const canvas = document.createElement("canvas");
  canvas.width = Math.round(width * scale);
  canvas.height = Math.max(2, Math.round(radius * span * scale)); // in the middle, a row is a row of the picture
  const paint = canvas.getContext("2d", { alpha: false });
  paint.imageSmoothingQuality = "high";
  const bitmap = await createImageBitmap(picture);
  const placeOf = (row) => height / 2 - radius * Math.tan(span * (0.5 - row / canvas.height));
  for (let row = 0; row < canvas.height; row += 1) {
    const top = Math.max(0, placeOf(row));
    const bottom = Math.min(height, placeOf(row + 1));
    paint.drawImage(bitmap, 0, top, width, bottom - top, 0, row, canvas.width, 1);
  }
  bitmap.close();
  return { canvas, degrees: (span * 180) / Math.PI };
}

function hasWebGL() {
  try {
    return Boolean(document.createElement("canvas").getContext("webgl"));
  } catch {
    return false;
  }
}

// Open the view in `box` on a picture or canvas: {zoom, reset, close}, and `view`, which is Pannellum's own.
// Throws an Error that can be shown.
export async function openAround(box, picture) {
  if (!hasWebGL()) throw new Error("The view all around needs WebGL, which this browser does not offer.");
  await import("./pannellum.js");
  const { canvas, degrees } = await atEqualAngles(picture);
  const url = URL.createObjectURL(await new Promise((done) => canvas.toBlob(done)));
  const view = window.pannellum.viewer(box, {
    panorama: url,
    autoLoad: true,
    showControls: false, // the page's own buttons have names
    vaov: degrees,
    minPitch: -degrees / 2,
    maxPitch: degrees / 2,
    avoidShowingBackground: true,
    hfov: WIDEST,
    minHfov: 15,
    capturedKeyNumbers: [37, 38, 39, 40, 61, 107, 109, 173, 187, 189], // arrows, plus, minus; not letters, Ctrl and Shift
    strings: { loadingLabel: "Loading …" },
  });
  try {
    await new Promise((done, failed) => {
      view.on("load", done);
      view.on("error", (message) => failed(new Error(message)));
    });
  } catch (error) {
    view.destroy();
    throw error;
  } finally {
    URL.revokeObjectURL(url);
  }
  const reset = () => {
    view.stopMovement(); // what is left of a drag would turn it away again
    view.setHfov(WIDEST, false); view.setYaw(0, false); view.setPitch(0, false);
  };
  // Where the box gets flatter Pannellum narrows the view, so that nothing but picture is seen, and never widens it again:
  // after each change of size, ask anew for the width that was last chosen, which is one that came at an unchanged size.
  const size = () => { const { width, height } = view.getRenderer().getCanvas(); return `${width}x${height}`; };
  let [chosen, shown, settled] = [WIDEST, view.getHfov(), size()];
  const settle = () => {
    settled = "";
    if (!box.clientWidth) return;
    view.resize();
    view.setHfov(chosen, false);
    [shown, settled] = [view.getHfov(), size()];
  };
  view.on("zoomchange", (hfov) => {
    if (size() !== settled || hfov === shown) return;
    chosen = shown = hfov;
  });
  const boxed = new ResizeObserver(settle);
  boxed.observe(box);
  addEventListener("resize", settle);
  const keys = (event) => { if (event.key === "0" && !event.ctrlKey && !event.metaKey && !event.altKey) reset(); };
  box.addEventListener("keydown", keys);
  return {
    view,
    reset,
    zoom: (factor) => view.setHfov(view.getHfov() / factor, 250),
    close: () => {
      boxed.disconnect();
      removeEventListener("resize", settle);
      box.removeEventListener("keydown", keys);
      view.destroy();
    },
  };
}
