const page = window.sinkgate;
const films = element.querySelector(".films");
const { layers } = props.size;
const HOLE = 255; // the byte of a film where the sheet has no token
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
films.addEventListener("keydown", (event) => {
  const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  if (!step) return;
  event.preventDefault();
  const layer = (shown + step + layers) % layers;
  page.publish("layer", layer);
  films.children[layer].focus();
});

function drawFilm(canvas, shades, [rows, columns]) {
  canvas.width = columns;
  canvas.height = rows;
  const pixels = new ImageData(columns, rows);
  const bytes = atob(shades);
  for (let i = 0; i < bytes.length; i++) {
    const shade = bytes.charCodeAt(i);
    if (shade !== HOLE) pixels.data.set([...page.shade(shade / (HOLE - 1)), 255], 4 * i);
  }
  canvas.getContext("2d").putImageData(pixels, 0, 0);
}
page.film = drawFilm; // for pins

page.subscribe("lens", ({ layer: chosen }) => {
  shown = chosen;
  document.body.style.setProperty("--layer", shown);
  [...films.children].forEach((film, layer) => {
    film.setAttribute("aria-checked", String(layer === shown));
    film.tabIndex = layer === shown ? 0 : -1;
  });
});
page.subscribe("frame", (frame) => {
  frame.films.forEach((shades, layer) => drawFilm(films.children[layer].querySelector("canvas"), shades, frame.grid));
});
new ResizeObserver(() => {
  films.classList.toggle("narrow", films.children[0].clientWidth < NUMBER / 2); // nothing can be seen in a map of a few pixels
  const step = Math.ceil(NUMBER / Math.max(1, films.children[0].clientWidth));
  [...films.children].forEach((film, layer) => film.classList.toggle("unnumbered", layer % step > 0));
}).observe(films);
