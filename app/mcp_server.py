"""Server of the Model Context Protocol: one tool, from text to text.

It takes no file and no address: a picture is a data URL, or the demo scene of a seed. Gradio's own server for this protocol
opens addresses, so this is the protocol's official package beside it, behind ``--mcp``.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
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

from .api import ANSWER, answer
from .engine import MAX_GATES_TEXT, MAX_QUESTION, Engine
from .examples import SCENE_SIDE, random_scene
from .guard import address_of
from .metrics import log_unexpected
from .pictures import open_picture
from .share_links import SEEDS
from .view_model import JSON, sentence

PATH = "/gradio_api/mcp"
MAX_BYTES = 4 << 20  # of a call; a picture takes a third more as base64
MAX_CALLS = 8  # in the queue of the model at once; later ones wait for these
UNEXPECTED = "Unexpected error: there is no answer. Try again."


def tool_description(vlm: sg.VLM) -> Tool:
    """Return the tool's description for assistants."""
    gates = {"scales": {"v_sink": f"[{vlm.num_layers} numbers]", "rest": f"[{vlm.num_layers} numbers]"}}
    arguments: dict[str, JSON] = {
        "question": {"type": "string", "maxLength": MAX_QUESTION, "description": "a question about the picture"},
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
            "description": f"JSON, {json.dumps(gates)}: Key scales from 0 to 4, one for each layer; 1 changes nothing",
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


class McpServer:
    """Server of the tool; ``route`` and ``lifespan`` belong into the page's ASGI app."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.tool = engine, tool_description(engine.vlm)
        self.calls = CapacityLimiter(MAX_CALLS)
        self.server: Server[Any, Any] = Server("sinkgate")
        self.server.list_tools()(self.list)
        self.server.call_tool(validate_input=False)(self.call)  # `answer` explains errors in words
        self.manager = StreamableHTTPSessionManager(
            self.server, json_response=True, stateless=True, max_request_body_size=MAX_BYTES
        )
        self.route = Route(PATH, self, methods=["POST"])
        logging.getLogger("mcp").setLevel(logging.CRITICAL)  # its messages may quote user input

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.manager.handle_request(scope, receive, send)

    @asynccontextmanager
    async def lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        """Run as long as the page's app does."""
        async with self.manager.run():
            yield

    async def list(self) -> list[Tool]:
        """Return the list of tools."""
        return [self.tool]

    async def call(self, name: str, arguments: JSON) -> JSON:
        """Run one call; an error becomes a sentence."""
        request = self.server.request_context.request
        client = request and request.client
        try:
            address = address_of(client.host if client else "")
            return await run_sync(self.answer, name, arguments, address, limiter=self.calls)
        except sg.SinkgateError as error:
            raise ValueError(sentence(str(error))) from None
        except Exception as error:
            log_unexpected(error)
            raise ValueError(UNEXPECTED) from None

    def answer(self, name: str, arguments: JSON, client: str) -> JSON:
        """Return the tool's result.

        Args:
            name: of the tool.
            arguments: of the call.
            client: address of the client, for the limits of the queue.

        Raises:
            SinkgateError: the arguments cannot be used, or the queue is full.
        """
        known = self.tool.inputSchema["properties"]
        if name != self.tool.name or not arguments.keys() <= known.keys():
            raise sg.PromptError(f"there is one tool, {self.tool.name}, with the arguments {', '.join(known)}")
        question, gates = arguments.get("question"), arguments.get("gates", "")
        if not isinstance(question, str) or not isinstance(gates, str):
            raise sg.PromptError("question must be a text, and gates too if given")
        image = image_of(arguments.get("picture"), arguments.get("scene"))
        return answer(self.engine, client, image, question, gates)


def image_of(picture: Any, scene: Any) -> Image.Image:
    """Return the image of a data URL or of a scene's seed; raises `sinkgate.ImageError` for anything else."""
    if (picture is None) == (scene is None):
        raise sg.ImageError("Give either a picture or the seed of a scene.")
    if scene is not None:
        if type(scene) is not int or scene not in SEEDS:
            raise sg.ImageError(f"scene must be an integer from 0 to {SEEDS[-1]}, the seed of a demo scene.")
        return random_scene(scene).render(SCENE_SIDE)
    if not isinstance(picture, str) or not picture.startswith("data:image/") or not picture.isascii():
        raise sg.ImageError(
            "picture must be an image file as a data URL, data:image/png;base64,...: no path and no other address."
        )
    return open_picture(picture)
