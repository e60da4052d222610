// Runs the script of a page in a minimal imitation of a browser: node page_test.js PAGE.html
// Prints, as JSON, the texts and the gray boxes after each of some inputs of a user.
"use strict";
const fs = require("fs");
const vm = require("vm");
const page = fs.readFileSync(process.argv[2], "utf8");
const [, json] = page.match(/<script id="data"[^>]*>([^]*?)<\/script>/);
const [, script] = page.match(/<script>([^]*?)<\/script>/);
const elements = {}, listeners = {}, timers = new Map();
let boxes = [], drawn = [], timerId = 0;
const context = view => ({
  drawImage: image => drawn.push([view, image.src]),
  fillRect: (...box) => boxes.push([view, ...box]),
});
function element(id) {
  return elements[id] ??= {
    id, textContent: "", value: (page.match(new RegExp(`id="${id}"[^>]*value="([\\d.]+)"`)) ?? [])[1],
    addEventListener: (kind, call) => { listeners[`${id} ${kind}`] = call; },
    getContext: () => context(id),
  };
}
for (const [, id] of page.matchAll(/ id="(\w+)"/g)) element(id);
element("data").textContent = json;
element("strategy").value = page.match(/<option value="([^"]+)"/)[1];
class Image { decode() { return Promise.resolve(); } }
const document = {
  getElementById: id => elements[id],  // null, as in a browser, would be an error as well
  addEventListener: (kind, call) => { listeners[kind] = call; },
};
const setInterval = (call, milliseconds, ...values) => {
  timers.set(++timerId, () => call(...values));
  return timerId;
};
const clearInterval = id => timers.delete(id);
vm.runInNewContext(script, { document, Image, setInterval, clearInterval, JSON, Math, Promise });

const states = {};
function note(name) {
  const texts = {};
  for (const [id, { textContent }] of Object.entries(elements)) if (id !== "data") texts[id] = textContent;
  states[name] = { ...texts, frame: +elements.frame.value, keep: +elements.keep.value,
    boxes: boxes.slice(), drawn: drawn.slice(), timers: timers.size };
}
function key(name, at = "") {
  let stopped = false;
  [boxes, drawn] = [[], []];
  listeners.keydown({ key: name, target: { id: at }, preventDefault: () => { stopped = true; } });
  return stopped;
}
setTimeout(() => {
  note("opened");
  key("ArrowRight"); note("right");
  key("ArrowLeft"); key("ArrowLeft"); note("left of the first");
  key("ArrowRight"); key("ArrowUp"); note("up");
  key("ArrowDown"); note("down");
  for (let i = 0; i < 200; i++) key("ArrowDown");
  note("lowest");
  for (let i = 0; i < 200; i++) key("ArrowUp");
  note("highest");
  states.stopped = [key("ArrowLeft", "keep"), key("ArrowUp", "strategy"), key(" ", "play"), key("x")];
  note("keys of others");
  key(" "); note("space");
  [...timers.values()].forEach(call => call()); note("a moment later");
  listeners["frame input"](); note("slider moved");
  listeners["play click"](); note("button");
  listeners["play click"](); note("button again");
  elements.strategy.value = "random"; [boxes, drawn] = [[], []];
  elements.keep.value = "50"; listeners["keep input"](); note("random");
  console.log(JSON.stringify(states));
}, 0);
