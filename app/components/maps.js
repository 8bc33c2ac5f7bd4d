// Both attention maps and their difference. Value: a view_model.frame, which other components draw, too.
const page = window.sinkgate;
const view = element.querySelector(".view");
const home = element.querySelector(".home");
const dialog = element.querySelector(".zoom");
const trio = element.querySelector(".trio");
const figures = [...trio.querySelectorAll("figure")];
const screens = [...element.querySelectorAll(".screen")];
const canvases = screens.map((screen) => screen.querySelector("canvas"));
const readings = [...trio.querySelectorAll("output")];
const reading = element.querySelector(".reading");
const remark = element.querySelector(".remark");
const heads = element.querySelector(".heads");
const panel = element.querySelector(".patch");
const beside = element.querySelector(".beside"); // heads and panel: over the card of the answers, so that nothing on the page moves
const NAMES = ["Original", "Gated", "Difference"];
const DIFFERENCE = 2;
const DECADES = 3; // of the logarithmic scale
// From loss through none to gain, as in the project's figures: brown, almost white, teal.
const DIVERGING = [[140, 81, 10], [191, 129, 45], [236, 217, 174], [245, 245, 245], [191, 229, 223], [53, 151, 143], [1, 102, 94]];
// The same on a dark page, where no difference is dark.
const DIVERGING_DARK = [[246, 190, 105], [200, 135, 50], [92, 68, 36], [36, 44, 51], [28, 82, 80], [60, 165, 155], [140, 230, 218]];
let paper = false; // whether a figure for white paper is drawn
let pictures = []; // under the maps, one for each sheet
let frame = null;
let sinks = new Map(); // index of a cell -> its mark
let patch = null; // measurements on the chosen patch, once they have arrived
let cursor = null; // the cell that the keyboard or the pointer is on

// --- numbers and colours

// One of thousands of patches has a small share: two significant digits, where the page elsewhere shows "<0.1 %".
function fine(share) {
  return share === 0 || share >= 1e-3 ? page.percent(share) : small(100 * share) + " %";
}

function small(value) { // without an exponent
  value = Number(value.toPrecision(2));
  return value.toFixed(Math.min(12, 1 - Math.floor(Math.log10(value))));
}

function points(difference) { // in percentage points
  const size = 100 * Math.abs(difference);
  if (!size) return "0 pp";
  return (difference < 0 ? "−" : "+") + (size < 0.1 ? small(size) : size.toFixed(1)) + " pp";
}

// The unscaled shares of the original model, gated, and their difference, also where the colours show rescaled ones.
function exact() {
  const [before, after] = frame.exact || [frame.before, frame.after];
  return [before, after, before && after && before.map((share, index) => (share === null ? null : after[index] - share))];
}

// The values that the colours show. Masked sinks have no difference: the shares of the other patches are rescaled.
function drawn() {
  const difference = exact()[DIFFERENCE];
  return [frame.before, frame.after,
    difference && difference.map((value, index) => (frame.lens.hide && sinks.has(index) ? null : value))];
}

// For each map the value at the end of its scale: one for both models, or its own.
function ends(sides) {
  const most = sides.map((values) => Math.max(0, ...(values || []).map((value) => Math.abs(value ?? 0))));
  const shared = Math.max(most[0], most[1]);
  return frame.lens.scale === "own" ? most : [shared, shared, most[DIFFERENCE]];
}

// The position of a value on the scale: 0 to 1 for shares; for differences -1 to 1, 0 is no difference.
function place(side, value, end) {
  const part = Math.min(1, Math.abs(value) / (end || 1));
  const log = frame.lens.scale === "log";
  if (side === DIFFERENCE) return Math.sign(value) * (log ? Math.log1p(100 * part) / Math.log1p(100) : part);
  return log ? Math.max(0, 1 + Math.log10(Math.max(part, 1e-12)) / DECADES) : part;
}

