// Small helpers that every component of the page uses. Text always goes in through textContent.
window.sinkgate = {
  el(tag, attributes = {}, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name === "text") node.textContent = value;
      else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else if (value !== null && value !== undefined) node.setAttribute(name, value);
    }
    node.append(...children);
    return node;
  },

  // Page-wide messages between components: "frame" (a new frame to draw), "view" (a new
  // picture under it), "touched" (the layer whose fader moves), "why" (the reason for the sink pointed at),
  // "switch" (the layer whose learned gate is to go off or on), "answers" (both, as far as they are written), "share" (opens
  // what there is to take away).
  say(topic, detail) {
    this.last[topic] = detail;
    document.dispatchEvent(new CustomEvent("sinkgate:" + topic, { detail }));
  },
  hear(topic, callback) {
    document.addEventListener("sinkgate:" + topic, (event) => callback(event.detail));
    if (this.last[topic] !== undefined) callback(this.last[topic]);
  },
  last: {},

  // Sends what the hand moves: `input` at once and then every 80 ms while it goes on, `commit` when it has settled,
  // which a pointer tells and arrow keys by resting for 300 ms. While `busy`, nothing from outside may move it.
  pace(input, commit) {
    let [sent, due, resting] = [0, null, null]; // when it last sent; timers of the next `input` and of the keys' `commit`
    const stop = () => {
      clearTimeout(due);
      clearTimeout(resting);
      due = resting = null;
    };
    const send = (what) => {
      clearTimeout(due);
      due = null;
      sent = performance.now();
      what();
    };
    const moved = () => {
      if (due) return;
      const wait = sent + 80 - performance.now();
      if (wait <= 0) send(input);
      else due = setTimeout(send, wait, input);
    };
    const settled = () => {
      stop();
      send(commit);
    };
    const keyed = () => {
      moved();
      clearTimeout(resting);
      resting = setTimeout(settled, 300);
    };
    return { moved, keyed, settled, stop, busy: () => Boolean(due || resting) };
  },

  // What the page is opened with: when it is loaded again, as Gradio does after a lost connection, the link to what this tab
  // showed last; else the fragment of the address, which no server has seen. Longer ones are refused in any case.
  link() {
    const again = performance.getEntriesByType("navigation")[0]?.type === "reload";
    return (again && sessionStorage.getItem("sinkgate-here")) || this.fragment();
  },
  fragment() {
    return location.hash.startsWith("#s=") ? location.hash.slice(3, 10000) : "";
  },

  save(name, content) {
    const link = this.el("a", { href: URL.createObjectURL(content), download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  },

  color(name) {
    return getComputedStyle(document.body).getPropertyValue("--" + name).trim();
  },

  // Viridis through nine of its colours: even steps of attention look even.
  ramp: [
    [68, 1, 84], [71, 44, 122], [59, 81, 139], [44, 113, 142], [33, 144, 141],
    [39, 173, 129], [92, 200, 99], [170, 220, 50], [253, 231, 37],
  ],
  shade(share) {
    const at = Math.min(Math.max(share, 0), 1) * (this.ramp.length - 1);
    const low = Math.min(Math.floor(at), this.ramp.length - 2);
    return this.ramp[low].map((part, i) => part + (this.ramp[low + 1][i] - part) * (at - low));
  },

  percent(share) {
    const value = 100 * share;
    return (value >= 10 ? value.toFixed(0) : value >= 0.1 || value === 0 ? value.toFixed(1) : "<0.1") + " %";
  },

  setDark(dark) {
    document.body.classList.toggle("dark", dark);
    document.dispatchEvent(new CustomEvent("sinkgate:light"));
  },
};

window.sinkgate.hear("frame", ({ share }) => sessionStorage.setItem("sinkgate-here", share.link));

// Another link in the same tab changes the fragment alone.
window.addEventListener("hashchange", () => {
  if (!window.sinkgate.fragment()) return;
  sessionStorage.removeItem("sinkgate-here");
  location.reload();
});
