// Undo and redo of the faders and of the choice of learned gates. A step is a setting at rest: a drag is one, and so is a click.
const page = window.sinkgate;
const buttons = { [-1]: element.querySelector(".undo"), [1]: element.querySelector(".redo") };
const MOST = 100; // steps
let steps = []; // {scales, chosen, off}, the oldest first
let at = -1; // index of the step on the page
let setting = null; // the newest, as sent
let settled = false; // false while the faders move
let frame = null;
let began = null; // of the question of the newest step

function learned() {
  return frame?.learned ? { chosen: frame.learned.name, off: frame.learned.off } : { chosen: null, off: [] };
}

function sameLearned(one, other) {
  return one.chosen === other.chosen && one.off.join() === other.off.join();
}

// Another step, unless nothing differs from the one on the page. `replace`: the change belongs to that step.
function record(scales, replace = false) {
  const step = { scales: page.scales(scales), ...learned() };
  if (at >= 0 && page.same(step.scales, steps[at].scales) && sameLearned(step, steps[at])) return;
  steps = [...steps.slice(0, replace ? Math.max(at, 0) : at + 1), step].slice(-MOST);
  at = steps.length - 1;
  draw();
}

function draw() {
  for (const direction of [-1, 1]) {
    buttons[direction].setAttribute("aria-disabled", String(!steps[at + direction]));
  }
  element.dataset.steps = `${at}/${steps.length}`;
}

// Put a step on the page. Returns false while the pointer holds a fader.
page.restore = (step) => {
  if (sameLearned(step, learned())) return page.put(step.scales);
  props.value = { ...step.scales, chosen: step.chosen, off: step.off };
  trigger("restore");
  return true;
};

function go(direction) {
  if (page.playing || !frame) return;
  if (!settled) record(setting); // keys may still be repeated
  const [before, step] = [at, steps[at + direction]];
  if (!step) return;
  at += direction; // before the faders move, so that this is no step of its own
  if (!page.restore(step)) at = before;
  draw();
}

for (const direction of [-1, 1]) buttons[direction].addEventListener("click", () => go(direction));

// Text boxes have their own undo, and the scene editor has none.
document.addEventListener("keydown", (event) => {
  if (!(event.ctrlKey || event.metaKey) || event.altKey) return;
  if (event.target.closest?.("textarea, input:not([type=checkbox]), [contenteditable], #composer")) return;
  const key = event.key.toLowerCase();
  const direction = key === "y" || (key === "z" && event.shiftKey) ? 1 : key === "z" ? -1 : 0;
  if (!direction) return;
  event.preventDefault();
  go(direction);
});

page.subscribe("setting", (newest) => {
  setting = newest;
  settled = false;
});
page.subscribe("settled", (newest) => {
  setting = newest;
  settled = true;
  if (!newest.server && !page.playing) record(newest);
});
// Where the server moved the faders, the frame tells whether learned gates did, and whether it was for another question.
page.subscribe("frame", (newest) => {
  frame = newest;
  if (at < 0) [setting, settled] = [newest.gates, true];
  if (!settled || page.playing || !page.same(setting, newest.gates)) return;
  record(setting, began !== null && began !== newest.began && !page.opening);
  began = newest.began;
  page.opening = false;
});
draw();
