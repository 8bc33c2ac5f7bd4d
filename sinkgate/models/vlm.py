"""Vision-language model: gated runs, answers and sinks.

Shapes: L layers of the LLM that attend to visual tokens, P prompt positions, B prompts, T tokens of the longest with its answer.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast, overload

import torch
from torch import Tensor
from transformers import TextIteratorStreamer

from sinkgate.attention.recorder import Recorder
from sinkgate.attention.scales import Scales
from sinkgate.errors import GateError, PromptError, SinkgateError, UnsupportedModelError
from sinkgate.models.base import BaseVLM
from sinkgate.models.batch import Batch
from sinkgate.models.chat import EncodedOptions
from sinkgate.models.dimensions import sink_criteria
from sinkgate.models.generation import generate_options, streamed
from sinkgate.models.model_state import model_state
from sinkgate.models.prompts import Prompt, is_one_prompt, refuse_several
from sinkgate.models.trace import Trace, stack_rows
from sinkgate.sinks.classify import Merged, SinkMap, SinkMasks, classify, classify_patches
from sinkgate.sinks.criteria import Choice, Criterion, reduction_of
from sinkgate.sinks.fine_gates import AnyGates
from sinkgate.sinks.gates import Gates

#: Gates for all of several prompts, or one for each.
Tables = AnyGates | Sequence[AnyGates | None] | None
#: Sinks for each of several prompts.
Maps = Sequence[SinkMasks | None] | None
MAX_ROWS = 128  # tokens whose attention is kept; one row takes layers x heads x Keys x 4 bytes


class VLM(BaseVLM):
    """A vision-language model with its processor. Calls on one model run one after another; nothing stays attached to it.

    Raises:
        UnsupportedModelError: the model takes no images, or no layer can be gated.
    """

    @contextmanager
    def gated(
        self, prompt: Prompt, sinks: SinkMasks, gates: AnyGates, recorder: Recorder | None = None
    ) -> Generator[None]:
        """Run every forward and ``generate`` call on this prompt within the block with the gates.

        The block holds the model's lock; the gates are removed when it ends, also by an exception.

        Raises:
            GateError: the gates do not fit this model.
        """
        with self.attached(self.scales(prompt, gates, sinks), recorder):
            yield

    @overload
    def predict(self, prompt: Prompt, gates: AnyGates | None = None, sinks: SinkMasks | None = None) -> Trace: ...

    @overload
    def predict(self, prompt: Sequence[Prompt], gates: Tables = None, sinks: Maps = None) -> list[Trace]: ...

    def predict(self, prompt: Any, gates: Any = None, sinks: Any = None) -> Any:
        """Run one prefill: the next-token distribution and the last row's attention, no answer yet. Of several prompts as ``predict_all``.

        Raises:
            PromptError: this is no prompt, and no list of prompts.
            GateError: the gates do not fit this model.
        """
        if not is_one_prompt(prompt):
            return self.predict_all(prompt, gates, sinks)
        recorder = Recorder("last")
        return self.trace(prompt, self.next_logits(prompt, gates, sinks, recorder), [], recorder.attention)

    def next_logits(
        self,
        prompt: Prompt,
        gates: AnyGates | None = None,
        sinks: SinkMasks | None = None,
        recorder: Recorder | None = None,
    ) -> Tensor:
        """Return the next-token logits of one prefill, (vocabulary,).

        Args:
            prompt: what to read.
            gates: scales of the Keys; None leaves the model as it is.
            sinks: the groups of visual tokens; found by the default criteria where None.
            recorder: takes attention rows.

        Raises:
            GateError: the gates do not fit this model.
        """
        with torch.no_grad(), self.attached(self.scales(prompt, gates, sinks), recorder, own_cache=True):
            return self.model(**self.warm_inputs(prompt), use_cache=False, logits_to_keep=1).logits[0, -1]

    def predict_all(self, prompts: Sequence[Prompt], gates: Tables = None, sinks: Maps = None) -> list[Trace]:
        """Run ``predict`` for prompts of any images and lengths in one forward, each under gates of its own.

        Models that encode images anew in every call are run prompt by prompt.

        Args:
            prompts: what to read, B.
            gates: for all prompts, or one for each.
            sinks: the groups of each prompt's visual tokens; found by the default criteria where None.

        Raises:
            PromptError: there are not as many gates or sinks as prompts.
            GateError: gates do not fit this model.
        """
        cases = _cases(prompts, gates, sinks)
        if self.adapter.takes_encoded is None or not cases:
            return [self.predict(*case) for case in cases]
        recorder = Recorder("last")
        with self.lock, torch.no_grad():
            scales, batch = [self.scales(*case) for case in cases], self.batch(prompts)
            with self.attached(batch.key_scales(scales), recorder):
                logits = self.model(**batch.inputs, use_cache=False, logits_to_keep=1).logits[:, -1]
        traces: list[Trace] = []
        for index, (prompt, start) in enumerate(zip(prompts, batch.starts, strict=True)):
            rows = {
                layer: [call[index : index + 1, ..., start:] for call in calls]
                for layer, calls in recorder.attention.items()
            }
            traces.append(self.trace(prompt, logits[index], [], rows))
        return traces

    def batch(
        self,
        prompts: Sequence[Prompt],
        sinks: Sequence[SinkMasks] = (),
        answers: Sequence[Sequence[int]] | None = None,
    ) -> Batch:
        """Return prompts as one batch, their images encoded, with their sinks, and their answers as ``encode_answer`` gives them.

        Raises:
            UnsupportedModelError: several prompts for a model that encodes images anew in every call.
        """
        if len(prompts) > 1 and self.adapter.takes_encoded is None:
            raise UnsupportedModelError(
                f"{self.name} encodes its images in every call and takes one prompt at a time; batches of 1 work"
            )
        for prompt in prompts:
            self.warm_inputs(prompt)
        with self.lock:
            return Batch.of(prompts, self.adapter, self.pad_token, sinks, answers)

    def answer_logits(self, batch: Batch) -> Tensor:
        """Return the logits at the positions of a batch's answers, (B, T - P, vocabulary)."""
        count = batch.inputs["input_ids"].shape[1] - batch.length
        output = self.model(**batch.inputs, use_cache=False, logits_to_keep=count + 1)
        return output.logits[:, -count - 1 : -1]

    def encode_answer(self, prompt: Prompt, answer: str) -> list[int]:
        """Return the ids of an answer as the model itself would write it behind the prompt, with the token that ends it.

        Raises:
            PromptError: the answer is empty, holds a token with a meaning of its own, or is too long for the model.
        """
        ids = self.prompter.chat.encode_answer(prompt.question, answer)
        self.prompter.refuse_length(prompt.length + len(ids), "prompt with its answer")
        return ids

    def encode_options(self, prompt: Prompt, options: Sequence[str]) -> EncodedOptions:
        """Return options as the model itself would write them behind the prompt, each with the token that ends it.

        Raises:
            PromptError: fewer than two options, two of the same tokens, or one that ``encode_answer`` refuses.
        """
        encoded = self.prompter.chat.encode_options(prompt.question, options)
        self.prompter.refuse_length(prompt.length + max(map(len, encoded.ids.values())), "prompt with its options")
        return encoded

    def new_tokens(self, length: int, wanted: int) -> int:
        """Return how many tokens to generate behind a prompt: no more than the model has positions for.

        Args:
            length: positions of the prompt.
            wanted: tokens at most, from 1.

        Raises:
            SinkgateError: ``wanted`` is no whole number from 1.
        """
        if isinstance(wanted, bool) or not hasattr(wanted, "__index__") or operator.index(wanted) < 1:
            raise SinkgateError(f"max_new_tokens is {wanted!r}; expected a whole number from 1")
        positions = self.prompter.max_length  # the last token generated needs none
        wanted = operator.index(wanted)
        return wanted if positions is None else max(1, min(wanted, positions - length + 1))

    @overload
    def answer(
        self,
        prompt: Prompt,
        gates: AnyGates | None = None,
        sinks: SinkMasks | None = None,
        *,
        max_new_tokens: int = 64,
        max_rows: int = MAX_ROWS,
        streamer: TextIteratorStreamer | None = None,
        stop: Callable[[], bool] | None = None,
        **generation: Any,
    ) -> Trace: ...

    @overload
    def answer(
        self, prompt: Sequence[Prompt], gates: Tables = None, sinks: Maps = None, **options: Any
    ) -> list[Trace]: ...

    def answer(
        self,
        prompt: Any,
        gates: Any = None,
        sinks: Any = None,
        *,
        max_new_tokens: int = 64,
        max_rows: int = MAX_ROWS,
        streamer: TextIteratorStreamer | None = None,
        stop: Callable[[], bool] | None = None,
        **generation: Any,
    ) -> Any:
        """Generate the answer, greedy unless ``generation`` has other options, with the attention of every generated token.

        Args:
            prompt: what to answer; several prompts are answered one by one.
            gates: scales of the Keys; None leaves the model as it is. With several prompts for all of them, or one for each.
            sinks: the groups of visual tokens; found by the default criteria where None. With several prompts one for each.
            max_new_tokens: where to stop at the latest; earlier where the model has no further positions.
            max_rows: of how many tokens, from the first, the attention is kept; 0 records none.
            streamer: receives the text as it grows.
            stop: called after every token; True ends the answer early.
            generation: other options of ``generate``, such as ``do_sample=True``. With ``num_beams`` only the attention of the first
                token is kept, since later ones belong to beams.

        Raises:
            PromptError: this is no prompt, and no list of prompts.
            GateError: the gates do not fit this model.
            SinkgateError: options of ``generate`` that lead to several answers, or that this model cannot follow.

        Example:
            >>> vlm.answer(prompt, max_new_tokens=8, do_sample=True, temperature=0.7).text
        """
        options = {"max_new_tokens": max_new_tokens, "max_rows": max_rows, "streamer": streamer, "stop": stop}
        if not is_one_prompt(prompt):
            return [self.answer(*case, **options, **generation) for case in _cases(prompt, gates, sinks)]
        generation = generate_options(generation, stop, max_rows)
        beams = generation["num_beams"] > 1
        # beams need an image each
        raw = beams or self.adapter.cross_attention or self.adapter.takes_encoded is None
        if raw and generation.get("prefill_chunk_size"):
            raise SinkgateError(
                f"prefill_chunk_size needs images that are encoded before, and {self.name} {'with beams ' if beams else ''}"
                "encodes them in the prefill; leave it out"
            )
        recorder = Recorder("last", most=min(max_rows, 1) if beams else max_rows, since=prompt.length - 1)
        with (
            torch.no_grad(),
            self.attached(self.scales(prompt, gates, sinks), recorder if max_rows else None, own_cache=not beams),
        ):
            output = self.model.generate(
                **(prompt.inputs if beams else self.inputs_to_generate(prompt)),
                max_new_tokens=self.new_tokens(prompt.length, max_new_tokens),
                output_logits=True,
                streamer=streamer,
                **generation,
            )
        written = output.sequences[0, prompt.length :].tolist()
        return self.trace(prompt, output.logits[0][0], written, recorder.attention)

    def stream(
        self,
        prompt: Prompt,
        gates: AnyGates | None = None,
        sinks: SinkMasks | None = None,
        *,
        max_new_tokens: int = 64,
        stop: Callable[[], bool] = lambda: False,
    ) -> Generator[str, None, Trace]:
        """Run ``answer`` for one prompt as a generator of the growing text, which returns the Trace. Closing it stops the model.

        Raises:
            PromptError: this is no prompt.
            GateError: the gates do not fit this model; at the first step, as any error of the run.
        """
        refuse_several(prompt, "stream")
        return streamed(
            self.tokenizer,
            lambda streamer, closed: self.answer(
                prompt,
                gates,
                sinks,
                max_new_tokens=max_new_tokens,
                streamer=streamer,
                stop=lambda: closed() or stop(),
            ),
        )

    def scales(self, prompt: Prompt, gates: AnyGates | None, sinks: SinkMasks | None = None) -> Scales:
        """Spread gates over the Keys of a prompt.

        Shapes: (L, 1, Keys) for `Gates`, and where all scales are 1, on the model's device.

        Args:
            prompt: what they are to act on.
            gates: None leaves the model as it is.
            sinks: the groups of visual tokens; found by the default criteria where None.

        Raises:
            GateError: these are no gates, or they do not fit this model.
            SinkgateError: these are no sinks.
        """
        if not isinstance(cast(object, gates), AnyGates | None):
            raise GateError(f"got {type(gates).__name__}, expected Gates, FineGates or None; gates come before sinks")
        if not isinstance(cast(object, sinks), SinkMasks | None):
            raise SinkgateError(f"got {type(sinks).__name__} as sinks, expected what sg.find_sinks returns, or None")
        if gates is None or gates.for_model(self).is_identity:
            return torch.ones(self.num_layers, 1, prompt.num_keys, device=self.device)
        masks = sinks or find_sinks(self, prompt)
        if isinstance(gates, Gates):
            return gates.key_scales(masks, prompt.visual, prompt.num_keys).to(self.device)
        image, apart = torch.zeros(prompt.length, dtype=torch.bool), self.adapter.cross_attention
        if not apart:
            image[torch.cat([prompt.visual, prompt.separators]).cpu()] = True
        return gates.logit_scales(masks, prompt.visual, image, prompt.num_keys, apart=apart)

    def trace(self, prompt: Prompt, logits: Tensor, generated: list[int], attention: dict[int, list[Tensor]]) -> Trace:
        probabilities = logits.float().softmax(-1).cpu()
        top = probabilities.topk(min(10, len(probabilities)))
        names = [self.token_name(index) for index in cast(Any, top.indices).tolist()]
        special: set[int] = set(self.tokenizer.all_special_ids) if self.processor else set()
        shown = [row for row, index in enumerate(generated) if index not in special]
        rows = stack_rows(attention) if attention else torch.zeros(self.num_layers, self.num_heads, 0, prompt.num_keys)
        recorded = [row for row in shown or [0] if row < rows.shape[2]]
        return Trace(
            text=self.tokenizer.decode(generated, skip_special_tokens=True).strip() if self.processor else "",
            ids=generated,
            tokens=[self.token_name(generated[row]).strip() for row in shown],
            next_token=list(zip(names, cast(Any, top.values).tolist(), strict=True)),
            probabilities=probabilities,
            attention=rows[:, :, recorded],
            positions=prompt.visual.cpu(),
            separators=prompt.separators.cpu(),
            sheets=prompt.sheets,
        )

    def token_name(self, token: int) -> str:
        """Return the text of a token, quoted where it is blank; its number where the model has no processor."""
        if self.processor is None:
            return str(token)
        text = self.tokenizer.decode([token])
        return text.strip() or repr(text)


