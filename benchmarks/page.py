"""Delay of the page behind the faders, beside the model's own time.

``python benchmarks/page.py [MODEL]``. Measured in a real browser: process start to first page, process start to first answer, and
from one tick of a fader to the map that belongs to it being drawn (the frame after which the browser paints): ticks of a fader that
the pointer drags, and of one that keys move, which comes to rest where a forward takes longer than 300 ms, so that answers follow.
"""

from __future__ import annotations

import os
import shutil
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from playwright.sync_api import sync_playwright
from timing import Row

ROOT = Path(__file__).parents[1]
CHROMIUM = os.environ.get("SINKGATE_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]

TICK = """([layer, down, dragged]) => new Promise((resolve, reject) => {
  const fader = document.querySelector(`#mixer .fader.rest[data-layer="${layer}"]`);
  const begin = performance.now();
  const late = setTimeout(() => reject(new Error("no frame within 20 s")), 20000);
  const drawn = (event) => {
    if (Math.abs(event.detail.gates.rest[layer] - Number(fader.ariaValueNow)) > 1e-9) return;
    document.removeEventListener("sinkgate:frame", drawn);
    clearTimeout(late);
    const model = Number((event.detail.cost || "").match(/([0-9.]+) ms/)?.[1] ?? NaN);
    requestAnimationFrame(() => resolve([performance.now() - begin, model]));
  };
  document.addEventListener("sinkgate:frame", drawn);
  if (!dragged) return fader.dispatchEvent(new KeyboardEvent("keydown", { key: down ? "ArrowDown" : "ArrowUp", bubbles: true }));
  const box = fader.getBoundingClientRect();
  const scale = Number(fader.ariaValueNow) + (down ? -0.05 : 0.05);
  const [clientX, clientY] = [box.left + box.width / 2, box.top + box.height * (1 - scale / 2)];
  fader.dispatchEvent(new PointerEvent("pointermove", { clientX, clientY, bubbles: true }));
})"""


def measure(rounds: float = 1, model: str = "demo-large", layer: int = 4) -> list[Row]:
    """Return the rows of the table: one start of the app, then ticks of a fader.

    Args:
        rounds: more or fewer ticks, as a factor.
        model: as of the app.
        layer: of the fader.
    """
    ticks, name = max(20, round(90 * rounds)), Path(model).name
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        page = browser.new_page(viewport={"width": 1366, "height": 768})
        start = time.perf_counter()
        app = subprocess.Popen(
            [sys.executable, "app/main.py", "--port", str(port), "--model", model],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            while not listens(port):
                if app.poll() is not None:
                    raise RuntimeError("the app did not start")
                time.sleep(0.02)
            page.goto(f"http://127.0.0.1:{port}")
            page.wait_for_selector("h1")
            first_page = time.perf_counter() - start
            page.wait_for_selector("#answers [data-done=true]", timeout=120_000)
            first_answer = time.perf_counter() - start

            def follow(count: int, dragged: bool) -> tuple[list[float], list[float]]:
                """Return the delays of ticks and the model's part of each, in milliseconds."""
                times: list[tuple[float, float]] = []
                for tick in range(count + 5):
                    times.append(page.evaluate(TICK, [layer, tick % 30 < 15, dragged]))
                    page.wait_for_timeout(120)  # longer than the mixer's throttle, shorter than its rest
                delays, models = zip(*times[5:], strict=True)  # the first few warm up
                return list(delays), list(models)

            keyed = follow(max(20, ticks // 3), dragged=False)
            fader = page.locator(f"#mixer .fader.rest[data-layer='{layer}']")
            fader.hover()
            page.mouse.down()  # and held: a fader that is released comes to rest
            page.wait_for_timeout(3000)
            delays, models = follow(ticks, dragged=True)
            page.mouse.up()
        finally:
            app.terminate()
            app.wait()
            browser.close()
    note = f"{ticks} ticks of layer {layer}"
    beside, beside_keyed = (
        [delay - forward for delay, forward in zip(*times, strict=True)] for times in ((delays, models), keyed)
    )

    def row(what: str, times: list[float], share: int, aim: str = "") -> Row:
        value = statistics.median(times) if share == 50 else statistics.quantiles(times, n=20)[-1]
        return Row(f"app: {what}, {'median' if share == 50 else f'p{share}'}", name, value, "ms", aim=aim, note=note)

    return [
        row("tick to redrawn map", delays, 50),
        row("tick to redrawn map", delays, 95, "<= 120" if model.startswith("demo") else ""),
        row("the model's part of it", models, 50),
        row("tick beside the model's part", beside, 50, "<= 40"),
        row("tick beside the model's part", beside, 95),
        row("tick of a key beside the model's part", beside_keyed, 50),
        Row("app: process start to first page", name, first_page, "s"),
        Row("app: process start to first answer", name, first_answer, "s"),
    ]


def main(
    model: Annotated[str, typer.Argument(help="As of the app.")] = "demo-large",
    layer: Annotated[int, typer.Option(min=0, help="Of the fader.")] = 4,
    rounds: Annotated[float, typer.Option(min=0, help="More or fewer ticks, as a factor.")] = 1,
) -> None:
    """Measure, and print a line for each number."""
    print(*measure(rounds, model, layer), sep="\n")


def listens(port: int) -> bool:
    """Return whether connections are accepted there."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


if __name__ == "__main__":
    typer.run(main)
