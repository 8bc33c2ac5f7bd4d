const page = window.sinkgate;
const box = { unchanged: element.querySelector(".unchanged"), gated: element.querySelector(".gated") };
let frame = null;

function draw() {
  const value = props.value || {};
  for (const side of ["unchanged", "gated"]) {
    const words = value[side] || [];
    const line = box[side].querySelector("p");
    line.replaceChildren(...words.flatMap(([word, changed]) => [page.el(changed ? "mark" : "span", { text: word }), " "]));
    line.classList.toggle("writing", !value.done);
    if (!words.length) line.append(page.el("span", { class: "faint", text: value.done ? "(no words)" : "…" }));
  }
  freshness();
}

// An answer belongs to one setting of faders and scene: while they are elsewhere it is shown as out of date.
function freshness() {
  const value = props.value || {};
  const older = (sequence) => Boolean(frame && value.sequence !== undefined && value.sequence < sequence);
  const stale = older(frame?.sequence);
  box.gated.classList.toggle("stale", stale);
  box.unchanged.classList.toggle("stale", older(frame?.began)); // no fader moves it, another question or scene does
  const same = JSON.stringify((value.unchanged || []).map(([word]) => word)) ===
    JSON.stringify((value.gated || []).map(([word]) => word));
  box.gated.querySelector("small").textContent =
    stale ? "answers again on release" : !value.done ? "" : same ? "the same answer" : "another answer";
  element.dataset.done = String(Boolean(value.done) && !stale);
  page.say("answers", { ...value, stale });
}

page.hear("frame", (newest) => { frame = newest; freshness(); });
draw();
watch("value", draw);
