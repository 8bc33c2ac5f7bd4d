"""Thousands of bad inputs against every endpoint of the real server: no 500, no hang, no leak, no call to anywhere.

Some hundred in the test suite; ``python tests/attacks --examples 10000`` throws as many as one likes.
"""

from __future__ import annotations

import json
import os
import random
import re
from pathlib import Path
from typing import Any

import hostile_inputs as inputs
import pytest
from hostile_clients import AttackedApp, attacked_app, png
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.guard.routes import ROUTES
from sinkgate.scenes.scene import Scene

SHARES = {
    "events": 6,
    "ticks": 2,
    "calls": 2,
    "bodies": 2,
    "paths": 3,
    "headers": 2,
    "uploads": 2,
    "pictures": 3,
    "gates": 2,
    "learned": 2,
}
EXAMPLES = int(os.environ.get("SINKGATE_ATTACKS", "240"))
SESSION = "attacker"
FILE = {"_type": "gradio.FileData"}


def thrown(what: str):
    """Return settings with a test's share of all examples."""
    return settings(
        max_examples=max(1, EXAMPLES * SHARES[what] // sum(SHARES.values())),
        deadline=None,
        derandomize=EXAMPLES < 1000,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    with attacked_app(tmp_path_factory.mktemp("app")) as app:
        first = app.send("page", "GET", "/config").json()
        app.page = Page(first, app)  # pyright: ignore[reportAttributeAccessIssue]
        opened = app.event(app.page.load, app.page.valid(app.page.load), SESSION)
        assert opened
        app.page.key = next(part["session"] for part in opened["data"] if isinstance(part, dict) and "session" in part)
        app.page.note(opened)
        assert app.page.values["composer"]["picture"]
        yield app
        print(report(app))  # noqa: T201
        assert app.listener.calls == 0
        assert app.strays() == []
        assert app.unforeseen() == []


class Page:
    """The page's events, read from what the page itself is told; with a valid value for every field."""

    def __init__(self, config: dict[str, Any], app: AttackedApp) -> None:
        names = {part["id"]: part["props"].get("elem_id") or part["type"] for part in config["components"]}
        self.values = valid_values(config, app)
        self.mixer = next(part for part, name in names.items() if name == "mixer")
        self.key = ""  # of the session
        self.events = {event["id"]: [names[part] for part in event["inputs"]] for event in config["dependencies"]}
        self.load = next(event["id"] for event in config["dependencies"] if event["targets"][0][1] == "load")
        self.answer = next(event["id"] for event in config["dependencies"] if event["api_name"] == "answer")

    def valid(self, index: int) -> list[Any]:
        return [self.values.get(name) for name in self.events[index]]

    def note(self, outcome: dict[str, Any] | None) -> None:
        """Take the number of the picture from what an event put out: edits of another one are ignored."""
        for part in (outcome or {}).get("data", ()):
            if isinstance(part, dict) and part.keys() >= {"scene", "picture"}:
                self.values["composer"]["picture"] = part["picture"]


def valid_values(config: dict[str, Any], app: AttackedApp) -> dict[str, Any]:
    values = {part["props"].get("elem_id"): part["props"].get("value") for part in config["components"]}
    picture = {"path": app.upload("scene.png", png()), "meta": FILE}
    scene = Scene.random(random.Random(71)).to_dict()
    return {
        **{name: value for name, value in values.items() if isinstance(value, dict)},
        "questions": {"choice": {"picture": 0, "question": "How many objects are there?"}},
        "composer": {"scene": scene, "picture": 0, "revision": 1},
        "learned": {"chosen": "stack", "off": [3]},
        "question": "How many objects are there?",
        "gates-text": json.dumps(gates(len(values["mixer"]["v_sink"]))),
        "picture": picture,
        "image": picture,
        "textbox": "",
    }


def gates(layers: int) -> dict[str, Any]:
    import sinkgate as sg

    return json.loads(sg.Gates.from_lists([1.0] * layers, [0.5] * layers).to_json())


@given(data=st.data())
@thrown("events")
def test_events_with_spoiled_values(app, data):
    page, listener = app.page, app.listener.address
    junk = inputs.junk(listener) if data.draw(st.integers(0, 5)) else inputs.junk(listener) | inputs.poison(listener)
    index = data.draw(st.sampled_from(sorted(page.events)))
    values = [data.draw(inputs.spoiled(value, junk)) for value in page.valid(index)]
    if data.draw(st.integers(0, 19)) == 0:
        values = data.draw(st.lists(junk, max_size=8))
    session = data.draw(st.sampled_from([*[SESSION] * 12, "other", "x" * 65, "a/b"]))
    outcome = app.event(index, values, session)
    if session == SESSION:
        page.note(outcome)


@given(data=st.data())
@thrown("ticks")
def test_ticks_of_no_session_and_no_setting(app, data):
    page, listener = app.page, app.listener.address
    junk = inputs.junk(listener) if data.draw(st.integers(0, 3)) else inputs.poison(listener)
    values = [data.draw(inputs.spoiled(value, junk)) for value in (page.key, page.values["mixer"], page.values["lens"])]
    values = values if data.draw(st.integers(0, 5)) else data.draw(junk)
    name = data.draw(st.sampled_from(["set_gates"] * 6 + ["__class__", "get_config", "unload"]))
    body = {"component_id": page.mixer, "fn_name": name, "data": values, "session_hash": SESSION}
    answer = app.send("tick", "POST", "/gradio_api/component_server/", content=json.dumps(body))
    assert answer.is_error or "Unexpected" not in answer.json().get("status", {}).get("text", "")


@given(data=st.data())
@thrown("calls")
def test_calls_of_the_endpoint_for_programs(app, data):
    page, listener = app.page, app.listener.address
    junk = inputs.junk(listener) if data.draw(st.integers(0, 3)) else inputs.poison(listener)
    values = [data.draw(inputs.spoiled(value, junk)) for value in page.valid(page.answer)]
    names = ("image", "question", "gates_json")
    by_name = data.draw(st.booleans())
    body = dict(zip(names, values, strict=False)) if by_name else {"data": values}
    path = f"/gradio_api/call/{'v2/' if by_name else ''}answer"
    answer = app.send("call", "POST", path, content=json.dumps(body))
    if answer.status_code == 200:
        stream = app.send("call", "GET", f"/gradio_api/call/answer/{answer.json()['event_id']}")
        assert stream.status_code == 200


@given(body=st.binary(max_size=300) | st.text(max_size=100).map(str.encode), data=st.data())
@thrown("bodies")
def test_bodies_that_are_no_events(app, body, data):
    posts = [route.path for route in ROUTES if "POST" in route.methods]
    path = data.draw(
        st.sampled_from([*posts, "/gradio_api/mcp", "/gradio_api/run/answer", "/gradio_api/component_server"])
    )
    if data.draw(st.booleans()):
        value = data.draw(inputs.junk(app.listener.address) | inputs.poison(app.listener.address))
        keys = ("data", "fn_index", "session_hash", "event_id", "trigger_id", "batched", "simple_format", "oauth_token")
        value = (
            {key: data.draw(st.just(value) | inputs.numbers()) for key in keys} if data.draw(st.booleans()) else value
        )
        body = json.dumps(value).encode()
    kind = data.draw(
        st.sampled_from(["application/json", "text/plain", "multipart/form-data; boundary=b", "", "a/b; charset=\xff"])
    )
    answer = app.send("body", "POST", path, content=body, headers={"content-type": kind.encode("latin-1")})
    assert answer.is_error or path.endswith(("reset", "cancel"))


@given(data=st.data())
@thrown("paths")
def test_paths_that_lead_nowhere(app, data):
    secret = app.folder.parent / "secret.png"
    start = data.draw(
        st.sampled_from(
            [
                "/gradio_api/file=", "/file=", "/gradio_api/file/", "/static/", "/assets/", "/gradio_api/proxy=", "/svelte/", "/",
                "/gradio_api/heartbeat/", "/gradio_api/call/answer/", "/gradio_api/stream/", "/gradio_api/queue/data?session_hash=",
                "/gradio_api/upload_progress?upload_id=", "/gradio_api/custom_component/", "/?deep_link=", "/config?page=",
                "/gradio_api/deep_link?session_hash=attacker", "/gradio_api/file=" + str(app.folder / "gradio"),
            ]
        )
    )  # fmt: skip
    text = st.sampled_from([str(secret), f"{app.folder}/gradio/../../secret.png", "%2e%2e/%2e%2e/secret.png"])
    rest = data.draw(inputs.texts(app.listener.address) | text)
    path = re.sub(r"[\x00-\x20\x7f]", lambda match: f"%{ord(match[0]):02x}", start + rest)
    method = data.draw(
        st.sampled_from(["GET", "GET", "GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
    )
    answer = raw(app, method, path)
    assert "root:x:0" not in answer and "canary" not in answer


@given(data=st.data())
@thrown("headers")
def test_headers_that_lie(app, data):
    names = (
        "host",
        "range",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-forwarded-proto",
        "x-gradio-server",
        "cookie",
        "origin",
    )
    values = inputs.texts(app.listener.address) | st.sampled_from(
        ["bytes=1-2-3", "bytes=-", "bytes=0-99999999999", "[::1"]
    )
    headers = {
        name: data.draw(values).encode("utf-8", "replace") for name in data.draw(st.sets(st.sampled_from(names)))
    }
    headers = {name: re.sub(rb"[\x00-\x1f\x7f]", b"", value)[:900].strip() for name, value in headers.items()}
    stored = app.page.values["picture"]["path"]
    path = data.draw(st.sampled_from(["/", "/config", "/gradio_api/info", f"/gradio_api/file={stored}", "/theme.css"]))
    app.send("header", data.draw(st.sampled_from(["GET", "HEAD"])), path, headers=headers)


@given(data=st.data())
@thrown("uploads")
def test_uploads_that_are_none(app, data):
    names = inputs.texts(app.listener.address) | st.sampled_from(
        ["a.png", "a.json", "a.safetensors", "a.svg", "a.html", ".png"]
    )
    bytes_ = st.binary(max_size=200)
    if data.draw(st.booleans()):
        count = data.draw(st.integers(0, 6))
        fields = st.sampled_from(["files", "files", "files", "file", "", "files[]"])
        parts = [(data.draw(fields), (data.draw(names), data.draw(bytes_))) for _ in range(count)]
        app.send("upload", "POST", "/gradio_api/upload?upload_id=x", files=parts)
        return
    line = st.sampled_from(
        [
            b"--b\r\n", b"--b--\r\n", b"--b", b"\r\n", b"\n", b"\r\n\r\n", b"content-disposition: form-data", b"; name=files",
            b'; filename="a.png"', b"; filename*=utf-8''%00.png", b"x" * 5000, b"\0", b": ", b"abc", b'content-disposition: ;;"',
        ]
    )  # fmt: skip
    body = b"".join(data.draw(st.lists(line | bytes_, max_size=14)))
    kind = data.draw(
        st.sampled_from([b"b", b'"b"', b"", b"b" * 300, b"\xff", b"b; charset=utf-7", b"b; charset=nonsense"])
    )
    kind = {"content-type": b"multipart/form-data; boundary=" + kind}
    app.send("upload", "POST", "/gradio_api/upload", content=body, headers=kind)


@given(file=inputs.pictures(), shown=st.booleans())
@thrown("pictures")
def test_pictures_that_are_broken(app, file, shown):
    path = app.upload(*file)
    if path is None:
        return
    page, value = app.page, {"path": path, "meta": FILE}
    index = page.answer
    if shown:
        index = next(index for index, fields in page.events.items() if "picture" in fields)
    values = [
        value if name in ("image", "picture") else part
        for name, part in zip(page.events[index], page.valid(index), strict=True)
    ]
    assert app.event(index, values, SESSION, "picture")


@given(data=st.data())
@thrown("gates")
def test_gates_that_are_none(app, data):
    page, junk = app.page, inputs.junk(app.listener.address)
    text = data.draw(inputs.spoiled_json(json.loads(page.values["gates-text"]), junk))
    changed: dict[str, Any] = {"gates-text": text}
    if data.draw(st.booleans()) and (path := app.upload("gates.json", text.encode())):
        changed = {"gates-load": {"path": path, "meta": FILE}}
    index = next(index for index, fields in page.events.items() if {*changed} <= {*fields})
    values = [changed.get(name, part) for name, part in zip(page.events[index], page.valid(index), strict=True)]
    app.event(index, values, SESSION, "gates")


@given(data=st.data())
@thrown("learned")
def test_learned_gates_that_are_none(app, data):
    page, junk = app.page, inputs.junk(app.listener.address)
    folder = Path(__file__).parents[2] / "sinkgate" / "demo" / "gates" / "stack"
    config = data.draw(inputs.spoiled_json(json.loads((folder / "gate_config.json").read_text()), junk))
    weights = bytearray((folder / "gates.safetensors").read_bytes())
    for _ in range(data.draw(st.sampled_from([0, 0, 1, 8]))):
        weights[data.draw(st.integers(0, min(len(weights) - 1, 400)))] = data.draw(st.integers(0, 255))
    weights = bytes(weights[: data.draw(st.sampled_from([len(weights), len(weights), 300, 7, 0]))])
    paths = [app.upload("gate_config.json", config.encode()), app.upload("gates.safetensors", weights)]
    index = next(index for index, fields in page.events.items() if "learned-upload" in fields)
    files = [{"path": path, "meta": FILE} for path in paths if path]
    values = [
        files if name == "learned-upload" else part
        for name, part in zip(page.events[index], page.valid(index), strict=True)
    ]
    app.event(index, values, SESSION, "learned")


def raw(app: AttackedApp, method: str, path: str) -> str:
    """One request over a bare socket, for a path that no client would send; the whole answer, up to its first part."""
    import socket

    host, port = app.address.removeprefix("http://").split(":")
    line = f"{method} {path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    with socket.create_connection((host, int(port)), timeout=60) as client:
        client.sendall(line.encode("utf-8", "replace"))
        head = client.recv(1 << 16)
        if b" 200 " not in head[:20] or b"event-stream" not in head:
            while part := client.recv(1 << 16):
                head += part
    status = head.split(b" ", 2)[1].decode()
    app.counts["path", status] += 1
    assert int(status) < 500, (method, path, head[:300])
    return head.decode("utf-8", "replace")


def report(app: AttackedApp) -> str:
    """Return the numbers of requests by kind and outcome."""
    kinds: dict[str, list[str]] = {}
    for (what, ended), count in sorted(app.counts.items()):
        kinds.setdefault(what, []).append(f"{ended}: {count}")
    lines = [f"{what:8} {', '.join(ended)}" for what, ended in kinds.items()]
    return "\n".join(["", *lines, f"{app.counts.total()} in all, the slowest took {app.slowest:.1f} s"])
