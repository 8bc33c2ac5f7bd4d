// A fader for each layer and group. Value: {v_sink: [1, ...], rest: [1, ...], revision}, scales from 0 to 4; `l_sink` too where L-sinks have
// scales of their own. Calls set_gates while a fader moves. Events: commit when it comes to rest, overdue when a result does not come.
const page = window.sinkgate;
const { layers, presets } = props.mixer;
const GROUPS = ["v_sink", "l_sink", "rest"];
const RANGE = 2; // largest scale of a fader; doubled where gates from JSON or a link have a larger one
const ALL = -1; // the master, in the gutter
const GLIDE = 600; // ms of the animation that follows learned gates, from the lowest layer up, in the order in which they read
const FINGER = 16; // pixels: in narrower columns a finger selects a layer and moves no fader
const FADER = 24; // pixels of a fader's width, its gap included: in narrower columns the scales of a group are a curve
const SLACK = 8; // pixels that a drag may leave its column before it paints the next one

const desk = element.querySelector(".desk");
const strips = element.querySelector(".strips");
const link = element.querySelector(".link");
const separate = element.querySelector(".separate");
const faders = new Map(); // "group:layer" -> its elements
const rhos = new Map(); // layer -> the button that shows rho
const ranges = new Map(); // group -> its slider for the layer of the maps, large enough for a finger
const rows = new Map(); // group -> its name, rule and curve
let setting = copy(props.value);
let sent = props.value; // the newest setting that was sent
let session = null; // the key of this page, from the frames
let ticking = false; // whether a call is under way
let called = null; // setting and lens of the last call, where it brought a frame
let held = null; // {group, layer, scale, master} while the pointer drags
let tap = null; // {fader, y} of a finger that may scroll the page: faders move by their knobs or by a tap
let pressed = null; // the fader that was pressed last, null where something else was
let shown = 0; // the layer of the maps
let focus = 0; // the layer whose faders are in the tab order
let revision = 0; // rises with every setting sent, so that the server can order them
let learned = null; // learned gates and their scales for this question, from the frames
let counts = null; // tokens of each group by layer, and the criteria for sinks
let glided = -Infinity; // time of the last animation
let top_ = RANGE; // the scale at the upper end of the faders

// Always with the scales of L-sinks, which are those of ordinary tokens unless the page's value has them apart.
function copy(value) {
  return { v_sink: [...value.v_sink], l_sink: [...(value.l_sink || value.rest)], rest: [...value.rest] };
}

function apart(gates) {
  return gates.l_sink.some((scale, layer) => scale !== gates.rest[layer]);
}

function groups() {
  return separate.checked ? GROUPS : ["v_sink", "rest"];
}

function name(group) {
  return page.capital(page.groupName(group, separate.checked));
}

// ---- sending -------------------------------------------------------------------------------------------

function send() {
  revision = Math.max(revision, props.value.revision || 0) + 1; // above the server's, which `watch` may not have read yet
  const { l_sink, ...two } = copy(setting);
  props.value = sent = { ...two, ...(apart(setting) && { l_sink }), revision };
  page.publish("setting", sent);
  tick();
}

// One call is under way at a time, and the newest setting follows it, unless it is the one before, as of a fader that has come to rest.
// A model that is too slow to follow a fader has no such function.
async function tick() {
  if (ticking || !server.set_gates) return;
  ticking = true;
  for (let last = null; last !== sent;) {
    last = sent;
    await null; // the lens follows the fader
    const { lens } = page.last;
    const requestTime = performance.now();
    const view = JSON.stringify([copy(last), lens]);
    if (view === called) continue;
    const update = await server.set_gates(session, last, lens);
    called = update?.maps ? view : null;
    page.publish("update", { ...update, requestTime });
  }
  ticking = false;
}

// "commit" must stand in this file in quotes: Gradio reads the names of a component's events from it.
const pace = page.pace(send, () => {
  send();
  trigger("commit");
  page.publish("settled", sent);
});

page.subscribe("overdue", () => trigger("overdue"));

// For other components: set all faders, `moving` where more settings follow at once. Returns false while the pointer holds a fader.
page.put = (scales, moving = false) => {
  if (held) return false;
  setting = copy(scales);
  desk.classList.remove("gliding");
  show(separate.checked || apart(setting));
  if (moving) pace.moved();
  else pace.settled();
  return true;
};

