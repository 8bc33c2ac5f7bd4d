// One thumbnail a layer, of which one is chosen for the maps. Drawn from the frames of the maps.
const page = window.sinkgate;
const films = element.querySelector(".films");
const { layers } = props.size;
const NUMBER = 20; // pixels that a layer's number takes: in narrower columns some are left out
let shown = 0; // the layer of the maps

document.body.style.setProperty("--layers", layers); // of all rows of the card
for (let layer = 0; layer < layers; layer++) {
  films.append(page.el("button", {
    type: "button", class: "film", role: "radio", "aria-label": "Layer " + layer,
    onclick: () => page.publish("layer", layer), onpointerenter: () => page.publish("hover", layer),
  }, page.el("span", { text: layer }), page.el("canvas", { width: 1, height: 1 })));
}
films.addEventListener("pointerleave", () => page.publish("hover", null));
page.arrowKeys(films, () => shown, (layer) => page.publish("layer", layer));

page.subscribe("lens", ({ layer: chosen }) => {
  shown = chosen;
  document.body.style.setProperty("--layer", shown);
  [...films.children].forEach((film, layer) => {
    film.setAttribute("aria-checked", String(layer === shown));
    page.tabStop(film, layer === shown);
  });
});
page.subscribe("frame", (frame) => {
  frame.films.forEach((shades, layer) => page.drawShades(films.children[layer].querySelector("canvas"), shades, frame.grid));
});
new ResizeObserver(() => {
  films.classList.toggle("narrow", films.children[0].clientWidth < NUMBER / 2); // nothing can be seen in a map of a few pixels
  const step = Math.ceil(NUMBER / Math.max(1, films.children[0].clientWidth));
  [...films.children].forEach((film, layer) => film.classList.toggle("unnumbered", layer % step > 0));
}).observe(films);
