const page = window.sinkgate;
const screens = [...element.querySelectorAll(".screen")];
const canvases = [element.querySelector(".before"), element.querySelector(".after")];
const top_ = element.querySelector(".top");
let picture = new Image();
let frame = null;

// The scale under the maps, drawn once.
const scale = element.querySelector(".scale").getContext("2d");
for (let x = 0; x < 256; x++) {
  scale.fillStyle = "rgb(" + page.shade(x / 255).map(Math.round).join(",") + ")";
  scale.fillRect(x, 0, 1, 1);
}

function paint(canvas, shares) {
  const [rows, columns] = frame.grid;
  const ratio = window.devicePixelRatio || 1;
  const width = canvas.clientWidth || 240;
  const height = Math.round((width * (picture.naturalHeight || rows)) / (picture.naturalWidth || columns));
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
  }
  const draw = canvas.getContext("2d");
  draw.clearRect(0, 0, canvas.width, canvas.height);
  const cellX = canvas.width / columns;
  const cellY = canvas.height / rows;
  shares.forEach((share, index) => {
    const [red, green, blue] = page.shade(share / frame.top).map(Math.round);
    draw.fillStyle = `rgb(${red}, ${green}, ${blue})`;
    const x = Math.round((index % columns) * cellX);
    const y = Math.round(Math.floor(index / columns) * cellY);
    draw.fillRect(x, y, Math.round(((index % columns) + 1) * cellX) - x, Math.round((Math.floor(index / columns) + 1) * cellY) - y);
  });
  if (picture.naturalWidth) { // grey and faint: colour here means attention and nothing else
    draw.filter = "grayscale(1)";
    draw.globalAlpha = 0.25;
    draw.drawImage(picture, 0, 0, canvas.width, canvas.height);
    draw.globalAlpha = 1;
    draw.filter = "none";
  }
}

function drawMarks(layer) {
  const [rows, columns] = frame.grid;
  layer.replaceChildren(...frame.marks.map(({ token, kind, why: reason }) => {
    const mark = page.el("i", { class: "mark " + kind, title: reason, tabindex: 0, role: "img", "aria-label": reason });
    mark.style.left = (100 * ((token % columns) + 0.5)) / columns + "%";
    mark.style.top = (100 * (Math.floor(token / columns) + 0.5)) / rows + "%";
    mark.style.setProperty("--cell", 100 / columns + "%");
    for (const event of ["pointerenter", "focus"]) mark.addEventListener(event, () => page.say("why", reason));
    for (const event of ["pointerleave", "blur"]) mark.addEventListener(event, () => page.say("why", ""));
    return mark;
  }));
}

function draw() {
  if (!frame) return;
  const sides = [frame.before, frame.after];
  canvases.forEach((canvas, side) => {
    canvas.classList.toggle("stale", !sides[side]); // this query exists only once the answer is written
    if (sides[side]) paint(canvas, sides[side]);
  });
  top_.textContent = page.percent(frame.top);
  const names = frame.marks.map(({ token, kind }) => kind + token).join(" ") + frame.lens.layer;
  screens.forEach((screen) => {
    const marks = screen.querySelector(".marks");
    if (marks.dataset.names === names + frame.summary) return;
    marks.dataset.names = names + frame.summary;
    drawMarks(marks);
  });
  screens.forEach((screen) => screen.querySelector(".marks").classList.toggle("hidden-sinks", frame.lens.hide));
  element.querySelector("small").textContent = frame.after ? (frame.identity ? "all faders at 1" : "") : "follows with the answer";
}

function receive() {
  const sent = props.value;
  if (!sent || !sent.grid || (frame && sent.tick < frame.tick)) return;
  frame = sent;
  element.frame = frame; // what was drawn last, for the browser tests
  element.dataset.tick = frame.tick;
  element.dataset.peak = frame.peak;
  draw();
  page.say("frame", frame);
}

// The picture stays until the next one is decoded: while an object is dragged there are many.
let newest = "";
page.hear("view", (view) => {
  if (newest === view.url) return;
  newest = view.url;
  const next = new Image();
  next.addEventListener("load", () => {
    if (view.url !== newest) return;
    picture = next;
    draw();
  });
  next.src = view.url;
});
new ResizeObserver(draw).observe(element);
receive();
watch("value", receive);
