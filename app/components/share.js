const page = window.sinkgate;
const link = element.querySelector(".link");
const lacks = element.querySelector(".lacks");
const code = element.querySelector("code");
const notice = element.querySelector(".notice");
const [SIDE, GAP, MARGIN, SCALE] = [440, 24, 28, 2]; // of a figure, in pixels; SCALE of them to each
const PATIENCE = 4000; // ms: browsers allow copying for a short time after a click
const FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif";
const [INK, SOFT, LINE] = ["#1d2329", "#5c6770", "#e3e7eb"]; // figures are for white paper
const SINKS = { v_sink: "#e8590c", l_sink: "#1c7ed6" };
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

function mark(draw, kind, x, y, radius) {
  for (const [color, width] of [["rgba(0, 0, 0, 0.6)", 4.5], ["#fff", 3.2], [SINKS[kind], 2]]) {
    draw.beginPath();
    if (kind === "v_sink") draw.arc(x, y, radius, 0, 2 * Math.PI);
    else draw.rect(x - 0.85 * radius, y - 0.85 * radius, 1.7 * radius, 1.7 * radius);
    [draw.strokeStyle, draw.lineWidth] = [color, width];
    draw.stroke();
  }
}

// Question, both maps with their sinks and answers, and the view's settings.
function figure() {
  const { sides, aspect, top, caption } = page.maps(SIDE * SCALE);
  const across = aspect < 4 ? 2 : 1;
  const [width, height] = [SIDE, SIDE / aspect];
  const whole = across * SIDE + (across - 1) * GAP + 2 * MARGIN;
  const [canvas, draw] = sheet(whole, (height + 90) * (2 / across) + 200 + 2 * MARGIN);
  const within = { width: whole - 2 * MARGIN };
  const head = frame.lens.head === null ? "mean over heads" : `head ${frame.lens.head}`;
  const { model, question } = frame;
  let y = write(draw, question, MARGIN, MARGIN, { size: 18, color: INK, weight: 650, most: 3, ...within }) + 4;
  const looked = `layer ${frame.lens.layer}, ${head}, query: ${frame.queries[frame.lens.row] || "not there yet"}`;
  y = write(draw, `${model} · ${looked}${frame.lens.hide ? " · sinks masked" : ""}`, MARGIN, y, { most: 2, ...within }) + 2;
  y = write(draw, `Gates: ${(frame.learned ? `learned gates ${frame.learned.name}: ` : "") + page.inWords(frame.gates)}`, MARGIN, y, { most: 3, ...within }) + 14;
  const settled = answers.done && !answers.stale;
  const texts = ["unchanged", "gated"].map((side) => settled ? (answers[side] || []).map(([word]) => word).join(" ") || "(empty answer)" : "…");
  const bold = { size: 15, color: INK, weight: 600, width: SIDE, most: 2 };
  sides.forEach((map, index) => {
    const x = MARGIN + (across === 2 ? index * (SIDE + GAP) : 0);
    write(draw, index ? "Gated" : "Original model", x, y);
    const ends = texts.map((text, side) => write(draw, text, side === index ? x : -1e4, y + 18, bold)); // both at the same height
    const [from, [rows, columns]] = [Math.max(...ends) + 8, frame.grid];
    draw.fillStyle = LINE;
    draw.fillRect(x, from, width, height);
    if (map) draw.drawImage(map, x, from, width, height);
    const radius = Math.max(4, 0.36 * Math.min(width / columns, height / rows));
    for (const { cell: [row, column], kind } of frame.marks) {
      mark(draw, kind, x + ((column + 0.5) * width) / columns, from + ((row + 0.5) * height) / rows, radius);
    }
    if (across === 1 || index === 1) y = from + height + 14;
  });
  write(draw, "0", MARGIN, y);
  for (let step = 0; step < 120; step++) {
    draw.fillStyle = `rgb(${page.shade(step / 119).map(Math.round).join(",")})`;
    draw.fillRect(MARGIN + 14 + step, y + 3, 1.5, 9);
  }
  write(draw, `${top}: ${caption}`, MARGIN + 142, y);
  mark(draw, "v_sink", whole - MARGIN - 205, y + 8, 5);
  write(draw, "V-sink", whole - MARGIN - 192, y);
  mark(draw, "l_sink", whole - MARGIN - 128, y + 8, 5);
  write(draw, "L-sink in this layer", whole - MARGIN - 115, y);
  return cropped(canvas, (y + 18 + MARGIN) * SCALE);
}

function cropped(canvas, height) {
  const cut = page.el("canvas", { width: canvas.width, height: Math.min(canvas.height, Math.round(height)) });
  cut.getContext("2d").drawImage(canvas, 0, 0);
  return cut;
}

// The chart is an SVG whose colours are in the page's style sheet: those of the light page are written into its copy.
async function chart(plot) {
  const { width, height } = plot.getBoundingClientRect();
  const [canvas, draw] = sheet(width + 2 * MARGIN, height + 2 * MARGIN + 46);
  write(draw, "Where attention goes, by layer" + (frame.identity ? "" : "; dotted: original model"), MARGIN, MARGIN, { size: 15, color: INK, weight: 600 });
  let x = MARGIN;
  for (const key of document.querySelectorAll("#chart .key")) {
    draw.drawImage(await drawn(key.querySelector("svg")), x, MARGIN + 30);
    write(draw, key.textContent, x + 32, MARGIN + 26, { size: 12 });
    x += 32 + draw.measureText(key.textContent).width + 18;
  }
  draw.drawImage(await drawn(plot), MARGIN, MARGIN + 46, width, height);
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
element.querySelector(".save-chart").addEventListener("click", async () => {
  const plot = document.querySelector("#chart .plot svg");
  if (!plot) return announce("Nothing to save yet.");
  save("sinkgate-layers.png", await chart(plot));
});

// Sent by the header's button, which opens the section first.
page.subscribe("share", () => requestAnimationFrame(() => {
  element.scrollIntoView({ block: "nearest" });
  element.querySelector(".copy-link").focus();
}));
