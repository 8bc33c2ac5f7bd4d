const page = window.sinkgate;
const head = element.querySelector(".head");
const row = element.querySelector(".row");
const sheet = element.querySelector(".sheet");
const scale = element.querySelector(".scale-kind");
const hide = element.querySelector(".hide-sinks");
const follow = element.querySelector(".follow");
const { heads } = props.size;

// The revision lets the server ignore the lens of an event that arrives late.
function set(change) {
  props.value = { ...props.value, ...change, revision: (props.value.revision || 0) + 1 };
  drawChoice();
}

function choose(change) {
  set(change);
  trigger("input");
}

head.append(page.el("option", { value: "", text: "mean" }));
for (let index = 0; index < heads; index++) head.append(page.el("option", { value: index, text: index }));
head.addEventListener("change", () => choose({ head: head.value === "" ? null : Number(head.value) }));
row.addEventListener("change", () => choose({ row: Number(row.value) }));
sheet.addEventListener("change", () => choose({ sheet: Number(sheet.value) }));
scale.addEventListener("change", () => choose({ scale: scale.value }));
hide.addEventListener("change", () => choose({ hide: hide.checked }));

function drawChoice() {
  const value = props.value;
  head.value = value.head === null ? "" : String(value.head);
  scale.value = value.scale;
  hide.checked = value.hide;
  page.publish("lens", value);
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
  const unborn = Array.from({ length: Math.max(0, props.value.row + 1 - frame.queries.length) }, (_, index) => `token ${frame.queries.length + index}`);
  name(row, [...frame.queries, ...unborn]);
  row.value = String(props.value.row);
  name(sheet, frame.sheets);
  sheet.value = String(Math.min(props.value.sheet, frame.sheets.length - 1));
  sheet.parentElement.hidden = frame.sheets.length === 1;
});

page.subscribe("layer", (layer) => choose({ layer }));

// The layer whose fader is touched; the mixer's own event brings the frame.
page.subscribe("touched", (layer) => {
  if (!follow.checked || layer === props.value.layer) return;
  set({ layer });
});

drawChoice();
watch("value", drawChoice);
