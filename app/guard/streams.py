"""Streams of events, ended and replaced in step with the page.

Gradio ends a stream when no event is pending, and the page opens another one with its next event. That has two faults,
which leave the page waiting for ever:

- If the page sends an event before it has read the end of the old stream, it waits on a closed stream. So the reply to an
  event that arrives meanwhile is held back until the page has closed the old stream.
- If the page opens a stream while an older one of its session is open, Gradio lets both take messages from the one queue of
  the session. So there is one reader for each session, which sends to the newest request; the older request ends. That
  disconnect is not passed on to Gradio, which would drop all events of the session.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from starlette.types import ASGIApp, Message, Receive, Scope, Send

LAST = b'data: {"msg":"close_stream"'  # start of the message that announces the end of a stream


class Streams:
    """Readers of sessions.

    Args:
        seconds: for a page to close its stream; clients that read on, or whose proxy does not report it, get the end then.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._readers: dict[str, _Reader] = {}

    async def serve(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send, session: str) -> None:
        """Pass a session's messages on until a newer request takes over; the end is sent after the page has closed the stream.

        Args:
            app: Gradio's application.
            scope: of the request.
            receive: of the request.
            send: of the response.
            session: Gradio's session.
        """
        reader = self._readers.get(session)
        if reader is None or reader.over:
            if reader:
                reader.left.set()  # no page opens a stream while it reads another
            reader = self._readers[session] = _Reader(app, scope)
        try:
            await reader.serve(receive, send, self.seconds)
        finally:
            if reader.over and self._readers.get(session) is reader:
                del self._readers[session]

    def replying(self, send: Send, session: str) -> Send:
        """Return a ``send`` that starts when no stream of this session is about to end."""

        async def reply(message: Message) -> None:
            reader = self._readers.get(session)
            if message["type"] == "http.response.start" and reader and reader.ending:
                await reader.left.wait()
            await send(message)

        return reply


@dataclass(eq=False)
class _Request:
    """One request for the messages of a session."""

    send: Send
    started: bool = False
    superseded: asyncio.Event = field(default_factory=asyncio.Event)

    async def pass_on(self, message: Message) -> None:
        self.started |= message["type"] == "http.response.start"
        await self.send(dict(message))

    async def end(self) -> None:
        if not self.started:
            await self.send({"type": "http.response.start", "status": 204, "headers": []})
        await self.send({"type": "http.response.body"})


class _Reader:
    """Gradio's stream of one session, read once, for the newest request.

    Args:
        app: Gradio's application.
        scope: of the first request.
    """

    def __init__(self, app: ASGIApp, scope: Scope) -> None:
        self.ending = False  # the end is announced
        self.left = asyncio.Event()  # the page has closed the stream, or may be taken to have
        self._hung_up = asyncio.Event()  # the newest request, before the end
        self._head: Message | None = None
        self._newest: _Request | None = None
        self._task = asyncio.create_task(self._read(app, scope))

    @property
    def over(self) -> bool:
        """True where no further message will come."""
        return self.ending or self._hung_up.is_set() or self._task.done()

    async def serve(self, receive: Receive, send: Send, seconds: float) -> None:
        request = _Request(send)
        if self._head:
            await request.pass_on(self._head)
        if self._newest:
            self._newest.superseded.set()
        self._newest = request
        hung_up, superseded, left = waits = [
            asyncio.ensure_future(wait) for wait in (_hung_up(receive), request.superseded.wait(), self.left.wait())
        ]
        try:
            await asyncio.wait({self._task, hung_up, superseded}, return_when=asyncio.FIRST_COMPLETED)
            if self._newest is request:
                if hung_up.done() and not self.ending:
                    self._hung_up.set()
                await self._task
                if self.ending:
                    await asyncio.wait({hung_up, left}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            await request.end()
        finally:
            for wait in waits:
                wait.cancel()
            if self._newest is request:
                self._task.cancel()  # where the server stops
                self.left.set()

    async def _read(self, app: ASGIApp, scope: Scope) -> None:
        await app(scope, self._receive, self._hand_on)

    async def _receive(self) -> Message:
        await self._hung_up.wait()
        return {"type": "http.disconnect"}

    async def _hand_on(self, message: Message) -> None:
        assert self._newest is not None
        if message["type"] == "http.response.start":
            self._head = message
        elif not message.get("body"):
            return  # each request is ended by itself
        self.ending |= message.get("body", b"").startswith(LAST)
        await self._newest.pass_on({**message, "more_body": True} if "body" in message else message)


async def _hung_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
