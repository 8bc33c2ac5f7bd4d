// The scene editor. Value: {scene, picture, revision}: Scene.to_dict() or null, the index of the edited picture, and a number that
// rises with every edit. Events: input while an object moves, commit when an edit is complete.
const page = window.sinkgate;
const { shapes, colors, sizes, backgrounds, most, gap, margin } = props.world;
const NOTE = 2500; // ms until a note disappears
const STEP = 1 / 32; // of the picture's side: one press of an arrow key
const NONE = -1;

const svg = element.querySelector("svg");
const ground = element.querySelector(".ground");
const ghost = element.querySelector(".ghost");
const things = element.querySelector(".things");
const note = element.querySelector(".note");
let scene = null;
let picture = 0; // the server's index of the edited picture
let revision = 0; // rises with every edit sent, so that the server can order them
let open = false;
let selected = NONE; // index of the selected object
let brush = { shape: "circle", color: "red", size: "small" }; // properties of the selected object, and of the next one
let held = null; // {x, y, moved}: offset from the pointer to the centre of the dragged object, and whether it has moved
let noteTimer = null;

function copy(value) {
  return JSON.parse(JSON.stringify(value));
}

// ---- sending -------------------------------------------------------------------------------------------

function send(event) {
  revision += 1;
  props.value = { scene: copy(scene), picture, revision };
  trigger(event);
}

// "input" and "commit" must stand in this file in quotes: Gradio reads the names of a component's events from it.
const pace = page.pace(() => {
  page.publish("editing", true);
  send("input");
}, () => {
  send("commit");
  page.publish("scene", { scene: copy(scene), picture, edit: revision });
});

function settled() {
  draw();
  pace.settled();
}

// For undo and redo: take keys that may still be repeated as one edit. Returns false while an object is dragged.
page.restScene = () => {
  if (held) return false;
  settled();
  return true;
};

// For undo and redo: put another version of this picture's scene on the stage. Returns false while an object is dragged.
page.putScene = (wanted) => {
  if (held) return false;
  scene = copy(wanted);
  if (!scene.objects[selected]) selected = NONE;
  settled();
  return true;
};

// ---- room ----------------------------------------------------------------------------------------------

function apart(a, b) {
  return Math.max(Math.abs(a.x - b.x), Math.abs(a.y - b.y)) >= sizes[a.size] + sizes[b.size] + gap - 1e-6;
}

// The object at the nearest free place: where it is dropped, or along the edge of another object.
function nearest(wanted, index) {
  const others = scene.objects.filter((_, other) => other !== index);
  const low = sizes[wanted.size] + margin;
  const inside = (at) => Math.min(Math.max(at, low), 1 - low);
  const places = (axis) => [wanted[axis], ...others.flatMap((other) => {
    const away = sizes[wanted.size] + sizes[other.size] + gap;
    return [other[axis] - away, other[axis] + away];
  })].map(inside);
  let best = null;
  let least = Infinity;
  for (const x of places("x")) {
    for (const y of places("y")) {
      const item = { ...wanted, x, y };
      const far = Math.hypot(x - wanted.x, y - wanted.y);
      if (far < least && others.every((other) => apart(item, other))) [best, least] = [item, far];
    }
  }
  return best;
}

// ---- changing ------------------------------------------------------------------------------------------

function choose(index) {
  selected = index;
  const { shape, color, size } = scene.objects[index] || brush;
  brush = { shape, color, size };
  draw();
}

function add(x, y) {
  if (scene.objects.length >= most) return say("Limit: " + most + " objects.");
  const item = nearest({ ...brush, x, y }, NONE);
  if (!item) return say("No room for a " + brush.size + " object.");
  scene.objects.push(item);
  choose(scene.objects.length - 1);
  settled();
}

function remove() {
  if (selected === NONE) return;
  if (scene.objects.length === 1) return say("A scene has at least one object.");
  scene.objects.splice(selected, 1);
  const next = things.contains(document.activeElement) ? Math.min(selected, scene.objects.length - 1) : NONE;
  choose(next);
  settled();
  if (next !== NONE) things.children[next].focus();
}

function restyle(change) {
  if (selected !== NONE) {
    const item = nearest({ ...scene.objects[selected], ...change }, selected);
    if (!item) return say("No room for a " + change.size + " object.");
    scene.objects[selected] = item;
  }
  brush = { ...brush, ...change };
  if (selected === NONE) draw();
  else settled();
}

function move(index, x, y) {
  scene.objects[index] = nearest({ ...scene.objects[index], x, y }, index) || scene.objects[index];
}

// ---- drawing -------------------------------------------------------------------------------------------

function say(text, stay) {
  clearTimeout(noteTimer);
  note.textContent = text;
  if (text && !stay) noteTimer = setTimeout(() => say(""), NOTE);
}

function shapeOf(node, item) {
  node.setAttribute("d", shapes[item.shape]);
  node.setAttribute("transform", `translate(${item.x} ${item.y}) scale(${sizes[item.size]})`);
  node.style.fill = colors[item.color];
}

function addThing() {
  things.append(page.svg("g", { class: "thing", tabindex: 0, role: "button" },
    page.svg("path", { class: "body" }), page.svg("rect", { class: "ring under" }), page.svg("rect", { class: "ring" })));
}

