// Undo and redo of the faders, of the choice of learned gates, and of the scene. A step is a setting at rest: a drag is one, and so is a
// click. Value: the step to restore where it changes that choice, {v_sink, l_sink, rest, chosen, off, revision}. Event: restore.
const page = window.sinkgate;
const buttons = { [-1]: element.querySelector(".undo"), [1]: element.querySelector(".redo") };
const MOST = 100; // steps
let steps = []; // {scales, chosen, off, stage}, the oldest first
let at = -1; // index of the step on the page
let setting = null; // the newest, as sent
let settled = false; // false while the faders move
let frame = null;
let stage = null; // {scene, picture} of the scene editor: a scene belongs to its picture, and another picture is no step
let restoring = false; // true while a step puts its scene on the stage
let editing = false; // true while an object moves: frames then belong to no step
let began = null; // of the question of the newest step
let edit = 0; // number of the newest edit of the scene
let restored = 0; // number of the newest step that was sent to be restored

function learned() {
  return frame?.learned ? { chosen: frame.learned.name, off: frame.learned.off } : { chosen: null, off: [] };
}

function sameLearned(one, other) {
  return one.chosen === other.chosen && one.off.join() === other.off.join();
}

function sameStage(one, other) {
  return JSON.stringify(one) === JSON.stringify(other);
}

// Whether a step is what the page shows. Scenes of another picture count for nothing.
function shows(step, scales) {
  const elsewhere = step.stage?.picture !== stage?.picture;
  return page.same(scales, step.scales) && sameLearned(learned(), step) && (elsewhere || sameStage(stage, step.stage));
}

// Another step, unless nothing differs from the one on the page. `replace`: the change belongs to that step, and no later one is dropped.
function record(scales, replace = false) {
  if (at >= 0 && shows(steps[at], scales)) return;
  const step = { scales: page.scales(scales), ...learned(), stage };
  if (replace && at >= 0) steps[at] = step;
  else {
    steps = [...steps.slice(0, at + 1), step].slice(-MOST);
    at = steps.length - 1;
  }
  draw();
}

function draw() {
  for (const direction of [-1, 1]) {
    buttons[direction].setAttribute("aria-disabled", String(!steps[at + direction]));
  }
  element.dataset.steps = `${at}/${steps.length}`;
}

// Put a step on the page. Returns false while the pointer holds a fader or an object.
page.restore = (step) => {
  if (step.stage?.scene && step.stage.picture === stage?.picture && !sameStage(step.stage, stage)) {
    restoring = true;
    const put = page.putScene(step.stage.scene);
    restoring = false;
    if (!put) return false;
    if (sameLearned(step, learned()) && (step.chosen || page.same(step.scales, setting))) return true; // learned gates read the scene
  }
  if (sameLearned(step, learned())) return page.put(step.scales);
  restored += 1;
  props.value = { ...step.scales, chosen: step.chosen, off: step.off, revision: restored };
  trigger("restore");
  return true;
};

function go(direction) {
  if (page.playing || !frame) return;
  if (editing && !page.restScene()) return;
  if (!settled) record(setting); // keys may still be repeated
  const before = at;
  let next = at + direction;
  while (steps[next + direction] && shows(steps[next], setting)) next += direction;
  const step = steps[next];
  if (!step) return;
  at = next; // before the faders move, so that this is no step of its own
  if (!page.restore(step)) at = before;
  else if (step.stage?.picture !== stage?.picture) step.stage = stage;
  draw();
}

for (const direction of [-1, 1]) buttons[direction].addEventListener("click", () => go(direction));

// Text boxes have their own undo.
document.addEventListener("keydown", (event) => {
  if (!(event.ctrlKey || event.metaKey) || event.altKey) return;
  if (event.target.closest?.("textarea, input:not([type=checkbox]), [contenteditable]")) return;
  const key = event.key.toLowerCase();
  const direction = key === "y" || (key === "z" && event.shiftKey) ? 1 : key === "z" ? -1 : 0;
  if (!direction) return;
  event.preventDefault();
  go(direction);
});

page.subscribe("editing", (moving) => { editing = moving; });
page.subscribe("scene", ({ server, edit: number, ...newest }) => {
  editing = false;
  edit = number;
  stage = newest;
  if (server && at >= 0) steps[at].stage = stage;
  if (!server && frame && !restoring) record(setting);
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
// A frame from before the newest edit of the scene, or before the newest restored step, belongs to no step.
page.subscribe("frame", (newest) => {
  if (newest.session === frame?.session && (newest.edit < edit || newest.step < restored)) return;
  frame = newest;
  if (at < 0) [setting, settled] = [newest.gates, true];
  if (!settled || editing || page.playing || !page.same(setting, newest.gates)) return;
  record(setting, began !== null && began !== newest.began && !page.opening);
  began = newest.began;
  page.opening = false;
});
draw();
