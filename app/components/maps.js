const page = window.sinkgate;
const pair = element.querySelector(".pair");
const screens = [...element.querySelectorAll(".screen")];
const canvases = [element.querySelector(".before"), element.querySelector(".after")];
const readings = [...element.querySelectorAll("output")];
const top_ = element.querySelector(".top");
const remark = element.querySelector(".remark");
let pictures = []; // under the maps, one for each sheet
let frame = null;

// One of thousands of patches has a small share: two significant digits, where the page elsewhere shows "<0.1 %".
function fine(share) {
  return share < 1e-5 || share >= 1e-3 ? page.percent(share) : (100 * share).toPrecision(2) + " %";
}

// The scale under the maps, drawn once.
const scale = element.querySelector(".scale").getContext("2d");
for (let x = 0; x < 256; x++) {
  scale.fillStyle = "rgb(" + page.shade(x / 255).map(Math.round).join(",") + ")";
  scale.fillRect(x, 0, 1, 1);
}

// Tokens without a place in a picture have no picture below them, and a gap between them: they have no neighbours.
function paint(canvas, shares, picture, width, height, gap) {
  const [rows, columns] = frame.grid;
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  const draw = canvas.getContext("2d");
  draw.clearRect(0, 0, width, height);
  const x = (column) => Math.round((column * width) / columns);
  const y = (row) => Math.round((row * height) / rows);
  shares.forEach((share, index) => {
    if (share === null) return; // no token is here
    const [row, column] = [Math.floor(index / columns), index % columns];
    const [red, green, blue] = page.shade(share / frame.top).map(Math.round);
    draw.fillStyle = `rgb(${red}, ${green}, ${blue})`;
    draw.fillRect(x(column) + gap, y(row) + gap, x(column + 1) - x(column) - 2 * gap, y(row + 1) - y(row) - 2 * gap);
  });
  if (picture) { // grey and faint, so that colour shows attention only
    draw.filter = "grayscale(1)";
    draw.globalAlpha = 0.25;
    draw.drawImage(picture, 0, 0, width, height);
    draw.globalAlpha = 1;
    draw.filter = "none";
  }
}

function stand(node, [row, column]) { // in the middle of a cell
  const [rows, columns] = frame.grid;
  node.style.left = (100 * (column + 0.5)) / columns + "%";
  node.style.top = (100 * (row + 0.5)) / rows + "%";
}

function drawMarks(layer) {
  layer.replaceChildren(...frame.marks.map(({ cell, kind, why: reason }) => {
    const mark = page.el("i", { class: "mark " + kind, title: reason, tabindex: 0, role: "img", "aria-label": reason });
    stand(mark, cell);
    for (const event of ["pointerenter", "focus"]) mark.addEventListener(event, () => page.publish("why", reason));
    for (const event of ["pointerleave", "blur"]) mark.addEventListener(event, () => page.publish("why", ""));
    return mark;
  }));
}

// The picture under the maps, if there is one, and the aspect ratio of the maps.
function ground() {
  const picture = frame.placed ? pictures[frame.lens.sheet] : null;
  return [picture, picture ? picture.naturalWidth / picture.naturalHeight : frame.grid[1] / frame.grid[0]];
}

// The meaning of the colours. Where sinks are masked they are no shares of all attention.
function caption() {
  const unit = frame.placed ? "patch" : "token";
  return frame.exact ? `share per ${unit}, rescaled` : `share of the query's attention per ${unit}`;
}

// For a figure: both maps `width` pixels wide, null where this query does not exist, and the share of the brightest shade.
page.maps = (width) => {
  const [picture, aspect] = ground();
  const sides = [frame.before, frame.after].map((shares) => {
    if (!shares) return null;
    const canvas = page.el("canvas");
    paint(canvas, shares, picture, width, Math.round(width / aspect), frame.placed ? 0 : 2);
    return canvas;
  });
  return { sides, aspect, top: fine(frame.top), caption: caption() };
};

