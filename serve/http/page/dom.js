// The two helpers that every part of the page uses.

export const $ = (id) => document.getElementById(id);

export function say(text, bad = false) {
  $("status").textContent = text;
  $("status").classList.toggle("bad", bad);
}
