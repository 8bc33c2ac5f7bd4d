"""A vision-language model and the map of its parts: ask it, gate it, look inside.

In this release for LLaVA-type models (a CLIP or SigLIP tower, a projector, any decoder), where one patch is one
token. Every other family is refused on load, in words.

Shapes: L LLM layers, V visual tokens, P prompt positions.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from threading import Thread
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import (
    StoppingCriteria,
    TextIteratorStreamer,
)

from sinkgate.attention import Recorder, attached, model_lock
from sinkgate.criteria import Criterion
from sinkgate.errors import PromptError, UnsupportedModelError
from sinkgate.gates import Gates
from sinkgate.images import open_image
from sinkgate.sinks import Observation, SinkMap, classify
from sinkgate.trace import Trace, stack_rows

MAX_QUESTION = 2000  # characters
TOWERS = ("clip_vision_model", "siglip_vision_model")
TEXT_TEMPLATE = "USER: {image}\n{question} ASSISTANT:"  # LLaVA 1.5's, for processors without a chat template


@dataclass
class Prompt:
    """An image and a question, ready for the model.

    Shapes: inputs as ``generate`` takes them, batch 1; visual (V,) positions of the visual tokens, row-major over
    ``grid`` (rows, columns); box (left, top, right, bottom): the part of the image that the grid covers, in pixels.
    """

    image: Image.Image
    question: str
    inputs: dict[str, Tensor]
    visual: Tensor
    grid: tuple[int, int]
    box: tuple[int, int, int, int]
    encoded: Any = field(default=None, repr=False)  # the encoder's output, once it has run
    sinks: SinkMap | None = field(default=None, repr=False)  # by the default criteria, once they were asked for

    @property
    def view(self) -> Image.Image:
        """The part of the image that the patch grid covers."""
        return self.image.crop(self.box)

    @property
    def length(self) -> int:
        """Positions in the prompt, P."""
        return self.inputs["input_ids"].shape[1]


class VLM:
    """A LLaVA-type model with its processor. Calls on one model take turns; nothing stays attached to it."""

    def __init__(self, model: Any, processor: Any, name: str) -> None:
        refuse_unsupported(model.config, name)
        self.model, self.processor, self.name = model.eval(), processor, name
        self.decoder: Any = model.get_decoder()
        self.vision_tower: Any = model.model.vision_tower
        self.attention: list[nn.Module] = [layer.self_attn for layer in self.decoder.layers]
        self.vision_attention: list[nn.Module] = [layer.self_attn for layer in self.vision_tower.encoder.layers]
        self.image_token_id: int = model.config.image_token_id
        self.lock = model_lock(model)

    @property
    def num_layers(self) -> int:
        """Layers of the LLM, L."""
        return len(self.attention)

    @property
    def num_heads(self) -> int:
        """Query heads of each LLM layer."""
        return self.model.config.text_config.num_attention_heads

    @property
    def device(self) -> torch.device:
        """Where the model lies."""
        return self.model.device

    @property
    def tokenizer(self) -> Any:
        """The processor's tokenizer."""
        return self.processor.tokenizer

    @cached_property
    def feature_layer(self) -> int:
        """Index of the encoder layer whose output goes to the projector."""
        index = self.model.config.vision_feature_layer
        return index - 1 if index >= 0 else len(self.vision_attention) + index

    @cached_property
    def reading_layer(self) -> int:
        """Index of the encoder layer that attends to those features: the next, or the same where that is the last."""
        return min(self.feature_layer + 1, len(self.vision_attention) - 1)

    @cached_property
    def has_cls(self) -> bool:
        """Whether the encoder puts a token in front of the patches, which the projector never sees."""
        return self.model.config.vision_feature_select_strategy == "default"

    # --- prompts

    def prompt(self, image: str | Path | bytes | Image.Image, question: str) -> Prompt:
        """Put a question to an image.

        Raises:
            ImageError: the image cannot be used (see ``open_image``).
            PromptError: the question is empty, longer than 2,000 characters, or holds a token with a meaning of its own.
        """
        picture, question = open_image(image), " ".join(question.split())
        if not question:
            raise PromptError("the question is empty; ask something about the image")
        if len(question) > MAX_QUESTION:
            raise PromptError(f"the question has {len(question)} characters; at most {MAX_QUESTION} can be asked")
        for token in self.tokenizer.all_special_tokens:
            if token in question:
                raise PromptError(f"the question holds {token}, which the model reads as a command; leave it out")
        if self.processor.chat_template:
            content = [{"type": "image"}, {"type": "text", "text": question}]
            text = self.processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True
            )
        else:
            text = TEXT_TEMPLATE.format(image=self.tokenizer.decode(self.image_token_id), question=question)
        inputs = self.processor(images=picture, text=text, return_tensors="pt").to(self.device, self.model.dtype)
        visual = (inputs["input_ids"][0] == self.image_token_id).nonzero()[:, 0]
        height, width = inputs["pixel_values"].shape[-2:]
        vision = self.model.config.vision_config
        grid = (height // vision.patch_size, width // vision.patch_size)
        if height != vision.image_size or width != vision.image_size:
            raise UnsupportedModelError(
                f"{self.name}: the processor makes pictures of {width} x {height} pixels, the vision tower takes "
                f"{vision.image_size} x {vision.image_size}; load the processor that belongs to the model"
            )
        if len(visual) != grid[0] * grid[1]:
            raise UnsupportedModelError(
                f"{self.name}: {len(visual)} visual tokens for a grid of {grid[0]} x {grid[1]} patches; expected one each: "
                "is the processor this model's own (patch size, feature selection strategy)?"
            )
        kept = {name: inputs[name] for name in ("input_ids", "attention_mask", "pixel_values")}
        return Prompt(picture, question, kept, visual, grid, self._covered(picture))

    def unknown_words(self, question: str) -> list[str]:
        """Words that the tokenizer has never seen, in order; always empty for tokenizers that spell words out."""
        unknown = self.tokenizer.unk_token_id
        words = dict.fromkeys(question.split())
        if unknown is None:
            return []
        return [
            w.strip(".,;:!?\"'()") for w in words if unknown in self.tokenizer(w, add_special_tokens=False).input_ids
        ]

    def _covered(self, image: Image.Image) -> tuple[int, int, int, int]:
        width, height = image.size
        if not getattr(self.processor.image_processor, "do_center_crop", False):
            return 0, 0, width, height
        side = min(width, height)  # resized to the shortest edge, then the middle is cut out
        left, top = (width - side) // 2, (height - side) // 2
        return left, top, left + side, top + side

    # --- running

    @contextmanager
    def gated(self, prompt: Prompt, sinks: SinkMap, gates: Gates, recorder: Recorder | None = None) -> Iterator[None]:
        """Within the block every forward and ``generate`` call on this prompt runs with the gates.

        Holds the model's lock; the gates are gone when the block ends, also by an exception.

        Raises:
            GateError: the gates do not fit this model.
        """
        table = gates.for_model(self)
        scales = None if table.is_identity else table.key_scales(sinks, prompt.visual, prompt.length).to(self.device)
        with self.lock, attached(self.attention, decoder=self.decoder, key_scales=scales, recorder=recorder):
            yield

    def predict(self, prompt: Prompt, gates: Gates | None = None, sinks: SinkMap | None = None) -> Trace:
        """One prefill: the next-token distribution and the last row's attention, no answer yet."""
        recorder = Recorder("last")
        with torch.no_grad(), self._gated_or_plain(prompt, gates, sinks, recorder):
            logits = self.model(**self._warm_inputs(prompt), use_cache=False, logits_to_keep=1).logits[0, -1]
        return self._trace(prompt, logits, [], recorder)

    def answer(
        self,
        prompt: Prompt,
        gates: Gates | None = None,
        sinks: SinkMap | None = None,
        *,
        max_new_tokens: int = 64,
        streamer: TextIteratorStreamer | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> Trace:
        """The greedy answer, with the attention of every generated token.

        Args:
            prompt: what to answer.
            gates: scales of the Keys; None leaves the model as it is.
            sinks: the groups of visual tokens; found by the default criteria where None.
            max_new_tokens: where to stop at the latest.
            streamer: receives the text as it grows.
            stop: asked after every token; True ends the answer early.

        Raises:
            GateError: the gates do not fit this model.
        """
        recorder = Recorder("last")
        with torch.no_grad(), self._gated_or_plain(prompt, gates, sinks, recorder):
            output = self.model.generate(
                **self._warm_inputs(prompt),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                num_beams=1,
                return_dict_in_generate=True,
                output_logits=True,
                streamer=streamer,
                stopping_criteria=[_StopWhen(stop)] if stop else None,
            )
        return self._trace(prompt, output.logits[0][0], output.sequences[0, prompt.length :].tolist(), recorder)

    def stream(
        self,
        prompt: Prompt,
        gates: Gates | None = None,
        sinks: SinkMap | None = None,
        *,
        max_new_tokens: int = 64,
        stop: Callable[[], bool] = lambda: False,
    ) -> Generator[str, None, Trace]:
        """``answer`` as a generator of the growing text; it returns the Trace. Closing it stops the model.

        Raises:
            GateError: the gates do not fit this model; at the first step, as any error of the run.
        """
        closed = False
        result: list[Trace | BaseException] = []
        streamer = TextIteratorStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)

        def run() -> None:
            try:
                trace = self.answer(
                    prompt,
                    gates,
                    sinks,
                    max_new_tokens=max_new_tokens,
                    streamer=streamer,
                    stop=lambda: closed or stop(),
                )
                result.append(trace)
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

    def observe(self, prompt: Prompt) -> Observation:
        """Run the unmodified model once and keep what criteria look at."""
        length, after = prompt.length, int(prompt.visual[-1]) + 1
        encoder = Recorder("all", mean=True)
        llm = Recorder(range(after, length), mean=True, values=True)
        hidden: list[Tensor] = []
        with self.lock, torch.no_grad():
            with attached(self.vision_attention, recorder=encoder):
                prompt.encoded = self.encode(prompt)
            hooks = [
                layer.register_forward_pre_hook(_keep_input(hidden), with_kwargs=True) for layer in self.decoder.layers
            ]
            try:
                with attached(self.attention, decoder=self.decoder, recorder=llm):
                    self.model(**self._warm_inputs(prompt), use_cache=False, logits_to_keep=1)
            finally:
                for hook in hooks:
                    hook.remove()
        features = prompt.encoded.hidden_states[self.model.config.vision_feature_layer][0]
        received = encoder.attention[self.reading_layer][0][0]
        first = 1 if self.has_cls else 0
        visual = prompt.visual.cpu()
        return Observation(
            features=features[first:].float().cpu(),
            encoder_attention=received[first:].float().cpu(),
            hidden=torch.cat(hidden).float().cpu(),
            visual=visual,
            attention=torch.cat([llm.attention[i][0] for i in range(self.num_layers)]).float().cpu()[:, visual],
            value_norms=torch.cat([llm.value_norms[i][0] for i in range(self.num_layers)]).cpu(),
        )

    def encode(self, prompt: Prompt) -> Any:
        """The vision encoder's output for the prompt's image; ``pooler_output`` holds the projected tokens."""
        return self.model.model.get_image_features(
            prompt.inputs["pixel_values"], output_hidden_states=True, return_dict=True
        )

    def _warm_inputs(self, prompt: Prompt) -> dict[str, Any]:
        """The prompt's inputs with the image already encoded: it is encoded once per prompt."""
        if prompt.encoded is None:
            prompt.encoded = self.encode(prompt)
        text = {name: value for name, value in prompt.inputs.items() if name != "pixel_values"}
        return {**text, "mm_encoder_outputs": {"image": prompt.encoded}}

    @contextmanager
    def _gated_or_plain(
        self, prompt: Prompt, gates: Gates | None, sinks: SinkMap | None, recorder: Recorder
    ) -> Iterator[None]:
        if gates is None or gates.for_model(self).is_identity:
            with self.lock, attached(self.attention, decoder=self.decoder, recorder=recorder):
                yield
        else:
            with self.gated(prompt, sinks or find_sinks(self, prompt), gates, recorder):
                yield

    def _trace(self, prompt: Prompt, logits: Tensor, generated: list[int], recorder: Recorder) -> Trace:
        probabilities = logits.float().softmax(-1).cpu()
        top = probabilities.topk(min(10, len(probabilities)))
        names = [
            self.tokenizer.decode([index]).strip() or repr(self.tokenizer.decode([index])) for index in top.indices
        ]
        special = set(self.tokenizer.all_special_ids)
        shown = [index for index in generated if index not in special]
        attention = stack_rows(recorder.attention)
        return Trace(
            text=self.tokenizer.decode(generated, skip_special_tokens=True).strip(),
            tokens=[self.tokenizer.decode([index]).strip() for index in shown],
            next_token=list(zip(names, top.values.tolist(), strict=True)),
            probabilities=probabilities,
            attention=attention[:, :, : max(1, len(shown))],
            positions=prompt.visual.cpu(),
            grid=prompt.grid,
        )


def find_sinks(
    vlm: VLM, prompt: Prompt, *, v_sink: str | Criterion = "auto", l_sink: str | Criterion = "auto"
) -> SinkMap:
    """V-sinks, L-sinks and ordinary visual tokens of a prompt, with the evidence.

    Args:
        vlm: the model, run once unmodified.
        prompt: image and question.
        v_sink: criterion for V-sinks, a name of ``CRITERIA`` or an object.
        l_sink: criterion for L-sinks.

    Raises:
        SinkgateError: no criterion has that name.
    """
    default = v_sink == "auto" and l_sink == "auto"
    if default and prompt.sinks is not None:
        return prompt.sinks
    sinks = classify(vlm.observe(prompt), prompt.grid, v_sink=v_sink, l_sink=l_sink)
    if default:
        prompt.sinks = sinks
    return sinks


class _StopWhen(StoppingCriteria):
    def __init__(self, stop: Callable[[], bool]) -> None:
        self.stop = stop

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:  # noqa: ARG002 - transformers' signature
        return torch.full((input_ids.shape[0],), self.stop(), dtype=torch.bool, device=input_ids.device)


def _keep_input(kept: list[Tensor]) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
    def before_layer(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        kept.append(args[0] if args else kwargs["hidden_states"])

    return before_layer


def refuse_unsupported(config: Any, name: str) -> None:
    """Say no to what this release cannot read.

    Raises:
        UnsupportedModelError: not LLaVA, another vision tower, or several feature layers.
    """
    if config.model_type != "llava":
        raise UnsupportedModelError(
            f"{name} is a {config.model_type!r} model; this release reads LLaVA-type models (model type 'llava', such as "
            "llava-hf/llava-1.5-7b-hf) and refuses others rather than guess their patch maps"
        )
    tower = config.vision_config.model_type
    if tower not in TOWERS:
        raise UnsupportedModelError(f"{name} has a {tower!r} vision tower; expected one of {', '.join(TOWERS)}")
    if not isinstance(config.vision_feature_layer, int):
        raise UnsupportedModelError(
            f"{name} joins features of several encoder layers; expected a single vision_feature_layer"
        )
