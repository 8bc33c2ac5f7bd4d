"""Streams of events that end in step with the page.

Gradio ends a stream when nothing is pending, and the page opens another one when it asks again: unless it asks before it has
read that the stream ends. Then it waits for ever on a stream that is no more. So the reply to what is asked meanwhile waits
until the page has put the old stream down, which it does by hanging up.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send

LAST = b'data: {"msg":"close_stream"'  # with what follows, the message that tells a page that its stream ends


class Streams:
    """The streams that are about to end, by session.

    Args:
        seconds: for a page to hang up; whoever reads on, or sits behind a proxy that does not tell, gets the end then.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._ending: dict[str, asyncio.Event] = {}

    async def serve(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send, session: str) -> None:
        """Hand on a stream; its end comes after the page has hung up."""
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
        """A reply in this session, which begins when no stream of it is about to end."""

        async def reply(message: Message) -> None:
            if message["type"] == "http.response.start" and (ended := self._ending.get(session)):
                await ended.wait()
            await send(message)

        return reply


async def _hung_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
