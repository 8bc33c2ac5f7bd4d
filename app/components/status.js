const page = window.sinkgate;
const line = element.querySelector(".status");
const OFFLINE = "Offline: the page shows its last result.";
let sync = "current";

function draw() {
  const { text = "", tone = "calm" } = props.value || {};
  const offline = sync === "offline";
  line.textContent = offline ? OFFLINE : text;
  line.className = "status " + (offline ? "warning" : text ? tone : "empty");
}

page.subscribe("sync", (newest) => { sync = newest; draw(); });
draw();
watch("value", draw);
