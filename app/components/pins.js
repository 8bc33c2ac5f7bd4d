// Up to four settings side by side. They are in the state of this tab's history entry, as the link of the view is.
const page = window.sinkgate;
const MOST = 4;
const GROUPS = ["v_sink", "l_sink", "ordinary", "separator", "text"];
const list = element.querySelector(".pins-row");
const notice = element.querySelector(".notice");
let pins = history.state?.pins || [];
let frame = null;
let answers = {};
let setting = null;
let layer = 0; // of the maps
let picture = ""; // a hash of the one on the page
let due = false; // a pin was asked for while the faders moved

function hash(text) {
  let value = 0x811c9dc5;
  for (let i = 0; i < text.length; i++) value = Math.imul(value ^ text.charCodeAt(i), 0x01000193);
  return (value >>> 0).toString(16) + text.length.toString(16);
}

function keep() {
  history.replaceState({ ...history.state, pins }, "");
  draw();
}

function here(pin) {
  return pin.question === frame?.question && pin.picture === picture;
}

function add() {
  if (pins.length >= MOST) {
    due = false;
    notice.textContent = `There is room for ${MOST} pins: remove one first.`;
    page.reveal(element.closest(".pinning"));
    return;
  }
  if (!frame?.here || (setting && !page.same(setting, frame.gates))) {
    due = true;
    return;
  }
  due = false;
  notice.textContent = "";
  const { question, gates, learned, first, grid, films, sequence } = frame;
  const name = (learned ? `${learned.name}: ` : "") + page.inWords(gates);
  pins = [...pins, {
    name, question, picture, link: frame.here, scales: page.scales(gates), chosen: learned?.name || null, off: learned?.off || [],
    first, grid, films, shares: frame.shares.gated, sequence, original: null, answer: null,
  }];
  complete();
  keep();
}

// The answers of a pin may still be generated.
function complete() {
  const pin = pins.at(-1);
  if (!pin || pin.answer || !answers.done || answers.stale || pin.sequence !== answers.sequence) return false;
  pin.original = page.written(answers.unchanged);
  pin.answer = answers.gated;
  return true;
}

// Whether a link holds its picture, which no link does where it was uploaded.
function whole(link) {
  return JSON.parse(atob(link.replaceAll("-", "+").replaceAll("_", "/"))).seed !== undefined;
}

// With its question and its scene, where it was about others.
function putBack(pin) {
  if (here(pin) || !whole(pin.link)) page.restore(pin);
  else page.open(pin.link);
}

function card(pin, index) {
  const label = `pin ${index + 1}`;
  const name = page.el("input", {
    class: "name", value: pin.name, maxlength: 120, "aria-label": `Name of ${label}`, title: pin.name, spellcheck: "false",
    onchange: () => { pin.name = name.value.trim() || page.inWords(pin.scales); keep(); },
  });
  const canvas = page.el("canvas", { role: "img", "aria-label": `Attention map of ${label}, layer ${layer}` });
  canvas.title = `Attention of the next token in layer ${layer}, each map on a scale of its own`;
  if (pin.films[layer]) page.drawShades(canvas, pin.films[layer], pin.grid);
  const answer = page.el("p", { class: "pin-answer" });
  if (pin.answer === null) answer.append(page.el("span", { class: "faint", text: "not generated" }));
  else answer.append(...page.marked(pin.answer));
  if (pin.answer?.length === 0) answer.append(page.el("span", { class: "faint", text: "(empty answer)" }));
  const { token, before, after, top } = pin.first;
  const chance = page.el("p", { class: "chance", text: `${page.quoted(token)} ${page.change(before, after)}` });
  chance.title = "Probability that the answer begins with the original model's first token; original → pinned" + (top === token ? "" : `. It now begins with “${top.trim()}”.`);
  const shares = page.el("div", { class: "pin-shares", role: "img" });
  const parts = GROUPS.filter((group) => pin.shares?.[group][layer] > 0);
  shares.append(...parts.map((group) => {
    const part = page.el("i", { class: group });
    part.style.flexGrow = pin.shares[group][layer];
    return part;
  }));
  shares.title = `Attention in layer ${layer}: ` + parts.map((group) => `${page.groups[group]} ${page.percent(pin.shares[group][layer])}`).join(", ");
  shares.setAttribute("aria-label", shares.title);
  const elsewhere = here(pin) ? [] : [page.el("p", { class: "elsewhere", title: pin.question, text: pin.question === frame?.question ? "another picture" : `another question: “${pin.question}”` })];
  return page.el("li", { class: "pin" },
    name,
    page.el("div", { class: "pin-body" }, canvas, page.el("div", {}, answer, chance, ...elsewhere)),
    shares,
    page.el("div", { class: "pin-buttons" },
      page.el("button", { type: "button", class: "quiet put-back", text: "Put back", "aria-label": `Put back ${label}`, onclick: () => putBack(pin) }),
      page.el("button", {
        type: "button", class: "quiet remove-pin", text: "Remove", "aria-label": `Remove ${label}`,
        onclick: () => { pins = pins.filter((other) => other !== pin); notice.textContent = ""; keep(); },
      })));
}

function draw() {
  page.publish("pins", pins.length);
  element.closest(".pinning")?.classList.toggle("empty", !pins.length);
  element.querySelector("h2 small").textContent = `${pins.length} of ${MOST}, layer ${layer}`;
  if (list.contains(document.activeElement) && document.activeElement.matches(".name") && list.children.length === pins.length) return; // it is being renamed
  list.replaceChildren(...pins.map(card));
}

element.querySelector(".save-pins").addEventListener("click", () => {
  const scaled = ["v_sink", "l_sink", "ordinary"];
  const head = ["name", "question", "original answer", "answer", "first token", "probability, original", "probability", "likeliest token", "layer"];
  page.saveTable("sinkgate-pins.csv", [
    [...head, ...GROUPS.map((group) => `attention, ${page.groups[group]}`), ...scaled.map((group) => `scales, ${page.groups[group]}`)],
    ...pins.map((pin) => [
      pin.name, pin.question, pin.original, pin.answer && page.written(pin.answer), pin.first.token, pin.first.before, pin.first.after, pin.first.top, layer,
      ...GROUPS.map((group) => pin.shares?.[group][layer]), ...scaled.map((group) => page.byGroup(pin.scales)[group].join(" ")),
    ]),
  ]);
});

page.subscribe("pin", add);
page.subscribe("setting", (newest) => { setting = newest; });
page.subscribe("lens", (lens) => {
  if (lens.layer === layer) return;
  layer = lens.layer;
  draw();
});
page.subscribe("view", ({ url }) => {
  picture = hash(url);
  draw();
});
page.subscribe("frame", (newest) => {
  const other = newest.question !== frame?.question;
  frame = newest;
  if (due) add();
  if (other) draw();
});
page.subscribe("answers", (newest) => {
  answers = newest;
  if (complete()) keep();
});
draw();
