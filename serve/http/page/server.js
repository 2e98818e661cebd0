// Talking to the server.

import { $ } from "./dom.js";

export function headers() {
  const key = $("key").value;
  return { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
}

export async function problem(response) {
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
export async function* eventsOf(response) {
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

export function blobUrl(base64, format) {
  const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  return URL.createObjectURL(new Blob([bytes], { type: `image/${format}` }));
}
