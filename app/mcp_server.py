"""What an assistant can do with the model, by the Model Context Protocol: one tool, which takes text and gives text.

It takes no file and no address: a picture comes as a data URL, or is the demo world's scene of a number. Gradio's own server for this
protocol would open addresses that it is given, so this is the protocol's official package beside it, behind ``--mcp``.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random
from typing import Any

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from mcp.server.lowlevel import Server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.types import Tool
from PIL import Image
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

import sinkgate as sg
from sinkgate.scenes.scene import Scene

from .api import ANSWER, answer
from .guard import address_of
from .handlers import SCENE_SIDE
from .metrics import log_unforeseen
from .share_links import SEEDS
from .state import MAX_GATES_TEXT, MAX_QUESTION, Desk, open_picture
from .view_model import JSON, sentence

PATH = "/gradio_api/mcp"
MOST_BYTES = 4 << 20  # of a call: a picture takes a third more as base64
MOST_CALLS = 8  # that wait for the model at once; later ones wait for these
UNFORESEEN = "Something unforeseen went wrong, and nothing was answered."


def described(vlm: sg.VLM) -> Tool:
    """The tool, as assistants are told of it."""
    gates = {"scales": {"v_sink": f"[{vlm.num_layers} numbers]", "rest": f"[{vlm.num_layers} numbers]"}}
    arguments: dict[str, JSON] = {
        "question": {"type": "string", "maxLength": MAX_QUESTION, "description": "what to ask about the picture"},
        "picture": {
            "type": "string",
            "description": "a PNG, JPEG or WebP file as a data URL, data:image/png;base64,...; no path and no other address",
        },
        "scene": {
            "type": "integer",
            "minimum": SEEDS[0],
            "maximum": SEEDS[-1],
            "description": "in place of a picture: the seed of a demo scene of shapes, such as 71",
        },
        "gates": {
            "type": "string",
            "maxLength": MAX_GATES_TEXT,
            "description": f"JSON, {json.dumps(gates)}: Key scales from 0 to 4, one for each layer, 1 where unchanged",
        },
    }
    return Tool(
        name="answer",
        description=f"Asks {vlm.name}, a vision-language model, a question about a picture or a scene, and scales the attention Keys "
        "of its attention sinks (v_sink) and of all other visual tokens (rest) while it answers; unchanged without gates.",
        inputSchema={
            "type": "object",
            "required": ["question"],
            "properties": arguments,
            "additionalProperties": False,
        },
        outputSchema=ANSWER,
    )


class Tools:
    """The server of the tool; ``route`` and ``lifespan`` are what the page's app takes up."""

    def __init__(self, desk: Desk) -> None:
        self.desk, self.tool = desk, described(desk.vlm)
        self.calls = CapacityLimiter(MOST_CALLS)
        self.server: Server[Any, Any] = Server("sinkgate")
        self.server.list_tools()(self.list)
        self.server.call_tool(validate_input=False)(self.call)  # `answer` says what is wrong in words
        self.manager = StreamableHTTPSessionManager(
            self.server, json_response=True, stateless=True, max_request_body_size=MOST_BYTES
        )
        self.route = Route(PATH, self, methods=["POST"])
        logging.getLogger("mcp").setLevel(logging.CRITICAL)  # its messages may quote what was sent

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.manager.handle_request(scope, receive, send)

    @asynccontextmanager
    async def lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        """Runs as long as the page's app does."""
        async with self.manager.run():
            yield

    async def list(self) -> list[Tool]:
        """What there is to call."""
        return [self.tool]

    async def call(self, name: str, arguments: JSON) -> JSON:
        """One call; what is wrong with it is told in a sentence."""
        request = self.server.request_context.request
        client = request and request.client
        try:
            visitor = address_of(client.host if client else "")
            return await run_sync(self.answer, name, arguments, visitor, limiter=self.calls)
        except sg.SinkgateError as error:
            raise ValueError(sentence(str(error))) from None
        except Exception as error:
            log_unforeseen(error)
            raise ValueError(UNFORESEEN) from None

    def answer(self, name: str, arguments: JSON, visitor: str) -> JSON:
        """What the tool gives; raises `sinkgate.SinkgateError`."""
        known = self.tool.inputSchema["properties"]
        if name != self.tool.name or not arguments.keys() <= known.keys():
            raise sg.PromptError(f"there is one tool, {self.tool.name}, with the arguments {', '.join(known)}")
        question, gates = arguments.get("question"), arguments.get("gates", "")
        if not isinstance(question, str) or not isinstance(gates, str):
            raise sg.PromptError("question is needed, and like gates it is a text")
        return answer(self.desk, visitor, seen(arguments.get("picture"), arguments.get("scene")), question, gates)


def seen(picture: Any, scene: Any) -> Image.Image:
    """The picture of a call: a data URL, or the scene of a seed; raises `sinkgate.ImageError` for anything else."""
    if (picture is None) == (scene is None):
        raise sg.ImageError("Give either a picture or the seed of a scene.")
    if scene is not None:
        if type(scene) is not int or scene not in SEEDS:
            raise sg.ImageError(f"scene is a whole number from 0 to {SEEDS[-1]}, the seed of a demo scene.")
        return Scene.random(Random(scene)).render(SCENE_SIDE)
    if not isinstance(picture, str) or not picture.startswith("data:image/") or not picture.isascii():
        raise sg.ImageError("picture is an image file as a data URL, data:image/png;base64,... and no path or address.")
    return open_picture(picture)
