// Link, Python code and figures of the view. Value: {link, python, lacks}. Event: collect.
const page = window.sinkgate;
const link = element.querySelector(".link");
const lacks = element.querySelector(".lacks");
const code = element.querySelector("code");
const notice = element.querySelector(".notice");
const [SIDE, GAP, MARGIN, SCALE] = [360, 22, 28, 2]; // of a figure, in pixels; SCALE of them to each
const CHART = [760, 300]; // width and height of the chart's figure, in pixels
const PATIENCE = 4000; // ms: browsers allow copying for a short time after a click
const FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif";
const [INK, SOFT, LINE] = ["#1d2329", "#5c6770", "#e3e7eb"]; // figures are for white paper
const groupColor = (group) => getComputedStyle(document.documentElement).getPropertyValue("--group-" + group); // of the light page
let frame = null;
let answers = {};
let quiet = null;
let collected = null; // the view of the last request
let pending = null; // resolves when link and code have arrived, or after a while
let arrived = () => {};

page.subscribe("answers", (newest) => { answers = newest; });
page.subscribe("frame", (newest) => {
  frame = newest;
  if (collected !== id()) collect();
});

// The view for which link and code are built: not while something moves, and only while they are visible.
function id() {
  return frame && JSON.stringify([frame.sequence, frame.lens]);
}

function collect() {
  if (!frame?.here || !element.checkVisibility()) return;
  collected = id();
  arrived();
  pending = new Promise((resolve) => {
    arrived = resolve;
    setTimeout(resolve, PATIENCE);
  });
  trigger("collect");
}

function draw() {
  const { link: text, python = "", lacks: sentence = "" } = props.value || {};
  link.value = text ? `${location.origin}${location.pathname}#s=${text}` : "";
  lacks.textContent = sentence;
  lacks.hidden = !sentence;
  if (code.textContent !== python) code.textContent = python;
  element.dataset.collected = text || "";
}

draw();
watch("value", () => {
  draw();
  arrived();
});
new ResizeObserver(() => collected !== id() && collect()).observe(element); // it becomes visible

function announce(sentence) {
  clearTimeout(quiet);
  notice.textContent = sentence;
  quiet = setTimeout(() => { notice.textContent = ""; }, 6000);
}

// Only secure pages have a clipboard; elsewhere the text is selected and copied with the older command.
async function copy(text, select, done) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    select();
    if (!document.execCommand("copy")) return announce("The browser does not allow copying: press Ctrl+C or ⌘C.");
  }
  announce(done);
}

element.querySelector(".copy-link").addEventListener("click", async () => {
  await pending;
  if (!link.value) return announce("Nothing to share yet.");
  history.replaceState(history.state, "", link.value); // a bookmark of the page keeps what is shown, too
  copy(link.value, () => link.select(), "Link copied.");
});
element.querySelector(".copy-python").addEventListener("click", async () => {
  await pending;
  copy(code.textContent, () => getSelection().selectAllChildren(code), "Python code copied.");
});
link.addEventListener("focus", () => link.select());

function sheet(width, height) {
  const canvas = page.el("canvas", { width: Math.round(width * SCALE), height: Math.round(height * SCALE) });
  const draw = canvas.getContext("2d");
  draw.scale(SCALE, SCALE);
  draw.fillStyle = "#fff";
  draw.fillRect(0, 0, width, height);
  draw.textBaseline = "top";
  return [canvas, draw];
}

// Break a text into at most `most` lines of a width.
function lines(draw, text, width, most) {
  const kept = [""];
  for (const word of text.split(/\s+/)) {
    const longer = (kept.at(-1) + " " + word).trim();
    if (draw.measureText(longer).width <= width || !kept.at(-1)) kept[kept.length - 1] = longer;
    else if (kept.length < most) kept.push(word);
    else {
      kept[most - 1] += " …";
      break;
    }
  }
  return kept;
}

