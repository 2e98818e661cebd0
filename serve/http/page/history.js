// What was drawn in this visit, with the request as JSON and as a curl command.

import { $ } from "./dom.js";

export const GENERATIONS = "v1/images/generations";

function curlOf(body, route) {
  const key = $("key").value ? " \\\n  -H 'Authorization: Bearer YOUR_KEY'" : "";
  const data = JSON.stringify(body).replaceAll("'", "'\\''");
  const file = `panorama-${body.seed}.${body.output_format}`;
  const ask = `curl -sN ${new URL(route, location.href)} \\\n  -H 'Content-Type: application/json'${key} \\\n  -d '${data}'`;
  if (route !== GENERATIONS) return ask; // a stream of events
  return `${ask} \\\n` +
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

// Put a finished picture on top of the list. `body` is the request that draws it again; `show` and `again` are called when
// the picture or its values are asked for.
export function remember({ body, picture, facts, show, again, route = GENERATIONS }) {
  const item = $("entry").content.cloneNode(true).firstElementChild;
  const find = (selector) => item.querySelector(selector);
  const json = JSON.stringify(body, null, 2);
  find("img").src = picture.url;
  find(".show").setAttribute("aria-label", `Show: ${picture.alt}`);
  find(".caption").textContent = picture.alt;
  find(".facts").textContent = facts;
  find("pre").textContent = json;
  find(".show").addEventListener("click", () => show(picture));
  find(".again").addEventListener("click", () => again(body));
  find(".copy-json").addEventListener("click", (click) => copy(json, click.currentTarget));
  find(".copy-curl").addEventListener("click", (click) => copy(curlOf(body, route), click.currentTarget));
  $("history").prepend(item);
  $("no-history").hidden = true;
}
