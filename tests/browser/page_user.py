"""A user of the page, with a real browser."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from playwright.sync_api import Browser, CDPSession, Locator, Page

BROWSERS = ("chromium-headless-shell", "chromium", "google-chrome")  # the first needs a fifth less of the processor
CHROMIUM = os.environ.get("SINKGATE_CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
CHROMIUM_OPTIONS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


@contextmanager
def chromium() -> Iterator[Browser]:
    """A headless Chromium: the system's where there is one, else playwright's own."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_OPTIONS)
        yield browser
        browser.close()


DESKTOP = {"width": 1366, "height": 768}
PHONE: dict[str, Any] = {"has_touch": True, "is_mobile": True, "device_scale_factor": 2}
LIGHT: dict[str, Any] = {"color_scheme": "light", "reduced_motion": "no-preference"}

#: No fading and gliding of colors and knobs, each of which is drawn sixty times a second.
AT_ONCE = """{
  const sheet = new CSSStyleSheet();
  sheet.replaceSync("*, ::before, ::after { transition: none !important; animation: none !important }");
  document.adoptedStyleSheets = [...document.adoptedStyleSheets, sheet];
}"""
#: Close what is open, and take choices back that no link holds.
TIDY = """() => {
  const all = (names) => document.querySelectorAll(names);
  document.activeElement.blur();
  all("dialog[open]").forEach((dialog) => dialog.close());
  all("[popover]:popover-open").forEach((box) => box.hidePopover());
  all("#questions details, #share details").forEach((fold) => { fold.open = false; });
  all("#mixer .switch :checked, #lens .follow:not(:checked), body.dark .light-switch, #gates .label-wrap.open, .sweeping:not(.empty) .close-sweep")
    .forEach((node) => node.click());
  while (document.querySelector("#pins .remove-pin")) document.querySelector("#pins .remove-pin").click();
  window.sinkgate.publish("compose", false);
  scrollTo(0, 0);
}"""
#: Whether both answers are written for all that the page has sent, and nothing is left to send: a fader, an object or a choice for
#: the maps that was moved is not at rest before its own result is drawn.
AT_REST = """() => {
  const frame = document.querySelector('#maps [data-tick]')?.frame;
  if (!frame?.here || !frame.finished || document.querySelector('#answers [data-done]')?.dataset.done !== 'true') return false;
  const { setting, settled, lens, scene } = window.sinkgate.last;
  if (settled?.revision !== setting?.revision) return false;
  if (['layer', 'head', 'hide', 'scale', 'heads'].some((name) => frame.lens[name] !== lens[name])) return false;
  if (document.querySelector('#learned select').value !== (frame.learned?.name ?? '')) return false;
  const stage = document.querySelector('#composer [data-composing]').scene;
  if (scene?.scene && (frame.edit < scene.edit || JSON.stringify(scene.scene) !== JSON.stringify(stage))) return false;
  return [...document.querySelectorAll('#mixer .fader')].every((fader) => fader.dataset.layer === '-1' ||
    Math.abs((frame.gates[fader.dataset.group] || frame.gates.rest)[fader.dataset.layer] - fader.ariaValueNow) < 1e-9);
}"""
#: Press keys within one task of the page: keys that are in a row on a slow page, too.
PRESS = """(keys) => {
  for (const key of keys) document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
}"""


