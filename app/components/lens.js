const page = window.sinkgate;
const films = element.querySelector(".films");
const head = element.querySelector(".head");
const row = element.querySelector(".row");
const sheet = element.querySelector(".sheet");
const hide = element.querySelector(".hide-sinks");
const follow = element.querySelector(".follow");
const { layers, heads } = props.size;
const HOLE = 255; // the byte of a film where the sheet has no token

function choose(change) {
  props.value = { ...props.value, ...change };
  drawChoice();
  trigger("input");
}

for (let layer = 0; layer < layers; layer++) {
  films.append(page.el("button", {
    type: "button", class: "film", role: "radio", "aria-label": "Layer " + layer,
    onclick: () => choose({ layer }),
  }, page.el("canvas", { width: 1, height: 1 }), page.el("span", { text: layer })));
}
films.addEventListener("keydown", (event) => {
  const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  if (!step) return;
  event.preventDefault();
  const layer = (props.value.layer + step + layers) % layers;
  choose({ layer });
  films.children[layer].focus();
});

head.append(page.el("option", { value: "", text: "mean" }));
for (let index = 0; index < heads; index++) head.append(page.el("option", { value: index, text: index }));
head.addEventListener("change", () => choose({ head: head.value === "" ? null : Number(head.value) }));
row.addEventListener("change", () => choose({ row: Number(row.value) }));
sheet.addEventListener("change", () => choose({ sheet: Number(sheet.value) }));
hide.addEventListener("change", () => choose({ hide: hide.checked }));

function drawChoice() {
  const value = props.value;
  [...films.children].forEach((film, layer) => {
    film.setAttribute("aria-checked", String(layer === value.layer));
    film.tabIndex = layer === value.layer ? 0 : -1;
  });
  reveal(films.children[value.layer]);
  head.value = value.head === null ? "" : String(value.head);
  hide.checked = value.hide;
}

// Scrolls the row of films, and never the page.
function reveal(film) {
  const [box, row_] = [film.getBoundingClientRect(), films.getBoundingClientRect()];
  if (box.left < row_.left) films.scrollLeft -= row_.left - box.left;
  else if (box.right > row_.right) films.scrollLeft += box.right - row_.right;
}

function drawFilm(canvas, shades, [rows, columns]) {
  canvas.width = columns;
  canvas.height = rows;
  const pixels = new ImageData(columns, rows);
  const bytes = atob(shades);
  for (let i = 0; i < bytes.length; i++) {
    const shade = bytes.charCodeAt(i);
    if (shade !== HOLE) pixels.data.set([...page.shade(shade / (HOLE - 1)), 255], 4 * i);
  }
  canvas.getContext("2d").putImageData(pixels, 0, 0);
}

function name(select, names) {
  if (select.dataset.names === names.join("\n")) return;
  select.dataset.names = names.join("\n");
  select.replaceChildren(...names.map((text, value) => page.el("option", { value, text })));
}

let began = null;
page.subscribe("frame", (frame) => {
  // Queries belong to an answer: another question begins at its first, and one that no answer has is left.
  const gone = frame.finished && props.value.row >= frame.queries.length;
  if ((began !== frame.began || gone) && props.value.row !== frame.lens.row) {
    props.value = { ...props.value, row: frame.lens.row };
  }
  began = frame.began;
  frame.films.forEach((shades, layer) => drawFilm(films.children[layer].querySelector("canvas"), shades, frame.grid));
  const unborn = Array.from({ length: Math.max(0, props.value.row + 1 - frame.queries.length) }, (_, index) => `token ${frame.queries.length + index}`);
  name(row, [...frame.queries, ...unborn]);
  row.value = String(props.value.row);
  name(sheet, frame.sheets);
  sheet.value = String(Math.min(props.value.sheet, frame.sheets.length - 1));
  sheet.parentElement.hidden = frame.sheets.length === 1;
});

// The layer whose fader is touched; the mixer's own event brings the frame.
page.subscribe("touched", (layer) => {
  if (!follow.checked || layer === props.value.layer) return;
  props.value = { ...props.value, layer };
  drawChoice();
});

drawChoice();
watch("value", drawChoice);
