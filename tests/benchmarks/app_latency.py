"""How fast the page follows: ``python tests/benchmarks/app_latency.py [--ticks 80] [--json]``.

Measures, on the demo model and in a real browser: process start to first page, process start to first answer, and
from one tick of a fader to the map that belongs to it being drawn (the frame after which the browser paints).
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parents[2]
CHROMIUM = os.environ.get("SINKGATE_CHROMIUM", "/usr/bin/chromium")
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ticks", type=int, default=80)
    parser.add_argument("--layer", type=int, default=4)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    result = measure(max(options.ticks, 1), options.layer)
    if options.json:
        print(json.dumps(result, indent=1))
        return
    for name, value in result.items():
        print(f"{name:32} {value:10.1f}" if isinstance(value, float) else f"{name:32} {value:>10}")


def measure(ticks: int, layer: int) -> dict[str, Any]:
    """All figures of one start of the app."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with sync_playwright() as playwright:
        system = CHROMIUM if Path(CHROMIUM).exists() else None
        browser = playwright.chromium.launch(executable_path=system, args=OPTIONS)
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
    delays.sort()
    return {
        "ticks": ticks,
        "tick_to_map_p50_ms": statistics.median(delays),
        "tick_to_map_p95_ms": delays[min(len(delays) - 1, round(0.95 * len(delays)))],
        "tick_to_map_max_ms": delays[-1],
        "start_to_first_page_s": first_page,
        "start_to_first_answer_s": first_answer,
        "cores": len(os.sched_getaffinity(0)),
        "load_average": os.getloadavg()[0],
    }


def listens(port: int) -> bool:
    """Whether somebody accepts connections there."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


if __name__ == "__main__":
    main()