class Tab:
    """One user's page, with the questions that the tests ask of it."""

    def __init__(self, page: Page, address: str) -> None:
        self.page, self.address = page, address
        self.errors: list[str] = []
        page.set_default_timeout(120_000)  # ms: a busy machine is no failure
        page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.open()

    def open(self) -> None:
        """Load the page."""
        self.page.goto(self.address)
        self.first = self.settle()["here"]  # link to the view that the page opens with

    def reset(self) -> None:
        """Return to the view that the page opened with, without loading it, in less than half of the processor time."""
        self.page.set_viewport_size(DESKTOP)  # pyright: ignore[reportArgumentType]
        self.page.mouse.move(0, 0)
        self.page.evaluate(TIDY)
        if self.settle().get("here") == self.first and not self.status():
            return
        self.after(lambda: self.page.evaluate("(link) => window.sinkgate.open(link)", self.first))
        self.wait("(link) => document.querySelector('#maps [data-tick]').frame.here === link", arg=self.first)

    def leave(self, go: Callable[[], object]) -> None:
        """Go to another page, or load this one again. Requests that are still waited for are aborted, and Gradio logs that."""
        assert self.errors == []
        go()
        aborted = ("AbortError", "Unexpected error Connection errored out")
        self.errors[:] = [error for error in self.errors if not error.startswith(aborted)]

    def wait(self, condition: str, arg: Any = None) -> None:
        """Wait until a condition in JavaScript is true."""
        self.page.wait_for_function(condition, arg=arg, polling=50)  # ms; each frame of the screen would cost a drawing

    def settle(self) -> dict[str, Any]:
        """Wait until both answers are written for what is on the page, and it is at rest; gives the frame drawn then."""
        self.wait(AT_REST)
        return self.frame()

    def frame(self) -> dict[str, Any]:
        """The frame that is drawn now."""
        return self.page.evaluate("document.querySelector('#maps [data-tick]').frame")

    def fader(self, layer: int, group: str = "v_sink") -> Locator:
        """A fader of the mixer; layer -1 is the master."""
        return self.page.locator(f"#mixer .fader.{group}[data-layer='{layer}']")

    def scale(self, layer: int, group: str = "v_sink") -> float:
        """Return the value that a fader shows."""
        return float(self.fader(layer, group).get_attribute("aria-valuenow") or "nan")

    def pixels(self, side: str) -> str:
        """Return the pixels of a map's canvas as a data URL."""
        return self.page.evaluate(f"document.querySelector('#maps canvas.{side}').toDataURL()")

    def status(self) -> str:
        """The sentence in the status line."""
        return self.page.locator("#status .status").text_content() or ""

    def says(self, act: Callable[[], object]) -> str:
        """Do something; return the sentence that the status line then shows."""
        self.page.evaluate("window.sinkgate.publish('update', { status: { text: '', tone: 'calm' } })")
        self.wait("!document.querySelector('#status .status').textContent")
        act()
        self.wait("document.querySelector('#status .status').textContent")
        return self.status()

    def answers(self) -> tuple[str, str]:
        """Unchanged and gated answer."""
        texts = self.page.locator("#answers .answer p").all_text_contents()
        return " ".join(texts[0].split()), " ".join(texts[1].split())

    def upload(self, path: Path) -> None:
        """Give the picture box another file."""
        if not self.page.locator("#picture input[type=file]").count():
            self.says(self.page.get_by_label("Remove Image").click)  # or it may follow what the next picture brings
        self.page.locator("#picture input[type=file]").set_input_files(path)

    def gates_text(self) -> Locator:
        """The gates as JSON, opened; once the first have come, which replace what is typed before."""
        if not self.page.locator("#gates-text textarea").is_visible():
            self.page.evaluate("document.querySelector('#gates .label-wrap').click()")
        self.wait("document.querySelector('#gates-text textarea')?.value")
        return self.page.locator("#gates-text textarea")

    def ask(self, question: str) -> None:
        """Type a question and press Ask."""
        self.page.locator("#question textarea").fill(question)
        self.page.locator("#ask").click()

    def compose(self) -> None:
        """Open the composer."""
        self.page.locator("#edit-scene").click()
        self.page.wait_for_selector("#composer [data-composing=open], #composer[data-composing=open]")

    def scene(self) -> dict[str, Any]:
        """The scene that the composer shows."""
        return self.page.evaluate("document.querySelector('#composer [data-composing]').scene")

    def thing(self, index: int) -> Locator:
        """An object on the composer's stage."""
        return self.page.locator("#composer .thing").nth(index)

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Return the screen position of a point of the composer's stage."""
        box = self.page.locator("#composer .stage").bounding_box()
        assert box
        return box["x"] + x * box["width"], box["y"] + y * box["height"]

    def after(self, act: Callable[[], object]) -> dict[str, Any]:
        """Do something that asks anew and wait until all is answered; gives the frame drawn then."""
        began = self.frame()["began"]
        act()
        self.wait(f"document.querySelector('#maps [data-tick]').frame.began > {began}")
        return self.settle()

    def truth(self) -> dict[str, str]:
        """The example questions with their true answers."""
        if not self.page.locator("#questions .truth p").is_visible():
            self.page.locator("#questions summary").click()
            self.page.wait_for_selector("#questions .chip b")
        return dict(
            self.page.locator("#questions .chip").evaluate_all(
                "chips => chips.map((chip) => [chip.querySelector('span').textContent, chip.querySelector('b').textContent])"
            )
        )

    def press(self, *keys: str) -> None:
        """Press keys in a row, where the focus is."""
        self.page.evaluate(PRESS, keys)

    def drag(
        self,
        layer: int,
        to: float,
        group: str = "v_sink",
        ticks: int = 1,
        seconds: float = 0,
        most: float = 2,
        until: str = "",
    ) -> None:
        """Pull a fader, which reaches up to ``most``, with the mouse from where it stands to a scale.

        It is released once the condition ``until``, if there is one, is true. Each tick that the page has time for is computed and drawn: tests that are not about the way take one.
        """
        self.fader(layer, group).scroll_into_view_if_needed()
        box = self.fader(layer, group).bounding_box()
        assert box
        x = box["x"] + box["width"] / 2
        start = self.scale(layer, group)
        self.page.mouse.move(x, box["y"] + box["height"] * (1 - start / most))
        self.page.mouse.down()
        begin = time.monotonic()
        for tick in range(1, ticks + 1):
            scale = start + (to - start) * tick / ticks
            self.page.mouse.move(x, box["y"] + box["height"] * (1 - scale / most))
            time.sleep(max(0.0, begin + seconds * tick / ticks - time.monotonic()))
        if until:
            self.wait(until)
        self.page.mouse.up()


