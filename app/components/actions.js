// Buttons above the mixer: a demonstration, phenomena, and those that start what other components do. Value: {choice: {link}}.
// Event: open, to show the view of a link.
const page = window.sinkgate;
const { phenomena, demonstration, interactive } = props.actions;
// ms; PATIENCE for the answer at the lower end: the server refuses what waits for 20 s, and cuts each of two answers after 20 s
const [DOWN, HOLD, UP, PATIENCE] = [1500, 1000, 1200, 60000];
const INPUTS = ["pointerdown", "keydown", "wheel", "touchstart"];
const pin = element.querySelector(".pin-setting");
const show = element.querySelector(".show-me");
const panel = element.querySelector(".phenomena");
const opener = element.querySelector(".open-phenomena");
let frame = null;
let setting = null;
let answers = {};
let layer = 0; // of the maps
let stopped = -Infinity; // time at which the user stopped a demonstration

pin.addEventListener("click", () => page.publish("pin", true));
page.subscribe("pins", (count) => { pin.dataset.count = count || ""; });
element.querySelector(".start-sweep").addEventListener("click", () => page.publish("sweep", true));

// Show the view of a link on this page; one step for the history of the faders.
page.open = (link) => {
  page.opening = true;
  props.value = { choice: { link } };
  trigger("open");
};

// ---- phenomena -----------------------------------------------------------------------------------------

opener.hidden = !phenomena.length;
opener.popoverTargetElement = panel;
panel.append(...phenomena.map(({ title, sentence, link }) => page.el("button", {
  type: "button", class: "phenomenon", onclick: () => {
    panel.hidePopover();
    page.open(link);
    page.publish("caption", sentence);
  },
}, page.el("b", { text: title }), page.el("span", { text: sentence }))));
panel.addEventListener("toggle", ({ newState }) => {
  if (newState !== "open") return;
  const [from, own] = [opener.getBoundingClientRect(), panel.getBoundingClientRect()];
  const above = from.top > own.height + 12;
  panel.style.left = Math.max(8, Math.min(from.left, window.innerWidth - own.width - 8)) + "px";
  panel.style.top = (above ? from.top - own.height - 6 : Math.min(from.bottom + 6, Math.max(8, window.innerHeight - own.height - 8))) + "px";
  panel.querySelector("button").focus({ preventScroll: true });
});

// ---- demonstration -------------------------------------------------------------------------------------

// The group, layer (null for all) and scale to move: the model's own, else the strongest of the sweep, else V-sinks here.
function target() {
  if (demonstration?.question === frame.question) return demonstration;
  const strongest = page.strongest?.();
  if (strongest) return strongest;
  const tokens = frame.groups?.tokens;
  const group = ["v_sink", "l_sink", "ordinary"].find((name) => !tokens || tokens[name][layer] > 0) || "ordinary";
  return { group, layer, scale: 0.1 };
}

// `start` with the target's faders a share of the way from where they stand to its scale.
function between(start, { group, layer: at, scale }, share) {
  const scales = page.scales(start);
  const column = group === "ordinary" ? "rest" : group;
  if (group !== "v_sink" && !scales.l_sink) scales.l_sink = [...scales.rest];
  scales[column] = scales[column].map((from, index) => (at === null || index === at ? Math.round(100 * (from + share * (scale - from))) / 100 : from));
  return scales;
}

async function demonstrate() {
  const stop = new AbortController();
  const { signal } = stop;
  const pause = (ms) => new Promise((resolve) => {
    setTimeout(resolve, ms);
    signal.addEventListener("abort", resolve);
  });
  const until = async (ready) => {
    const end = performance.now() + PATIENCE;
    while (!signal.aborted && performance.now() < end && !ready()) await pause(50);
  };
  const start = page.scales(setting || frame.gates);
  const goal = target();
  const [from, low] = [layer, between(start, goal, 1)];
  const glide = async (begin, end, ms) => {
    const begun = performance.now();
    for (let share = 0; share < 1 && !signal.aborted;) {
      await new Promise(requestAnimationFrame);
      share = Math.min(1, (performance.now() - begun) / ms);
      const eased = (1 - Math.cos(Math.PI * share)) / 2;
      if (!signal.aborted) page.put(between(start, goal, begin + (end - begin) * eased), true);
    }
  };
  const restore = () => {
    if (goal.layer !== null) page.publish("touched", from);
    page.put(start);
  };
  const interrupt = (event) => {
    stopped = event.timeStamp;
    stop.abort();
    restore(); // before the input reaches a fader
    page.playing = false; // nor is what it does there, even within one frame, part of the demonstration
  };
  for (const name of INPUTS) window.addEventListener(name, interrupt, { capture: true, once: true, signal, passive: true });

  page.playing = true;
  show.textContent = "Stop";
  show.setAttribute("aria-pressed", "true");
  page.publish("caption", `${page.groups[goal.group]} × ${goal.scale} in ${goal.layer === null ? "every layer" : `layer ${goal.layer}`}, and back: watch maps and answer.`);
  if (goal.layer !== null) page.publish("touched", goal.layer);
  const moving = interactive && !page.calm();
  if (moving) await glide(0, 1, DOWN);
  if (!signal.aborted) page.put(low);
  await until(() => frame && page.same(frame.gates, low) && answers.done && !answers.stale && answers.sequence === frame.sequence);
  await pause(moving ? HOLD : 2 * HOLD);
  if (moving) await glide(1, 0, UP);
  if (!signal.aborted) {
    restore();
    stop.abort(); // removes the listeners
  }
  page.playing = false;
  page.publish("caption", "");
  show.textContent = "Show me";
  show.removeAttribute("aria-pressed");
  first(false);
}

// Until it was pressed once, the button stands out.
function first(yes) {
  show.classList.toggle("first", yes && !show.hidden);
  if (!yes) localStorage.setItem("sinkgate-shown", "yes");
}

show.addEventListener("click", (event) => {
  if (frame && !page.playing && event.timeStamp - stopped > 400) demonstrate();
});
page.subscribe("frame", (newest) => { frame = newest; });
page.subscribe("setting", (newest) => { setting = newest; });
page.subscribe("answers", (newest) => { answers = newest; });
page.subscribe("lens", (lens) => { layer = lens.layer; });
first(!localStorage.getItem("sinkgate-shown"));
