// The form: what the server can be asked for, what is asked for, and an earlier request's values put back.

import { $ } from "./dom.js";
import { fillMarkers, promptsAlong } from "./markers.js";
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
  const fields = {
    "prompt-field": !byClass, along: !byClass, "label-field": byClass, "negative-field": !byClass && options.guidance.available,
  };
  for (const [id, on] of Object.entries(fields)) {
    $(id).hidden = !on;
    for (const control of $(id).querySelectorAll("input, textarea")) control.disabled = !on; // or it would be validated unseen
  }
  $("label").max = options.classes - 1;
}

function numberIn(id) {
  const text = $(id).value.trim();
  return text === "" ? undefined : Number(text);
}

// The body of the request that the form asks for, or null while it cannot be sent.
export function requestBody() {
  if (!options || !$("form").reportValidity()) return null;
  const byClass = options.condition === "class";
  const [prompts, negative] = byClass ? [[], ""] : [promptsAlong(), $("negative").value.trim()];
  const body = {
    prompt: byClass ? "" : $("prompt").value,
    size: `${numberIn("width")}x${numberIn("height")}`,
    output_format: $("format").value,
  };
  if (byClass) body.label = numberIn("label");
  if (prompts.length) body.prompts = prompts;
  if (prompts.length && numberIn("blend")) body.blend = numberIn("blend");
  if (prompts.length && !body.prompt.trim()) delete body.prompt; // the first of them holds there as well
  if (negative) body.negative_prompt = negative;
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

// What the form says is to be seen, for a panorama that is being drawn.
export function subjectNow() {
  return options.condition === "class" ? { label: numberIn("label") } : { prompt: $("prompt").value };
}

// What a request is for, in a line.
export function titleOf(body) {
  const prompts = [body.prompt, ...(body.prompts ?? []).map((entry) => entry.prompt)].filter((prompt) => prompt?.trim());
  return prompts.length ? prompts.join(" · ") : `class ${body.label}`;
}

// Put the values of an earlier request into the form.
export function fillForm(body) {
  const [width, height] = body.size.split("x");
  const values = {
    prompt: body.prompt, label: body.label, width, height, format: body.output_format, seed: body.seed,
    guidance: body.guidance_scale, temperature: body.temperature, top_k: body.top_k, top_p: body.top_p,
    stride: body.stride, negative: body.negative_prompt, context: body.context ?? options.defaults.context, blend: body.blend,
  };
  for (const [id, value] of Object.entries(values)) $(id).value = value ?? "";
  $("loop").checked = Boolean(body.loop);
  fillMarkers(body.prompts);
  $("prompt").focus();
}