function color(side, at) {
  const diverging = document.body.classList.contains("dark") && !paper ? DIVERGING_DARK : DIVERGING;
  const [red, green, blue] = side === DIFFERENCE ? page.shade((at + 1) / 2, diverging) : page.shade(at);
  return `rgb(${Math.round(red)}, ${Math.round(green)}, ${Math.round(blue)})`;
}

// Both ends of a map's scale in words.
function labels(side, end) {
  if (side === DIFFERENCE) return end ? [points(-end), points(end)] : ["no difference", ""];
  return [frame.lens.scale === "log" ? "≤ " + fine(end / 10 ** DECADES) : "0 %", fine(end)];
}

function band(side) { // the colours of a scale, from its low end to its high one
  return (at) => color(side, side === DIFFERENCE ? 2 * at - 1 : at);
}

// --- drawing

// Tokens without a place in a picture have no picture below them, and a gap between them: they have no neighbours.
function paint(canvas, side, values, end, picture, width, height, gap) {
  const [rows, columns] = frame.grid;
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  const draw = canvas.getContext("2d");
  draw.clearRect(0, 0, width, height);
  const x = (column) => Math.round((column * width) / columns);
  const y = (row) => Math.round((row * height) / rows);
  values.forEach((value, index) => {
    if (value === null) return; // no token is here
    const [row, column] = [Math.floor(index / columns), index % columns];
    draw.fillStyle = color(side, place(side, value, end));
    draw.fillRect(x(column) + gap, y(row) + gap, x(column + 1) - x(column) - 2 * gap, y(row + 1) - y(row) - 2 * gap);
  });
  if (picture) { // grey and faint, so that colour shows attention only
    draw.filter = "grayscale(1)";
    draw.globalAlpha = side === DIFFERENCE ? 0.15 : 0.25;
    draw.drawImage(picture, 0, 0, width, height);
    draw.globalAlpha = 1;
    draw.filter = "none";
  }
}

// The outlines of the sinks: patches of one kind that touch are one region. A path in units of cells for each.
function regions() {
  const [rows, columns] = frame.grid;
  const left = new Set(sinks.keys());
  const paths = [];
  const inside = (kind, row, column) => row >= 0 && column >= 0 && row < rows && column < columns && sinks.get(row * columns + column)?.kind === kind;
  for (const start of sinks.keys()) {
    if (!left.delete(start)) continue;
    const { kind } = sinks.get(start);
    const [queue, path] = [[start], []];
    while (queue.length) {
      const index = queue.pop();
      const [row, column] = [Math.floor(index / columns), index % columns];
      for (const [down, right, edge] of [[-1, 0, `M${column} ${row}h1`], [1, 0, `M${column} ${row + 1}h1`], [0, -1, `M${column} ${row}v1`], [0, 1, `M${column + 1} ${row}v1`]]) {
        if (!inside(kind, row + down, column + right)) path.push(edge);
        else if (left.delete((row + down) * columns + column + right)) queue.push((row + down) * columns + column + right);
      }
    }
    paths.push([kind, path.join("")]);
  }
  return paths;
}

function drawMarks() {
  const [rows, columns] = frame.grid;
  const shown = JSON.stringify([frame.grid, frame.lens.hide, [...sinks].map(([index, { kind }]) => [index, kind])]);
  if (trio.dataset.marks === shown) return;
  trio.dataset.marks = shown;
  const paths = regions();
  for (const svg of element.querySelectorAll(".marks")) {
    svg.setAttribute("viewBox", `0 0 ${columns} ${rows}`);
    svg.classList.toggle("masked", frame.lens.hide);
    const outlines = (kinds) => paths.map(([kind, d]) => page.svg("path", { class: kinds(kind), d }));
    svg.replaceChildren(...outlines(() => "halo"), ...outlines((kind) => "region " + kind));
  }
}

function stand(node, [row, column]) { // in the middle of a cell
  const [rows, columns] = frame.grid;
  node.style.left = (100 * (column + 0.5)) / columns + "%";
  node.style.top = (100 * (row + 0.5)) / rows + "%";
}

