// Title, description, share button and the switch between light and dark. Value: {model}.
const page = window.sinkgate;
const button = element.querySelector(".light-switch");
element.querySelector(".model").textContent = props.value.model;
element.querySelector(".share").addEventListener("click", () => {
  const fold = document.querySelector("#gates .label-wrap");
  if (!fold.classList.contains("open")) fold.click();
  page.publish("share", true);
});

// The status line covers the words, and no button and not the model's name.
const words = element.querySelector(".masthead-words");
new ResizeObserver(() => {
  const right = words.parentElement.closest(".top").getBoundingClientRect().right - words.getBoundingClientRect().right;
  document.documentElement.style.setProperty("--masthead-end", `${Math.ceil(right)}px`);
}).observe(words);

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
