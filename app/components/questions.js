// Example pictures and questions, and the ground truth of a scene. Events: picture, question, refused.
const page = window.sinkgate;
const gallery = element.querySelector(".gallery");
const chips = element.querySelector(".chips");
const truth = element.querySelector(".truth");

// value: gallery [data URL], chips [{question, answer | null}], truth text or "", view data URL,
// other_views of the sheets after the first;
// the choice goes back as {choice: {picture: index} | {question: text} | {refused: sentence}}.
function choose(event, choice) {
  props.value = { ...props.value, choice };
  trigger(event);
}

function draw() {
  const value = props.value || {};
  const shown = truth.open;
  if (gallery.childElementCount !== (value.gallery || []).length) {
    gallery.replaceChildren(...(value.gallery || []).map((source, index) => {
      const picture = page.el("img", { src: source, alt: "" });
      return page.el("button", {
        type: "button", class: "frame", "aria-label": "Example picture " + (index + 1),
        onclick: () => choose("picture", { picture: index }),
      }, picture);
    }));
  }
  chips.replaceChildren(...(value.chips || []).map(({ question, answer }) => {
    const chip = page.el("button", { type: "button", class: "chip", onclick: () => choose("question", { question }) });
    chip.append(page.el("span", { text: question }));
    if (shown && answer) chip.append(page.el("b", { text: answer }));
    chip.classList.toggle("asked", question === value.asked);
    return chip;
  }));
  truth.hidden = !value.truth;
  truth.querySelector("p").textContent = value.truth || "";
  element.dataset.asked = value.asked || "";
  if (value.view) page.publish("view", { url: value.view, others: value.other_views });
}

truth.addEventListener("toggle", draw);
page.subscribe("refused", (sentence) => choose("refused", { refused: sentence }));
draw();
watch("value", draw);
