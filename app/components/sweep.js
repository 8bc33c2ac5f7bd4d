// A heat map of one question: every group scaled alone in every layer. A cell sets the faders to its setting. Value: that of
// sweep.Sweep, with `note` where it failed. Events: start, stop.
const page = window.sinkgate;
const GROUPS = ["v_sink", "l_sink", "ordinary"];
const map = element.querySelector(".sweep-map");
const reading = element.querySelector(".reading");
const progress = element.querySelector("progress");
const stop = element.querySelector(".stop-sweep");
let cells = new Map(); // "group:layer:index of the scale" -> node
let size = ""; // for which the cells were made
let focus = ""; // key of the cell in the tab order
let frame = null;
let answers = {};
let layer = 0; // of the maps
let pending = false; // started, and nothing has arrived
let closed = false; // until the next start: values of a sweep that is being stopped may still arrive

function key(group, at, index) {
  return `${group}:${at}:${index}`;
}

function shown() {
  const value = props.value;
  return value?.groups && frame && value.began === frame.began ? value : null;
}

function groups(value) {
  return GROUPS.filter((group) => value.groups[group].p.some((row) => row.some((share) => share !== null)));
}

// One row of cells for each scale, the largest at the top as on the faders.
function build(value) {
  const layers = value.groups.v_sink.p.length;
  const wanted = JSON.stringify([layers, groups(value), value.scales]);
  if (size === wanted) return;
  size = wanted;
  cells = new Map();
  map.replaceChildren();
  map.style.setProperty("--layers", layers);
  map.classList.toggle("dense", layers > 16);
  const heads = Array.from({ length: layers }, (_, at) => page.el("span", { role: "columnheader", class: "layer-number", "data-layer": at, text: at, "aria-label": `layer ${at}` }));
  map.append(page.el("div", { role: "row", class: "layer-numbers" }, page.el("span", { role: "columnheader", class: "corner", text: "layer" }), ...heads));
  for (const group of groups(value)) {
    value.scales.map((scale, index) => [scale, index]).reverse().forEach(([scale, index], nth) => {
      const row = page.el("div", { role: "row", class: `${nth ? "" : "first "}${scale === 1 ? "one" : ""}` });
      const name = page.el("span", { class: "group " + group, text: nth === 1 ? page.groups[group] : "" });
      row.append(page.el("span", { role: "rowheader", "aria-label": `${page.groups[group]} × ${scale}` }, name, page.el("span", { class: "scale", text: [0, 1, 2].includes(scale) ? scale : "" })));
      for (let at = 0; at < layers; at++) {
        const cell = page.el("span", { role: "gridcell", class: "cell", tabindex: -1, "data-key": key(group, at, index) });
        cells.set(key(group, at, index), cell);
        row.append(cell);
      }
      map.append(row);
    });
  }
  focus = cells.keys().next().value || "";
  if (focus) cells.get(focus).tabIndex = 0;
}

// A cell in words.
function words(group, at, index) {
  const value = props.value;
  const { p, tops } = value.groups[group];
  const share = p[at][index];
  const where = `${page.groups[group]} × ${value.scales[index]}, layer ${at}`;
  if (share === null) return `${where}: ${p[at].every((other) => other === null) ? "there are none" : "not computed yet"}`;
  const first = `${page.quoted(value.token)} ${page.percent(share)}`;
  return `${where}: ${first}${tops[at][index] ? `; the answer begins with “${tops[at][index]}”` : ""}`;
}

function draw() {
  const value = shown();
  const card = element.closest(".sweeping");
  const note = props.value?.status === "failed" && !value ? props.value.note : "";
  card?.classList.toggle("empty", !value && !pending && !note);
  map.hidden = element.querySelector(".sweep-foot").hidden = !value;
  const running = pending || value?.status === "running";
  progress.hidden = stop.hidden = !running;
  element.querySelector(".save-sweep").hidden = !value;
  element.dataset.status = pending ? "running" : props.value?.status || "";
  const state = element.querySelector(".sweep-state");
  state.textContent = note || (pending ? "waiting …" : "");
  if (value) {
    const counted = `${value.done} of ${value.total}`;
    progress.max = value.total;
    progress.value = value.done;
    state.textContent = { running: counted, done: "", stopped: `stopped at ${counted}`, failed: value.note }[value.status];
    build(value);
    for (const group of groups(value)) {
      value.groups[group].p.forEach((row, at) => row.forEach((share, index) => color(value, group, at, index, share)));
    }
    element.querySelector(".sweep-head small").textContent = "one gate at a time, all others at 1; a click sets it";
    element.querySelector(".low").textContent = `${page.quoted(value.token)} less probable`;
    element.querySelector(".high").textContent = `more than ${page.percent(value.before)}`;
    select();
  } else progress.removeAttribute("value");
}

function color(value, group, at, index, share) {
  const cell = cells.get(key(group, at, index));
  const none = share === null && value.groups[group].p[at].every((other) => other === null);
  const top = value.groups[group].tops[at][index];
  const change = share === null ? 0 : share < value.before ? (share - value.before) / value.before : (share - value.before) / Math.max(1 - value.before, 0.05);
  cell.className = `cell ${none ? "none" : share === null ? "due" : change < 0 ? "loss" : "gain"}${top ? " flips" : ""}`;
  cell.style.setProperty("--change", `${Math.round(100 * Math.min(1, Math.abs(change)))}%`);
  cell.replaceChildren(...(top ? [page.el("b", { text: top })] : []));
  cell.setAttribute("aria-label", words(group, at, index));
}

