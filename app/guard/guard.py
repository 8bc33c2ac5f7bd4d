"""The ASGI middleware: it passes on the requests that the page and API clients send, and refuses all others.

It limits paths, sizes, times and rates of requests, validates every body before Gradio reads it (`payload`), drops events
that no client reads (`abandoned_streams`), ends streams in step with the page (`streams`) and adds security headers
(`headers`). A refusal is one sentence. Nothing but numbers is logged or stored.
"""

from __future__ import annotations

import asyncio
import errno
import io
import re
import shutil
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import Any
from urllib.parse import parse_qs, urlencode

import orjson
from gradio.utils import get_upload_folder
from limits import RateLimitItem, RateLimitItemPerHour, RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from ..guard import payload
from .abandoned_streams import AbandonedStreams
from .headers import SPACES, SecurityHeaders
from .payload import Reader, Refused
from .requests import address_of, declared, is_host, replayed, with_body
from .routes import CALLS, HEALTH, MCP, QUEUED, ROUTES, Route, uploads
from .streams import Streams

MIB = 1 << 20
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_ROOM = "The server has no room for uploads at present: try again in an hour."
# headers that Gradio trusts or fails on; those of a proxy stay behind one
NEVER, BEHIND_PROXY = {"range", "x-gradio-server", "transfer-encoding"}, {"x-forwarded-host", "x-forwarded-proto"}


@dataclass(frozen=True)
class Limits:
    """Limits of one address and of all together; a whole class may share one address. All chosen by us."""

    pages_per_minute: int = 300
    events_per_minute: int = 15_000  # a moving fader sends twelve a second
    uploads_per_minute: int = 300
    uploaded_mib_per_hour: int = 4096
    others_per_minute: int = 60_000  # a page loads about seventy files
    open_per_address: int = 400  # requests at once; an open page holds two
    open_in_all: int = 900  # a common limit is 1024 open files a process
    body_bytes: int = 8 * MIB  # of JSON, which may hold a picture
    held_bytes: int = 256 * MIB  # of all bodies being read
    file_bytes: int = 20 * MIB  # of one uploaded file
    stall_seconds: float = 20.0  # without a byte of the body
    body_seconds: float = 180.0  # for the whole body
    spare_bytes: int = 512 * MIB  # of the disk, kept free of uploads
    unread_seconds: float = 60.0  # that events wait for a client to read them
    unread_messages: int = 200  # of one session; an answer takes about ten
    calls_per_address: int = 64  # of the API that run, wait or were not fetched
    hang_up_seconds: float = 10.0  # for a page to close a stream that ends; a slower one misses its next event


def middleware(limits: Limits | None = None, **settings: Any) -> list[Middleware]:
    """Return the middleware for ``launch(app_kwargs={"middleware": ...})``; ``settings`` are parameters of `Guard`."""
    return [Middleware(Guard, limits=limits or Limits(), **settings)]


