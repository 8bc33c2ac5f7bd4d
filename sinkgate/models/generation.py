"""Answers as they grow: a generator of text around transformers' streamer, and a way to stop."""

from __future__ import annotations

from collections.abc import Callable, Generator
from threading import Thread
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer

from sinkgate.models.trace import Trace


def streamed(
    tokenizer: Any, answer: Callable[[TextIteratorStreamer, Callable[[], bool]], Trace]
) -> Generator[str, None, Trace]:
    """Run ``answer`` in a thread and yield the text as it grows; returns its Trace, raises its errors.

    ``answer`` gets a streamer and a question to ask after each token: has whoever listens gone?
    """
    closed = False
    result: list[Trace | BaseException] = []
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)

    def run() -> None:
        try:
            result.append(answer(streamer, lambda: closed))
        except BaseException as error:  # noqa: BLE001 - handed to whoever iterates
            result.append(error)
            streamer.end()

    thread = Thread(target=run, daemon=True)
    thread.start()
    text = ""
    try:
        for piece in streamer:
            text += piece
            yield text.strip()
    finally:
        closed = True
        thread.join()
    if isinstance(result[0], BaseException):
        raise result[0]
    return result[0]


def stop_when(stop: Callable[[], bool] | None) -> StoppingCriteriaList | None:
    """A stopping criterion that asks ``stop`` after every token."""
    return StoppingCriteriaList([_StopWhen(stop)]) if stop else None


class _StopWhen(StoppingCriteria):
    def __init__(self, stop: Callable[[], bool]) -> None:
        self.stop = stop

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:  # noqa: ARG002 - transformers' signature
        return torch.full((input_ids.shape[0],), self.stop(), dtype=torch.bool, device=input_ids.device)
