"""One app and one browser for the tests of this folder, one fresh user for each."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Literal

import pytest
from app_process import running_app
from page_user import DESKTOP, Tab, chromium, entering

import sinkgate as sg
from sinkgate.scenes.scene import Scene

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


def shared(fixture_name: str, config: pytest.Config) -> Literal["module", "session"]:
    """Return the scope of app and browser: where one file of this folder runs, they end with it and slow down no others."""
    return "module" if config.option.markexpr.startswith("not extended") else "session"


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


@pytest.fixture(scope=shared)
def large() -> Iterator[str]:
    """The address of an app on the model that it opens on when none is named, with the tool for assistants."""
    with running_app("--mcp", "--model", "demo-large") as app:
        yield app.address


@pytest.fixture(scope=shared)
def windows(browser: Browser) -> Iterator[dict[bool, list[Page]]]:
    """Windows that no test uses just now: of phones, and others."""
    free: dict[bool, list[Page]] = defaultdict(list)
    yield free
    for window in [*free[False], *free[True]]:
        window.context.close()


@pytest.fixture
def enter(browser: Browser, windows: dict[bool, list[Page]]) -> Iterator[Callable[..., Tab]]:
    """Open an address as a fresh user."""
    with entering(browser, windows) as enter:
        yield enter


@pytest.fixture(scope="module")
def module_tab(browser: Browser, windows: dict[bool, list[Page]], address: str) -> Iterator[Tab]:
    """A user of all tests of a file that need no fresh one."""
    with entering(browser, windows) as enter:
        yield enter(address)


@pytest.fixture
def used_tab(module_tab: Tab) -> Tab:
    """A page that earlier tests of the file may have used; all scales at 1, at its top, in its first size."""
    module_tab.page.set_viewport_size(DESKTOP)  # pyright: ignore[reportArgumentType]
    module_tab.page.mouse.move(0, 0)
    module_tab.page.evaluate("scrollTo(0, 0); document.activeElement.blur()")
    if not module_tab.frame()["identity"]:
        module_tab.page.locator("#mixer .preset", has_text="All at 1").click()
        module_tab.settle()
    return module_tab


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
