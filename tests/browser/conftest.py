"""One app and one browser for the tests of this folder, one page for those of a file."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Literal

import pytest
from app_process import running_app
from page_user import Tab, chromium, entering

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
def module_enter(browser: Browser, windows: dict[bool, list[Page]]) -> Iterator[Callable[..., Tab]]:
    """As ``enter``, for all tests of a file."""
    with entering(browser, windows) as enter:
        yield enter


@pytest.fixture(scope="module")
def module_tab(module_enter: Callable[..., Tab], address: str) -> Tab:
    """The page of the tests of a file."""
    return module_enter(address)


@pytest.fixture
def tab(module_tab: Tab, request: pytest.FixtureRequest) -> Iterator[Tab]:
    """A page as it opened, though earlier tests of the file have used it: its history may have steps, and the server uploads."""
    failed = request.session.testsfailed
    module_tab.reset()
    yield module_tab
    if request.session.testsfailed > failed:  # in any state
        module_tab.page.goto("about:blank")
        module_tab.errors.clear()
        module_tab.open()


@pytest.fixture
def calm(tab: Tab) -> Iterator[Tab]:
    """A user who wants no motion."""
    tab.page.emulate_media(reduced_motion="reduce")
    yield tab
    tab.page.emulate_media(reduced_motion="no-preference")


@pytest.fixture
def fresh_tab(enter: Callable[..., Tab], address: str) -> Tab:
    """A fresh user, where a page that others have used does not do."""
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
