"""Faults of the client and of the disk, against the real server: stalled uploads, users gone, a disk that is full."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import httpx
import pytest
from app_process import requests_from_many
from hostile_clients import AttackedApp, attacked_app, png

#: Files of half a MiB at most: what is larger meets a disk that is full. Less patience with uploads, and fewer pages, than users get.
LIMITS = """
import resource
from functools import partial
from app import guard
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 19, 1 << 19))
guard.Limits = partial(guard.Limits, stall_seconds=5.0, pages_per_minute={pages})
"""
PAGES = 20  # that an address may ask for in a minute


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    with attacked_app(tmp_path_factory.mktemp("transport"), code=LIMITS.format(pages=PAGES)) as app:
        yield app
        assert app.unforeseen() == [] and app.strays() == []


def client(app: AttackedApp) -> socket.socket:
    host, port = app.address.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=60)


def begun(app: AttackedApp, body: bytes, length: int) -> socket.socket:
    """An upload that has said how long it will be, and sent this much."""
    opened = client(app)
    head = (
        "POST /gradio_api/upload HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary=b\r\n"
        f"Content-Length: {length}\r\n\r\n"
    )
    opened.sendall(head.encode() + body)
    return opened


def leftovers(app: AttackedApp) -> list[Path]:
    return [path for path in (app.folder / "gradio").glob("tmp*") if path.is_file()]


PART = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'


def test_an_upload_that_stalls_is_told_so_and_ends(app):
    with begun(app, PART + b"x" * 1000, 100_000) as stalled:
        answer = b"".join(iter(lambda: stalled.recv(4096), b"")).decode()  # until the line is closed
        assert answer.startswith("HTTP/1.1 408") and "too slowly" in answer
    assert not leftovers(app)


def test_a_user_who_goes_while_uploading_leaves_nothing(app):
    for _ in range(20):
        begun(app, PART + b"x" * 50_000, 1_000_000).close()
    assert app.upload("a.png", png()) and not leftovers(app)


def test_many_half_open_uploads_keep_nobody_out(app):
    stalled = [begun(app, PART, 100_000) for _ in range(60)]
    assert app.upload("a.png", png())
    for opened in stalled:
        opened.close()


@pytest.mark.parametrize("size", [700_000, 1 << 21])  # Gradio meets the full disk, or the guard does
def test_a_full_disk_is_told_in_words_and_the_page_goes_on(app, size):
    answer = httpx.post(f"{app.address}/gradio_api/upload", files={"files": ("a.png", b"x" * size)}, timeout=60)
    assert answer.status_code == 507 and answer.text.startswith("The server has no room for uploads")
    assert app.upload("a.png", png())


def test_a_user_who_goes_while_being_answered(app):
    config = app.send("page", "GET", "/config").json()
    load = next(event for event in config["dependencies"] if event["targets"][0][1] == "load")
    parts = {part["id"]: part["props"].get("value") for part in config["components"]}
    body = {"data": [parts[part] for part in load["inputs"]], "fn_index": load["id"]}
    for user in range(4):
        answer = app.send("event", "POST", "/gradio_api/queue/join", json=body | {"session_hash": f"gone{user}"})
        assert answer.status_code == 200
        path = f"/gradio_api/queue/data?session_hash=gone{user}"
        with httpx.stream("GET", app.address + path, timeout=60) as stream:
            next(stream.iter_lines())  # and the tab is closed
    data = [parts[part] for part in load["inputs"]]
    assert app.event(load["id"], data, "stays")


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\n\r\n", b"GET / HTTP/9.9\r\nHost: a\r\n\r\n", b"\x16\x03\x01\x02\x00", b"GET / HTTP/1.1\r\nHost: " + b"a" * 70_000,
        b"POST /gradio_api/queue/join HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: -1\r\n\r\n", b"GET http://[::1 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"POST /gradio_api/queue/join HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST /gradio_api/queue/join HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 99999999999\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", b"GET /\xff\xfe HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
    ],
)  # fmt: skip
def test_what_is_hardly_http_gets_a_4xx(app, sent):
    with client(app) as opened:
        opened.sendall(sent)
        opened.shutdown(socket.SHUT_WR)
        answer = opened.recv(1 << 16)
    assert not answer or answer.split(b" ")[1][:1] in b"24", answer[:200]
    assert b"Traceback" not in answer


def test_chunked_bodies_are_counted_too(app):
    def chunks():
        for _ in range(40):
            yield json.dumps("x" * (1 << 18)).encode()

    answer = httpx.post(f"{app.address}/gradio_api/queue/join", content=chunks(), timeout=60)
    assert answer.status_code == 413


def test_an_address_that_is_made_up_does_not_count(app):
    own = httpx.HTTPTransport(local_address="127.0.0.99")  # the other tests come from elsewhere
    with httpx.Client(transport=own, timeout=60) as client:
        batches = (requests_from_many(client, app.address, PAGES + 5) for _ in range(3))
        assert any(429 in batch for batch in batches)  # a batch across the turn of a minute may count for less