function draw() {
  if (!frame) return;
  const [rows, columns] = frame.grid;
  const [picture, aspect] = ground();
  pair.style.setProperty("--aspect", aspect);
  pair.style.setProperty("--cell-width", 100 / columns + "%");
  pair.style.setProperty("--cell-height", 100 / rows + "%");
  pair.classList.toggle("wide", aspect >= 4);
  const sides = [frame.before, frame.after];
  canvases.forEach((canvas, side) => {
    canvas.classList.toggle("stale", !sides[side]); // this query is not generated yet
    if (!sides[side]) return;
    const ratio = window.devicePixelRatio || 1;
    const [width, height] = [canvas.clientWidth * ratio, canvas.clientHeight * ratio].map(Math.round);
    paint(canvas, sides[side], picture, width, height, frame.placed ? 0 : ratio);
  });
  top_.textContent = fine(frame.top);
  for (const layer of element.querySelectorAll(".layer")) layer.textContent = `, layer ${frame.lens.layer}`;
  canvases.forEach((canvas, side) => canvas.setAttribute("aria-label", described(side)));
  element.querySelector(".caption").textContent = caption();
  const shown = JSON.stringify([frame.marks, frame.grid]);
  screens.forEach((screen) => {
    const marks = screen.querySelector(".marks");
    marks.classList.toggle("hidden-sinks", frame.lens.hide);
    if (marks.dataset.shown === shown) return;
    marks.dataset.shown = shown;
    drawMarks(marks);
  });
  element.querySelector(".elsewhere").textContent = frame.elsewhere;
  remark.textContent = frame.note;
  remark.hidden = !frame.note;
  const missing = frame.finished ? "the gated answer has no such token" : "not generated yet";
  element.querySelector(".state").textContent = frame.after ? (frame.identity ? "all faders at 1" : "") : missing;
}

// A map in words, for screen readers.
function described(side) {
  const shares = (frame.exact || [frame.before, frame.after])[side];
  const of = `${side ? "Gated" : "Original model"}, layer ${frame.lens.layer}, ${frame.lens.head === null ? "mean of the heads" : "head " + frame.lens.head}`;
  if (!shares) return `${of}: this query does not exist.`;
  const peak = shares.reduce((best, share, index) => (share !== null && share > (shares[best] ?? -1) ? index : best), 0);
  return `Attention map. ${of}: at most ${fine(shares[peak] ?? 0)}, at ${cellName(peak)}.`;
}

function cellName(index) {
  const columns = frame.grid[1];
  return frame.placed ? `row ${Math.floor(index / columns)}, column ${index % columns}` : `token ${index}`;
}

// The cell under the pointer, on both maps, with its share in either.
function point(screen, event) {
  const [rows, columns] = frame.grid;
  const box = screen.getBoundingClientRect();
  const row = Math.min(rows - 1, Math.floor(((event.clientY - box.top) / box.height) * rows));
  const column = Math.min(columns - 1, Math.floor(((event.clientX - box.left) / box.width) * columns));
  const index = row * columns + column;
  screens.forEach((each, side) => {
    const share = (frame.exact || [frame.before, frame.after])[side]?.[index] ?? null;
    const masked = frame.lens.hide && frame.marks.some((mark) => mark.cell[0] === row && mark.cell[1] === column);
    const spot = each.querySelector(".spot");
    spot.hidden = share === null;
    stand(spot, [row, column]);
    readings[side].textContent = share === null ? "" : (frame.placed ? "" : `token ${index}: `) + fine(share) + (masked ? " (masked)" : "");
  });
}

function leave() {
  for (const spot of element.querySelectorAll(".spot")) spot.hidden = true;
  for (const reading of readings) reading.textContent = "";
}

for (const screen of screens) {
  screen.addEventListener("pointermove", (event) => frame && point(screen, event));
  screen.addEventListener("pointerleave", leave);
}

function receive() {
  const sent = props.value;
  if (!sent || !sent.grid || (frame && sent.tick < frame.tick)) return;
  frame = sent;
  element.frame = frame; // for the browser tests
  element.dataset.tick = frame.tick;
  draw();
  page.publish("frame", frame);
}

// The pictures stay until the next ones are decoded: dragging an object sends many.
let newest = "";
page.subscribe("view", (view) => {
  const urls = [view.url, ...view.others];
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
new ResizeObserver(draw).observe(element);
receive();
watch("value", receive);
