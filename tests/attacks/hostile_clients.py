"""The app under attack: a real process, what is thrown at it, and what must never come back."""

from __future__ import annotations

import io
import itertools
import json
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from app_process import ROOT, running_app
from PIL import Image

ANSWER_SECONDS = 120
CANARY = "the-canary-that-no-user-may-hear"
LEAKS = re.compile(
    rf"Traceback|File \"|site-packages|{re.escape(str(ROOT))}|/opt/|/usr/|root:x:0|{CANARY}|object at 0x|Error\("
)


@dataclass
class AttackedApp:
    """One app and the counts of what it answered."""

    address: str
    folder: Path  # all that the process may write to
    log: Path
    listener: Listener
    clients: Iterator[httpx.Client]  # each at another address of this machine, so that no rate ends the app
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    slowest: float = 0.0

    def send(self, what: str, method: str, path: str, **request: Any) -> httpx.Response:
        """Throw one request; fails on a 500, a hang or a leak. ``what`` names it in the counts."""
        began = time.monotonic()
        request.setdefault("timeout", ANSWER_SECONDS)
        with next(self.clients).stream(method, f"{self.address}{path}", **request) as answer:
            answer.read() if "event-stream" not in answer.headers.get("content-type", "") else None
        self.slowest = max(self.slowest, time.monotonic() - began)
        self.counts[what, str(answer.status_code)] += 1
        assert answer.status_code < 500 or answer.status_code in (503, 507), (what, method, path, answer.status_code)
        if answer.is_error and method != "HEAD":
            assert not LEAKS.search(answer.text), answer.text
            assert answer.text and "<" not in answer.text, answer.text  # words, and no page that quotes what was sent
        return answer

    def event(self, index: int, data: list[Any], session: str, what: str = "event") -> dict[str, Any] | None:
        """Send an event and wait until it is over: what it put out, or None where it was refused at the door."""
        body = {"data": data, "fn_index": index, "session_hash": session, "trigger_id": None, "event_data": None}
        answer = self.send(what, "POST", "/gradio_api/queue/join", content=json.dumps(body))
        if answer.status_code != 200:
            return None
        return self.outcome(f"/gradio_api/queue/data?session_hash={session}", what)

    def outcome(self, path: str, what: str) -> dict[str, Any]:
        """Read a stream of events until it says that it ends, as clients do."""
        began, result = time.monotonic(), None
        with next(self.clients).stream("GET", f"{self.address}{path}", timeout=ANSWER_SECONDS) as stream:
            for line in stream.iter_lines():
                if line.startswith("data:") and line[5:].strip() != "null":
                    message = json.loads(line[5:])
                    if isinstance(message, dict) and message.get("msg") == "process_completed":
                        result = message
                    if isinstance(message, dict) and message.get("msg") == "close_stream":
                        break
                assert time.monotonic() - began < 4 * ANSWER_SECONDS, "the answer hangs"
        self.slowest = max(self.slowest, time.monotonic() - began)
        assert result is not None, "a stream ended without an answer"
        ended = "done" if result["success"] else f"told: {bool(result['output'].get('error'))}"
        self.counts[what, ended] += 1
        assert not LEAKS.search(json.dumps(result.get("output", {}).get("error")))
        for value in result["output"].get("data") or ():
            if isinstance(value, dict) and "tone" in value.get("value", value):
                text = json.dumps(value)
                assert not LEAKS.search(text) and "Unexpected" not in text, text
        return result["output"]

    def upload(self, name: str, data: bytes) -> str | None:
        """Upload a file; its path, or None where it was refused."""
        answer = self.send("upload", "POST", "/gradio_api/upload", files={"files": (name, data)})
        return answer.json()[0] if answer.status_code == 200 else None

    def unforeseen(self) -> list[str]:
        """Return the faults that the process logged as its own, each kind once, with their places."""
        text = self.log.read_text(errors="replace")
        raised = re.findall(r"Traceback \(most recent call last\):\n((?:[ |].*\n|\n)+)(\S.*)", text)
        lines = {f"{where.strip().splitlines()[-2].strip()}: {what[:200]}" for where, what in raised}
        return sorted(lines | {line for line in text.splitlines() if '"unexpected error"' in line})

    def strays(self) -> list[Path]:
        """Files that the process wrote elsewhere than among uploads."""
        return [
            path
            for path in self.folder.rglob("*")
            if path.is_file() and "gradio" not in path.relative_to(self.folder).parts
        ]


class Listener:
    """A server on this machine that must never be called."""

    def __init__(self) -> None:
        self.calls = 0
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        with suppress(OSError):
            while True:
                self._socket.accept()[0].close()
                self.calls += 1

    def close(self) -> None:
        """Listen no more."""
        self._socket.close()


@contextmanager
def attacked_app(folder: Path, *options: str, code: str = "") -> Iterator[AttackedApp]:
    """The app with a temporary folder of its own; ``code`` is Python that it runs before its own."""
    temporary = folder / "temporary"
    temporary.mkdir()
    (folder / "secret.png").write_text(CANARY)
    environment = {"TMPDIR": str(temporary), "GRADIO_TEMP_DIR": str(temporary / "gradio")}
    with closing(Listener()) as listener, running_app(*options, environment=environment, code=code) as app:
        clients = [httpx.Client(transport=httpx.HTTPTransport(local_address=f"127.0.0.{n}")) for n in range(1, 61)]
        yield AttackedApp(app.address, temporary, app.log, listener, itertools.cycle(clients))
        assert app.process.poll() is None, app.logged()[-2000:]  # it lives on


def png(side: int = 32) -> bytes:
    """A small picture."""
    data = io.BytesIO()
    Image.effect_noise((side, side), 80).save(data, "PNG")
    return data.getvalue()
