"""The app on the model that it opens on: the page walked as its guide does in two minutes, the examples for programs run with the real clients."""

from __future__ import annotations

import asyncio
import base64
import io
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import httpx
import jsonschema
import pytest
from app_process import ROOT, running_app
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from mcp import ClientSession
from mcp.client.streamable_http import streamable_http_client
from mcp.types import CallToolResult
from page_user import Tab

import sinkgate as sg
from app.api import ANSWER
from app.engine import MAX_QUESTION
from app.phenomena import DEMONSTRATIONS
from sinkgate.scenes.scene import Scene

GUIDES = {
    name: (ROOT / "docs" / "pages" / "guides" / f"{name}.md").read_text(encoding="utf-8") for name in ("app", "api")
}
QUESTION = "How many objects are there?"


@pytest.fixture(scope="module")
def served() -> Iterator[str]:
    """The address of an app with the tool for assistants."""
    with running_app("--mcp", "--model", "demo-large") as app:
        yield app.address


@pytest.fixture(scope="module")
def first_tab(module_enter: Callable[..., Tab], served: str) -> Iterator[Tab]:
    tab = module_enter(served)
    yield tab
    tab.leave(lambda: tab.page.goto("about:blank"))


@pytest.fixture
def opened(first_tab: Tab) -> Tab:
    """The page as it opened."""
    first_tab.reset()
    return first_tab


@pytest.fixture(scope="module")
def vlm() -> sg.VLM:
    """The model that the app opens on when none is named."""
    return sg.load("demo-large")


@pytest.fixture(scope="module")
def client(served: str) -> Client:
    return Client(served, verbose=False)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scenes") / "scene.png"
    Scene.random(Random(71)).render().save(path)
    return path


def direct(vlm: sg.VLM, scene: Path, gates: sg.Gates | None = None) -> sg.Trace:
    prompt = vlm.prompt(sg.open_image(scene), QUESTION)
    return vlm.answer(prompt, gates, sg.find_sinks(vlm, prompt))


def apart(act: Callable[[], Any]) -> Any:
    """Do something in a thread of its own: a browser's tests leave an event loop running in this one."""
    with ThreadPoolExecutor(1) as threads:
        return threads.submit(act).result()


def call(served: str, arguments: dict[str, Any], name: str = "answer") -> CallToolResult:
    """One call of the tool, by the protocol's own client."""

    async def session() -> CallToolResult:
        async with (
            streamable_http_client(f"{served}/gradio_api/mcp") as (read, write, _),
            ClientSession(read, write) as client,
        ):
            await client.initialize()
            assert [tool.name for tool in (await client.list_tools()).tools] == ["answer"]
            return await client.call_tool(name, arguments)

    return apart(lambda: asyncio.run(session()))


def text_of(result: CallToolResult) -> str:
    return " ".join(part.text for part in result.content if part.type == "text")


