"""One app and one browser for the tests of this folder, one page for each."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Literal

import pytest
from app_process import running_app
from page_user import Tab, chromium

import sinkgate as sg
from sinkgate.scenes.scene import Scene

if TYPE_CHECKING:
    from playwright.sync_api import Browser


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


@pytest.fixture
def tab(browser: Browser, address: str) -> Iterator[Tab]:
    """A fresh user; the test fails if the browser's console shows an error."""
    context = browser.new_context(viewport={"width": 1366, "height": 768}, color_scheme="light")
    tab = Tab(context.new_page(), address)
    yield tab
    context.close()
    assert tab.errors == []


@pytest.fixture(scope="session")
def vlm() -> sg.VLM:
    return sg.load("demo")


@pytest.fixture(scope="session")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scene as a file."""
    path = tmp_path_factory.mktemp("pictures") / "scene.png"
    Scene.random(Random(91)).render(448).save(path)
    return path
