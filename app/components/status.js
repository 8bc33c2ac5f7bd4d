// The status line. Value: {text, tone}; a tone is calm or warning.
const page = window.sinkgate;
const line = element.querySelector(".status");
const OFFLINE = "Offline: the page shows its last result.";
let sync = "current";
let caption = ""; // of what the page does by itself, until the user goes on

function draw() {
  const { text = "", tone = "calm" } = props.value || {};
  const offline = sync === "offline";
  line.textContent = offline ? OFFLINE : text || caption;
  line.className = "status " + (offline ? "warning" : text ? tone : caption ? "calm" : "empty");
}

page.subscribe("sync", (newest) => { sync = newest; draw(); });
page.subscribe("caption", (newest) => { caption = newest; draw(); });
for (const input of ["pointerdown", "keydown"]) document.addEventListener(input, () => caption && page.publish("caption", ""), true);
draw();
watch("value", draw);
