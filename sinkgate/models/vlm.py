"""Vision-language model: prompts, gated runs, and observation of attention and hidden states.

Layers are those of the LLM that attend to visual tokens: all of them in most models, some in hybrids and where the
image is read by cross-attention.

Shapes: L such layers, V visual tokens, P prompt positions, N patches.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import Any, TypeVar, overload

import torch
from torch import Tensor, nn
from transformers import TextIteratorStreamer

from sinkgate.attention.partial_forward import kept_output
from sinkgate.attention.patch import Attached, attached, model_lock
from sinkgate.attention.recorder import Recorder
from sinkgate.attention.scales import Scales
from sinkgate.errors import GateError, ImageError, PromptError, SinkgateError, UnsupportedModelError
from sinkgate.images.io import Picture
from sinkgate.models.adapters import Adapter, adapt
from sinkgate.models.batch import Batch
from sinkgate.models.chat import EncodedOptions
from sinkgate.models.dimensions import sink_criteria
from sinkgate.models.generation import generate_options, streamed
from sinkgate.models.model_state import encoder_state, model_state
from sinkgate.models.prompts import Prompt, Prompter, is_one_prompt, refuse_several
from sinkgate.models.trace import Trace, stack_rows
from sinkgate.models.weights import model_checksum
from sinkgate.sinks.classify import (
    HeadObservation,
    Merged,
    Observation,
    PatchObservation,
    SinkMap,
    SinkMasks,
    classify,
    classify_patches,
)
from sinkgate.sinks.criteria import Choice, Criterion, SinkCriteria, reduction_of
from sinkgate.sinks.discovery import Discovery
from sinkgate.sinks.fine_gates import AnyGates
from sinkgate.sinks.gates import Gates
from sinkgate.sinks.states import HiddenStates, Reduction

#: Gates for all of several prompts, or one for each.
Tables = AnyGates | Sequence[AnyGates | None] | None
#: Sinks for each of several prompts.
Maps = Sequence[SinkMap | None] | None
Result = TypeVar("Result")
MAX_ROWS = 128  # tokens whose attention is kept; one row takes layers x heads x Keys x 4 bytes


class VLM:
    """A vision-language model with its processor. Calls on one model run one after another; nothing stays attached to it.

    Raises:
        UnsupportedModelError: the model takes no images, or no layer can be gated.
    """

    def __init__(self, model: Any, processor: Any, name: str) -> None:
        self.model, self.processor, self.name = model.eval(), processor, name
        self.adapter: Adapter = adapt(model, name)
        self.decoder: Any = self.adapter.decoder
        self.attention: list[nn.Module] = self.adapter.attention
        self.prompter = Prompter(self.adapter, processor, name)
        self.lock = model_lock(model)
        self.discovery: Discovery | None = None  # of its sink dimensions, once needed
        self.criteria: SinkCriteria | None = None  # held for every image, once decided; see ``sink_criteria``
        self._channels: set[int] = set()  # that some prompt had to run again for; kept in the first run from then on

    def __repr__(self) -> str:
        dtype = str(self.model.dtype).removeprefix("torch.")
        return f"VLM({self.name!r}, {self.model.config.model_type}, {self.num_layers} layers, {dtype} on {self.device})"

    @cached_property
    def weights_checksum(self) -> str | None:
        """Checksum of the weights, see `sinkgate.models.weights.model_checksum`; None where no files of theirs are on this machine."""
        return model_checksum(self.model.config)

    @property
    def num_layers(self) -> int:
        """Layers that can be gated, L."""
        return len(self.attention)

    @property
    def num_heads(self) -> int:
        """Query heads of each LLM layer."""
        return self.model.config.get_text_config().num_attention_heads

    @property
    def device(self) -> torch.device:
        """Device of the model; of its first part where it lies on several."""
        return self.model.device

    @property
    def pad_token(self) -> int:
        """The id that fills a batch up; nothing attends to it."""
        return self.model.generation_config.pad_token_id or 0

    @property
    def tokenizer(self) -> Any:
        """The processor's tokenizer."""
        return self.processor.tokenizer

    # --- prompts

    def prompt(
        self, images: Picture | Sequence[Picture], question: str | Sequence[str | None], *, system: str = ""
    ) -> Prompt:
        """Put a question to an image, or to several, in the model's own chat format.

        Args:
            images: one, or several in their order.
            question: 1 to 20,000 characters; line breaks within are kept. Images stand in front of a text; in a list of texts each
                stands where None is.
            system: text of the system turn; what the chat template writes by itself where empty.

        Raises:
            ImageError: an image cannot be used (see ``open_image``).
            PromptError: the question is empty, too long, or holds a token with a meaning of its own; there is no image, or more
                than the model takes; the chat template takes no system turn; the prompt has more positions than the model.

        Example:
            >>> prompt = vlm.prompt("street.jpg", "How many cars are there?", system="Answer with one word.")
        """
        with self.lock:
            return self.prompter.ask(images, question, system)

    def read(self, inputs: Mapping[str, Any], images: Picture | Sequence[Picture] = (), question: str = "") -> Prompt:
        """Return the prompt that a processor has made.

        Args:
            inputs: what the processor returned for one prompt: ``input_ids`` (1, P), ``pixel_values`` and what else the model takes,
                as tensors, arrays or lists. They are put on the model's device, fractions in its dtype.
            images: the images that it was given, in their order; without them no token has a place in a picture.
            question: what to call the prompt.

        Raises:
            ImageError: an image cannot be used (see ``open_image``).
            PromptError: ids, pixels or image tokens are missing, there are several prompts, or the images are not those of the inputs.

        Example:
            >>> inputs = vlm.processor(images=[image], text=["<image> What is this?"], return_tensors="pt")
            >>> prompt = vlm.read(inputs, [image])
        """
        with self.lock:
            return self.prompter.read(inputs, images, question)

    def unknown_words(self, question: str) -> list[str]:
        """Return words outside of the vocabulary, in order; always empty for tokenizers that spell words out."""
        unknown = self.tokenizer.unk_token_id
        words = dict.fromkeys(question.split())
        if unknown is None:
            return []
        return [
            w.strip(".,;:!?\"'()") for w in words if unknown in self.tokenizer(w, add_special_tokens=False).input_ids
        ]

    # --- running

    @contextmanager
    def gated(
        self, prompt: Prompt, sinks: SinkMap, gates: AnyGates, recorder: Recorder | None = None
    ) -> Iterator[None]:
        """Within the block every forward and ``generate`` call on this prompt runs with the gates.

        Holds the model's lock; the gates are gone when the block ends, also by an exception.

        Raises:
            GateError: the gates do not fit this model.
        """
        with self.attached(self.scales(prompt, gates, sinks), recorder):
            yield

    @overload
    def predict(self, prompt: Prompt, gates: AnyGates | None = None, sinks: SinkMap | None = None) -> Trace: ...

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
        sinks: SinkMap | None = None,
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
            scales = [self.scales(*case) for case in cases]
            ones = [torch.ones(self.num_layers, 1, prompt.num_keys, device=self.device) for prompt in prompts]
            scales = [one if scale is None else scale for scale, one in zip(scales, ones, strict=True)]
            batch = self.batch(prompts)
            with self.attached(batch.key_scales(scales), recorder):
                logits = self.model(**batch.inputs, use_cache=False, logits_to_keep=1).logits[:, -1]
        traces = []
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
        sinks: SinkMap | None = None,
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
        # beams need an image each, and cross-attention would read the encoded image again with every token
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
                **(prompt.inputs if raw else self.warm_inputs(prompt)),
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
        sinks: SinkMap | None = None,
        *,
        max_new_tokens: int = 64,
        stop: Callable[[], bool] = lambda: False,
    ) -> Generator[str, None, Trace]:
        """``answer`` of one prompt as a generator of the growing text; it returns the Trace. Closing it stops the model.

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

    # --- looking inside

    def observe(self, prompt: Prompt, reduction: Reduction | None = None) -> Observation:
        """Run the unmodified model once and record what criteria read; of hidden states, summaries.

        Args:
            prompt: what to read.
            reduction: what to keep of each layer's states, as `sinkgate.sinks.criteria.reduction_of` returns it for criteria. Norms and
                a sample are always kept; a criterion that needs more runs the model again.
        """
        return self._observe(prompt, Recorder(self._rows_after_image(prompt), mean=True, values=True), reduction)

    def observe_heads(self, prompt: Prompt, reduction: Reduction | None = None) -> HeadObservation:
        """Run ``observe`` with the attention and the output's stable rank of each head."""
        ids = prompt.inputs["input_ids"]
        counts = prompt.inputs.get("attention_mask", torch.ones_like(ids)).bool()
        llm = Recorder(self._rows_after_image(prompt), mean="rows", values=True, outputs=counts)
        observation = self._observe(prompt, llm, reduction)
        return HeadObservation(
            **vars(observation), head_attention=_of_layers(llm.attention), stable_rank=_of_layers(llm.stable_ranks)
        )

    def _observe(self, prompt: Prompt, llm: Recorder, reduction: Reduction | None) -> Observation:
        def layers(reduce: Callable[[Tensor], Result], /) -> list[Result]:
            results = self.each_layer(prompt, reduce)
            if isinstance(reduce, Reduction):
                self._channels.update(reduce.channels)
            return results

        reduction = Reduction(tuple(self._channels)).joined(reduction or Reduction())
        visual = prompt.visual.cpu()
        with self.lock:
            patches = self.observe_encoder(prompt)
            summaries = self.each_layer(prompt, reduction, llm)
        attention = _of_layers(llm.attention)  # L, K or L, H, K
        if llm.mean is not True:
            attention = attention.mean(1)
        return Observation(
            **vars(patches),
            states=HiddenStates(layers, reduction, summaries),
            visual=visual,
            attention=attention[:, visual],
            value_norms=_of_layers(llm.value_norms),
            key_attention=attention,
        )

    def each_layer(
        self, prompt: Prompt, reduce: Callable[[Tensor], Result], recorder: Recorder | None = None
    ) -> list[Result]:
        """Run the unmodified model once and reduce each layer's input as it passes; nothing else of it is held.

        Args:
            prompt: what to read.
            reduce: function of the states that the Keys of a layer are made from, (P, D), on the model's device and in its dtype.
            recorder: takes attention rows.

        Returns:
            One result a layer.

        Example:
            >>> largest = vlm.each_layer(prompt, lambda states: float(states.abs().max()))
        """
        results: list[Result] = []

        def before_layer(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            states = args[0] if args else kwargs["hidden_states"]
            results.append(reduce(self.adapter.states_of_keys(states[0], prompt.encoded)))

        with self.lock, torch.no_grad():
            hooks = [layer.register_forward_pre_hook(before_layer, with_kwargs=True) for layer in self.adapter.layers]
            try:
                with self.attached(None, recorder):
                    self.adapter.run(**self.warm_inputs(prompt))
            finally:
                for hook in hooks:
                    hook.remove()
        return results

    def _rows_after_image(self, prompt: Prompt) -> range:
        return self.adapter.rows_after_image(prompt.inputs, prompt.visual)

    def observe_encoder(self, prompt: Prompt) -> PatchObservation:
        """Run the encoder alone, unmodified, and record what criteria of V-sinks read; the prompt keeps the encoded image.

        Attention is recorded in one layer, the one that reads the features.
        """
        adapter, recorder = self.adapter, Recorder("all", mean=True)
        reading = adapter.encoder_attention[adapter.reading_layer :][:1] if adapter.encoder_layers else []
        features: list[Tensor] = []
        with ExitStack() as stack:
            if adapter.encoder_layers:
                stack.enter_context(kept_output(adapter.encoder_layers[adapter.feature_layer], features, first=True))
            stack.enter_context(self.lock)
            stack.enter_context(torch.no_grad())
            stack.enter_context(attached(reading, recorder=recorder))
            self._keep_encoded(prompt)
        return PatchObservation(*self._patches(prompt, features, recorder), prompt.token_of_patch)

    def _patches(
        self, prompt: Prompt, features: list[Tensor], encoder: Recorder
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return features of the patches and the attention that each receives, as multiples of an even share."""
        if not features:
            return None, None
        patches = torch.cat(features) if len(features) > 1 else features[0]
        parts = encoder.attention[0]  # one a call; models with windows call once a window
        received = torch.cat([(part * part.shape[-1]).flatten() for part in parts]).view(patches.shape[:-1])
        order = self.adapter.in_patch_order
        return (
            order(patches, prompt.inputs).float().cpu(),
            order(received[..., None], prompt.inputs)[..., 0].float().cpu(),
        )

    def encode(self, prompt: Prompt) -> Any:
        """Return the vision encoder's output for the prompt's images.

        Raises:
            ImageError: the encoder cannot take them.
        """
        try:
            return self.adapter.encode(prompt.inputs)
        except (ValueError, IndexError, RuntimeError) as error:
            if isinstance(error, torch.OutOfMemoryError) or not prompt.images:
                raise
            sizes = ", ".join(f"{image.width} x {image.height}" for image in prompt.images)
            raise ImageError(
                f"the vision encoder of {self.name} cannot take a picture of {sizes} pixels: {error}"
            ) from error

    def _keep_encoded(self, prompt: Prompt) -> None:
        prompt.encoded, prompt.encoded_under = self.encode(prompt), encoder_state(self.adapter)

    def warm_inputs(self, prompt: Prompt) -> dict[str, Any]:
        """Return the prompt's inputs with the images already encoded, where the model takes that.

        Images are encoded once a prompt, and again where the encoder's weights, adapters or hooks have changed.

        Raises:
            PromptError: they would have to be encoded again and the prompt holds no pixels.
        """
        name = self.adapter.takes_encoded
        if name is None:
            return dict(prompt.inputs)
        if prompt.encoded is None or prompt.encoded_under != encoder_state(self.adapter):
            if "pixel_values" not in prompt.inputs:
                raise PromptError(
                    "the model's vision encoder has changed (weights, adapters or hooks) since this prompt was encoded, and its pixels "
                    "were dropped; make the prompt again with vlm.prompt"
                )
            with torch.no_grad():  # it is kept; a graph would be kept with it
                self._keep_encoded(prompt)
        text = {key: value for key, value in prompt.inputs.items() if key != "pixel_values"}
        return {**text, name: self.adapter.as_input(prompt.encoded)}

    @contextmanager
    def attached(
        self,
        scales: Scales | None,
        recorder: Recorder | None,
        own_cache: bool = False,
        stored: int = 0,
        live: Collection[int] = (),
    ) -> Iterator[Attached]:
        """Attach scales and recorder to the LLM; ``own_cache`` where the run inside begins its own KV cache."""
        cross, own_cache = self.adapter.cross_attention, own_cache and not self.adapter.shares_keys
        with (
            self.lock,
            attached(
                self.attention,
                decoder=self.decoder,
                key_scales=scales,
                recorder=recorder,
                cross=cross,
                own_cache=own_cache,
                stored=stored,
                live=live,
            ) as block,
        ):
            yield block

    def scales(self, prompt: Prompt, gates: AnyGates | None, sinks: SinkMasks | None = None) -> Scales | None:
        """Spread gates over the Keys of a prompt; None where all scales are 1.

        Shapes: (L, 1, Keys) for `Gates`, on the model's device.

        Args:
            prompt: what they are to act on.
            gates: None leaves the model as it is.
            sinks: the groups of visual tokens; found by the default criteria where None.

        Raises:
            GateError: these are no gates, or they do not fit this model.
            SinkgateError: these are no sinks.
        """
        if not isinstance(gates, AnyGates | None):
            raise GateError(f"got {type(gates).__name__}, expected Gates, FineGates or None; gates come before sinks")
        if not isinstance(sinks, SinkMasks | None):
            raise SinkgateError(f"got {type(sinks).__name__} as sinks, expected what sg.find_sinks returns, or None")
        if gates is None or gates.for_model(self).is_identity:
            return None
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
        names = [self.token_name(int(index)) for index in top.indices]
        special = set(self.tokenizer.all_special_ids) if self.processor else set()
        shown = [row for row, index in enumerate(generated) if index not in special]
        rows = stack_rows(attention) if attention else torch.zeros(self.num_layers, self.num_heads, 0, prompt.num_keys)
        recorded = [row for row in shown or [0] if row < rows.shape[2]]
        return Trace(
            text=self.tokenizer.decode(generated, skip_special_tokens=True).strip() if self.processor else "",
            ids=generated,
            tokens=[self.token_name(generated[row]).strip() for row in shown],
            next_token=list(zip(names, top.values.tolist(), strict=True)),
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
    prompt = list(prompt) if isinstance(prompt, Iterator) else prompt
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
) -> list[tuple[Prompt, AnyGates | None, SinkMap | None]]:
    """Return each prompt with its gates and sinks."""
    tables = [gates] * len(prompts) if gates is None or isinstance(gates, AnyGates) else list(gates)
    maps = [None] * len(prompts) if sinks is None else list(sinks)
    if not len(prompts) == len(tables) == len(maps):
        raise PromptError(
            f"there are {len(prompts)} prompts with {len(tables)} gates and {len(maps)} sink maps; give one of each a prompt, or none"
        )
    return list(zip(prompts, tables, maps, strict=True))


def find_v_sinks(
    vlm: VLM, prompt: Prompt, v_sink: str | Criterion | Choice = "auto", merged: Merged = "any"
) -> SinkMasks:
    """Return V-sinks alone, at the cost of the encoder; every other visual token counts as ordinary.

    Raises:
        SinkgateError: no criterion has that name.
    """
    choice = sink_criteria(vlm, v_sink=v_sink, l_sink="norm", prompt=prompt).v_sink
    v_sinks = classify_patches(vlm.observe_encoder(prompt), len(prompt.visual), choice, merged).v_sink
    return SinkMasks(v_sinks, torch.zeros(vlm.num_layers, len(v_sinks), dtype=torch.bool))


def _of_layers(recorded: dict[int, list[Tensor]]) -> Tensor:
    """Stack the records of a single sample in the first call of each layer."""
    return torch.cat([recorded[layer][0].float().cpu() for layer in sorted(recorded)])