def new_window(browser: Browser, **options: Any) -> Page:
    """A window with storage of its own, in which nothing glides."""
    window = browser.new_context(**options).new_page()
    window.add_init_script(AT_ONCE)
    return window


@contextmanager
def entering(browser: Browser, windows: dict[bool, list[Page]]) -> Iterator[Callable[..., Tab]]:
    """Return a function that opens an address as a fresh user; at the end no console may have shown an error.

    Its options: ``phone``, the window's ``size``, a ``script`` that runs before the page's own, and media to emulate.

    Windows are used again by later tests: a window's process has compiled the page's scripts, which spares half of a load.
    """
    taken: list[tuple[bool, Page]] = []
    tabs: list[Tab] = []
    scripts: list[CDPSession] = []

    def enter(address: str, phone: bool = False, size: dict[str, int] = DESKTOP, script: str = "", **media: Any) -> Tab:
        window = windows[phone].pop() if windows[phone] else new_window(browser, **PHONE if phone else {})
        taken.append((phone, window))
        forget(window, address)
        window.set_viewport_size(size)  # pyright: ignore[reportArgumentType]
        window.emulate_media(**LIGHT | media)
        if script:
            scripts.append(window.context.new_cdp_session(window))
            scripts[-1].send("Page.enable")
            scripts[-1].send("Page.addScriptToEvaluateOnNewDocument", {"source": f"{{{script}}}"})
        tabs.append(Tab(window, address))
        return tabs[-1]

    yield enter
    errors = [list(tab.errors) for tab in tabs]
    for session in scripts:  # a window's own scripts would stay
        session.detach()
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