// The picture under the maps, if there is one, and the aspect ratio of the maps.
function ground() {
  const picture = frame.placed ? pictures[frame.lens.sheet] : null;
  return [picture, picture ? picture.naturalWidth / picture.naturalHeight : frame.grid[1] / frame.grid[0]];
}

// The meaning of the colours. Where sinks are masked they are no shares of all attention.
function caption() {
  const unit = frame.placed ? "patch" : "token";
  const shares = frame.exact ? `share per ${unit}, rescaled` : `share of the query's attention per ${unit}`;
  return shares + { shared: "", own: ", each map on its own scale", log: ", logarithmic" }[frame.lens.scale];
}

// For a figure: each map `width` pixels wide, null where this query does not exist, with the ends and colours of its scale.
page.maps = (width) => {
  paper = true;
  const [picture, aspect] = ground();
  const sides = drawn();
  const most = ends(sides);
  const maps = sides.map((values, side) => {
    const canvas = values && page.el("canvas");
    if (canvas) paint(canvas, side, values, most[side], picture, width, Math.round(width / aspect), frame.placed ? 0 : 2);
    const colors = Array.from({ length: 256 }, (_, step) => band(side)(step / 255));
    return { name: side === 0 ? "Original model" : NAMES[side], canvas, labels: labels(side, most[side]), colors };
  });
  paper = false;
  return { maps, aspect, caption: caption(), regions: regions() };
};

// The rows of a table of the maps, with the unscaled shares also where sinks are masked.
page.table = () => {
  const [rows, columns] = frame.grid;
  const lines = [["row", "column", "original", "gated", "difference", "group"]];
  const [before, after, difference] = exact();
  for (let index = 0; index < rows * columns; index++) {
    const shares = [before, after, difference].map((values) => values?.[index] ?? null);
    if (shares.every((share) => share === null)) continue; // no token is here
    const numbers = shares.map((share) => (share === null ? "" : Number(share.toPrecision(9))));
    lines.push([Math.floor(index / columns), index % columns, ...numbers, sinks.get(index)?.kind || "ordinary"]);
  }
  return lines;
};

function draw() {
  if (!frame) return;
  const [rows, columns] = frame.grid;
  sinks = new Map(frame.marks.map((mark) => [mark.cell[0] * columns + mark.cell[1], mark]));
  const [picture, aspect] = ground();
  trio.style.setProperty("--aspect", aspect);
  trio.style.setProperty("--cell-width", 100 / columns + "%");
  trio.style.setProperty("--cell-height", 100 / rows + "%");
  trio.classList.toggle("wide", aspect >= 3);
  const sides = drawn();
  const most = ends(sides);
  const ratio = window.devicePixelRatio || 1;
  const sizes = canvases.map((canvas) => [canvas.clientWidth * ratio, canvas.clientHeight * ratio].map(Math.round)); // before any text changes: one layout
  canvases.forEach((canvas, side) => {
    canvas.classList.toggle("stale", !sides[side]); // this query is not generated yet
    canvas.setAttribute("aria-label", described(side));
    labels(side, most[side]).forEach((text, end) => { figures[side].querySelector(end ? ".high" : ".low").textContent = text; });
    const [width, height] = sizes[side];
    if (!sides[side] || !width) return;
    paint(canvas, side, sides[side], most[side], picture, width, height, frame.placed ? 0 : ratio);
  });
  for (const layer of element.querySelectorAll(".layer")) layer.textContent = `, layer ${frame.lens.layer}`;
  element.querySelector(".caption").textContent = caption();
  drawMarks();
  element.querySelector(".elsewhere").textContent = frame.elsewhere;
  remark.textContent = frame.note;
  remark.hidden = !frame.note;
  const missing = frame.finished ? "the gated answer has no such token" : "not generated yet";
  drawHeads();
  settle(dialog.open ? view : document.querySelector(".answering"));
  drawPatch();
  element.querySelector(".state").classList.toggle("same", Boolean(frame.after) && frame.identity);
  element.querySelector(".state").textContent = frame.after ? (frame.identity ? "= original" : "") : missing;
  read();
}

