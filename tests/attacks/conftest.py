"""A little page behind the guard, for tests that need no model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr
import httpx
import pytest

from app import guard


def echo(image: str | None, question: str, gates_json: str = "") -> str:
    return f"{image} {question} {gates_json}"


def moved(values: Any) -> Any:
    return values


def little_page() -> gr.Blocks:
    with gr.Blocks(analytics_enabled=False) as page:
        image, question, gates = gr.Image(type="filepath"), gr.Textbox(), gr.Textbox()
        mixer, bring = gr.HTML(server_functions=[moved]), gr.UploadButton(file_count="multiple")
        gr.Button().click(echo, [image, question, gates], question, api_name="answer")
        gr.Button().click(lambda *values: str(values), [mixer, bring], question, api_visibility="private")
    return page


@pytest.fixture(scope="session")
def visit() -> Iterator[Callable[..., httpx.Client]]:
    """``visit(limits, **settings)`` gives a client of the little page behind a guard; the same one for the same settings."""
    clients: dict[Any, httpx.Client] = {}
    pages: list[gr.Blocks] = []

    def visit(limits: guard.Limits | None = None, **settings: Any) -> httpx.Client:
        key = (limits, *settings.items())
        if key not in clients:
            page = little_page()
            guards = guard.middleware(limits, **settings)
            _, address, _ = page.launch(
                prevent_thread_lock=True,
                quiet=True,
                share=False,
                show_error=False,
                run_history=False,
                app_kwargs={"middleware": guards},
            )
            pages.append(page)
            clients[key] = httpx.Client(base_url=address.rstrip("/"), timeout=120)
        return clients[key]

    yield visit
    for page in pages:
        page.close(verbose=False)