// ---- changing ------------------------------------------------------------------------------------------

function put(group, layer, scale) {
  const value = Math.round(100 * Math.min(Math.max(scale, 0), top_)) / 100;
  for (const each of link.checked ? groups() : [group]) {
    if (layer !== ALL && empty(each, layer)) continue;
    for (const column of each === "rest" && !separate.checked ? [setting.rest, setting.l_sink] : [setting[each]]) {
      if (layer === ALL) column.fill(value);
      else column[layer] = value;
    }
  }
}

function get(group, layer) {
  const scales = setting[group];
  return layer === ALL ? scales.reduce((sum, scale) => sum + scale, 0) / scales.length : scales[layer];
}

// The reason why a group has no token in a layer, or in none for the master; "" where it has one.
function empty(group, layer) {
  if (!counts) return "";
  const { v_sink, l_sink, ordinary } = counts.tokens;
  const tokens = { v_sink, l_sink, rest: separate.checked ? ordinary : ordinary.map((count, at) => count + l_sink[at]) }[group];
  const nowhere = !tokens.some(Boolean);
  if (layer === ALL ? !nowhere : tokens[layer]) return "";
  const by = counts.criteria[group];
  if (by === "") return "V-sinks cannot be named: this encoder cannot be looked into";
  const criterion = by ? ` (criterion: ${by})` : "";
  return `No ${group === "rest" ? name(group).toLowerCase() : name(group)}${nowhere ? "" : " in layer " + layer}${criterion}`;
}

// ---- drawing -------------------------------------------------------------------------------------------

function addStrip(layer, parent) {
  const strip = page.el("div", { class: layer === ALL ? "strip master" : "strip", "data-layer": layer });
  strip.style.setProperty("--index", Math.max(layer, 0));
  if (layer === ALL) strip.append(page.el("span", { class: "name", text: "all" }));
  const row = page.el("div", { class: "faders" });
  for (const group of GROUPS) {
    const fader = page.el("div", {
      class: "fader " + group, role: "slider", "aria-orientation": "vertical", "aria-valuemin": 0, "data-group": group, "data-layer": layer,
    });
    const parts = {
      fader, fill: page.el("i", { class: "fill" }), knob: page.el("i", { class: "knob" }),
      number: page.el("span", { class: "number " + group }), rho: page.el("i", { class: "learned-scale" }),
    };
    fader.append(page.el("i", { class: "track" }), parts.fill, parts.rho, parts.knob);
    parts.column = page.el("div", { class: "column " + group }, fader, parts.number);
    faders.set(group + ":" + layer, parts);
    row.append(parts.column);
  }
  strip.append(row);
  if (layer !== ALL) {
    const rho = page.el("button", { type: "button", class: "rho", onclick: () => page.publish("switch", layer) });
    rho.hidden = true;
    rhos.set(layer, rho);
    strip.append(rho);
  }
  parent.append(strip);
}

function addRow(group) {
  const line = page.svg("polyline");
  const parts = {
    line,
    name: page.el("span", { class: "group " + group }, page.el("i", { class: "dot " + group }), page.el("span")),
    rule: page.el("div", { class: "rule scales " + group }, ...[0, 1, 2].map(() => page.el("span"))),
    curve: page.svg("svg", { class: "curve " + group, viewBox: `0 0 ${layers} 1`, preserveAspectRatio: "none", "aria-hidden": "true" }, line),
  };
  rows.set(group, parts);
  element.querySelector(".names").append(parts.name);
  element.querySelector(".rules").append(parts.rule);
  strips.append(parts.curve);
}

function addRange(group) {
  const input = page.el("input", { type: "range", min: 0, step: 0.05 });
  const parts = { input, number: page.el("output"), name: page.el("span") };
  parts.row = page.el("label", { class: "range-row " + group }, parts.name, input, parts.number);
  const release = () => { held = null; };
  input.addEventListener("pointerdown", () => { held = { group, layer: shown }; });
  for (const name of ["pointerup", "pointercancel", "blur"]) input.addEventListener(name, release);
  input.addEventListener("input", () => {
    put(group, shown, Number(input.value));
    draw();
    pace.moved();
  });
  input.addEventListener("change", () => pace.settled());
  ranges.set(group, parts);
  element.querySelector(".stepper").append(parts.row);
}

