// The prompt's tokens, to choose the query from. Value: that of token_view.inspection, from which the maps draw the panel of a patch.
// Event: collect.
const page = window.sinkgate;
const row = element.querySelector(".tokens");
const help = page.help("query");
const PATIENCE = 400; // ms without another setting: a measurement runs the model, which the next tick of a fader would wait for
let frame = null;
let collected = null; // the view of the last request
let seen = null; // question and lens of the newest frame that may be measured
let due = null; // timer of the next request
let inSight = null; // query and tokens when it was scrolled to
let unfolded = false; // whether the tokens of the chat template are listed

// The view that the server measures: not while something moves.
function id() {
  const { layer, head, sheet, patch } = frame.lens;
  return JSON.stringify([frame.sequence, layer, head, sheet, patch]);
}

row.addEventListener("click", ({ target }) => {
  const token = target.closest(".token");
  if (token?.matches(".fold")) {
    unfolded = true;
    draw();
  } else if (token?.dataset.position) {
    // the last token of the prompt writes the first token of the answer: it is the first query of the list, too
    const position = Number(token.dataset.position);
    page.publish("choose", { row: 0, position: position === props.value.tokens.at(-1).position ? null : position });
  }
});

// Draw a child of the row, in the node that is there: one that is replaced while it is pressed gets no click.
function put(node, at) {
  const old = row.children[at];
  if (old?.tagName !== node.tagName || old.textContent !== node.textContent) return old ? old.replaceWith(node) : row.append(node);
  for (const name of new Set([...old.getAttributeNames(), ...node.getAttributeNames()])) {
    const value = node.getAttribute(name);
    if (value === null) old.removeAttribute(name);
    else if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
}

function chip({ position, text, kind, shares }, last) {
  const { lens } = frame;
  const pressed = lens.position === position || (lens.position === null && lens.row === 0 && position === last);
  const node = page.el("button", { type: "button", class: "token " + kind, "aria-pressed": String(pressed), "data-position": position }, text);
  if (shares) {
    const [before, after] = shares;
    node.style.setProperty("--share", (100 * after).toFixed(1) + "%");
    node.title = `position ${position}: ${page.change(before, after)} of its attention goes to the picture in layer ${props.value.layer}`;
  } else node.title = `position ${position}`;
  return node;
}

function draw() {
  const { tokens = [] } = props.value || {};
  if (!frame || !tokens.length) return;
  const last = tokens.at(-1).position;
  const focused = row.contains(document.activeElement) ? [...row.children].indexOf(document.activeElement) : -1;
  const nodes = [page.el("span", { class: "label", text: "Query" }), help];
  for (const token of tokens) {
    const shown = frame.lens.position === token.position || token.position === last || token.kind === "question" || unfolded;
    if (token.kind === "picture") nodes.push(page.el("span", { class: "token picture", text: `picture · ${token.count} tokens` }));
    else if (shown) nodes.push(chip(token, last));
    else if (!nodes.at(-1)?.classList.contains("fold")) {
      nodes.push(page.el("button", { type: "button", class: "token fold", "aria-label": "Show the tokens of the chat template", title: "Tokens of the chat template" }, "…"));
    }
  }
  nodes.forEach(put);
  while (row.childElementCount > nodes.length) row.lastChild.remove();
  row.children[focused]?.focus();
  const query = frame.lens.position + row.textContent;
  if (query === inSight) return;
  inSight = query; // where the tokens need two lines, one is seen
  const chosen = row.querySelector("[aria-pressed=true]");
  if (chosen) row.scrollTop += chosen.getBoundingClientRect().top - row.getBoundingClientRect().top - 2;
}

page.subscribe("frame", (newest) => {
  frame = newest;
  draw();
  clearTimeout(due);
  if (!frame.here || collected === id()) return;
  const view = JSON.stringify([frame.began, frame.lens]);
  due = setTimeout(collect, seen === view ? PATIENCE : 0);
  seen = view;
});

function collect() {
  collected = id();
  trigger("collect");
}

function receive() {
  draw();
  page.publish("inspected", props.value);
}
receive();
watch("value", receive);