Finder = Callable[["VLM", Prompt], SinkMasks]


@overload
def find_sinks(
    vlm: VLM,
    prompt: Prompt,
    *,
    v_sink: str | Criterion | Choice = ...,
    l_sink: str | Criterion | Choice = ...,
    merged: Merged = ...,
) -> SinkMap: ...


@overload
def find_sinks(
    vlm: VLM,
    prompt: Iterable[Prompt],
    *,
    v_sink: str | Criterion | Choice = ...,
    l_sink: str | Criterion | Choice = ...,
    merged: Merged = ...,
) -> list[SinkMap]: ...


def find_sinks(
    vlm: VLM,
    prompt: Any,
    *,
    v_sink: str | Criterion | Choice = "auto",
    l_sink: str | Criterion | Choice = "auto",
    merged: Merged = "any",
) -> Any:
    """Sort the visual tokens of a prompt into V-sinks, L-sinks and ordinary ones, with the evidence.

    "auto" is decided once for a model and held for every image, so it may find none in this one: see `sinkgate.sink_criteria`.

    Args:
        vlm: the model, run once unmodified; at the first use of "auto" or "dimensions" also on the prompts of `sinkgate.discover`, unless
            its result is on disk.
        prompt: image and question, or several such prompts.
        v_sink: criterion for V-sinks, a name of ``CRITERIA`` or an object.
        l_sink: criterion for L-sinks.
        merged: a token of several patches is a V-sink when any, most or all of them are sinks; the default is chosen by us.

    Returns:
        One map for a prompt, a list for several.

    Raises:
        PromptError: this is no prompt, and no list of prompts.
        SinkgateError: no criterion has that name.

    Example:
        >>> sinks = sg.find_sinks(vlm, vlm.prompt("cat.png", "What is this?"), l_sink="massive")
    """
    prompt = list(cast(Iterator[Any], prompt)) if isinstance(prompt, Iterator) else prompt
    if not is_one_prompt(prompt):
        return [find_sinks(vlm, each, v_sink=v_sink, l_sink=l_sink, merged=merged) for each in prompt]
    default = v_sink == l_sink == "auto" and merged == "any"
    criteria = sink_criteria(vlm, v_sink=v_sink, l_sink=l_sink, prompt=prompt)
    known: SinkMap | None = prompt.sinks if default else None
    if known is not None and known.criteria == criteria and prompt.sinks_under == model_state(vlm.adapter):
        return known
    observation = vlm.observe(prompt, reduction_of([criteria.l_sink.criterion]))
    sinks = classify(observation, prompt.sheets, v_sink=criteria.v_sink, l_sink=criteria.l_sink, merged=merged)
    if default:
        prompt.sinks, prompt.sinks_under = sinks, model_state(vlm.adapter)
    return sinks


