"""Vision-language model without gates: prompts, encoded images, and records of unmodified runs.

Layers are those of the LLM that attend to visual tokens: all of them in most models, some in hybrids and where the
image is read by cross-attention.

Shapes: P prompt positions, D channels.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from sinkgate.attention.partial_forward import each_input, kept_output
from sinkgate.attention.patch import Attached, attached, model_lock
from sinkgate.attention.recorder import Recorder
from sinkgate.attention.scales import Scales
from sinkgate.errors import ImageError, PromptError
from sinkgate.images.io import Picture
from sinkgate.images.video import Video
from sinkgate.models.adapters import Adapter, adapt
from sinkgate.models.adapters.base import PIXELS
from sinkgate.models.model_state import encoder_state
from sinkgate.models.prompts import Prompt, Prompter, Turn
from sinkgate.models.weights import model_checksum
from sinkgate.sinks.classify import HeadObservation, Observation, PatchObservation
from sinkgate.sinks.criteria import SinkCriteria
from sinkgate.sinks.discovery import Discovery
from sinkgate.sinks.states import HiddenStates, Reduction

Result = TypeVar("Result")


class BaseVLM:
    """The part of `sinkgate.models.vlm.VLM` that runs the model without gates. Calls run one after another; nothing stays attached.

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
        return f"{type(self).__name__}({self.name!r}, {self.model.config.model_type}, {self.num_layers} layers, {dtype} on {self.device})"

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
        self,
        images: Picture | Video | Sequence[Picture],
        question: str | Sequence[str | None],
        *,
        system: str = "",
        earlier: Sequence[Turn] = (),
        frames: int | None = None,
    ) -> Prompt:
        """Put a question to an image, to several, or to a video, in the model's own chat format.

        Args:
            images: one, several in their order, or a `Video` or the name of a video file. Models without an input for videos are given
                the frames as images.
            question: 1 to 20,000 characters; line breaks within are kept. Images stand in front of a text; in a list of texts each
                stands where None is.
            system: text of the system turn; what the chat template writes by itself where empty.
            earlier: turns before the question, each a question with its answer. Images stand in front of the first one; or each where
                None is, in whichever questions are lists of texts.
            frames: how many frames of the video to use, at even distances; all of a `Video` and 8 of a file where None. With a number any
                file is read as a video, an animated GIF too.

        Raises:
            ImageError: an image or a video cannot be used (see ``open_image`` and ``open_video``).
            PromptError: the question is empty, too long, or holds a token with a meaning of its own; there is no image, or more
                than the model takes; the chat template takes no system turn or no earlier turns; the prompt has more positions than the model.

        Example:
            >>> prompt = vlm.prompt("street.jpg", "How many cars are there?", system="Answer with one word.")
            >>> follow_up = vlm.prompt("street.jpg", "Of which color?", earlier=[("How many cars are there?", "Two.")])
        """
        with self.lock:
            return self.prompter.ask(images, question, system, frames, earlier)

    def read(
        self, inputs: Mapping[str, Any], images: Picture | Video | Sequence[Picture] = (), question: str = ""
    ) -> Prompt:
        """Return the prompt that a processor has made.

        Args:
            inputs: what the processor returned for one prompt: ``input_ids`` (1, P), ``pixel_values`` and what else the model takes,
                as tensors, arrays or lists. They are put on the model's device, fractions in its dtype.
            images: the images or the `Video` that it was given, in their order; without them no token has a place in a picture.
            question: the text of the question, for records and labels.

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
        with self.lock:
            patches = self.observe_encoder(prompt)
            summaries = self.each_layer(prompt, reduction, llm)
        attention = _of_layers(llm.attention)  # L, K or L, H, K
        if llm.mean is not True:
            attention = attention.mean(1)
        return Observation(
            **vars(patches),
            states=HiddenStates(layers, reduction, summaries),
            visual=prompt.visual.cpu(),
            key_attention=attention,
            value_norms=_of_layers(llm.value_norms),
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

        def take(states: Tensor) -> None:
            results.append(reduce(self.adapter.states_of_keys(states[0], prompt.encoded)))

        with self.lock, torch.no_grad(), each_input(self.adapter.layers, take), self.attached(None, recorder):
            self.adapter.run(**self.warm_inputs(prompt))
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
        patches = torch.cat(features)
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
            if not prompt.has_pixels:
                raise PromptError(
                    "the model's vision encoder has changed (weights, adapters or hooks) since this prompt was encoded, and its pixels "
                    "were dropped; make the prompt again with vlm.prompt"
                )
            with torch.no_grad():  # it is kept; a graph would be kept with it
                self._keep_encoded(prompt)
        text = {key: value for key, value in prompt.inputs.items() if key not in PIXELS.values()}
        return {**text, name: self.adapter.as_input(prompt.encoded, prompt.kind)}

    def inputs_to_generate(self, prompt: Prompt) -> dict[str, Any]:
        """Return the inputs for ``generate``: those of `warm_inputs`, but pixels where cross-attention reads the images.

        There ``generate`` would read an encoded image again with every token.
        """
        return dict(prompt.inputs) if self.adapter.cross_attention else self.warm_inputs(prompt)

    @contextmanager
    def attached(
        self,
        scales: Scales | None,
        recorder: Recorder | None,
        own_cache: bool = False,
        stored: int = 0,
        live: Collection[int] = (),
    ) -> Generator[Attached]:
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


def _of_layers(recorded: dict[int, list[Tensor]]) -> Tensor:
    """Stack the records of a single sample in the first call of each layer."""
    return torch.cat([recorded[layer][0].float().cpu() for layer in sorted(recorded)])
