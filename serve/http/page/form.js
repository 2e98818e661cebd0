// The form: what the server can be asked for, what is asked for, and an earlier request's values put back.

import { $ } from "./dom.js";
import { headers, problem } from "./server.js";

let options = null; // GET v1/images/options

// Ask the server what it offers, and set the form up for it. Throws an Error that can be shown.
export async function loadOptions() {
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
}

function numberIn(id) {
  const text = $(id).value.trim();
  return text === "" ? undefined : Number(text);
}

// The body of the request that the form asks for, or null while it cannot be sent.
export function requestBody() {
  if (!options || !$("form").reportValidity()) return null;
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

// Put the values of an earlier request into the form.
export function fillForm(body) {
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