def data_url(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


# --- people


def preset(tab: Tab, name: str) -> None:
    tab.page.get_by_role("button", name=name, exact=True).click()
    tab.settle()


def test_the_guide_can_be_walked(opened: Tab) -> None:
    assert opened.answers() == ("2", "2")
    preset(opened, "V-sinks × 0")
    assert opened.answers() == ("2", "3")
    preset(opened, "All at 1")
    opened.page.locator("#mixer .separate").check()
    for group, answer in (("l_sink", "2"), ("v_sink", "1")):
        opened.drag(-1, 0, group)
        opened.settle()
        assert opened.answers() == ("2", answer)
    preset(opened, "All at 1")
    opened.after(lambda: opened.ask("Is there any blue circle?"))
    for layer, answer in ((3, "no"), (4, "yes")):
        opened.drag(layer, 2)
        opened.settle()
        assert opened.answers() == ("yes", answer)
        preset(opened, "All at 1")
    walk = GUIDES["app"].partition("## In two minutes")[2].partition("\n## ")[0]
    for part in (
        "V-sinks × 0",
        "Separate L-sinks",
        "three",
        "still two",
        "one.",
        "Is there any blue circle?",
        "layer 3",
        "layer 4",
    ):
        assert part in walk


def test_show_me_turns_the_answer(opened: Tab) -> None:
    opened.page.evaluate(
        """() => { window.turns = []; document.addEventListener('sinkgate:answers', ({ detail }) => {
          if (detail.done && !detail.stale) window.turns.push((detail.gated || []).map(([word]) => word).join(' ')); }); }"""
    )
    opened.page.emulate_media(reduced_motion="reduce")  # the way is that of the small model
    opened.page.locator("#actions .show-me").click()
    turned = DEMONSTRATIONS["demo-large"].answers[1]
    opened.wait(f"window.turns.includes('{turned}')")
    opened.wait("document.querySelector('#actions .show-me').textContent === 'Show me' && !window.sinkgate.playing")
    assert opened.settle()["identity"]


# --- programs


def test_every_example_of_the_guide_runs_and_prints_what_it_says(
    served: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    examples = re.findall(r"```py\n(.*?)```", GUIDES["api"], re.DOTALL)
    names: dict[str, Any] = {}
    assert len(examples) == 3
    for example in examples:
        with redirect_stdout(io.StringIO()) as printed:
            apart(partial(exec, example.replace("http://127.0.0.1:7860", served), names))
        promised = [line.removeprefix("#> ") for line in example.splitlines() if line.startswith("#> ")]
        assert promised and printed.getvalue().splitlines() == promised


def test_the_guide_names_every_key_of_an_answer() -> None:
    rows = dict(
        re.findall(
            r"^\| `(\w+)` \| (.*?) \|$", GUIDES["api"].partition("## The answer")[2].partition("\n## ")[0], re.MULTILINE
        )
    )
    assert rows == {key: value["description"] for key, value in ANSWER["properties"].items()}
    assert f"at most {MAX_QUESTION} characters" in GUIDES["api"]


# --- gradio_client


def test_an_answer_keeps_its_form(client: Client, vlm: sg.VLM, scene: Path) -> None:
    jsonschema.Draft202012Validator.check_schema(ANSWER)
    gates = sg.Gates.ones(vlm).set("v_sink", 0.1)
    for text, expected in (("", direct(vlm, scene)), (gates.to_json(), direct(vlm, scene, gates))):
        reply = client.predict(handle_file(scene), QUESTION, text, api_name="/answer")
        jsonschema.validate(reply, ANSWER)
        assert reply.keys() == ANSWER["properties"].keys()
        assert reply["text"] == expected.text and reply["model"] == "demo-large"
        assert dict(reply["next_token"]) == pytest.approx(dict(expected.next_token), abs=1e-4)


@pytest.mark.parametrize("gates", ["no json", "[]", '{"scales": {"v_sink": [1], "rest": [1]}}', "x" * 100_001])
def test_what_is_wrong_is_told_in_a_sentence(client: Client, scene: Path, gates: str) -> None:
    with pytest.raises(AppError, match=r"^[A-Z].{15,}\.$"):
        client.predict(handle_file(scene), QUESTION, gates, api_name="/answer")


def test_wrong_questions_and_pictures_are_told_in_a_sentence(client: Client, scene: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(scene.read_bytes()[:500])
    for picture, question in (
        (handle_file(scene), ""),
        (handle_file(scene), "why " * 200),
        (handle_file(broken), QUESTION),
        (None, QUESTION),
    ):
        with pytest.raises(AppError, match=r"^[A-Z].{15,}\.$") as error:
            client.predict(picture, question, "", api_name="/answer")
        assert "/" not in str(error.value)  # no path of the server


# --- the Model Context Protocol


def test_the_tool_answers_about_a_scene_and_a_picture(served: str, vlm: sg.VLM, scene: Path) -> None:
    gates = sg.Gates.ones(vlm).set("v_sink", 0.1)
    for source in ({"scene": 71}, {"picture": data_url(scene)}):
        result = call(served, {"question": QUESTION, "gates": gates.to_json(), **source})
        assert not result.isError and result.structuredContent
        jsonschema.validate(result.structuredContent, ANSWER)
        assert result.structuredContent["text"] == direct(vlm, scene, gates).text == "3"


@pytest.mark.parametrize(
    "arguments",
    [
        {"question": QUESTION},
        {"question": QUESTION, "scene": 71, "picture": "data:image/png;base64,AAAA"},
        {"question": QUESTION, "picture": "http://127.0.0.1:1/scene.png"},
        {"question": QUESTION, "picture": "file:///etc/passwd"},
        {"question": QUESTION, "picture": "/etc/passwd"},
        {"question": QUESTION, "picture": "data:image/png;base64,AAAA"},
        {"question": QUESTION, "picture": "data:image/png;base64,é"},
        {"question": QUESTION, "picture": ["data:image/png;base64,AAAA"]},
        {"question": QUESTION, "scene": -1},
        {"question": QUESTION, "scene": True},
        {"question": QUESTION, "scene": 1 << 40},
        {"question": QUESTION, "scene": 71, "gates": "off"},
        {"question": QUESTION, "scene": 71, "gates": {"v_sink": [1]}},
        {"question": QUESTION, "scene": 71, "file": "http://127.0.0.1:1"},
        {"question": " ", "scene": 71},
        {"question": 5, "scene": 71},
        {"scene": 71},
    ],
)
def test_what_the_tool_cannot_take_is_told_in_a_sentence(served: str, arguments: dict[str, Any]) -> None:
    result = call(served, arguments)
    assert result.isError and re.fullmatch(r"[A-Z].{15,}\.", text_of(result), re.DOTALL)
    assert "Unexpected" not in text_of(result) and "Traceback" not in text_of(result)


def test_a_tool_that_is_not_there(served: str) -> None:
    result = call(served, {"file": "/etc/passwd"}, name="upload_file_to_gradio")
    assert result.isError and "There is one tool, answer" in text_of(result)


def test_the_protocol_is_there_with_the_option_alone(address: str, served: str) -> None:
    hello = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    accept = {"Accept": "application/json, text/event-stream"}
    assert httpx.post(f"{address}/gradio_api/mcp", json=hello, headers=accept, timeout=60).status_code == 404
    assert httpx.post(f"{served}/gradio_api/mcp", json=hello, headers=accept, timeout=60).status_code == 200
    wanting = {"question": QUESTION, "picture": {"path": "/etc/passwd", "url": "http://127.0.0.1:1"}}
    wanting = {**hello, "method": "tools/call", "params": {"name": "answer", "arguments": wanting}}
    assert httpx.post(f"{served}/gradio_api/mcp", json=wanting, headers=accept, timeout=60).status_code == 400
    for path in ("/gradio_api/mcp/sse", "/gradio_api/mcp/schema", "/gradio_api/mcp/messages/"):  # Gradio's own
        assert httpx.get(served + path, timeout=60).status_code == 404
    assert httpx.get(f"{served}/gradio_api/mcp", headers=accept, timeout=60).status_code == 405
