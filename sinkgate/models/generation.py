"""Streamed answers: a generator of text around transformers' streamer, and a way to stop."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from inspect import signature
from threading import Thread
from typing import Any, cast

import torch
from transformers import GenerationConfig, GenerationMixin, StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer

from sinkgate.errors import SinkgateError
from sinkgate.models.trace import Trace


def streamed(
    tokenizer: Any, answer: Callable[[TextIteratorStreamer, Callable[[], bool]], Trace]
) -> Generator[str, None, Trace]:
    """Run ``answer`` in a thread, yield the text generated so far after each piece, and return the Trace; raise its errors.

    ``answer`` gets a streamer and a function to call after each token, which returns True once the generator is closed.
    """
    closed = False
    result: list[Trace | BaseException] = []
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)

    def run() -> None:
        try:
            result.append(answer(streamer, lambda: closed))
        except BaseException as error:  # noqa: BLE001 - raised where the generator is read
            result.append(error)
            streamer.end()

    thread = Thread(target=run, daemon=True)
    thread.start()
    text, pieces = "", cast(Iterator[str], streamer)
    try:
        for piece in pieces:
            text += piece
            yield text.strip()
    finally:
        closed = True
        thread.join()
    if isinstance(result[0], BaseException):
        raise result[0]
    return result[0]


#: Options of ``generate`` by which one forward writes several tokens: no attention row belongs to one of them.
_SEVERAL_AT_ONCE = ("assistant_model", "assistant_early_exit", "prompt_lookup_num_tokens", "custom_generate")
#: Options of ``generate``: its parameters, and the attributes of a generation configuration.
_generate = cast(Any, GenerationMixin).generate
_KNOWN = {*signature(_generate).parameters, *vars(GenerationConfig()), "tokenizer"}
_RESERVED = ("return_dict_in_generate", "output_logits", "inputs")


def generate_options(options: Mapping[str, Any], stop: Callable[[], bool] | None, max_rows: int) -> dict[str, Any]:
    """Return options of ``generate`` that write one answer: greedy by default.

    Args:
        options: what the caller gives.
        stop: called after every token; True ends the answer.
        max_rows: of how many tokens attention is to be recorded, from 0.

    Raises:
        SinkgateError: an option is unknown, leads to several answers, to several tokens in one forward, or is set here; max_rows is negative.
    """
    if max_rows < 0:
        raise SinkgateError(f"max_rows is {max_rows}; expected 0 (no attention is recorded) or more")
    if unknown := sorted(options.keys() - _KNOWN):
        raise SinkgateError(
            f"{unknown[0]!r} is no option of transformers' generate; expected names such as do_sample, temperature or num_beams"
        )
    if conflicting := [name for name in _RESERVED if name in options]:
        raise SinkgateError(f"{conflicting[0]} is set by sinkgate itself; leave it out")
    if options.get("num_return_sequences", 1) != 1:
        raise SinkgateError(
            f"num_return_sequences is {options['num_return_sequences']}; a Trace holds one answer: call several times with do_sample=True"
        )
    if max_rows and (conflicting := [name for name in _SEVERAL_AT_ONCE if options.get(name) is not None]):
        raise SinkgateError(
            f"with {conflicting[0]} one forward writes several tokens, so attention has no row a token; give max_rows=0"
        )
    stops = [*(options.get("stopping_criteria") or ()), *([_StopWhen(stop)] if stop else ())]
    return {
        "do_sample": False,
        "num_beams": 1,
        **options,
        "return_dict_in_generate": True,
        "stopping_criteria": StoppingCriteriaList(stops) if stops else None,
    }


class _StopWhen(StoppingCriteria):
    def __init__(self, stop: Callable[[], bool]) -> None:
        self.stop = stop

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:  # noqa: ARG002 - transformers' signature
        return torch.full((input_ids.shape[0],), self.stop(), dtype=torch.bool, device=input_ids.device)