// A map in words, for screen readers.
function described(side) {
  const values = exact()[side];
  const of = `${side === 0 ? "Original model" : NAMES[side]}, layer ${frame.lens.layer}, ${frame.lens.head === null ? "mean of the heads" : "head " + frame.lens.head}`;
  if (!values) return `${of}: this query does not exist.`;
  const peak = values.reduce((best, value, index) => (value !== null && Math.abs(value) > Math.abs(values[best] ?? 0) ? index : best), 0);
  if (side === DIFFERENCE) return `${of}, gated minus original: at most ${points(values[peak] ?? 0)}, at ${cellName(peak)}.`;
  return `Attention map. ${of}: at most ${fine(values[peak] ?? 0)}, at ${cellName(peak)}.`;
}

function cellName(index) {
  const columns = frame.grid[1];
  return frame.placed ? `row ${Math.floor(index / columns)}, column ${index % columns}` : `token ${index}`;
}

// --- the cell under the pointer or the keyboard, on all maps

function read() {
  const values = cursor === null ? [null, null, null] : exact().map((side) => side?.[cursor] ?? null);
  const nothing = values.every((value) => value === null);
  const mark = nothing ? undefined : sinks.get(cursor);
  const masked = frame.lens.hide && mark ? " (masked)" : "";
  screens.forEach((screen, side) => {
    const spot = screen.querySelector(".spot");
    spot.hidden = values[side] === null;
    if (cursor !== null) stand(spot, [Math.floor(cursor / frame.grid[1]), cursor % frame.grid[1]]);
    readings[side].textContent = values[side] === null ? "" : (side === DIFFERENCE ? points(values[side]) : fine(values[side])) + masked;
  });
  trio.classList.toggle("read", !nothing);
  const evidence = mark ? frame.evidence[mark.kind].map((name, index) => [name, mark.values[index]]) : [];
  const kind = mark ? (mark.kind === "v_sink" ? "V-sink" : "L-sink") : "no sink in this layer";
  reading.replaceChildren(...(nothing ? [risen() || "Point at a patch for its numbers; click it to see who attends to it."] : [
    page.el("b", { class: mark?.kind || "", text: `${page.capital(cellName(cursor))}: ${kind}` }),
    ...evidence.map(([name, value]) => page.el("span", {}, name + " ", page.el("b", { text: value }))),
  ]));
}

// The reason why a Key scale of 0 has raised a group's attention in this layer; "" where it has not.
function risen() {
  const { layer } = frame.lens;
  const [before, after] = [frame.shares.unchanged, frame.shares.gated];
  if (!before || !after) return "";
  const scales = page.byGroup(frame.gates);
  const group = Object.keys(scales).find((name) => scales[name][layer] === 0 && after[name][layer] > before[name][layer] + 0.001);
  if (!group) return "";
  return `${page.capital(page.groups[group])} × 0: their share of attention rises, ${page.change(before[group][layer], after[group][layer])}. A Key scale of 0 makes the logit 0; it does not remove the token.`;
}

function point(screen, event) {
  const [rows, columns] = frame.grid;
  const box = screen.getBoundingClientRect();
  const row = Math.min(rows - 1, Math.max(0, Math.floor(((event.clientY - box.top) / box.height) * rows)));
  const column = Math.min(columns - 1, Math.max(0, Math.floor(((event.clientX - box.left) / box.width) * columns)));
  cursor = row * columns + column;
  read();
}

function leave() {
  cursor = null;
  if (frame) read();
}