function drawRanges() {
  element.querySelector(".which").textContent = "Layer " + shown;
  for (const [direction, name] of [[-1, ".previous"], [1, ".next"]]) {
    element.querySelector(".stepper " + name).disabled = shown + direction < 0 || shown + direction >= layers;
  }
  for (const [group, { row, input, number, name: label }] of ranges) {
    const reason = empty(group, shown);
    row.hidden = !groups().includes(group);
    label.textContent = name(group);
    input.max = top_;
    input.value = get(group, shown);
    input.disabled = Boolean(reason);
    input.title = reason;
    input.setAttribute("aria-label", `${name(group)}, layer ${shown}`);
    number.textContent = reason ? "none" : "× " + get(group, shown).toFixed(2);
  }
}

// Faders where columns have room for one of each group, else a curve for each group.
function arrange() {
  desk.classList.toggle("narrow", strips.clientWidth / layers < FINGER);
  const few = strips.clientWidth / layers >= groups().length * FADER + 8;
  desk.classList.toggle("curves", !few);
  desk.classList.toggle("three", separate.checked);
  desk.style.setProperty("--groups", groups().length);
}

function draw() {
  if (!held) top_ = GROUPS.some((group) => setting[group].some((scale) => scale > RANGE)) ? 2 * RANGE : RANGE;
  desk.style.setProperty("--one", 100 / top_ + "%");
  for (const [group, parts] of rows) {
    const reason = empty(group, ALL);
    parts.name.lastChild.textContent = name(group) + (reason ? ": none" : "");
    parts.name.title = reason;
    parts.curve.classList.toggle("empty", Boolean(reason));
    [...parts.rule.children].forEach((mark, index) => { mark.textContent = top_ * (1 - index / 2); });
    parts.line.setAttribute("points", setting[group].map((scale, layer) => `${layer + 0.5},${1 - scale / top_}`).join(" "));
  }
  for (const [key, parts] of faders) {
    const [group, layer] = [key.split(":")[0], Number(key.split(":")[1])];
    const value = get(group, layer);
    const reason = empty(group, layer);
    const mixed = layer === ALL && setting[group].some((scale) => scale !== setting[group][0]);
    const drawn = JSON.stringify([value, mixed, reason, top_, name(group), layer === focus]);
    if (parts.drawn === drawn) continue; // of many layers few change at a time
    parts.drawn = drawn;
    parts.knob.style.bottom = (100 * value) / top_ + "%";
    parts.fill.style.bottom = (100 * Math.min(value, 1)) / top_ + "%";
    parts.fill.style.height = (100 * Math.abs(value - 1)) / top_ + "%";
    const text = mixed ? "mixed" : value.toFixed(2);
    parts.number.textContent = text === "mixed" ? "–" : text;
    parts.number.classList.toggle("moved", value !== 1);
    parts.column.classList.toggle("empty", Boolean(reason));
    parts.fader.setAttribute("aria-label", name(group) + ", " + (layer === ALL ? "all layers" : "layer " + layer));
    parts.fader.setAttribute("aria-disabled", String(Boolean(reason)));
    parts.fader.setAttribute("aria-valuemax", top_);
    parts.fader.setAttribute("aria-valuenow", Number(value.toFixed(4)));
    parts.fader.setAttribute("aria-valuetext", text + (reason && ". " + reason));
    parts.fader.title = reason;
    page.tabStop(parts.fader, layer === focus || layer === ALL);
  }
  drawRanges();
  drawPresets();
}

function drawPresets() {
  const missing = (group) => group && Boolean(empty(group, ALL));
  element.querySelectorAll(".preset").forEach((button, index) => {
    const { needs, instead, title, ...scales } = presets[index];
    const on = GROUPS.every((group) => setting[group].every((scale) => scale === scales[group]));
    button.hidden = missing(needs) ? !missing(instead) || needs === "l_sink" : needs === "l_sink" && !missing(instead);
    button.disabled = missing(needs);
    button.title = missing(needs) ? empty(needs, ALL) : title;
    button.setAttribute("aria-pressed", String(on));
  });
}

