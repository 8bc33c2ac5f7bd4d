// Choice of head, query and scale of the maps; a thumbnail chooses the layer. Value: lens.Lens as an object. Event: input.
const page = window.sinkgate;
const head = element.querySelector(".head");
const row = element.querySelector(".row");
const sheet = element.querySelector(".sheet");
const time = element.querySelector(".frames");
const scale = element.querySelector(".scale-kind");
const every = element.querySelector(".all-heads");
const hide = element.querySelector(".hide-sinks");
const follow = element.querySelector(".follow");
const { heads, interactive } = props.size;

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
row.addEventListener("change", () => row.value !== "prompt" && choose({ row: Number(row.value), position: null }));
sheet.addEventListener("change", () => choose({ sheet: Number(sheet.value), patch: null }));
time.addEventListener("input", () => choose({ sheet: Number(time.value), patch: null }));
every.addEventListener("click", () => choose({ heads: !props.value.heads }));
scale.addEventListener("change", () => choose({ scale: scale.value }));
hide.addEventListener("change", () => choose({ hide: hide.checked }));

function drawChoice() {
  const value = props.value;
  head.value = value.head === null ? "" : String(value.head);
  scale.value = value.scale;
  hide.checked = value.hide;
  every.setAttribute("aria-pressed", String(value.heads));
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
  if (began !== frame.began || gone) props.value = { ...props.value, row: frame.lens.row, position: frame.lens.position };
  began = frame.began;
  const unborn = Array.from({ length: Math.max(0, props.value.row + 1 - frame.queries.length) }, (_, index) => `token ${frame.queries.length + index}`);
  const ofPrompt = frame.lens.position !== null;
  name(row, [...frame.queries, ...unborn, ...(ofPrompt ? [frame.query] : [])]);
  if (ofPrompt) row.lastChild.value = "prompt";
  row.value = ofPrompt ? "prompt" : String(props.value.row);
  name(sheet, frame.sheets);
  sheet.value = String(Math.min(props.value.sheet, frame.sheets.length - 1));
  sheet.parentElement.hidden = frame.video || frame.sheets.length === 1;
  time.parentElement.hidden = !frame.video || frame.sheets.length === 1;
  time.max = String(frame.sheets.length - 1);
  time.value = sheet.value;
  time.nextElementSibling.textContent = frame.sheets[Number(sheet.value)];
  time.setAttribute("aria-valuetext", frame.sheets[Number(sheet.value)]);
});

page.subscribe("layer", (layer) => choose({ layer }));
page.subscribe("choose", choose); // of the maps and the row of prompt tokens

// The layer whose fader is touched; the mixer's own event brings the frame, where the page follows a moving fader.
page.subscribe("touched", (layer) => {
  if (!follow.checked || layer === props.value.layer) return;
  if (interactive) set({ layer });
  else choose({ layer });
});

drawChoice();
watch("value", drawChoice);
