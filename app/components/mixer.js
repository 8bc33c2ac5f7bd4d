const page = window.sinkgate;
const { layers, presets } = props.mixer;
const GROUPS = ["v_sink", "rest"];
const NAMES = { v_sink: "V-sinks", rest: "Other visual tokens" };
const RANGE = 2; // largest scale of a fader; doubled where gates from JSON or a link have a larger one
const ALL = -1; // the master strip
const GLIDE = 600; // ms of the animation that follows learned gates, from the lowest layer up, in the order in which they read

const strips = element.querySelector(".strips");
const link = element.querySelector(".link");
const faders = new Map(); // "group:layer" -> its elements
const rhos = new Map(); // layer -> the button that shows rho
let setting = copy(props.value);
let held = null; // {group, layer, scale, master} while the pointer drags
let tap = null; // {fader, y} of a finger that may scroll the page: faders move by their knobs or by a tap
let pressed = null; // the fader that was pressed last
let focus = 0; // the layer whose faders are in the tab order
let revision = 0; // rises with every setting sent, so that the server can order them
let learned = null; // learned gates and their scales for this question, from the frames
let glided = -Infinity; // time of the last animation
let top_ = RANGE; // the scale at the upper end of the faders

function copy(value) {
  return { v_sink: [...value.v_sink], ...(value.l_sink && { l_sink: [...value.l_sink] }), rest: [...value.rest] };
}

// ---- sending -------------------------------------------------------------------------------------------

function send(event) {
  if (event === "input") revision += 1;
  props.value = { ...copy(setting), revision };
  page.publish("setting", props.value);
  trigger(event);
  if (event === "commit") page.publish("settled", props.value);
}

// "input" and "commit" must stand in this file in quotes: Gradio reads the names of a component's events from it.
const pace = page.pace(() => send("input"), () => {
  send("input");
  send("commit");
});

// For other components: set all faders, `moving` where more settings follow at once. Returns false while the pointer holds a fader.
page.put = (scales, moving = false) => {
  if (held) return false;
  setting = copy(scales);
  strips.classList.remove("gliding");
  draw();
  if (moving) pace.moved();
  else pace.settled();
  return true;
};

// ---- changing ------------------------------------------------------------------------------------------

function put(group, layer, scale) {
  const value = Math.round(100 * Math.min(Math.max(scale, 0), top_)) / 100;
  for (const name of link.checked ? GROUPS : [group]) {
    for (const column of [setting[name], name === "rest" && setting.l_sink].filter(Boolean)) {
      if (layer === ALL) column.fill(value);
      else column[layer] = value;
    }
  }
}

function get(group, layer) {
  const scales = setting[group];
  return layer === ALL ? scales.reduce((sum, scale) => sum + scale, 0) / scales.length : scales[layer];
}

// ---- drawing -------------------------------------------------------------------------------------------

function addStrip(layer) {
  const strip = page.el("div", { class: layer === ALL ? "strip master" : "strip", "data-layer": layer });
  strip.style.setProperty("--layer", Math.max(layer, 0));
  strip.append(page.el("span", { class: "name", text: layer === ALL ? "all" : layer }));
  const pair = page.el("div", { class: "faders" });
  for (const group of GROUPS) {
    const where = layer === ALL ? "all layers" : "layer " + layer;
    const fader = page.el("div", {
      class: "fader " + group, role: "slider", "aria-orientation": "vertical", "aria-valuemin": 0,
      "aria-label": NAMES[group] + ", " + where, "data-group": group, "data-layer": layer,
    });
    const parts = {
      fader, fill: page.el("i", { class: "fill" }), knob: page.el("i", { class: "knob" }),
      meter: page.el("i", { class: "meter" }), number: page.el("span", { class: "number " + group }),
      rho: page.el("i", { class: "learned-scale" }),
    };
    fader.append(page.el("i", { class: "track" }), parts.fill, parts.rho, parts.knob);
    const column = page.el("div", { class: "column" }, fader, parts.number);
    if (layer !== ALL) fader.append(page.el("i", { class: "meter-box" }, parts.meter));
    faders.set(group + ":" + layer, parts);
    pair.append(column);
  }
  strip.append(pair);
  if (layer !== ALL) {
    const rho = page.el("button", { type: "button", class: "rho", onclick: () => page.publish("switch", layer) });
    rho.hidden = true;
    rhos.set(layer, rho);
    strip.append(rho);
  }
  strips.append(strip);
}

