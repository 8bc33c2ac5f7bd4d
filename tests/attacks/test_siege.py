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

import ammunition as ammo
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from siege import Siege, besieged, png

from app.guard.routes import ROUTES
from sinkgate.scenes.scene import Scene

SHARES = {
    "events": 6,
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
    """How many examples a test throws of all."""
    return settings(
        max_examples=max(1, EXAMPLES * SHARES[what] // sum(SHARES.values())),
        deadline=None,
        derandomize=EXAMPLES < 1000,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture(scope="module")
def siege(tmp_path_factory):
    with besieged(tmp_path_factory.mktemp("siege")) as siege:
        first = siege.send("page", "GET", "/config").json()
        siege.page = Page(first, siege)  # pyright: ignore[reportAttributeAccessIssue]
        assert siege.event(siege.page.load, siege.page.valid(siege.page.load), SESSION)
        yield siege
        print(report(siege))  # noqa: T201
        assert siege.listener.calls == 0
        assert siege.strays() == []
        assert siege.unforeseen() == []


class Page:
    """The page's events, read from what the page itself is told; with a valid value for every field."""

    def __init__(self, config: dict[str, Any], siege: Siege) -> None:
        names = {part["id"]: part["props"].get("elem_id") or part["type"] for part in config["components"]}
        self.values = valid_values(config, siege)
        self.events = {event["id"]: [names[part] for part in event["inputs"]] for event in config["dependencies"]}
        self.load = next(event["id"] for event in config["dependencies"] if event["targets"][0][1] == "load")
        self.answer = next(event["id"] for event in config["dependencies"] if event["api_name"] == "answer")

    def valid(self, index: int) -> list[Any]:
        return [self.values.get(name) for name in self.events[index]]


def valid_values(config: dict[str, Any], siege: Siege) -> dict[str, Any]:
    found = {part["props"].get("elem_id"): part["props"].get("value") for part in config["components"]}
    picture = {"path": siege.upload("scene.png", png()), "meta": FILE}
    scene = Scene.random(random.Random(71)).to_dict()
    return {
        **{name: value for name, value in found.items() if isinstance(value, dict)},
        "questions": {"choice": {"picture": 0, "question": "How many objects are there?"}},
        "composer": {"scene": scene, "picture": 1, "turn": 1},
        "learned": {"chosen": "stack", "off": [3]},
        "question": "How many objects are there?",
        "gates-text": json.dumps(gates(len(found["mixer"]["v_sink"]))),
        "picture": picture,
        "image": picture,
        "textbox": "",
    }


def gates(layers: int) -> dict[str, Any]:
    import sinkgate as sg

    return json.loads(sg.Gates.from_lists([1.0] * layers, [0.5] * layers).to_json())


@given(data=st.data())
@thrown("events")
def test_events_with_spoiled_values(siege, data):
    page, listener = siege.page, siege.listener.address
    junk = ammo.junk(listener) if data.draw(st.integers(0, 5)) else ammo.junk(listener) | ammo.poison(listener)
    index = data.draw(st.sampled_from(sorted(page.events)))
    values = [data.draw(ammo.spoiled(value, junk)) for value in page.valid(index)]
    if data.draw(st.integers(0, 19)) == 0:
        values = data.draw(st.lists(junk, max_size=8))
    siege.event(index, values, data.draw(st.sampled_from([*[SESSION] * 12, "other", "x" * 65, "a/b"])))


@given(data=st.data())
@thrown("calls")
def test_calls_of_the_endpoint_for_programs(siege, data):
    page, listener = siege.page, siege.listener.address
    junk = ammo.junk(listener) if data.draw(st.integers(0, 3)) else ammo.poison(listener)
    values = [data.draw(ammo.spoiled(value, junk)) for value in page.valid(page.answer)]
    names = ("image", "question", "gates_json")
    by_name = data.draw(st.booleans())
    body = dict(zip(names, values, strict=False)) if by_name else {"data": values}
    path = f"/gradio_api/call/{'v2/' if by_name else ''}answer"
    answer = siege.send("call", "POST", path, content=json.dumps(body))
    if answer.status_code == 200:
        stream = siege.send("call", "GET", f"/gradio_api/call/answer/{answer.json()['event_id']}")
        assert stream.status_code == 200


@given(body=st.binary(max_size=300) | st.text(max_size=100).map(str.encode), data=st.data())
@thrown("bodies")
def test_bodies_that_are_no_events(siege, body, data):
    posts = [route.path for route in ROUTES if "POST" in route.methods]
    path = data.draw(
        st.sampled_from([*posts, "/gradio_api/mcp", "/gradio_api/run/answer", "/gradio_api/component_server"])
    )
    if data.draw(st.booleans()):
        value = data.draw(ammo.junk(siege.listener.address) | ammo.poison(siege.listener.address))
        keys = ("data", "fn_index", "session_hash", "event_id", "trigger_id", "batched", "simple_format", "oauth_token")
        value = {key: data.draw(st.just(value) | ammo.numbers()) for key in keys} if data.draw(st.booleans()) else value
        body = json.dumps(value).encode()
    kind = data.draw(
        st.sampled_from(["application/json", "text/plain", "multipart/form-data; boundary=b", "", "a/b; charset=\xff"])
    )
    answer = siege.send("body", "POST", path, content=body, headers={"content-type": kind.encode("latin-1")})
    assert answer.is_error or path.endswith(("reset", "cancel"))


@given(data=st.data())
@thrown("paths")
def test_paths_that_lead_nowhere(siege, data):
    secret = siege.folder.parent / "secret.png"
    start = data.draw(
        st.sampled_from(
            [
                "/gradio_api/file=", "/file=", "/gradio_api/file/", "/static/", "/assets/", "/gradio_api/proxy=", "/svelte/", "/",
                "/gradio_api/heartbeat/", "/gradio_api/call/answer/", "/gradio_api/stream/", "/gradio_api/queue/data?session_hash=",
                "/gradio_api/upload_progress?upload_id=", "/gradio_api/custom_component/", "/?deep_link=", "/config?page=",
                "/gradio_api/deep_link?session_hash=attacker", "/gradio_api/file=" + str(siege.folder / "gradio"),
            ]
        )
    )  # fmt: skip
    text = st.sampled_from([str(secret), f"{siege.folder}/gradio/../../secret.png", "%2e%2e/%2e%2e/secret.png"])
    rest = data.draw(ammo.texts(siege.listener.address) | text)
    path = re.sub(r"[\x00-\x20\x7f]", lambda found: f"%{ord(found[0]):02x}", start + rest)
    method = data.draw(
        st.sampled_from(["GET", "GET", "GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
    )
    answer = raw(siege, method, path)
    assert "root:x:0" not in answer and "canary" not in answer


@given(data=st.data())
@thrown("headers")
def test_headers_that_lie(siege, data):
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
    values = ammo.texts(siege.listener.address) | st.sampled_from(
        ["bytes=1-2-3", "bytes=-", "bytes=0-99999999999", "[::1"]
    )
    headers = {
        name: data.draw(values).encode("utf-8", "replace") for name in data.draw(st.sets(st.sampled_from(names)))
    }
    headers = {name: re.sub(rb"[\x00-\x1f\x7f]", b"", value)[:900].strip() for name, value in headers.items()}
    stored = siege.page.values["picture"]["path"]
    path = data.draw(st.sampled_from(["/", "/config", "/gradio_api/info", f"/gradio_api/file={stored}", "/theme.css"]))
    siege.send("header", data.draw(st.sampled_from(["GET", "HEAD"])), path, headers=headers)


@given(data=st.data())
@thrown("uploads")
def test_uploads_that_are_none(siege, data):
    names = ammo.texts(siege.listener.address) | st.sampled_from(
        ["a.png", "a.json", "a.safetensors", "a.svg", "a.html", ".png"]
    )
    bytes_ = st.binary(max_size=200)
    if data.draw(st.booleans()):
        count = data.draw(st.integers(0, 6))
        fields = st.sampled_from(["files", "files", "files", "file", "", "files[]"])
        parts = [(data.draw(fields), (data.draw(names), data.draw(bytes_))) for _ in range(count)]
        siege.send("upload", "POST", "/gradio_api/upload?upload_id=x", files=parts)
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
    siege.send("upload", "POST", "/gradio_api/upload", content=body, headers=kind)


@given(file=ammo.pictures(), shown=st.booleans())
@thrown("pictures")
def test_pictures_that_are_broken(siege, file, shown):
    path = siege.upload(*file)
    if path is None:
        return
    page, value = siege.page, {"path": path, "meta": FILE}
    index = page.answer
    if shown:
        index = next(index for index, fields in page.events.items() if "picture" in fields)
    values = [
        value if name in ("image", "picture") else part
        for name, part in zip(page.events[index], page.valid(index), strict=True)
    ]
    assert siege.event(index, values, SESSION, "picture")


@given(data=st.data())
@thrown("gates")
def test_gates_that_are_none(siege, data):
    page, junk = siege.page, ammo.junk(siege.listener.address)
    text = data.draw(ammo.spoiled_json(json.loads(page.values["gates-text"]), junk))
    loads = data.draw(st.booleans())
    if loads:
        index = next(index for index, fields in page.events.items() if fields == ["gates-load"])
        path = siege.upload("gates.json", text.encode())
        if path:
            siege.event(index, [{"path": path, "meta": FILE}], SESSION, "gates")
    index = next(index for index, fields in page.events.items() if "gates-text" in fields)
    values = [
        text if name == "gates-text" else part for name, part in zip(page.events[index], page.valid(index), strict=True)
    ]
    siege.event(index, values, SESSION, "gates")


@given(data=st.data())
@thrown("learned")
def test_learned_gates_that_are_none(siege, data):
    page, junk = siege.page, ammo.junk(siege.listener.address)
    folder = Path(__file__).parents[2] / "sinkgate" / "demo" / "gates" / "stack"
    config = data.draw(ammo.spoiled_json(json.loads((folder / "gate_config.json").read_text()), junk))
    weights = bytearray((folder / "gates.safetensors").read_bytes())
    for _ in range(data.draw(st.sampled_from([0, 0, 1, 8]))):
        weights[data.draw(st.integers(0, min(len(weights) - 1, 400)))] = data.draw(st.integers(0, 255))
    weights = bytes(weights[: data.draw(st.sampled_from([len(weights), len(weights), 300, 7, 0]))])
    paths = [siege.upload("gate_config.json", config.encode()), siege.upload("gates.safetensors", weights)]
    index = next(index for index, fields in page.events.items() if "learned-upload" in fields)
    given = [{"path": path, "meta": FILE} for path in paths if path]
    values = [
        given if name == "learned-upload" else part
        for name, part in zip(page.events[index], page.valid(index), strict=True)
    ]
    siege.event(index, values, SESSION, "learned")


def raw(siege: Siege, method: str, path: str) -> str:
    """One request over a bare socket, for a path that no client would send; the whole answer, up to its first part."""
    import socket

    host, port = siege.address.removeprefix("http://").split(":")
    line = f"{method} {path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    with socket.create_connection((host, int(port)), timeout=10) as wire:
        wire.sendall(line.encode("utf-8", "replace"))
        head = wire.recv(1 << 16)
        if b" 200 " not in head[:20] or b"event-stream" not in head:
            while part := wire.recv(1 << 16):
                head += part
    status = head.split(b" ", 2)[1].decode()
    siege.counts["path", status] += 1
    assert int(status) < 500, (method, path, head[:300])
    return head.decode("utf-8", "replace")


def report(siege: Siege) -> str:
    """How many requests of each kind ended how."""
    kinds: dict[str, list[str]] = {}
    for (what, ended), count in sorted(siege.counts.items()):
        kinds.setdefault(what, []).append(f"{ended}: {count}")
    lines = [f"{what:8} {', '.join(ended)}" for what, ended in kinds.items()]
    return "\n".join(["", *lines, f"{siege.counts.total()} in all, the slowest took {siege.slowest:.1f} s"])