function drawLearned() {
  desk.classList.toggle("learned-on", Boolean(learned));
  element.querySelector(".rho-legend").hidden = !learned;
  element.querySelector(".how").hidden = Boolean(learned);
  for (const [layer, rho] of rhos) {
    const gated = Boolean(learned?.layers.includes(layer));
    const on = gated && !learned.off.includes(layer);
    rho.parentElement.classList.toggle("gated", on);
    rho.hidden = !gated;
    if (!gated) continue;
    const scales = copy(learned.rho);
    rho.replaceChildren("ρ", page.el("span", { text: on ? " " + scales.v_sink[layer].toFixed(2) : " off" }));
    rho.setAttribute("aria-pressed", String(on));
    rho.setAttribute("aria-label", "Learned gate of layer " + layer + (on ? ", rho " + scales.v_sink[layer].toFixed(2) : ", off"));
    const each = groups().map((group) => `${name(group)} by ${scales[group][layer].toFixed(2)}`).join(", ");
    rho.title = on ? `The gate of layer ${layer} scales ${each}. Press to switch it off.` : `The gate of layer ${layer} is off. Press to switch it on.`;
    for (const group of GROUPS) {
      faders.get(group + ":" + layer).rho.style.bottom = (100 * Math.min(scales[group][layer], top_)) / top_ + "%";
    }
  }
}

// Faders that the server moves are animated, one layer after the other; not while an object is dragged.
function glide() {
  const now = performance.now();
  desk.classList.toggle("gliding", now - glided > 2 * GLIDE);
  glided = now;
}

// ---- pointer -------------------------------------------------------------------------------------------

function scaleAt(fader, y) {
  const box = fader.getBoundingClientRect();
  return top_ * (1 - (y - box.top) / box.height);
}

// The layer of a drag: the one where it is, until the pointer has clearly left its column.
function layerAt(x) {
  const box = strips.getBoundingClientRect();
  const [width, at] = [box.width / layers, x - box.left];
  const slack = Math.min(SLACK, width / 3);
  if (at > held.layer * width - slack && at < (held.layer + 1) * width + slack) return held.layer;
  return Math.min(Math.max(Math.floor(at / width), 0), layers - 1);
}

function snap(scale) {
  return Math.abs(scale - 1) < 0.03 ? 1 : scale;
}

function disabled(fader) {
  return fader.ariaDisabled === "true";
}

desk.addEventListener("pointerdown", (event) => {
  const fader = event.target.closest(".fader");
  if (event.button > 0) return;
  if (event.pointerType === "touch" && desk.matches(".narrow")) return; // its click selects the layer
  pressed = fader && !disabled(fader) ? fader : null;
  if (!pressed) return;
  if (event.pointerType === "touch" && !event.target.closest(".knob")) {
    tap = { fader, y: event.clientY };
    return;
  }
  event.preventDefault();
  press(fader, event.clientY);
  desk.setPointerCapture(event.pointerId);
});

function press(fader, y) {
  const layer = Number(fader.dataset.layer);
  desk.classList.remove("gliding");
  held = { group: fader.dataset.group, layer, master: layer === ALL };
  held.scale = snap(scaleAt(fader, y));
  put(held.group, layer, held.scale);
  if (layer !== ALL) {
    focus = layer;
    page.publish("touched", layer);
  }
  draw();
  pace.moved();
  fader.focus({ preventScroll: true, focusVisible: false });
}

desk.addEventListener("pointermove", (event) => {
  if (!held) return;
  const { group } = held;
  const layer = held.master ? ALL : layerAt(event.clientX);
  const scale = snap(scaleAt(faders.get(group + ":" + layer).fader, event.clientY));
  const step = Math.sign(layer - held.layer);
  for (let between = held.layer + step; step && between !== layer; between += step) {
    const share = (between - held.layer) / (layer - held.layer); // a quick stroke skips columns: interpolate between them
    put(group, between, held.scale + share * (scale - held.scale));
  }
  put(group, layer, scale);
  Object.assign(held, { layer, scale });
  if (!held.master) page.publish("hover", layer);
  draw();
  pace.moved();
});

for (const name of ["pointerup", "pointercancel"]) {
  desk.addEventListener(name, (event) => {
    if (tap && event.type === "pointerup") press(tap.fader, tap.y);
    tap = null;
    if (!held) return;
    held = null;
    draw();
    pace.settled();
  });
}