function draw() {
  if (!held) top_ = GROUPS.some((group) => setting[group].some((scale) => scale > RANGE)) ? 2 * RANGE : RANGE;
  strips.style.setProperty("--one", 100 / top_ + "%");
  element.querySelectorAll(".rule.scales span").forEach((mark, index) => { mark.textContent = top_ * (1 - index / 2); });
  for (const [key, parts] of faders) {
    const [group, layer] = [key.split(":")[0], Number(key.split(":")[1])];
    const value = get(group, layer);
    parts.knob.style.bottom = (100 * value) / top_ + "%";
    parts.fill.style.bottom = (100 * Math.min(value, 1)) / top_ + "%";
    parts.fill.style.height = (100 * Math.abs(value - 1)) / top_ + "%";
    const text = layer === ALL && setting[group].some((scale) => scale !== setting[group][0]) ? "mixed" : value.toFixed(2);
    parts.number.textContent = text === "mixed" ? "–" : text;
    parts.number.classList.toggle("moved", value !== 1);
    parts.fader.setAttribute("aria-valuemax", top_);
    parts.fader.setAttribute("aria-valuenow", Number(value.toFixed(4)));
    parts.fader.setAttribute("aria-valuetext", text);
    parts.fader.tabIndex = layer === focus || layer === ALL ? 0 : -1;
  }
  element.querySelectorAll(".preset").forEach((button) => {
    const [v, rest] = presets[button.dataset.name];
    const on = setting.v_sink.every((scale) => scale === v) && setting.rest.every((scale) => scale === rest);
    button.setAttribute("aria-pressed", String(on));
  });
}

function drawLearned() {
  strips.classList.toggle("reading", Boolean(learned));
  element.querySelector(".rho-legend").hidden = !learned;
  for (const [layer, rho] of rhos) {
    const gated = Boolean(learned?.layers.includes(layer));
    const on = gated && !learned.off.includes(layer);
    rho.parentElement.classList.toggle("gated", on);
    rho.hidden = !gated;
    if (!gated) continue;
    const [v, rest] = GROUPS.map((group) => learned.rho[group][layer].toFixed(2));
    rho.textContent = on ? "ρ " + v : "ρ off";
    rho.setAttribute("aria-pressed", String(on));
    rho.setAttribute("aria-label", "Learned gate of layer " + layer + (on ? ", rho " + v : ", off"));
    rho.title = on ? `The gate of layer ${layer} scales V-sinks by ${v}, other visual tokens by ${rest}. Press to switch it off.`
      : `The gate of layer ${layer} is off. Press to switch it on.`;
    for (const group of GROUPS) {
      faders.get(group + ":" + layer).rho.style.bottom = (100 * Math.min(learned.rho[group][layer], top_)) / top_ + "%";
    }
  }
}

// Faders that the server moves are animated, one layer after the other; not while an object is dragged.
function glide() {
  const now = performance.now();
  strips.classList.toggle("gliding", now - glided > 2 * GLIDE);
  glided = now;
}

function drawMeters(shares) {
  if (!shares) return; // the gated answer has no such query
  for (let layer = 0; layer < layers; layer++) {
    const v = shares.v_sink[layer];
    const rest = shares.l_sink[layer] + shares.ordinary[layer];
    for (const [group, share] of [["v_sink", v], ["rest", rest]]) {
      const { meter, fader } = faders.get(group + ":" + layer);
      meter.style.height = (100 * share).toFixed(1) + "%";
      fader.title = NAMES[group] + " receive " + page.percent(share) + " of layer " + layer + "'s attention";
    }
  }
}

// ---- pointer -------------------------------------------------------------------------------------------

function scaleAt(fader, y) {
  const box = fader.getBoundingClientRect();
  return top_ * (1 - (y - box.top) / box.height);
}

function layerAt(x) {
  let nearest = held.layer;
  let distance = Infinity;
  x = Math.max(x, strips.querySelector(".master").getBoundingClientRect().right); // it covers the strips that are scrolled under it
  for (const strip of strips.children) {
    const layer = Number(strip.dataset.layer);
    const box = strip.getBoundingClientRect();
    const away = Math.max(box.left - x, x - box.right, 0);
    if (layer !== ALL && away < distance) [nearest, distance] = [layer, away];
  }
  return nearest;
}

