"""One app and one browser for the tests of this folder, one fresh user for each."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

import pytest
from app_process import running_app
from page_user import Tab, chromium

import sinkgate as sg
from sinkgate.scenes.scene import Scene

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


def shared(fixture_name: str, config: pytest.Config) -> Literal["module", "session"]:
    """Return the scope of app and browser: where one file of this folder runs, they end with it and slow down no others."""
    return "module" if config.option.markexpr == "not extended" else "session"


@pytest.fixture(scope=shared)
def browser() -> Iterator[Browser]:
    manager = chromium()
    try:
        opened = manager.__enter__()
    except Exception as error:
        if os.environ.get("SINKGATE_REQUIRE_BROWSER") == "1":
            raise
        pytest.skip(f"no browser here: {str(error).splitlines()[0]}")
    yield opened
    manager.__exit__(None, None, None)


@pytest.fixture(scope=shared)
def address(browser: Browser) -> Iterator[str]:
    with running_app() as app:
        yield app.address


DESKTOP = {"width": 1366, "height": 768}
PHONE: dict[str, Any] = {"has_touch": True, "is_mobile": True, "device_scale_factor": 2}
LIGHT: dict[str, Any] = {"color_scheme": "light", "reduced_motion": "no-preference"}


@pytest.fixture(scope=shared)
def windows(browser: Browser) -> Iterator[dict[bool, list[Page]]]:
    """Windows that no test uses just now: of phones, and others."""
    free: dict[bool, list[Page]] = defaultdict(list)
    yield free
    for window in [*free[False], *free[True]]:
        window.context.close()


@pytest.fixture
def enter(browser: Browser, windows: dict[bool, list[Page]]) -> Iterator[Callable[..., Tab]]:
    """Open an address as a fresh user, ``phone`` or not; the test fails if a console shows an error.

    Windows are used again by later tests: a window's process has compiled the page's scripts, which spares half of a load.
    """
    taken: list[tuple[bool, Page]] = []
    tabs: list[Tab] = []

    def enter(address: str, phone: bool = False, size: dict[str, int] = DESKTOP, **media: Any) -> Tab:
        window = windows[phone].pop() if windows[phone] else browser.new_context(**PHONE if phone else {}).new_page()
        taken.append((phone, window))
        forget(window, address)
        window.set_viewport_size(size)  # pyright: ignore[reportArgumentType]
        window.emulate_media(**LIGHT | media)
        tabs.append(Tab(window, address))
        return tabs[-1]

    yield enter
    errors = [list(tab.errors) for tab in tabs]
    for phone, window in taken:
        window.goto("about:blank")  # which aborts its requests; Gradio logs that
        windows[phone].append(window)
    assert not any(errors), errors


def forget(window: Page, address: str) -> None:
    """Make a window a fresh user's: nothing stored, nothing permitted, nothing under the pointer."""
    window.context.set_offline(False)
    window.context.clear_permissions()
    window.context.clear_cookies()
    window.mouse.move(0, 0)
    window.goto("{0.scheme}://{0.netloc}/healthz".format(urlsplit(address)))
    window.evaluate("localStorage.clear(); sessionStorage.clear()")


@pytest.fixture
def tab(enter: Callable[..., Tab], address: str) -> Tab:
    """A fresh user."""
    return enter(address)


@pytest.fixture(scope="session")
def vlm() -> sg.VLM:
    return sg.load("demo")


@pytest.fixture(scope="session")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scene as a file."""
    path = tmp_path_factory.mktemp("pictures") / "scene.png"
    Scene.random(Random(91)).render(448).save(path)
    return path
