// The choice of learned gates. Value: {offered: [{name, about}], chosen: name or null, off: [layers]}; the choice goes back in the
// same form. Event: choose, also when the mixer switches a layer on or off.
const page = window.sinkgate;
const offered = element.querySelector(".offered");
const about = element.querySelector(".about");
let due = false; // a choice was sent: frames until its own still belong to the one before

function choose(change) {
  due = true;
  props.value = { ...props.value, ...change };
  draw();
  trigger("choose");
}

function draw() {
  const { offered: gates, chosen } = props.value;
  offered.replaceChildren(
    page.el("option", { value: "", text: "off" }),
    ...gates.map(({ name }) => page.el("option", { value: name, text: name })),
  );
  const index = gates.findIndex(({ name }) => name === chosen);
  offered.selectedIndex = index + 1;
  about.textContent = about.title = index >= 0 ? gates[index].about
    : gates.length ? "Off. Learned gates read the question and set the faders."
    : "No learned gates for this model. Upload gate_config.json and gates.safetensors.";
}

offered.addEventListener("change", () => {
  const chosen = props.value.offered[offered.selectedIndex - 1];
  choose({ chosen: chosen ? chosen.name : null, off: [] });
});

// Sent by a strip of the mixer.
page.subscribe("switch", (layer) => {
  const off = props.value.off.includes(layer) ? props.value.off.filter((other) => other !== layer) : [...props.value.off, layer];
  choose({ off });
});

page.subscribe("frame", ({ learned }) => {
  const chosen = learned ? learned.name : null;
  if (chosen === props.value.chosen) due = false;
  else if (!due) { // an expired session has lost its gates
    props.value = { ...props.value, chosen, off: learned ? learned.off : [] };
    draw();
  }
});

draw();
watch("value", draw);
