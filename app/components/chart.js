const page = window.sinkgate;
const plot = element.querySelector(".plot");
const keys = element.querySelector(".keys");
const reading = element.querySelector(".reading");
const GROUPS = { // colour and marker, so that groups differ in more than colour
  v_sink: { name: "V-sinks", marker: "M0-4L4 3.5H-4Z" },
  l_sink: { name: "L-sinks", marker: "M-3-3H3V3H-3Z" },
  ordinary: { name: "ordinary tokens", marker: "M-3 0a3 3 0 1 0 6 0a3 3 0 1 0-6 0" },
  separator: { name: "separators", marker: "M-3-3L3 3M3-3L-3 3" },
  text: { name: "text", marker: "M0-4L4 0L0 4L-4 0Z" },
};
const [LEFT, RIGHT, TOP, BOTTOM, HEIGHT] = [42, 10, 6, 32, 178]; // pixels
let frame = null;

function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function groups() {
  const shares = [frame.shares.unchanged, frame.shares.gated].filter(Boolean);
  return Object.keys(GROUPS).filter((group) => group !== "separator" || shares.some((each) => each.separator.some(Boolean)));
}

function layers() {
  return (frame.shares.unchanged || frame.shares.gated).text.length;
}

function across(layer, width) {
  return LEFT + ((width - LEFT - RIGHT) * layer) / Math.max(1, layers() - 1);
}

// All shares of one layer in words, for the line under the chart.
function words(layer) {
  const parts = groups().map((group) => {
    const [before, after] = [frame.shares.unchanged, frame.shares.gated].map((shares) => shares && shares[group][layer]);
    const moved = before !== null && after !== null && !frame.identity;
    return `${GROUPS[group].name} ${moved ? page.change(before, after) : page.percent(after ?? before)}`;
  });
  return `layer ${layer}: ${parts.join(", ")}`;
}

function draw() {
  if (!frame || !plot.clientWidth || !(frame.shares.unchanged || frame.shares.gated)) return;
  const [width, count] = [plot.clientWidth, layers()];
  const up = (share) => TOP + (HEIGHT - TOP - BOTTOM) * (1 - share);
  const chart = svg("svg", { width, height: HEIGHT, viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", "aria-label": label() });
  for (const share of [0, 0.25, 0.5, 0.75, 1]) {
    chart.append(svg("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: up(share), y2: up(share) }));
    const number = svg("text", { x: LEFT - 6, y: up(share) + 4, "text-anchor": "end" });
    number.textContent = 100 * share + " %";
    chart.append(number);
  }
  const step = Math.ceil(count / ((width - LEFT - RIGHT) / 26));
  for (let layer = 0; layer < count; layer++) {
    const shown = layer === frame.lens.layer;
    chart.append(svg("line", { class: shown ? "grid shown" : "grid", x1: across(layer, width), x2: across(layer, width), y1: TOP, y2: HEIGHT - BOTTOM }));
    if (layer % step) continue;
    const number = svg("text", { x: across(layer, width), y: HEIGHT - BOTTOM + 14, "text-anchor": "middle" });
    number.textContent = layer;
    chart.append(number);
  }
  const title = svg("text", { x: (LEFT + width - RIGHT) / 2, y: HEIGHT - 3, "text-anchor": "middle" });
  title.textContent = "layer";
  chart.append(title);
  const sides = frame.identity ? [["gated", frame.shares.gated]] : [["before", frame.shares.unchanged], ["gated", frame.shares.gated]];
  for (const [side, shares] of sides) {
    for (const group of shares ? groups() : []) {
      const points = shares[group].map((share, layer) => [across(layer, width), up(share)]);
      chart.append(svg("polyline", { class: `line ${side} ${group}`, points: points.join(" ") }));
      if (side === "gated" && count <= 48) {
        chart.append(...points.map(([x, y]) => svg("path", { class: `marker ${group}`, d: GROUPS[group].marker, transform: `translate(${x} ${y})` })));
      }
    }
  }
  plot.replaceChildren(chart);
  keys.replaceChildren(...groups().map((group) => {
    const key = svg("svg", { width: 26, height: 10, viewBox: "-13 -5 26 10", "aria-hidden": "true" },
      svg("path", { class: `line gated ${group}`, d: "M-13 0H13" }), svg("path", { class: `marker ${group}`, d: GROUPS[group].marker }));
    return page.el("span", { class: "key" }, key, GROUPS[group].name);
  }));
  element.dataset.sequence = frame.sequence;
}

function label() {
  const shares = frame.shares.gated || frame.shares.unchanged;
  const most = groups().map((group) => {
    const peak = Math.max(...shares[group]);
    return `${GROUPS[group].name} at most ${page.percent(peak)} in layer ${shares[group].indexOf(peak)}`;
  });
  return `Share of attention by layer: ${most.join("; ")}.`;
}

plot.addEventListener("pointermove", (event) => {
  if (!frame) return;
  const box = plot.getBoundingClientRect();
  const at = (event.clientX - box.left - LEFT) / (box.width - LEFT - RIGHT);
  reading.textContent = words(Math.min(Math.max(Math.round(at * (layers() - 1)), 0), layers() - 1));
});
plot.addEventListener("pointerleave", () => { reading.textContent = ""; });

page.subscribe("frame", (newest) => {
  frame = newest;
  draw();
});
new ResizeObserver(draw).observe(plot);