class Guard:
    """The middleware.

    Args:
        app: Gradio's application.
        limits: rates and sizes.
        local: accept requests to this machine's own names only, which stops DNS rebinding.
        proxied: trust host and protocol headers of a proxy.
        on_space: let huggingface.co frame the page.
        scripts: hashes, by `scripts_of`, of the scripts in the page's head.
        first: script that a page runs before its own.
        mcp: serve the Model Context Protocol, too.
        observe: called with the HTTP status of every refused request.
    """

    def __init__(
        self,
        app: ASGIApp,
        limits: Limits,
        *,
        local: bool = False,
        proxied: bool = False,
        on_space: bool = False,
        scripts: str = "",
        first: str = "",
        mcp: bool = False,
        observe: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.app, self.limits, self.local, self.proxied, self.observe = app, limits, local, proxied, observe
        self.frames, self.scripts, self.first = SPACES if on_space else "'self'", scripts, first.encode()
        self.routes = [
            (route, re.compile(route.path, re.ASCII)) for route in (*ROUTES, uploads(), HEALTH, *(MCP if mcp else ()))
        ]
        self.rates: dict[str, RateLimitItem] = {
            "page": RateLimitItemPerMinute(limits.pages_per_minute),
            "event": RateLimitItemPerMinute(limits.events_per_minute),
            "upload": RateLimitItemPerMinute(limits.uploads_per_minute),
            "other": RateLimitItemPerMinute(limits.others_per_minute),
        }
        self.uploaded = RateLimitItemPerHour(limits.uploaded_mib_per_hour)
        self.meter = SlidingWindowCounterRateLimiter(MemoryStorage())
        self.open: Counter[str] = Counter()  # requests under way, by address
        self.held = 0  # bytes of bodies in memory
        self.abandoned = AbandonedStreams(limits.unread_seconds, limits.unread_messages)
        self.streams = Streams(limits.hang_up_seconds)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it with a sentence."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close"})
            return
        send = SecurityHeaders(send, self.frames, self.scripts, self.first, scope["path"])
        try:
            await self._admit(scope, receive, send)
        except Refused as refused:
            self.observe(refused.status)
            answer = PlainTextResponse if scope["path"] == "/gradio_api/upload" else _detail
            headers = {"Connection": "close", **refused.headers}
            await answer(refused.sentence, refused.status, headers)(scope, receive, send)
        except OSError as error:
            if error.errno not in FULL or send.started:
                raise
            self.observe(507)
            await PlainTextResponse(NO_ROOM, 507)(scope, receive, send)

    async def _admit(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = self._route(scope["method"], scope["path"])
        if route.kind == "health":
            await self.app(scope, receive, send)
            return
        address = address_of((scope.get("client") or ("",))[0])
        if self.open[address] >= self.limits.open_per_address or self.open.total() >= self.limits.open_in_all:
            raise Refused(429, "Too many requests from your address are open at once: close other tabs of this page.")
        self.open[address] += 1
        try:
            self._check_rate(self.rates[route.kind], address)
            scope = self._cleaned(scope)
            if scope["path"] == "/gradio_api/upload":
                await self._upload(scope, receive, send, address)
            elif route.read:
                await self._read(route.read, scope, receive, send, address)
            elif scope["path"] == "/gradio_api/upload_progress":
                await PlainTextResponse('data: {"msg": "done"}\n\n', media_type="text/event-stream")(
                    scope, receive, send
                )
            else:
                await self._hand_on(scope, receive, send)
        finally:
            self.open[address] -= 1
            if not self.open[address]:
                del self.open[address]

    def _route(self, method: str, path: str) -> Route:
        matches = [route for route, pattern in self.routes if pattern.fullmatch(path)]
        if not matches:
            raise Refused(404, "There is nothing at this address.")
        for route in matches:
            if method in route.methods:
                return route
        allowed = sorted({name for route in matches for name in route.methods})
        raise Refused(405, f"This address takes {' and '.join(allowed)} only.", Allow=", ".join(allowed))

    def _check_rate(self, rate: RateLimitItem, address: str, cost: int = 1) -> None:
        if not self.meter.hit(rate, address, cost=cost):
            wait = max(1, round(self.meter.get_window_stats(rate, address).reset_time - time.time()))
            raise Refused(429, f"Too many requests from your address: try again in {wait} s.", Retry_After=f"{wait}")

    def _cleaned(self, scope: Scope) -> Scope:
        """Return the request without the headers and parameters that Gradio trusts unchecked."""
        headers = Headers(scope=scope)
        host = (self.proxied and headers.get("x-forwarded-host", "").split(",")[0].strip()) or headers.get("host", "")
        if not is_host(host):
            raise Refused(400, "The Host header of this request is not valid.")
        if self.local and re.sub(r":\d+$", "", host).lower() not in LOOPBACK:
            raise Refused(421, "This page is served to this machine only: start it with --host, or --behind-proxy.")
        if scope["method"] not in ("GET", "HEAD") and headers.get("sec-fetch-site") == "cross-site":
            raise Refused(403, "Requests from pages of other sites are not accepted.")
        if len(scope["query_string"]) > 2000:
            raise Refused(414, "The query string is too long, limit 2000 characters.")
        query = parse_qs(scope["query_string"].decode("latin-1"))
        known = {name: query[name][0] for name in ("session_hash", "__theme", "v") if name in query}
        drop = NEVER if self.proxied else NEVER | BEHIND_PROXY
        raw = [(name, value) for name, value in scope["headers"] if name.decode("latin-1").lower() not in drop]
        return {**scope, "headers": raw, "query_string": urlencode(known).encode()}

    async def _hand_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on a request without a body; a stream of events only for a session with events."""
        if not is_stream(scope["path"]):
            await self.app(scope, receive, send)
            return
        queue = scope["app"].get_blocks()._queue
        session = session_of(scope, queue)
        if session is None:
            raise Refused(404, "There are no events here, or they were fetched already.")
        with self.abandoned.listening(queue, session):
            if "/call/" in scope["path"]:
                await self.app(scope, receive, send)
            else:
                await self.streams.serve(self.app, scope, receive, send, session)

    async def _read(self, read: Reader, scope: Scope, receive: Receive, send: Send, address: str) -> None:
        body, size = bytearray(), 0
        try:
            async for chunk in self._chunks(receive, self.limits.body_bytes, declared(scope)):
                self.held, size = self.held + len(chunk), size + len(chunk)
                if self.held > self.limits.held_bytes:
                    raise Refused(503, "The server is busy reading other requests: try again in a moment.")
                body += chunk
            page = scope["app"].get_blocks()
            checked = read(payload.read_json(bytes(body)), page)
        except ConnectionAbortedError:
            return
        finally:
            self.held -= size
        if read in QUEUED:
            if self.abandoned.too_many(page._queue, checked["session_hash"]):
                raise Refused(429, "Too many of your events were not fetched: fetch them first.")
            if read in CALLS:
                self._count_call(checked["session_hash"], address)
            scope = {**scope, "path": scope["path"].replace("/v2/", "/")}
            send = self.streams.replying(send, checked["session_hash"])
        body = orjson.dumps(checked)
        scope = with_body(scope, len(body), b"application/json")
        try:
            await self.app(scope, replayed(io.BytesIO(body), receive), send)
        finally:
            if read in QUEUED:
                self.abandoned.joined(page._queue, checked["session_hash"])

    def _count_call(self, session: str, address: str) -> None:
        """Count a call for the address of its client, since each call has a session of its own."""
        if self.abandoned.calls(address) >= self.limits.calls_per_address:
            raise Refused(
                429,
                f"{self.limits.calls_per_address} calls from your address are not finished, or their answers were not fetched: "
                "fetch them first.",
            )
        self.abandoned.called(session, address)

    async def _upload(self, scope: Scope, receive: Receive, send: Send, address: str) -> None:
        """Receive a whole upload before passing it on, so that one that stalls, ends early or is refused leaves no file."""
        folder = Path(get_upload_folder())
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder)
        limit = payload.MAX_FILES * self.limits.file_bytes
        if shutil.disk_usage(folder).free < self.limits.spare_bytes + limit:
            raise Refused(507, NO_ROOM)
        form = payload.Form(Headers(scope=scope).get("content-type", ""), self.limits.file_bytes)
        with SpooledTemporaryFile(max_size=MIB) as file:
            try:
                async for chunk in self._chunks(receive, limit + MIB, declared(scope)):
                    form.write(chunk)
                    file.write(chunk)
            except ConnectionAbortedError:
                return
            form.finish()
            self._check_rate(self.uploaded, address, cost=1 + file.tell() // MIB)
            scope = with_body(scope, file.tell(), b"multipart/form-data; boundary=" + form.boundary)
            await self.app(scope, replayed(file, receive), send)

    async def _chunks(self, receive: Receive, limit: int, length: int) -> AsyncIterator[bytes]:
        """Yield the body of a request; refuse one that is too long or too slow."""
        if length > limit:
            raise Refused(413, f"The body of this request is too long, limit {limit / MIB:.0f} MiB.")
        ends, size = time.monotonic() + self.limits.body_seconds, 0
        more = True
        while more:
            try:
                wait = min(self.limits.stall_seconds, ends - time.monotonic())
                message = await asyncio.wait_for(receive(), wait)
            except TimeoutError:
                raise Refused(408, "The body of this request arrived too slowly: send it again.") from None
            if message["type"] == "http.disconnect":
                raise ConnectionAbortedError
            size += len(chunk := message.get("body", b""))
            if size > limit:
                raise Refused(413, f"The body of this request is too long, limit {limit / MIB:.0f} MiB.")
            yield chunk
            more = message.get("more_body", False)


def sweep(folder: Path, older_than: float = 60.0) -> None:
    """Delete temporary files of failed uploads, which Gradio leaves."""
    for piece in folder.glob("tmp*"):
        if piece.is_file() and time.time() - piece.stat().st_mtime > older_than:
            piece.unlink(missing_ok=True)


def is_stream(path: str) -> bool:
    """Return whether this is the path of a stream of events."""
    return path == "/gradio_api/queue/data" or "/call/" in path


def session_of(scope: Scope, queue: Any) -> str | None:
    """Return the session whose events a stream reads; None without events."""
    if "/call/" not in scope["path"]:
        session = parse_qs(scope["query_string"].decode()).get("session_hash", [""])[0]
        return session if session in queue.pending_messages_per_session else None
    event_id = scope["path"].rpartition("/")[2]
    event = queue.event_ids_to_events.get(event_id)
    sessions = (session for session, events in queue.pending_event_ids_session.items() if event_id in events)
    return event.session_hash if event else next(sessions, None)


def _detail(sentence: str, status: int, headers: dict[str, str]) -> JSONResponse:
    return JSONResponse({"detail": sentence}, status, headers)
