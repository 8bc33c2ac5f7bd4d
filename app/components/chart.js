// Attention shares by layer, before and after. Drawn from the frames of the maps.
const page = window.sinkgate;
const plot = element.querySelector(".plot");
const keys = element.querySelector(".keys");
const reading = element.querySelector(".layer-words");
const MARKERS = { // groups differ in more than colour
  v_sink: "M0-4L4 3.5H-4Z",
  l_sink: "M-3-3H3V3H-3Z",
  ordinary: "M-3 0a3 3 0 1 0 6 0a3 3 0 1 0-6 0",
  separator: "M-3-3L3 3M3-3L-3 3",
  text: "M0-4L4 0L0 4L-4 0Z",
};
const [TOP, BOTTOM, NUMBERS] = [8, 8, 32]; // pixels; NUMBERS are those of the layers, which the page has above its rows
const DENSE = 26; // pixels between layers, below which curves have no markers
let frame = null;
let pointed = null; // the layer under the pointer
let setting = null; // of the faders
let size = {}; // width, height and margins of the plot, measured when they change: reading them lays the page out

function groups() {
  const shares = [frame.shares.unchanged, frame.shares.gated].filter(Boolean);
  return Object.keys(MARKERS).filter((group) => group !== "separator" || shares.some((each) => each.separator.some(Boolean)));
}

function layers() {
  return (frame.shares.unchanged || frame.shares.gated).text.length;
}

// The plot's columns are those of the other rows: the style sheet has their gutter and end.
function margins() {
  const style = getComputedStyle(plot);
  const [left, right] = ["--gutter", "--end"].map((name) => parseFloat(style.getPropertyValue(name)));
  return { left, right };
}

// Key scales and all shares of one layer in words, for the line under the rows.
function words(layer) {
  const parts = groups().map((group) => {
    const [before, after] = [frame.shares.unchanged, frame.shares.gated].map((shares) => shares && shares[group][layer]);
    const moved = before !== null && after !== null && !frame.identity;
    return `${page.groups[group]} ${moved ? page.change(before, after) : page.percent(after ?? before)}`;
  });
  const gates = setting || frame.gates;
  const moved = ["v_sink", "l_sink", "rest"].filter((group) => gates[group] && gates[group][layer] !== 1);
  const scales = moved.map((group) => `${page.groupName(group, gates.l_sink)} × ${Number(gates[group][layer].toFixed(2))}`);
  return [`Layer ${layer}`, `Key scales: ${scales.join(", ") || "1"}`, `share of attention: ${parts.join(", ")}`];
}

function read() {
  if (!frame) return;
  const [name, ...sentences] = words(pointed ?? frame.lens.layer);
  reading.replaceChildren(page.el("b", { text: name }), ...sentences.map((text) => page.el("span", { text })));
  reading.title = [name, ...sentences].join(" · ");
}

// The chart, between two margins; with the layers' numbers below it, where the page's rows have none above.
function build(width, height, left, right, numbered) {
  const [count, below] = [layers(), numbered ? NUMBERS : 0];
  const column = (width - left - right) / count;
  const across = (layer) => left + column * (layer + 0.5);
  const up = (share) => TOP + (height - TOP - BOTTOM) * (1 - share);
  const chart = page.svg("svg", { width, height: height + below, viewBox: `0 0 ${width} ${height + below}`, role: "img", "aria-label": label() });
  for (const share of [0, 0.25, 0.5, 0.75, 1]) {
    chart.append(page.svg("line", { class: "grid", x1: left, x2: width - right, y1: up(share), y2: up(share) }));
    if (share % 0.5) continue;
    chart.append(page.svg("text", { x: left - 6, y: up(share) + 4, "text-anchor": "end", text: 100 * share + " %" }));
  }
  const step = Math.ceil(20 / column);
  for (let layer = 0; numbered && layer < count; layer += step) {
    chart.append(page.svg("text", { x: across(layer), y: height + 12, "text-anchor": "middle", text: layer }));
  }
  if (numbered) chart.append(page.svg("text", { x: (left + width - right) / 2, y: height + 27, "text-anchor": "middle", text: "layer" }));
  const sides = frame.identity ? [["gated", frame.shares.gated]] : [["before", frame.shares.unchanged], ["gated", frame.shares.gated]];
  for (const [side, shares] of sides) {
    for (const group of shares ? groups() : []) {
      const points = shares[group].map((share, layer) => [across(layer), up(share)]);
      chart.append(page.svg("polyline", { class: `line ${side} ${group}`, points: points.join(" ") }));
      if (side === "gated" && column >= DENSE) {
        chart.append(...points.map(([x, y]) => page.svg("path", { class: `marker ${group}`, d: MARKERS[group], transform: `translate(${x} ${y})` })));
      }
    }
  }
  return chart;
}

function draw() {
  if (!frame || !size.width || !(frame.shares.unchanged || frame.shares.gated)) return;
  plot.replaceChildren(build(size.width, size.height, size.left, size.right, false));
  keys.replaceChildren(...groups().map((group) => {
    const key = page.svg("svg", { width: 26, height: 10, viewBox: "-13 -5 26 10", "aria-hidden": "true" },
      page.svg("path", { class: `line gated ${group}`, d: "M-13 0H13" }), page.svg("path", { class: `marker ${group}`, d: MARKERS[group] }));
    return page.el("span", { class: "key" }, key, page.groups[group]);
  }), page.el("span", { class: "dotted" }, page.el("span", { text: frame.identity ? "" : "dotted: original model" }), page.el("span", { class: "sync" })));
  element.dataset.sequence = frame.sequence;
}

// For a figure: a chart of its own size, in the page's style, out of sight until it is removed.
page.chart = (width, height) => {
  const chart = build(width, height, 44, 4, true);
  plot.append(chart);
  return chart;
};

function label() {
  const shares = frame.shares.gated || frame.shares.unchanged;
  const most = groups().map((group) => {
    const peak = Math.max(...shares[group]);
    return `${page.groups[group]} at most ${page.percent(peak)} in layer ${shares[group].indexOf(peak)}`;
  });
  return `Share of attention by layer: ${most.join("; ")}.`;
}

function layerAt(event) {
  const column = (size.width - size.left - size.right) / layers();
  const layer = Math.floor((event.clientX - plot.getBoundingClientRect().left - size.left) / column);
  return layer < 0 ? null : Math.min(layer, layers() - 1);
}

plot.addEventListener("pointermove", (event) => frame && page.publish("hover", layerAt(event)));
plot.addEventListener("pointerleave", () => page.publish("hover", null));
plot.addEventListener("click", (event) => {
  const layer = frame && layerAt(event);
  if (layer !== null) page.publish("layer", layer);
});

page.subscribe("hover", (layer) => { pointed = layer; read(); });
page.subscribe("setting", (newest) => { setting = newest; read(); });
page.subscribe("frame", (newest) => {
  frame = newest;
  draw();
  read();
});
new ResizeObserver(() => {
  size = { width: plot.clientWidth, height: plot.clientHeight, ...margins() };
  draw();
}).observe(plot);