function snap(scale) {
  return Math.abs(scale - 1) < 0.03 ? 1 : scale;
}

strips.addEventListener("pointerdown", (event) => {
  const fader = event.target.closest(".fader");
  if (!fader || event.button > 0) return;
  pressed = fader;
  if (event.pointerType === "touch" && !event.target.closest(".knob")) {
    tap = { fader, y: event.clientY };
    return;
  }
  event.preventDefault();
  press(fader, event.clientY);
  strips.setPointerCapture(event.pointerId);
});

function press(fader, y) {
  const layer = Number(fader.dataset.layer);
  strips.classList.remove("gliding");
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

strips.addEventListener("pointermove", (event) => {
  if (!held) return;
  const { group } = held;
  const layer = held.master ? ALL : layerAt(event.clientX);
  const scale = snap(scaleAt(faders.get(group + ":" + layer).fader, event.clientY));
  const step = Math.sign(layer - held.layer);
  for (let between = held.layer + step; step && between !== layer; between += step) {
    const share = (between - held.layer) / (layer - held.layer); // a quick stroke skips strips: interpolate between them
    put(group, between, held.scale + share * (scale - held.scale));
  }
  put(group, layer, scale);
  Object.assign(held, { layer, scale });
  draw();
  pace.moved();
});

for (const name of ["pointerup", "pointercancel"]) {
  strips.addEventListener(name, (event) => {
    if (tap && event.type === "pointerup") press(tap.fader, tap.y);
    tap = null;
    if (!held) return;
    held = null;
    draw();
    pace.settled();
  });
}

// The target of the event is the element that captured the pointer, not the fader.
strips.addEventListener("dblclick", () => {
  if (!pressed) return;
  put(pressed.dataset.group, Number(pressed.dataset.layer), 1);
  draw();
  pace.settled();
});

// ---- keyboard ------------------------------------------------------------------------------------------

strips.addEventListener("keydown", (event) => {
  const fader = event.target.closest(".fader");
  if (!fader) return;
  const group = fader.dataset.group;
  const layer = Number(fader.dataset.layer);
  strips.classList.remove("gliding");
  const sideways = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  const now = get(group, layer);
  const next = {
    ArrowUp: now + 0.05, ArrowDown: now - 0.05, PageUp: now + 0.25, PageDown: now - 0.25, Home: 0, End: top_,
  }[event.key];
  if (sideways) {
    focus = Math.min(Math.max((layer === ALL ? 0 : layer) + (layer === ALL ? 0 : sideways), 0), layers - 1);
    draw();
    const target = faders.get(group + ":" + focus).fader;
    target.focus();
    target.scrollIntoView({ block: "nearest", inline: "nearest" });
  } else if (next !== undefined) {
    put(group, layer, next);
    if (layer !== ALL) page.publish("touched", layer);
    draw();
    pace.keyed();
  } else return;
  event.preventDefault();
});

// ---- buttons -------------------------------------------------------------------------------------------

const ZERO = " A Key scale of 0 makes the logit 0; it does not remove the token, so its attention may rise.";

function setAll(v, rest) {
  setting = { v_sink: Array(layers).fill(v), rest: Array(layers).fill(rest) };
  draw();
  pace.settled();
}

for (const [name, [v, rest]] of Object.entries(presets)) {
  element.querySelector(".presets").append(page.el("button", {
    type: "button", class: "preset", text: name, "data-name": name,
    title: `V-sinks × ${v}, other visual tokens × ${rest}, in every layer.` + (v === 0 || rest === 0 ? ZERO : ""), onclick: () => setAll(v, rest),
  }));
}

addStrip(ALL);
for (let layer = 0; layer < layers; layer++) addStrip(layer);
strips.style.setProperty("--step", GLIDE / 2 / layers + "ms");
draw();
page.subscribe("frame", (frame) => {
  learned = frame.learned;
  drawLearned();
  drawMeters(frame.shares.gated);
  element.querySelector(".cost").textContent = frame.cost;
});
watch("value", () => {
  revision = Math.max(revision, props.value.revision || 0);
  if (held || pace.busy()) return; // a setting that the user is changing is not overwritten
  if (GROUPS.some((group) => setting[group].some((scale, layer) => scale !== props.value[group][layer]))) glide();
  setting = copy(props.value);
  page.publish("setting", props.value);
  page.publish("settled", { ...props.value, server: true });
  draw();
});
