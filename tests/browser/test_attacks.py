"""Attacks in a real browser: words of users and models are shown as text, other sites' pages reach nothing."""

from __future__ import annotations

import base64
import http.server
import json
import threading
from collections.abc import Iterator

import pytest
from app_process import running_app
from models import FEWER_TOKENS
from page_user import Tab
from tiny import noise_image, tiny_llava

SCRIPT = "document.title='pwned';window.pwned=1"
XSS = f'<img src=x onerror="{SCRIPT}">'
MORE = f'{XSS}<script>{SCRIPT}</script>${{window.pwned=1}}{{{{window.pwned=1}}}}"><svg onload="{SCRIPT}">'
INJECTED = "[...document.querySelectorAll('[onerror],[onload],[srcdoc],img[src=x]')].map((part) => part.outerHTML)"


@pytest.fixture(scope="module")
def address(browser, tmp_path_factory) -> Iterator[str]:
    """An app whose model answers in markup."""
    folder = tmp_path_factory.mktemp("talking")
    model, processor = tiny_llava()
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    written = folder / "model" / "tokenizer.json"
    tokenizer = json.loads(written.read_text())
    words = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = {
        word if word.startswith("<") else f"{XSS}{number}": number for word, number in words.items()
    }
    written.write_text(json.dumps(tokenizer))
    with running_app("--model", str(folder / "model"), code=FEWER_TOKENS) as app:
        yield app.address


@pytest.fixture
def tab(tab) -> Iterator[Tab]:
    """A user; at the end nothing that was thrown has become part of the page, or been run."""
    yield tab  # a Content-Security-Policy that has to step in reports an error
    assert_untouched(tab)


def assert_untouched(tab) -> None:
    assert tab.page.evaluate(INJECTED) == []
    assert tab.page.evaluate("window.pwned") is None and tab.page.title() == "sinkgate"


def test_a_model_that_answers_in_markup(tab):
    assert XSS in " ".join(tab.answers())
    assert XSS in tab.page.locator("#words").inner_text()
    tab.wait("(text) => document.querySelector('#lens .row').textContent.includes(text)", arg=XSS)


def test_a_question_in_markup(tab):
    tab.after(lambda: tab.ask(MORE))
    assert tab.page.locator("#question textarea").input_value() == MORE
    tab.page.evaluate("document.querySelector('#gates .label-wrap').click()")
    tab.wait("document.querySelector('#share code')?.textContent.includes('pwned')")


def test_a_scene_and_a_file_in_markup(tab, tmp_path):
    tab.compose()
    thing = {"shape": MORE, "color": MORE, "size": MORE, "x": 0.5, "y": 0.5}
    tab.page.evaluate(
        """(scene) => {
          const composer = document.querySelector('#composer [data-composing]');
          window.sinkgate.publish('scene', scene);
          composer.scene = scene;
        }""",
        {"background": MORE, "objects": [thing]},
    )
    tab.page.locator("#edit-done").click()
    tab.settle()
    assert_untouched(tab)
    path = tmp_path / f"{XSS}.png".replace("/", "")
    noise_image().save(path)
    tab.after(lambda: tab.upload(path))


def test_gates_in_markup(tab):
    field = tab.gates_text()
    for text in (MORE, json.dumps({"format": MORE, "version": MORE}), json.dumps({"scales": {"v_sink": [MORE]}})):
        field.fill(text)
        tab.says(tab.page.locator("#gates-apply").click)
        assert tab.page.locator("#status .warning").count() == 1


def test_a_link_in_markup(address, tab):
    text = tab.frame()["here"]
    content = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    for parts in (["question", "kind", "learned"], ["model"]):  # a link of another model is read no further
        link = base64.urlsafe_b64encode(json.dumps(content | dict.fromkeys(parts, MORE)).encode()).decode().rstrip("=")
        tab.leave(lambda: tab.page.goto("about:blank"))
        tab.page.goto(f"{address}/#s={link}")
        tab.settle()
        assert tab.page.evaluate("location.hash") in ("", f"#s={link}")
        assert_untouched(tab)


def test_the_policy_stops_what_slips_through(browser, address):
    page = browser.new_page()
    page.goto(address)
    page.wait_for_selector("#answers [data-done=true]")
    with page.expect_console_message(lambda message: "Content Security Policy" in message.text):
        page.evaluate(f"document.body.insertAdjacentHTML('beforeend', {MORE!r})")
    with page.expect_console_message(lambda message: "Content Security Policy" in message.text):
        page.evaluate(
            f"document.body.append(Object.assign(document.createElement('script'), {{textContent: {SCRIPT!r}}}))"
        )
    assert page.evaluate("window.pwned") is None
    gone = page.evaluate("fetch('http://127.0.0.1:1/').catch((error) => String(error))")
    assert "Failed to fetch" in gone
    page.close()


def test_another_sites_page_reaches_nothing(browser, address):
    """A page of another site neither frames this one nor asks in its users' name."""

    class Evil(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.end_headers()
            self.wfile.write(f"<iframe src='{address}'></iframe>".encode())

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Evil) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page = browser.new_page()
        with page.expect_console_message(lambda message: "frame-ancestors" in message.text):
            page.goto(f"http://localhost:{server.server_port}/")
        body = json.dumps({"data": [], "fn_index": 0, "session_hash": "evil"})
        request = f"""fetch('{address}/gradio_api/queue/join', {{method: 'POST', body: {body!r}}})
            .then((answer) => answer.status).catch((error) => String(error))"""
        assert page.evaluate(request) in (403, "TypeError: Failed to fetch")
        page.close()
        server.shutdown()
