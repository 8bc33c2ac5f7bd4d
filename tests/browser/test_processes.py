"""Several processes of the page behind one address, by HAProxy as `app/deploy` sets it up."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.request import Request, urlopen

import gradio_client
import httpx
import pytest
import yaml
from app_process import ROOT, free_port, requests_from_many, running_app

DEPLOY = ROOT / "app" / "deploy"
HAPROXY = shutil.which("haproxy") or "/usr/sbin/haproxy"
by_haproxy = pytest.mark.skipif(not Path(HAPROXY).exists(), reason="no haproxy here")


@contextmanager
def proxy(*processes: str):
    port, dead = free_port(), f"127.0.0.1:{free_port()}"
    names = ("SINKGATE_ONE", "SINKGATE_TWO", "SINKGATE_THREE")
    addresses = dict(zip(names, (*processes, *[dead] * len(names)), strict=False))
    env = {**os.environ, **addresses, "SINKGATE_BIND": f"127.0.0.1:{port}"}
    running = subprocess.Popen([HAPROXY, "-db", "-f", str(DEPLOY / "haproxy.cfg")], env=env, stderr=subprocess.PIPE)
    try:
        for _ in range(600):
            time.sleep(0.1)
            assert running.poll() is None, running.stderr and running.stderr.read()
            try:
                urlopen(f"http://127.0.0.1:{port}/", timeout=5)
                break
            except OSError:
                continue
        yield f"http://127.0.0.1:{port}"
    finally:
        running.terminate()
        running.wait()


def host(address: str) -> str:
    return address.removeprefix("http://")


PAGES = 60  # that an address may ask one process for in a minute
FEWER = f"""
from functools import partial
from app import guard
guard.Limits = partial(guard.Limits, pages_per_minute={PAGES})
"""


@pytest.fixture(scope="module")
def one():
    with running_app("--behind-proxy", "127.0.0.1", code=FEWER) as app:
        yield app


def test_addresses_count_as_the_proxy_tells_them(one):
    with httpx.Client(timeout=60) as client:
        assert set(requests_from_many(client, one.address, PAGES + 5)) == {200}


@by_haproxy
def test_users_are_spread_and_stay(enter, picture, one):
    with ExitStack() as second:
        two = second.enter_context(running_app("--behind-proxy", "127.0.0.1"))
        with proxy(host(one.address), host(two.address)) as front:
            tabs = [enter(front) for _ in range(2)]

            def process(tab):
                return next(c["value"] for c in tab.page.context.cookies() if c["name"] == "sinkgate")

            assert sorted(process(tab) for tab in tabs) == ["one", "two"]
            assert {httpx.get(front, timeout=60).cookies["sinkgate"] for _ in range(6)} <= {
                "one",
                "two",
            }  # nobody where nothing runs
            for layer, tab in enumerate(tabs):
                tab.drag(layer, 0.2)
                tab.settle()
                assert tab.scale(layer) == pytest.approx(0.2, abs=0.02) and tab.errors == []

            client = gradio_client.Client(front, verbose=False)
            answer = client.predict(
                gradio_client.handle_file(picture), "How many objects are there?", "", api_name="/answer"
            )
            assert answer["text"]

            second.close()  # the second process stops
            moved = next(tab for tab in tabs if process(tab) == "two")
            moved.page.reload()
            moved.settle()
            assert process(moved) == "one"
            moved.errors.clear()  # of requests that found no process


@contextmanager
def proxied(get: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[str]:
    """HAProxy in front of a server that does this at every GET."""
    handler = type("Handler", (BaseHTTPRequestHandler,), {"do_GET": get, "log_message": lambda *_: None})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with proxy(f"127.0.0.1:{server.server_port}") as front:
            yield front
        server.shutdown()


@by_haproxy
def test_a_closed_stream_is_reported_to_the_process():
    """The guard holds a page's next event until the page has closed its last stream."""
    closed = threading.Event()

    def stream(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.end_headers()
        if request.path != "/stream":
            return
        request.wfile.write(b"data: end\n\n")
        request.connection.recv(1)
        closed.set()

    with proxied(stream) as front:
        with httpx.stream("GET", f"{front}/stream", timeout=30) as answer:
            assert next(answer.iter_lines()) == "data: end"
        assert closed.wait(30)  # without the option, after the 60 s of "timeout server"


@by_haproxy
def test_nobody_claims_another_address():
    addresses = []

    def echo(request: BaseHTTPRequestHandler) -> None:
        addresses.append(dict(request.headers))
        request.send_response(200)
        request.send_header("content-length", "0")
        request.end_headers()

    claimed = {"X-Forwarded-For": "203.0.113.9", "X-Forwarded-Host": "evil.example", "X-Forwarded-Proto": "https"}
    with proxied(echo) as front:
        urlopen(Request(f"{front}/claims", headers=claimed))
    got = addresses[-1]
    assert got["x-forwarded-for"] == "127.0.0.1" and got["x-forwarded-proto"] == "http"
    assert got["x-forwarded-host"] == host(front)


def test_compose_names_what_the_proxy_reads():
    compose = yaml.safe_load((DEPLOY / "compose.yml").read_text())
    names = set(re.findall(r"\$\{(\w+)\}", (DEPLOY / "haproxy.cfg").read_text()))
    variables = compose["services"]["proxy"]["environment"]
    assert variables.keys() == names
    processes = {value.split(":")[0] for name, value in variables.items() if name != "SINKGATE_BIND"}
    assert processes == compose["services"].keys() - {"proxy"}


def test_the_image_copies_what_there_is():
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    copied = [line.split()[1] for line in lines if line.startswith("COPY")]
    listed = {line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if line[0] == "!"}
    assert set(copied) == listed and all((ROOT / name).exists() for name in copied)