function write(draw, text, x, y, { size = 13, color = SOFT, weight = 400, width = 1e4, most = 1 } = {}) {
  draw.font = `${weight} ${size}px ${FONT}`;
  draw.fillStyle = color;
  const written = lines(draw, text, width, most);
  written.forEach((line, index) => draw.fillText(line, x, y + index * size * 1.35, width));
  return y + written.length * size * 1.35;
}

// Outlines of sinks, whose cells are so many pixels wide and high, from a point on.
function outline(draw, regions, x, y, [across, down]) {
  const scaled = new DOMMatrix([across, 0, 0, down, x, y]);
  for (const [color, width] of [["rgba(10, 14, 18, 0.75)", 4], ["#fff", 2.8], ["", 2]]) {
    for (const [kind, path] of regions) {
      const line = new Path2D();
      line.addPath(new Path2D(path), scaled);
      [draw.strokeStyle, draw.lineWidth, draw.lineCap] = [color || groupColor(kind), width, "square"];
      draw.stroke(line);
    }
  }
}

// Question, the maps with their sinks and answers, and the view's settings.
function figure() {
  const { maps, aspect, caption, regions } = page.maps(SIDE * SCALE);
  const across = aspect < 3 ? maps.length : 1;
  const [width, height] = [SIDE, SIDE / aspect];
  const whole = maps.length * SIDE + (maps.length - 1) * GAP + 2 * MARGIN;
  const [canvas, draw] = sheet(whole, (height + 110) * (maps.length / across) + 200 + 2 * MARGIN);
  const within = { width: whole - 2 * MARGIN };
  const head = frame.lens.head === null ? "mean over heads" : `head ${frame.lens.head}`;
  const { model, question } = frame;
  let y = write(draw, question, MARGIN, MARGIN, { size: 18, color: INK, weight: 650, most: 3, ...within }) + 4;
  const looked = `layer ${frame.lens.layer}, ${head}, query: ${frame.query}`;
  y = write(draw, `${model} · ${looked}${frame.lens.hide ? " · sinks masked" : ""}`, MARGIN, y, { most: 2, ...within }) + 2;
  y = write(draw, `Gates: ${(frame.learned ? `learned gates ${frame.learned.name}: ` : "") + page.inWords(frame.gates)}`, MARGIN, y, { most: 3, ...within }) + 14;
  const settled = answers.done && !answers.stale;
  const texts = ["unchanged", "gated"].map((side) => settled ? page.written(answers[side]) || "(empty answer)" : "…");
  texts.push("Gated − original, percentage points");
  const bold = { size: 15, color: INK, weight: 600, width: SIDE, most: 2 };
  const [rows, columns] = frame.grid;
  maps.forEach((map, index) => {
    const x = MARGIN + (across > 1 ? index * (SIDE + GAP) : 0);
    write(draw, map.name, x, y);
    const bottoms = texts.map((text, side) => write(draw, text, side === index ? x : -1e4, y + 18, bold)); // all at the same height
    const from = Math.max(...bottoms) + 8;
    draw.fillStyle = LINE;
    draw.fillRect(x, from, width, height);
    if (map.canvas) draw.drawImage(map.canvas, x, from, width, height);
    draw.save();
    draw.beginPath();
    draw.rect(x, from, width, height);
    draw.clip();
    outline(draw, regions, x, from, [width / columns, height / rows]);
    draw.restore();
    scale(draw, map, x, from + height + 8);
    if (across === 1 || index === maps.length - 1) y = from + height + 38;
  });
  write(draw, caption, MARGIN, y);
  for (const [kind, name, right] of [["v_sink", "V-sink", 205], ["l_sink", "L-sink in this layer", 128]]) {
    outline(draw, [[kind, "M0 0h1v1h-1z"]], whole - MARGIN - right, y + 3, [10, 10]);
    write(draw, name, whole - MARGIN - right + 17, y);
  }
  return cropped(canvas, (y + 18 + MARGIN) * SCALE);
}

