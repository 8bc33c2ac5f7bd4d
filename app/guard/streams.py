"""Streams of events that end in step with the page.

Gradio ends a stream when no event is pending, and the page opens another one with its next event. If it sends the event before
it has read the end of the old stream, it waits for ever on a closed stream. So the reply to an event that arrives meanwhile is
held back until the page has closed the old stream.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send

LAST = b'data: {"msg":"close_stream"'  # start of the message that announces the end of a stream


class Streams:
    """Streams that are about to end, by session.

    Args:
        seconds: for a page to close its stream; clients that read on, or whose proxy does not report it, get the end then.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._ending: dict[str, asyncio.Event] = {}

    async def serve(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send, session: str) -> None:
        """Pass a stream on; its end is sent after the page has closed it.

        Args:
            app: Gradio's application.
            scope: of the request.
            receive: of the request.
            send: of the response.
            session: Gradio's session.
        """
        ended = None

        async def hand_on(message: Message) -> None:
            nonlocal ended
            if message.get("body", b"").startswith(LAST):
                ended = self._ending[session] = asyncio.Event()
            if ended is None or message.get("body"):
                await send(message)

        try:
            await app(scope, receive, hand_on)
            if ended:
                with suppress(TimeoutError):
                    await asyncio.wait_for(_hung_up(receive), self.seconds)
                await send({"type": "http.response.body"})
        finally:
            if ended:
                ended.set()
                if self._ending.get(session) is ended:
                    del self._ending[session]

    def replying(self, send: Send, session: str) -> Send:
        """Return a ``send`` that starts when no stream of this session is about to end."""

        async def reply(message: Message) -> None:
            if message["type"] == "http.response.start" and (ended := self._ending.get(session)):
                await ended.wait()
            await send(message)

        return reply


async def _hung_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
