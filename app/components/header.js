const page = window.sinkgate;
const button = element.querySelector(".light-switch");
element.querySelector(".model").textContent = props.value.model;
element.querySelector(".share").addEventListener("click", () => {
  const fold = document.querySelector("#gates .label-wrap");
  if (!fold.classList.contains("open")) fold.click();
  page.publish("share", true);
});

// The status line covers the words, and neither the model's name nor the buttons.
const end = element.querySelector(".masthead-end");
new ResizeObserver(() => {
  document.documentElement.style.setProperty("--masthead-end", `${Math.ceil(end.getBoundingClientRect().width)}px`);
}).observe(end);

const wanted = localStorage.getItem("sinkgate-light");
const system = window.matchMedia("(prefers-color-scheme: dark)");

function light(dark) {
  page.setDark(dark);
  button.setAttribute("aria-pressed", String(dark));
}

light(wanted ? wanted === "dark" : system.matches);
system.addEventListener("change", (event) => {
  if (!localStorage.getItem("sinkgate-light")) light(event.matches);
});
button.addEventListener("click", () => {
  const dark = !document.body.classList.contains("dark");
  localStorage.setItem("sinkgate-light", dark ? "dark" : "light");
  light(dark);
});