// The colours of a map's scale with its ends, as wide as the map.
function scale(draw, { labels: [low, high], colors }, x, y) {
  const small = { size: 12 };
  write(draw, low, x, y, small);
  const from = x + draw.measureText(low).width + 8;
  const length = SIDE - (from - x) - draw.measureText(high).width - 8;
  for (let step = 0; step < length; step++) {
    draw.fillStyle = colors[Math.min(255, Math.round((255 * step) / (length - 1)))];
    draw.fillRect(from + step, y + 3, 1.5, 9);
  }
  write(draw, high, x + SIDE - draw.measureText(high).width, y, small);
}

function cropped(canvas, height) {
  const cut = page.el("canvas", { width: canvas.width, height: Math.min(canvas.height, Math.round(height)) });
  cut.getContext("2d").drawImage(canvas, 0, 0);
  return cut;
}

// The chart is an SVG whose colours are in the page's style sheet: those of the light page are written into its copy.
async function chart() {
  const plot = page.chart(...CHART);
  const [width, height] = [plot.width.baseVal.value, plot.height.baseVal.value];
  const drawing = drawn(plot); // from a copy, which it makes at once
  plot.remove();
  const [canvas, draw] = sheet(width + 2 * MARGIN, height + 2 * MARGIN + 46);
  write(draw, "Share of attention by layer" + (frame.identity ? "" : "; dotted: original model"), MARGIN, MARGIN, { size: 15, color: INK, weight: 600 });
  let x = MARGIN;
  for (const key of document.querySelectorAll("#chart .key")) {
    draw.drawImage(await drawn(key.querySelector("svg")), x, MARGIN + 30);
    write(draw, key.textContent, x + 32, MARGIN + 26, { size: 12 });
    x += 32 + draw.measureText(key.textContent).width + 18;
  }
  draw.drawImage(await drawing, MARGIN, MARGIN + 46, width, height);
  return canvas;
}

const WRITTEN = ["stroke", "stroke-width", "stroke-dasharray", "stroke-opacity", "fill", "font-size", "font-family"];

async function drawn(svg) {
  const copy = svg.cloneNode(true);
  const parts = [...svg.querySelectorAll("*")];
  const section = svg.closest("#chart");
  section.classList.add("on-paper"); // taken off again before the page is painted
  copy.querySelectorAll("*").forEach((part, index) => {
    const style = getComputedStyle(parts[index]);
    for (const name of WRITTEN) part.style.setProperty(name, style.getPropertyValue(name));
  });
  section.classList.remove("on-paper");
  const text = new XMLSerializer().serializeToString(copy);
  const picture = Object.assign(new Image(), { src: "data:image/svg+xml;charset=utf-8," + encodeURIComponent(text) });
  await picture.decode();
  return picture;
}

function save(name, canvas) {
  canvas.toBlob((picture) => page.save(name, picture), "image/png");
  announce(`${name} saved.`);
}

element.querySelector(".save-maps").addEventListener("click", () => {
  if (!frame) return announce("Nothing to save yet.");
  save(`sinkgate-layer-${frame.lens.layer}.png`, figure());
});
element.querySelector(".save-table").addEventListener("click", () => {
  if (!frame) return announce("Nothing to save yet.");
  const name = `sinkgate-layer-${frame.lens.layer}.csv`;
  page.saveTable(name, page.table());
  announce(`${name} saved.`);
});
element.querySelector(".save-chart").addEventListener("click", async () => {
  if (!document.querySelector("#chart .plot svg")) return announce("Nothing to save yet.");
  save("sinkgate-layers.png", await chart());
});

// Sent by the header's button, which opens the section first.
page.subscribe("share", () => requestAnimationFrame(() => {
  element.scrollIntoView({ block: "nearest" });
  element.querySelector(".copy-link").focus();
}));