function draw() {
  element.dataset.composing = !scene ? "none" : open ? "open" : "ready";
  if (!scene) return;
  ground.style.fill = backgrounds[scene.background];
  while (things.childElementCount > scene.objects.length) things.lastElementChild.remove();
  while (things.childElementCount < scene.objects.length) addThing();
  scene.objects.forEach((item, index) => {
    const thing = things.children[index];
    shapeOf(thing.querySelector(".body"), item);
    thing.setAttribute("aria-label", `${item.size} ${item.color} ${item.shape}`);
    thing.setAttribute("aria-pressed", String(index === selected));
    for (const ring of thing.querySelectorAll(".ring")) {
      const half = sizes[item.size] + margin;
      for (const [name, at] of [["x", item.x - half], ["y", item.y - half], ["width", 2 * half], ["height", 2 * half]]) {
        ring.setAttribute(name, at);
      }
    }
  });
  for (const tool of element.querySelectorAll(".tool")) {
    const { kind, name } = tool.dataset;
    tool.setAttribute("aria-pressed", String(kind === "background" ? name === scene.background : name === brush[kind]));
  }
  element.querySelector(".add").disabled = scene.objects.length >= most;
  element.querySelector(".remove").disabled = selected === NONE || scene.objects.length === 1;
  element.scene = scene; // for the browser tests
}

// ---- pointer -------------------------------------------------------------------------------------------

function pointAt(event) {
  const box = svg.getBoundingClientRect();
  return { x: (event.clientX - box.left) / box.width, y: (event.clientY - box.top) / box.height };
}

function indexOf(target) {
  return [...things.children].indexOf(target.closest(".thing"));
}

things.addEventListener("pointerdown", (event) => {
  if (event.button > 0) return;
  event.preventDefault();
  const index = indexOf(event.target);
  const at = pointAt(event);
  held = { x: scene.objects[index].x - at.x, y: scene.objects[index].y - at.y, moved: false };
  things.children[index].setPointerCapture(event.pointerId);
  things.children[index].focus({ preventScroll: true });
  choose(index);
  say("");
});

things.addEventListener("pointermove", (event) => {
  ghost.classList.remove("shown");
  if (!held) return;
  const at = pointAt(event);
  held.moved = true;
  move(selected, at.x + held.x, at.y + held.y);
  draw();
  pace.moved();
});

// A finger on an object drags it and does not scroll the page; `touch-action` has no effect within an SVG.
things.addEventListener("touchstart", (event) => event.preventDefault(), { passive: false });

for (const name of ["pointerup", "pointercancel"]) {
  things.addEventListener(name, () => {
    if (!held) return;
    const edited = held.moved;
    held = null;
    if (edited) settled();
  });
}

ground.addEventListener("click", (event) => {
  const { x, y } = pointAt(event);
  ghost.classList.remove("shown");
  say("");
  add(x, y);
});

// Preview of the next object's place, while the mouse is over the ground.
ground.addEventListener("pointermove", (event) => {
  const item = event.pointerType === "mouse" && scene.objects.length < most && nearest({ ...brush, ...pointAt(event) }, NONE);
  ghost.classList.toggle("shown", Boolean(item));
  if (item) shapeOf(ghost, item);
});
svg.addEventListener("pointerleave", () => ghost.classList.remove("shown"));

// ---- keyboard ------------------------------------------------------------------------------------------

things.addEventListener("focusin", (event) => choose(indexOf(event.target)));

things.addEventListener("keydown", (event) => {
  if (selected === NONE) choose(indexOf(event.target)); // it has had the focus since before another picture came
  const [right, down] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key] || [0, 0];
  if (right || down) {
    const { x, y } = scene.objects[selected];
    move(selected, x + right * STEP, y + down * STEP);
    draw();
    pace.keyed();
  } else if (event.key === "Delete" || event.key === "Backspace") remove();
  else if (event.key === "Escape") {
    event.target.blur();
    choose(NONE);
  } else return;
  event.preventDefault();
});

// ---- tools ---------------------------------------------------------------------------------------------

function addTools(box, kind, names, onclick, icon) {
  for (const name of names) {
    element.querySelector("." + box).append(page.el("button", {
      type: "button", class: "tool", title: name, "aria-label": name, "data-kind": kind, "data-name": name,
      onclick: () => onclick(name),
    }, icon(name)));
  }
}

function drawn(path, scale) {
  return page.svg("svg", { viewBox: "-1.2 -1.2 2.4 2.4" }, page.svg("path", { d: path, transform: `scale(${scale})` }));
}

function swatch(color) {
  const icon = page.el("i");
  icon.style.background = color;
  return icon;
}

const largest = Math.max(...Object.values(sizes));
addTools("shapes", "shape", Object.keys(shapes), (shape) => restyle({ shape }), (shape) => drawn(shapes[shape], 1));
addTools("sizes", "size", Object.keys(sizes), (size) => restyle({ size }), (size) => drawn(shapes.circle, sizes[size] / largest));
addTools("colors", "color", Object.keys(colors), (color) => restyle({ color }), (color) => swatch(colors[color]));
addTools("backgrounds", "background", Object.keys(backgrounds), (background) => {
  scene.background = background;
  settled();
}, (background) => swatch(backgrounds[background]));
element.querySelector(".add").addEventListener("click", () => add(0.5, 0.5));
element.querySelector(".remove").addEventListener("click", remove);

// ---- values of the server -------------------------------------------------------------------------------

function receive() {
  const value = props.value || {};
  const same = value.picture === picture;
  if (same && (held || pace.busy() || value.revision < revision)) return; // an object that the user is dragging is not overwritten
  if (same && JSON.stringify(value.scene) === JSON.stringify(scene)) return;
  pace.stop();
  held = null;
  scene = copy(value.scene || null);
  picture = value.picture || 0;
  revision = Math.max(revision, value.revision || 0);
  if (!scene) open = false;
  if (!same || !scene?.objects[selected]) selected = NONE;
  page.publish("scene", { scene: copy(scene), picture, edit: value.revision || 0, server: true });
  draw();
}

page.subscribe("compose", (on) => {
  if (!scene) return;
  open = on;
  selected = NONE;
  draw();
  say(on ? "Click to add, drag to move" : "", true);
});
receive();
watch("value", receive);