// The cell whose setting the faders have, and the layer of the maps.
function select() {
  const value = shown();
  if (!value) return;
  const scales = page.byGroup(frame.gates);
  const moved = GROUPS.flatMap((group) => scales[group].flatMap((scale, at) => (scale === 1 ? [] : [[group, at, value.scales.indexOf(scale)]])));
  const on = moved.length === 1 ? key(...moved[0]) : "";
  for (const [name, cell] of cells) cell.classList.toggle("on", name === on);
  for (const head of map.querySelectorAll(".layer-number")) head.classList.toggle("shown", Number(head.dataset.layer) === layer);
}

// Without a cell under the pointer: the answer under the setting of the faders.
function rest() {
  const ready = answers.done && !answers.stale && frame && !frame.identity;
  reading.textContent = ready ? `Gated answer: “${page.written(answers.gated)}”` : "";
}

function parts(cell) {
  const [group, at, index] = cell.dataset.key.split(":");
  return [group, Number(at), Number(index)];
}

function set(cell) {
  const [group, at, index] = parts(cell);
  if (cell.classList.contains("none")) return;
  const ones = () => Array(props.value.groups.v_sink.p.length).fill(1);
  const scales = { v_sink: ones(), rest: ones() };
  if (groups(props.value).includes("l_sink")) scales.l_sink = ones();
  scales[group === "ordinary" ? "rest" : group][at] = props.value.scales[index];
  page.publish("touched", at);
  page.put(scales);
}

map.addEventListener("click", (event) => {
  const cell = event.target.closest(".cell");
  if (!cell || cell.classList.contains("none")) return;
  move(cell.dataset.key, false);
  set(cell);
});
map.addEventListener("pointerover", (event) => {
  const cell = event.target.closest(".cell");
  reading.textContent = cell ? words(...parts(cell)) : "";
});
map.addEventListener("pointerleave", rest);
map.addEventListener("focusin", (event) => {
  if (event.target.matches(".cell")) reading.textContent = words(...parts(event.target));
});

function move(to, focused = true) {
  if (!cells.has(to)) return;
  if (cells.has(focus)) cells.get(focus).tabIndex = -1;
  focus = to;
  cells.get(to).tabIndex = 0;
  if (focused) cells.get(to).focus();
}

map.addEventListener("keydown", (event) => {
  const cell = event.target.closest(".cell");
  if (!cell) return;
  const columns = props.value.groups.v_sink.p.length;
  const all = [...map.querySelectorAll(".cell")];
  const at = all.indexOf(cell);
  const step = { ArrowLeft: at % columns ? -1 : 0, ArrowRight: (at + 1) % columns ? 1 : 0, ArrowUp: -columns, ArrowDown: columns }[event.key];
  if (step !== undefined) {
    if (all[at + step]) move(all[at + step].dataset.key);
  } else if (event.key === "Enter" || event.key === " ") set(cell);
  else return;
  event.preventDefault();
});

stop.addEventListener("click", () => trigger("stop"));
element.querySelector(".close-sweep").addEventListener("click", () => {
  trigger("stop");
  closed = true;
  pending = false;
  props.value = null;
  draw();
});
element.querySelector(".save-sweep").addEventListener("click", () => {
  const value = props.value;
  const rows = groups(value).flatMap((group) => value.groups[group].p.flatMap((row, at) => row.flatMap((share, index) =>
    (share === null ? [] : [[at, page.groups[group], value.scales[index], value.token, share, value.groups[group].tops[at][index] || value.token]]))));
  page.saveTable("sinkgate-sweep.csv", [["layer", "group", "scale", "first token of the original answer", "probability", "likeliest token"], ...rows]);
});

// The setting with the largest loss of probability in this question's sweep, a changed first token before all others.
page.strongest = () => {
  const value = shown();
  if (!value) return null;
  let best = null;
  for (const group of groups(value)) {
    value.groups[group].p.forEach((row, at) => row.forEach((share, index) => {
      if (share === null || value.scales[index] >= 1) return;
      const effect = value.before - share + (value.groups[group].tops[at][index] ? 1 : 0);
      if (effect > 0.01 && (!best || effect > best.effect)) best = { group, layer: at, scale: value.scales[index], effect };
    }));
  }
  return best;
};

page.subscribe("sweep", () => {
  pending = true;
  closed = false;
  props.value = null;
  draw();
  page.reveal(element.closest(".sweeping"));
  trigger("start");
});
page.subscribe("answers", (newest) => {
  answers = newest;
  if (!map.matches(":hover")) rest();
});
page.subscribe("lens", (lens) => { layer = lens.layer; select(); });
page.subscribe("frame", (newest) => {
  const other = newest.began !== frame?.began;
  frame = newest;
  if (other) draw();
  else select();
});
draw();
watch("value", () => {
  if (closed && props.value) return void (props.value = null);
  if (props.value) pending = false;
  draw();
});
