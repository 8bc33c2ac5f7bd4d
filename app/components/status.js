// The status line. Value: {text, tone}; a tone is calm or warning. It also has the errors that Gradio reports by itself, such as a file of
// another kind: its own notices of them are hidden, since they would repeat a sentence of this line for a few seconds.
const page = window.sinkgate;
const line = element.querySelector(".status");
const OFFLINE = "Offline: the page shows its last result.";
let sync = "current";
let caption = ""; // of what the page does by itself, until the user goes on
let changed = 0; // when the newest status came that no tick of a fader brought
let own = false; // whether a tick brings one
let reported = ""; // by Gradio, until the user goes on or the server has another status

function draw() {
  const { text = "", tone = "calm" } = props.value || {};
  const offline = sync === "offline";
  line.textContent = offline ? OFFLINE : reported || text || caption;
  line.className = "status " + (offline || reported ? "warning" : text ? tone : caption ? "calm" : "empty");
}

page.subscribe("sync", (newest) => { sync = newest; draw(); });
page.subscribe("caption", (newest) => { caption = newest; draw(); });
for (const input of ["pointerdown", "keydown"]) document.addEventListener(input, () => {
  if (caption) page.publish("caption", "");
  if (reported) report("");
}, true);
draw();
watch("value", () => {
  if (!own) changed = performance.now();
  own = false;
  report("");
});
page.subscribe("update", (update) => {
  if (!update?.status || (update.status.tone === "calm" && update.requestTime < changed)) return; // a late one hides no error of another event
  own = ["text", "tone"].some((key) => update.status[key] !== props.value?.[key]);
  if (own) props.value = update.status;
  report("");
});

function report(text) {
  reported = text.replace(/^HTTP \d+: /, "");
  draw();
}

const notices = new MutationObserver((changes) => {
  const errors = changes.flatMap((change) => [...change.addedNodes]).filter((node) => node.closest?.(".toast-item")?.querySelector(".toast-body.error"));
  const texts = errors.flatMap((node) => [...node.querySelectorAll("[data-testid=toast-text]")]);
  if (!texts.length) return;
  const text = texts.at(-1).textContent;
  report(text);
  if (sync !== "offline" && !text.startsWith("HTTP ")) page.publish("refused", text); // by the picture box, which is empty now
});
(function find() { // Gradio adds their place after the components
  const place = document.querySelector(".toast-wrap");
  if (place) notices.observe(place, { childList: true, subtree: true });
  else setTimeout(find, 200);
})();
