// Next-token probabilities before and after as paired bars, and the sinks in words. Drawn from the frames of the maps.
const page = window.sinkgate;
const bars = element.querySelector(".bars");
const why = element.querySelector(".why"); // the sinks in words
const criterion = element.querySelector(".sinks small");

function bar(kind, share) {
  const fill = page.el("i", { class: kind });
  fill.style.width = (100 * share).toFixed(2) + "%";
  return fill;
}

page.subscribe("frame", (frame) => {
  bars.replaceChildren(...frame.words.map(([word, before, after]) =>
    page.el("div", { class: "word", title: "original model " + page.percent(before) + ", gated " + page.percent(after) },
      page.el("span", { class: "name", text: word.trim() || "␣" }),
      page.el("span", { class: "pair" }, bar("before", before), bar("after", after)),
      page.el("span", { class: "number", text: page.change(before, after) }))));
  if (why.textContent !== frame.summary) why.textContent = frame.summary;
  const { v_sink, l_sink } = frame.groups.criteria;
  const names = v_sink === l_sink || !v_sink ? l_sink : `${v_sink} / ${l_sink}`;
  criterion.textContent = names ? `criterion: ${names}` : "";
});