def _cases(
    prompts: Sequence[Prompt], gates: Tables, sinks: Maps
) -> list[tuple[Prompt, AnyGates | None, SinkMasks | None]]:
    """Return each prompt with its gates and sinks."""
    tables = [gates] * len(prompts) if gates is None or isinstance(gates, AnyGates) else list(gates)
    maps = [None] * len(prompts) if sinks is None else list(sinks)
    if not len(prompts) == len(tables) == len(maps):
        raise PromptError(
            f"there are {len(prompts)} prompts with {len(tables)} gates and {len(maps)} sink maps; give one of each a prompt, or none"
        )
    return list(zip(prompts, tables, maps, strict=True))


def find_v_sinks(vlm: VLM, prompt: Prompt, v_sink: str | Criterion | Choice = "auto") -> SinkMasks:
    """Return V-sinks alone, at the cost of the encoder; every other visual token counts as ordinary.

    Raises:
        SinkgateError: no criterion has that name.
    """
    choice = sink_criteria(vlm, v_sink=v_sink, l_sink="norm", prompt=prompt).v_sink
    v_sinks = classify_patches(vlm.observe_encoder(prompt), len(prompt.visual), choice).v_sink
    return SinkMasks(v_sinks, torch.zeros(vlm.num_layers, len(v_sinks), dtype=torch.bool))
