// Both answers. Value: that of view_model.answers.
const page = window.sinkgate;
const box = { unchanged: element.querySelector(".unchanged"), gated: element.querySelector(".gated") };
const SIDES = ["unchanged", "gated"];
const EMPTY = "(empty answer: stopped at once)";
const LIMITED = "cut at ";
let frame = null;
let sync = "current";

// The number of tokens at which an answer was cut; 0 where the model ended it.
function limit(side) {
  return (props.value.cut || [])[SIDES.indexOf(side)] || 0;
}

function draw() {
  const value = props.value || {};
  for (const side of SIDES) {
    const words = value[side] || [];
    const line = box[side].querySelector("p");
    line.replaceChildren(...page.marked(words));
    line.classList.toggle("writing", !value.done);
    if (!words.length) line.append(page.el("span", { class: "faint", text: value.done ? EMPTY : "…" }));
    if (value.done && limit(side)) line.append(page.el("span", { class: "faint", text: "…", title: LIMITED + limit(side) + " tokens" }));
  }
  freshness();
}

// An answer belongs to one setting of faders and scene: after another one it is shown as outdated.
function freshness() {
  const value = props.value || {};
  const older = (sequence) => Boolean(frame && value.sequence !== undefined && value.sequence < sequence);
  const stale = older(frame?.sequence);
  box.gated.classList.toggle("stale", stale);
  box.unchanged.classList.toggle("stale", older(frame?.began)); // only another question or scene changes it
  const same = page.written(value.unchanged) === page.written(value.gated);
  for (const side of SIDES) {
    const parts = [value.done && limit(side) ? `${LIMITED}${limit(side)} tokens` : ""];
    if (side === "gated") parts.push(stale || sync !== "current" ? page.SYNC[sync] || page.SYNC.updating : !value.done ? "" : same ? "unchanged" : "changed");
    box[side].querySelector("small").textContent = parts.filter(Boolean).join(" · ");
  }
  element.dataset.done = String(Boolean(value.done) && !stale);
  page.publish("answers", { ...value, stale });
}

page.subscribe("sync", (newest) => { sync = newest; freshness(); });
page.subscribe("frame", (newest) => { frame = newest; freshness(); });
draw();
watch("value", draw);