// Heads and the panel of a patch stand below the likeliest next tokens, or below the enlarged maps.
function settle(room) {
  beside.hidden = !frame.heads && frame.lens.patch === null;
  if (beside.hidden) return;
  if (beside.parentElement !== room) room.append(beside);
  const below = document.querySelector("#words .bars").getBoundingClientRect().bottom - room.getBoundingClientRect().top;
  beside.style.setProperty("--below", Math.round(below) + "px");
}

// --- all heads

function drawHeads() {
  heads.hidden = !frame.heads;
  if (!frame.heads) return;
  if (heads.children.length !== frame.heads.length) {
    heads.replaceChildren(...frame.heads.map((_, head) => page.el("button", {
      type: "button", class: "head-map", role: "radio", "aria-label": "Head " + head,
      onclick: () => page.publish("choose", { head: frame.lens.head === head ? null : head }),
    }, page.el("canvas", { width: 1, height: 1 }), page.el("span", { text: head }))));
  }
  frame.heads.forEach((shades, head) => {
    const button = heads.children[head];
    const chosen = frame.lens.head === head;
    button.setAttribute("aria-checked", String(chosen));
    page.tabStop(button, chosen || (frame.lens.head === null && head === 0));
    page.drawShades(button.querySelector("canvas"), shades, frame.grid);
  });
}

page.arrowKeys(heads, () => frame.lens.head ?? 0, (head) => page.publish("choose", { head }));

// --- the chosen patch

const share = (value) => page.el("td", { class: "number", text: value === 0 ? "0 %" : fine(value) });

function drawPatch() {
  const chosen = frame.lens.patch;
  for (const mark of element.querySelectorAll(".chosen")) {
    mark.hidden = chosen === null;
    if (chosen !== null) stand(mark, [Math.floor(chosen / frame.grid[1]), chosen % frame.grid[1]]);
  }
  panel.hidden = chosen === null;
  if (chosen === null) return;
  const current = patch && patch.patch === chosen && patch.layer === frame.lens.layer;
  const kinds = { v_sink: "V-sink", l_sink: "L-sink in this layer", ordinary: "no sink in this layer" };
  panel.querySelector(".name").textContent = `Patch ${cellName(chosen)}${current ? ": " + kinds[patch.kind] : ""}`;
  panel.querySelector(".waiting").textContent = current ? (patch.sequence === frame.sequence ? "" : "updating…") : patch?.error || "measuring…";
  panel.querySelector(".facts").hidden = !current;
  if (!current || (panel.drawn === patch && panel.width === panel.clientWidth)) return;
  [panel.drawn, panel.width] = [patch, panel.clientWidth];
  const body = (name) => panel.querySelector(`.${name} tbody`);
  body("evidence").replaceChildren(...patch.evidence.map(([name, value]) => page.el("tr", {}, page.el("th", { scope: "row", text: name }), page.el("td", { text: value }))));
  panel.querySelector(".of-layer").textContent = "layer " + patch.layer;
  const most = Math.max(1e-9, ...patch.attended.map(([, , after]) => after));
  body("attended").replaceChildren(...patch.attended.map(([name, before, after]) => {
    const bar = page.el("i");
    bar.style.width = (100 * after) / most + "%";
    const cells = frame.identity ? [share(after)] : [share(before), page.el("td", { class: "arrow", text: "→" }), share(after)];
    return page.el("tr", {}, page.el("th", { scope: "row", text: name }), page.el("td", { class: "bar" }, bar), ...cells);
  }));
  drawReceived();
  drawByHead();
  const words = (list) => page.el("td", {}, ...list.map(([word, part], index) => page.el(index ? "span" : "b", { text: word + " ", title: page.percent(part) })));
  panel.querySelector(".decoded").hidden = !patch.words;
  panel.querySelector(".decoded thead").replaceChildren(page.el("tr", {}, ...["layer", "this patch", ...(patch.ordinary ? ["ordinary " + patch.ordinary] : [])].map((text) => page.el("th", { scope: "col", text }))));
  body("decoded").replaceChildren(...(patch.words || []).map(([layer, ...lists]) => page.el("tr", {}, page.el("th", { scope: "row", text: layer }), ...lists.map(words))));
}