// The target of the event is the element that captured the pointer, not the fader.
desk.addEventListener("dblclick", (event) => {
  if (!pressed || event.target.closest(".rho")) return;
  put(pressed.dataset.group, Number(pressed.dataset.layer), 1);
  draw();
  pace.settled();
});

// Beside the faders a column selects its layer, as in the other rows.
strips.addEventListener("click", (event) => {
  const strip = event.target.closest(".strip");
  if (strip && (!event.target.closest(".fader, .rho") || (event.pointerType === "touch" && desk.matches(".narrow")))) page.publish("layer", Number(strip.dataset.layer));
});
strips.addEventListener("pointerover", (event) => {
  const strip = event.target.closest(".strip");
  if (strip && !held) page.publish("hover", Number(strip.dataset.layer));
});
strips.addEventListener("pointerleave", () => page.publish("hover", null));

// ---- keyboard ------------------------------------------------------------------------------------------

desk.addEventListener("keydown", (event) => {
  const fader = event.target.closest(".fader");
  if (!fader) return;
  const group = fader.dataset.group;
  const layer = Number(fader.dataset.layer);
  desk.classList.remove("gliding");
  const sideways = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  const now = get(group, layer);
  const next = {
    ArrowUp: now + 0.05, ArrowDown: now - 0.05, PageUp: now + 0.25, PageDown: now - 0.25, Home: 0, End: top_,
  }[event.key];
  if (sideways) {
    focus = Math.min(Math.max((layer === ALL ? 0 : layer) + (layer === ALL ? 0 : sideways), 0), layers - 1);
    draw();
    faders.get(group + ":" + focus).fader.focus();
    page.publish("hover", focus);
  } else if (next !== undefined) {
    if (disabled(fader)) return event.preventDefault();
    put(group, layer, next);
    if (layer !== ALL) page.publish("touched", layer);
    draw();
    pace.keyed();
  } else return;
  event.preventDefault();
});

// ---- buttons -------------------------------------------------------------------------------------------

for (const { name: text, v_sink, l_sink, rest } of presets) {
  element.querySelector(".presets").append(page.el("button", {
    type: "button", class: "preset", text, onclick: () => {
      setting = Object.fromEntries(Object.entries({ v_sink, l_sink, rest }).map(([group, scale]) => [group, Array(layers).fill(scale)]));
      if (apart(setting)) show(true);
      draw();
      pace.settled();
    },
  }));
}

// Three groups, or L-sinks with the ordinary tokens.
function show(three) {
  separate.checked = three;
  arrange();
  draw();
}

separate.addEventListener("change", () => {
  show(separate.checked);
  if (separate.checked || !apart(setting)) return;
  setting.l_sink = [...setting.rest];
  draw();
  pace.settled();
});

for (const [direction, name] of [[-1, ".previous"], [1, ".next"]]) {
  element.querySelector(".stepper " + name).addEventListener("click", () => page.publish("layer", shown + direction));
}
for (const group of GROUPS) addRow(group);
for (const group of GROUPS) addRange(group);
addStrip(ALL, element.querySelector(".all"));
for (let layer = 0; layer < layers; layer++) addStrip(layer, strips);
desk.style.setProperty("--step", GLIDE / 2 / layers + "ms");
show(apart(setting));
new ResizeObserver(arrange).observe(strips);
page.subscribe("lens", ({ layer }) => {
  shown = layer;
  if (rhos.size) drawRanges();
});
page.subscribe("frame", (frame) => {
  session = frame.session;
  learned = frame.learned;
  counts = frame.groups;
  draw();
  drawLearned();
  element.querySelector(".cost").textContent = frame.cost;
  element.querySelector(".outcome").textContent = `${page.quoted(frame.first.token)} ${page.change(frame.first.before, frame.first.after)}`;
});
watch("value", () => {
  revision = Math.max(revision, props.value.revision || 0);
  called = null;
  if (held || pace.busy()) return; // a setting that the user is changing is not overwritten
  const newest = copy(props.value);
  if (GROUPS.some((group) => setting[group].some((scale, layer) => scale !== newest[group][layer]))) glide();
  setting = newest;
  page.publish("setting", props.value);
  page.publish("settled", { ...props.value, server: true });
  show(separate.checked || apart(setting));
});
