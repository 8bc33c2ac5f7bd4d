// Runs before Gradio's scripts. The clock of its loading marks requests every frame of the screen, and does so for ever when its mark
// leaves the page while it waits, as that of the page's own start does. The marks' file takes `requestAnimationFrame` once, when it
// is loaded: it gets one that calls ten times a second, as often as what the clock shows changes.
{
  const every = window.requestAnimationFrame;
  const settle = (value) => Object.defineProperty(window, "requestAnimationFrame", { value, writable: true, configurable: true });
  Object.defineProperty(window, "requestAnimationFrame", {
    configurable: true,
    set: settle,
    get() {
      if (!new Error().stack.includes("/statustracker-")) return every;
      settle(every);
      return (callback) => setTimeout(callback, 100);
    },
  });
}