// Attention received by layer: gated, dotted the original model, thin an ordinary patch.
function drawReceived() {
  const [[before], [after, ordinary]] = patch.received;
  const [width, height, left, bottom] = [Math.max(160, panel.querySelector(".lines").clientWidth), 92, 44, 14];
  const most = Math.max(1e-9, ...before, ...after, ...(ordinary || []));
  const x = (layer) => left + ((width - left - 6) * layer) / Math.max(1, after.length - 1);
  const y = (value) => 6 + (height - bottom - 6) * (1 - value / most);
  const peak = Math.max(...after);
  const label = `Attention that it receives by layer: at most ${fine(peak)} in layer ${after.indexOf(peak)}.`;
  const svg = page.svg("svg", { class: patch.kind, width, height, role: "img", "aria-label": label });
  const add = (tag, attributes) => svg.append(page.svg(tag, attributes));
  for (const value of [0, most]) {
    add("line", { class: "grid", x1: left, x2: width - 6, y1: y(value), y2: y(value) });
    add("text", { x: left - 4, y: y(value) + 4, "text-anchor": "end", text: fine(value) });
  }
  add("line", { class: "grid shown", x1: x(patch.layer), x2: x(patch.layer), y1: 6, y2: height - bottom });
  for (const layer of [0, after.length - 1]) add("text", { x: x(layer), y: height - 2, "text-anchor": "middle", text: layer });
  const lines = [["other", ordinary], ["before", frame.identity ? null : before], ["after", after]];
  for (const [name, values] of lines) if (values) add("polyline", { class: "line " + name, points: values.map((value, layer) => `${x(layer)},${y(value)}`).join(" ") });
  panel.querySelector(".lines").replaceChildren(svg);
  panel.querySelector(".keys").textContent = [frame.identity ? "" : "dotted: original model", patch.ordinary ? "grey: an ordinary patch" : ""].filter(Boolean).join("; ");
}

// One column a layer, one row a head, each cell as bright as the attention received.
function drawByHead() {
  const canvas = panel.querySelector(".by-head canvas");
  const [layers, count] = [patch.heads.length, patch.heads[0].length];
  const most = Math.max(1e-9, ...patch.heads.flat());
  Object.assign(canvas, { width: layers, height: count });
  const pixels = new ImageData(layers, count);
  patch.heads.forEach((values, layer) => values.forEach((value, head) => pixels.data.set([...page.shade(value / most), 255], 4 * (head * layers + layer))));
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  canvas.setAttribute("aria-label", `Attention received by layer and head: at most ${fine(most)}.`);
}

panel.querySelector(".by-head canvas").addEventListener("pointermove", (event) => {
  const box = event.currentTarget.getBoundingClientRect();
  const layer = Math.min(patch.heads.length - 1, Math.floor(((event.clientX - box.left) / box.width) * patch.heads.length));
  const head = Math.min(patch.heads[0].length - 1, Math.floor(((event.clientY - box.top) / box.height) * patch.heads[0].length));
  const value = patch.heads[Math.max(0, layer)][Math.max(0, head)];
  panel.querySelector(".by-head output").textContent = `layer ${layer}, head ${head}: ${fine(value)}`;
});
panel.querySelector(".by-head canvas").addEventListener("pointerleave", () => { panel.querySelector(".by-head output").textContent = ""; });

function open(cell) { // the same again closes it
  const there = exact().some((side) => side?.[cell] !== null && side?.[cell] !== undefined);
  if (there) page.publish("choose", { patch: cell === frame.lens.patch ? null : cell });
}

panel.querySelector(".close-patch").addEventListener("click", () => {
  page.publish("choose", { patch: null });
  trio.focus();
});
for (const part of [view, beside]) {
  part.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !dialog.open && frame?.lens.patch !== null) page.publish("choose", { patch: null });
  });
}
page.subscribe("inspected", (value) => {
  if (!value) return;
  patch = value.error ? { error: value.error } : value.patch && { ...value.patch, layer: value.layer, sequence: value.sequence };
  if (frame) drawPatch();
});

