"""Delay of the page behind the faders.

Measured on the demo model and in a real browser: process start to first page, process start to first answer, and
from one tick of a fader to the map that belongs to it being drawn (the frame after which the browser paints).
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

from playwright.sync_api import sync_playwright
from timing import Row

ROOT = Path(__file__).parents[1]
CHROMIUM = os.environ.get("SINKGATE_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]

TICK = """([layer, down]) => new Promise((resolve, reject) => {
  const fader = document.querySelector(`#mixer .fader.v_sink[data-layer="${layer}"]`);
  const begin = performance.now();
  const late = setTimeout(() => reject(new Error("no frame within 20 s")), 20000);
  const drawn = (event) => {
    if (Math.abs(event.detail.gates.v_sink[layer] - Number(fader.ariaValueNow)) > 1e-9) return;
    document.removeEventListener("sinkgate:frame", drawn);
    clearTimeout(late);
    requestAnimationFrame(() => resolve(performance.now() - begin));
  };
  document.addEventListener("sinkgate:frame", drawn);
  fader.dispatchEvent(new KeyboardEvent("keydown", { key: down ? "ArrowDown" : "ArrowUp", bubbles: true }));
})"""


def measure(rounds: float = 1) -> list[Row]:
    """Rows of the table: one start of the app, then ticks of a fader of the middle layer."""
    ticks, layer = max(20, round(90 * rounds)), 4
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        page = browser.new_page(viewport={"width": 1366, "height": 768})
        start = time.perf_counter()
        app = subprocess.Popen(
            [sys.executable, "app/main.py", "--port", str(port)],
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
            delays = []
            for tick in range(ticks + 5):
                delay = page.evaluate(TICK, [layer, tick % 30 < 15])
                if tick >= 5:  # the first few warm up
                    delays.append(delay)
                page.wait_for_timeout(120)  # longer than the mixer's throttle, shorter than its rest
        finally:
            app.terminate()
            app.wait()
            browser.close()
    note = f"{ticks} ticks"
    p95 = statistics.quantiles(delays, n=20)[-1]
    return [
        Row("app: tick to redrawn map, median", "demo", statistics.median(delays), "ms", note=note),
        Row("app: tick to redrawn map, p95", "demo", p95, "ms", aim="<= 150", note=note),
        Row("app: process start to first page", "demo", first_page, "s"),
        Row("app: process start to first answer", "demo", first_answer, "s"),
    ]


def listens(port: int) -> bool:
    """Return whether connections are accepted there."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
