// Helpers of all components. Text is always set through textContent.
window.sinkgate = {
  el(tag, attributes, ...children) {
    return this.fill(document.createElement(tag), attributes, children);
  },
  svg(tag, attributes, ...children) {
    return this.fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
  },
  fill(node, attributes = {}, children = []) {
    for (const [name, value] of Object.entries(attributes)) {
      if (name === "text") node.textContent = value;
      else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else if (value !== null && value !== undefined) node.setAttribute(name, value);
    }
    node.append(...children);
    return node;
  },

  // Arrow keys in a row of radio buttons: choose the next or the previous one, around the ends, and focus it.
  arrowKeys(row, current, choose) {
    row.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      const next = (current() + step + row.children.length) % row.children.length;
      choose(next);
      row.children[next].focus();
    });
  },

  // Setting a tab index, the same one too, lays the page out.
  tabStop(node, on) {
    const index = on ? "0" : "-1";
    if (node.getAttribute("tabindex") !== index) node.setAttribute("tabindex", index);
  },

  reveal(node) {
    node.scrollIntoView({ block: "nearest", behavior: this.calm() ? "auto" : "smooth" });
  },

  capital(text) {
    return text[0].toUpperCase() + text.slice(1);
  },

  quoted(token) {
    return `“${token.trim() || "␣"}”`;
  },

  // An answer, a list of [word, whether it differs from the other answer], as elements and as text.
  marked(answer) {
    return answer.flatMap(([word, changed]) => [this.el(changed ? "mark" : "span", { text: word }), " "]);
  },
  written(answer) {
    return (answer || []).map(([word]) => word).join(" ");
  },

  // A button beside a term, which opens its definition.
  help(term) {
    return this.el("button", { type: "button", class: "help", "data-term": term, "aria-label": "Help: " + term, "aria-haspopup": "dialog", text: "?" });
  },

  // The name of a group of faders: without L-sinks of their own, `rest` are all visual tokens but V-sinks.
  groupName(group, apart) {
    return this.groups[group === "rest" && apart ? "ordinary" : group];
  },

  // Page-wide messages between components: "frame" (a new frame to draw), "view" (a new picture under it), "setting" (of
  // the faders, as sent), "settled" (the same once they rest; `server` where the server moved them), "sync" (whether the
  // panels belong to that setting), "touched" (the layer whose fader moves), "layer" (the one to show on the maps), "lens"
  // (layer, head and query of the maps), "hover" (the layer under the pointer, or null), "switch" (the layer whose learned
  // gate is to go off or on), "answers" (both, as far as they are generated), "pin" (put the setting beside others), "pins"
  // (their number), "sweep" (start one), "caption" (a sentence for the status line), "share" (open the section with links and
  // files), "update" (values of maps and status line for a moving fader), "refused" (the reason why a file was not uploaded), "overdue" (a result that the page waits for).
  publish(topic, detail) {
    this.last[topic] = detail;
    document.dispatchEvent(new CustomEvent("sinkgate:" + topic, { detail }));
  },
  subscribe(topic, callback) {
    document.addEventListener("sinkgate:" + topic, (event) => callback(event.detail));
    if (this.last[topic] !== undefined) callback(this.last[topic]);
  },
  last: {},
  SYNC: { updating: "updating…", offline: "offline: last result" },

  // Send a value that the user moves: `input` at once, and while it moves again as soon as the frame of the last one is drawn,
  // at most every 80 ms and at least every 400 ms; `commit` when the pointer is released or no arrow key was pressed for
  // 300 ms. While `busy`, the server may not change the value.
  pace(input, commit) {
    let [sent, due, resting] = [0, null, null]; // when it last sent; timers of the next `input` and of the keys' `commit`
    let drawn = true; // whether a frame has come since
    const stop = () => {
      clearTimeout(due);
      clearTimeout(resting);
      due = resting = null;
    };
    const send = (what) => {
      clearTimeout(due);
      due = null;
      sent = performance.now();
      drawn = false;
      what();
    };
    const moved = () => {
      if (due) return;
      const wait = sent + (drawn ? 80 : 400) - performance.now();
      if (wait <= 0) send(input);
      else due = setTimeout(send, wait, input);
    };
    this.subscribe("frame", () => {
      drawn = true;
      if (!due) return;
      clearTimeout(due);
      due = null;
      moved();
    });
    const settled = () => {
      stop();
      send(commit);
      drawn = true; // what was sent before may be what rests, and then no frame follows
    };
    const keyed = () => {
      moved();
      clearTimeout(resting);
      resting = setTimeout(settled, 300);
    };
    return { moved, keyed, settled, stop, busy: () => Boolean(due || resting) };
  },

  // The link to open at start: what this entry of the tab's history showed last (after a reload, as Gradio's after a lost
  // connection, and on the way back to the page), or the fragment of the address, which no server has seen. Longer ones are
  // refused in any case.
  link() {
    return history.state?.sinkgate || this.fragment();
  },
  fragment() {
    return location.hash.startsWith("#s=") ? location.hash.slice(3, 10000) : "";
  },

  // The scales of a setting; the same by group of tokens; and whether two settings are the same. Without `l_sink`, L-sinks have the
  // scales of `rest`.
  scales({ v_sink, l_sink, rest }) {
    return { v_sink: [...v_sink], ...(l_sink && { l_sink: [...l_sink] }), rest: [...rest] };
  },
  byGroup({ v_sink, l_sink, rest }) {
    return { v_sink, l_sink: l_sink || rest, ordinary: rest };
  },
  same(first, second) {
    const [one, other] = [this.byGroup(first), this.byGroup(second)];
    return Object.keys(one).every((group) => one[group].every((scale, layer) => Math.abs(scale - other[group][layer]) < 1e-6));
  },

  // Gates in words: each scale other than 1, with its layers.
  inWords(gates) {
    const parts = [];
    for (const group of ["v_sink", "l_sink", "rest"]) {
      const name = this.groupName(group, gates.l_sink);
      const layers = new Map();
      (gates[group] || []).forEach((scale, layer) => {
        if (scale !== 1) layers.set(scale, [...(layers.get(scale) || []), layer]);
      });
      for (const [scale, where] of layers) {
        parts.push(`${name} × ${scale} in ${where.length === gates[group].length ? "every layer" : this.layers(where)}`);
      }
    }
    return parts.join("; ") || "all scales are 1";
  },
  layers(rising) {
    const runs = [];
    for (const layer of rising) {
      if (runs.length && runs.at(-1)[1] === layer - 1) runs.at(-1)[1] = layer;
      else runs.push([layer, layer]);
    }
    return `layer${rising.length > 1 ? "s" : ""} ${runs.map(([low, high]) => (low === high ? low : `${low}-${high}`)).join(", ")}`;
  },

  // A table as a file; a cell with a comma, a quote or a line break is quoted.
  saveTable(name, rows) {
    const cell = (value) => (/[",\n\r]/.test(value) ? `"${String(value).replaceAll('"', '""')}"` : String(value ?? ""));
    this.save(name, new Blob([rows.map((row) => row.map(cell).join(",") + "\r\n").join("")], { type: "text/csv" }));
  },

  save(name, content) {
    const link = this.el("a", { href: URL.createObjectURL(content), download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  },

  // Viridis through nine of its colours: even steps of attention look even.
  ramp: [
    [68, 1, 84], [71, 44, 122], [59, 81, 139], [44, 113, 142], [33, 144, 141],
    [39, 173, 129], [92, 200, 99], [170, 220, 50], [253, 231, 37],
  ],
  shade(share, ramp = this.ramp) {
    const at = Math.min(Math.max(share, 0), 1) * (ramp.length - 1);
    const low = Math.min(Math.floor(at), ramp.length - 2);
    return ramp[low].map((part, i) => part + (ramp[low + 1][i] - part) * (at - low));
  },

  // The colour of a byte of a thumbnail, from 0 to 254.
  bright(shade) {
    this.brights ??= Array.from({ length: 255 }, (_, step) => [...this.shade(step / 254), 255]);
    return this.brights[shade];
  },

  // A thumbnail: bytes in base64, from dark to bright; 255 where no token is.
  drawShades(canvas, shades, [rows, columns]) {
    Object.assign(canvas, { width: columns, height: rows });
    const pixels = new ImageData(columns, rows);
    const bytes = atob(shades);
    for (let i = 0; i < bytes.length; i++) {
      const shade = bytes.charCodeAt(i);
      if (shade !== 255) pixels.data.set(this.bright(shade), 4 * i);
    }
    canvas.getContext("2d").putImageData(pixels, 0, 0);
  },

  // With one decimal: "100.0 %" and "0.0 %" are exact, values next to them are ">99.9 %" and "<0.1 %".
  percent(share) {
    const value = 100 * share;
    if (value > 0 && value < 0.1) return "<0.1 %";
    return (value > 99.9 && value < 100 ? ">99.9" : value.toFixed(1)) + " %";
  },

  // From one share to another, with as many digits on both sides, so that they can be compared.
  change(before, after) {
    const [from, to] = [this.percent(before), this.percent(after)];
    return from === to ? to : from.replace(" %", "") + " → " + to;
  },

  // Whether the user wants no motion.
  calm() {
    return window.matchMedia("(prefers-reduced-motion: reduce)").matches;
  },

  setDark(dark) {
    document.body.classList.toggle("dark", dark);
    document.dispatchEvent(new CustomEvent("sinkgate:light"));
  },
};

window.sinkgate.subscribe("frame", ({ here }) => {
  if (here) history.replaceState({ ...history.state, sinkgate: here }, "");
});

// Another link in the same tab changes the fragment alone, in a new entry of the history.
window.addEventListener("hashchange", () => {
  if (window.sinkgate.fragment()) location.reload();
});

// Whether the panels show the setting of the faders: "current", "updating" (for longer than 300 ms), "offline".
{
  const page = window.sinkgate;
  const OVERDUE = 10000; // ms without news of a result that the page waits for, doubled at each try
  let [setting, frame, offline, due] = [null, null, false, null];
  let [answered, patience, overdue] = [true, OVERDUE, null];
  let shown = "current";

  const behind = () => setting && frame && !page.same(setting, frame.gates);
  const show = (state) => {
    clearTimeout(due);
    due = null;
    if (shown === state) return;
    shown = document.body.dataset.sync = state;
    page.publish("sync", state);
  };
  const check = () => {
    if (offline) show("offline");
    else if (!behind()) show("current");
    else if (shown === "offline") show("updating");
    else due = due || setTimeout(show, 300, "updating");
  };

  // Gradio opens a stream of events when one is sent, unless it reads one. A page that was too slow may have missed the end of
  // the last, and then waits: any other event opens one, which brings all results.
  const watch = () => {
    clearTimeout(overdue);
    overdue = null;
    if (offline || (answered && !behind())) patience = OVERDUE;
    else overdue = setTimeout(() => {
      patience *= 2;
      page.publish("overdue");
      watch();
    }, patience);
  };
  page.subscribe("setting", (newest) => { setting = newest; check(); watch(); });
  page.subscribe("answers", ({ done, stale }) => { answered = done && !stale; watch(); });
  page.subscribe("frame", (newest) => {
    frame = newest;
    clearTimeout(due); // it follows
    due = null;
    check();
    watch();
  });
  const connected = (yes) => { offline = !yes; check(); };
  window.addEventListener("offline", () => connected(false));

  // Gradio reports by itself that a connection or an upload failed (see status.js), and leaves the page as it is.
  const { fetch } = window;
  window.fetch = async (...request) => {
    const path = String(request[0]?.url || request[0]);
    try {
      const answer = await fetch(...request);
      if (path.includes("/gradio_api/")) connected(true);
      if (path.includes("/component_server") && !answer.ok) {
        const { detail = answer.statusText } = await answer.clone().json().catch(() => ({}));
        page.publish("update", { status: { text: detail, tone: "warning" } });
      }
      if (path.includes("/gradio_api/upload") && !answer.ok) page.publish("refused", await answer.clone().text());
      return answer;
    } catch (error) {
      if (path.includes("/gradio_api/") && error.name !== "AbortError") connected(false);
      throw error;
    }
  };
}

// The definition of a term beside its "?". It lies over the page, so that nothing moves; Escape, Tab or a click elsewhere closes it.
{
  const page = window.sinkgate;
  const [term, text] = [page.el("b", { id: "help-term" }), page.el("p", { id: "help-text" })];
  const box = page.el("div", {
    id: "help", popover: "auto", role: "dialog", tabindex: -1, "aria-labelledby": "help-term", "aria-describedby": "help-text",
  }, term, text);
  let opener = null;
  let closed = null; // the button whose definition the press of this click has closed

  document.addEventListener("pointerdown", () => { closed = box.matches(":popover-open") ? opener : null; }, true);
  document.addEventListener("click", (event) => {
    const button = event.target.closest?.(".help");
    if (!button || (event.detail && button === closed)) return;
    event.preventDefault(); // of a label around it
    opener = button;
    term.textContent = page.capital(button.dataset.term);
    text.textContent = page.terms[button.dataset.term];
    (button.closest("dialog") || document.body).append(box); // what is outside of an open dialog cannot be used
    box.showPopover();
    const [from, own] = [button.getBoundingClientRect(), box.getBoundingClientRect()];
    const below = from.bottom + own.height + 6 < window.innerHeight;
    box.style.left = Math.max(8, Math.min(from.left - 12, window.innerWidth - own.width - 8)) + "px";
    box.style.top = (below ? from.bottom + 6 : Math.max(8, from.top - own.height - 6)) + "px";
    box.focus({ preventScroll: true });
  });
  box.addEventListener("beforetoggle", ({ newState }) => {
    if (newState === "closed" && box.contains(document.activeElement)) opener.focus({ preventScroll: true });
  });
  box.addEventListener("focusout", ({ relatedTarget }) => { if (relatedTarget && !box.contains(relatedTarget)) box.hidePopover(); });
  box.addEventListener("keydown", (event) => {
    if (event.key === "Tab") box.hidePopover(); // the next element after the button has the focus then
    else if (event.key === "Escape") event.stopPropagation();
  });
}

// A picture that is pasted, or dropped outside of the picture box, is uploaded by a button that is not drawn; a video also where
// it is dropped on the box, which takes pictures only.
{
  const isVideo = (file) => file.type.startsWith("video/") || /\.(m4v|mkv|avi|ogv)$/i.test(file.name);
  const isPicture = (file) => file.type.startsWith("image/") || /\.(hei[cf]|tiff?)$/i.test(file.name);
  const image = (transfer) => [...(transfer?.files || [])].find((file) => isPicture(file) || isVideo(file));
  const carries = (event) => [...(event.dataTransfer?.types || [])].includes("Files");
  const inBox = (event) => event.target.closest?.("#picture, #gates, #learned-upload");
  const upload = (file) => {
    const input = document.querySelector("#picture-anywhere").parentElement.querySelector(":scope > input[type=file]");
    const transfer = new DataTransfer();
    transfer.items.add(file);
    input.files = transfer.files;
    input.dispatchEvent(new Event("change", { bubbles: true }));
  };
  const mark = (on) => document.body.classList.toggle("dropping", on);

  document.addEventListener("paste", (event) => {
    const file = image(event.clipboardData);
    if (!file || event.clipboardData.types.includes("text/plain")) return; // a copied table is text and picture
    event.preventDefault();
    upload(file);
  });
  document.addEventListener("dragover", (event) => {
    if (!carries(event)) return;
    event.preventDefault(); // otherwise the browser leaves the page for the file
    mark(!inBox(event));
  });
  document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) mark(false); });
  document.addEventListener("drop", (event) => {
    mark(false);
    const file = image(event.dataTransfer);
    if (!carries(event) || (inBox(event) && !(file && isVideo(file) && event.target.closest("#picture")))) return;
    event.preventDefault();
    event.stopPropagation();
    if (file) upload(file);
    else window.sinkgate.publish("refused", "This file is no picture or video: use a PNG, JPEG, WebP, GIF, BMP, TIFF, AVIF, MP4 or WebM.");
  }, true);
  document.addEventListener("click", ({ target }) => { // the box's own, before the browser lists the files
    if (target.matches?.("#picture input[type=file]")) target.accept = "image/*,video/*";
  }, true);
  document.addEventListener("change", (event) => {
    const file = event.target.matches?.("#picture input[type=file]") && [...event.target.files].find(isVideo);
    if (!file) return;
    event.stopPropagation();
    upload(file);
    event.target.value = ""; // so that the same file can be chosen again
  }, true);
}