for (const screen of screens) {
  screen.addEventListener("click", () => cursor !== null && open(cursor));
  screen.addEventListener("pointermove", (event) => frame && point(screen, event));
  screen.addEventListener("pointerleave", leave);
}
trio.addEventListener("blur", leave);
trio.addEventListener("keydown", (event) => {
  if (!frame || event.target !== trio) return;
  const [rows, columns] = frame.grid;
  const [row, column] = cursor === null ? [0, 0] : [Math.floor(cursor / columns), cursor % columns];
  const order = [...sinks.keys()].sort((a, b) => a - b);
  const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
  if (step && cursor !== null) {
    cursor = Math.min(rows - 1, Math.max(0, row + step[0])) * columns + Math.min(columns - 1, Math.max(0, column + step[1]));
  } else if (step || event.key === "Home") cursor = 0;
  else if (event.key === "PageDown" && order.length) cursor = order.find((index) => index > (cursor ?? -1)) ?? order[0];
  else if (event.key === "PageUp" && order.length) cursor = order.findLast((index) => index < (cursor ?? Infinity)) ?? order.at(-1);
  else if (event.key === "Enter" && cursor !== null) open(cursor);
  else return;
  event.preventDefault();
  read();
});

// --- enlarged, over the page

let opener = null;

function only(side) { // the maps that the large view shows: one, or all for ""
  view.dataset.only = side;
  for (const button of dialog.querySelectorAll("button[data-only]")) button.setAttribute("aria-pressed", String(button.dataset.only === side));
  draw();
}

figures.forEach((figure, side) => figure.querySelector(".enlarge").addEventListener("click", (event) => {
  opener = event.currentTarget;
  dialog.append(view);
  dialog.showModal();
  only(String(side));
}));
for (const button of dialog.querySelectorAll("[data-only]")) button.addEventListener("click", () => only(button.dataset.only));
dialog.querySelector(".close").addEventListener("click", () => dialog.close());
dialog.addEventListener("click", (event) => event.target === dialog && dialog.close()); // beside the maps
dialog.addEventListener("close", () => {
  home.append(view);
  delete view.dataset.only;
  leave();
  draw();
  opener?.focus();
});

// --- values

function receive(sent) {
  if (frame && sent.tick < frame.tick) return;
  frame = sent;
  element.frame = frame; // for the browser tests
  element.dataset.tick = frame.tick;
  draw();
  page.publish("frame", frame);
}

function drawScales() {
  figures.forEach((figure, side) => {
    const scale = figure.querySelector(".scale").getContext("2d");
    for (let x = 0; x < 256; x++) {
      scale.fillStyle = band(side)(x / 255);
      scale.fillRect(x, 0, 1, 1);
    }
  });
  draw();
}
drawScales();
document.addEventListener("sinkgate:light", drawScales);

// The pictures stay until the next ones are decoded: dragging an object sends many.
let newest = "";
page.subscribe("view", (sent) => {
  const urls = [sent.url, ...sent.others];
  if (newest === urls.join()) return;
  newest = urls.join();
  const asked = newest;
  const next = urls.map((src) => Object.assign(new Image(), { src }));
  Promise.all(next.map((picture) => picture.decode())).then(() => {
    if (asked !== newest) return;
    pictures = next;
    draw();
  });
});
new ResizeObserver(draw).observe(trio);
function take() {
  if (!props.value?.grid) return;
  const sent = JSON.parse(JSON.stringify(props.value)); // plain values: each read of the page's own goes through a proxy
  props.value = null; // Gradio's page copies the values of all components, number by number, at every message about any event
  receive(sent);
}
take();
watch("value", take);
page.subscribe("update", (update) => update?.maps && receive(update.maps));
