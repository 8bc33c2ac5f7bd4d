"""The documentation as a reader meets it: served, opened, on a wide screen and on a phone."""

from __future__ import annotations

from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def served(site):
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=site)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="module")
def page(browser, served):
    """A page that keeps what went wrong."""
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.messages = messages = []
    page.on("console", lambda message: messages.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on(
        "request",
        lambda request: (
            messages.append(request.url) if not request.url.startswith((served, "data:", "blob:")) else None
        ),
    )
    page.on(
        "response", lambda answer: messages.append(f"{answer.status} {answer.url}") if answer.status >= 400 else None
    )
    yield page
    page.close()


@pytest.mark.parametrize("path", ["", "tutorials/01_meet_the_sinks/", "reference/sinks/", "models/"])
def test_a_page_shows_without_a_fault_and_asks_nobody_else(page, served, path):
    page.messages.clear()
    page.set_viewport_size({"width": 1280, "height": 800})
    page.goto(served + path, wait_until="networkidle")
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    assert page.messages == []
