// Buttons above the mixer.
const page = window.sinkgate;
const pin = element.querySelector(".pin-setting");

pin.addEventListener("click", () => page.publish("pin", true));
page.subscribe("pins", (count) => { pin.dataset.count = count || ""; });

// Show the view of a link on this page; one step for the history of the faders.
page.open = (link) => {
  page.opening = true;
  props.value = { choice: { link } };
  trigger("open");
};
