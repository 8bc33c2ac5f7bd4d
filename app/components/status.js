const line = element.querySelector(".status");

function draw() {
  const { text = "", tone = "calm" } = props.value || {};
  line.textContent = text;
  line.className = "status " + (text ? tone : "empty");
}

draw();
watch("value", draw);
