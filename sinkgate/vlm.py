"""A vision-language model and the map of its parts: load it, ask it, gate it.

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
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    LlavaForConditionalGeneration,
    PretrainedConfig,
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

DEMO = Path(__file__).parent / "demo" / "weights"
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

    def __init__(self, model: LlavaForConditionalGeneration, processor: Any, name: str) -> None:
        _refuse_unsupported(model.config, name)
        self.model, self.processor, self.name = model.eval(), processor, name
        self.decoder: nn.Module = model.get_decoder()
        self.vision_tower: nn.Module = model.model.vision_tower
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
    def _has_cls(self) -> bool:
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
            text = self.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
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
        return [w.strip(".,;:!?\"'()") for w in words if unknown in self.tokenizer(w, add_special_tokens=False).input_ids]

    def _covered(self, image: Image.Image) -> tuple[int, int, int, int]:
        width, height = image.size
        if not getattr(self.processor.image_processor, "do_center_crop", False):
            return 0, 0, width, height
        side = min(width, height)  # resized to the shortest edge, then the middle is cut out
        left, top = (width - side) // 2, (height - side) // 2
        return left, top, left + side, top + side

    # --- running

    @contextmanager
    def gated(
        self, prompt: Prompt, sinks: SinkMap, gates: Gates, recorder: Recorder | None = None
    ) -> Iterator[None]:
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
            except BaseException as error:  # handed to whoever iterates
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
                prompt.encoded = self._encode(prompt)
            hooks = [layer.register_forward_pre_hook(_keep_input(hidden), with_kwargs=True) for layer in self.decoder.layers]
            try:
                with attached(self.attention, decoder=self.decoder, recorder=llm):
                    self.model(**self._warm_inputs(prompt), use_cache=False, logits_to_keep=1)
            finally:
                for hook in hooks:
                    hook.remove()
        features = prompt.encoded.hidden_states[self.model.config.vision_feature_layer][0]
        received = encoder.attention[self.feature_layer][0][0]
        first = 1 if self._has_cls else 0
        visual = prompt.visual.cpu()
        return Observation(
            features=features[first:].float().cpu(),
            encoder_attention=received[first:].float().cpu(),
            hidden=torch.cat(hidden).float().cpu(),
            visual=visual,
            attention=torch.cat([llm.attention[i][0] for i in range(self.num_layers)]).float().cpu()[:, visual],
            value_norms=torch.cat([llm.value_norms[i][0] for i in range(self.num_layers)]).cpu(),
        )

    def _encode(self, prompt: Prompt) -> Any:
        return self.model.model.get_image_features(
            prompt.inputs["pixel_values"], output_hidden_states=True, return_dict=True
        )

    def _warm_inputs(self, prompt: Prompt) -> dict[str, Any]:
        """The prompt's inputs with the image already encoded: it is encoded once per prompt."""
        if prompt.encoded is None:
            prompt.encoded = self._encode(prompt)
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
        names = [self.tokenizer.decode([index]).strip() or repr(self.tokenizer.decode([index])) for index in top.indices]
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


def load(
    source: str | Path | tuple[Any, Any] = "demo",
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
    attn_implementation: str = "sdpa",
    trust_remote_code: bool = False,
    check: bool = True,
) -> VLM:
    """A vision-language model, ready to be asked and gated.

    Args:
        source: "demo", a Hub id, a folder, or (model, processor).
        device: where to put it; None takes a GPU when there is one.
        dtype: as transformers takes it; None is float32 for the demo, else what the weights were saved in.
        revision: branch, tag or commit on the Hub.
        attn_implementation: "sdpa" or "eager".
        trust_remote_code: run code that comes with the weights; never unless you ask.
        check: prove on a small prompt that patches map to tokens, attention is seen and gates move the logits.

    Raises:
        UnsupportedModelError: nothing there to load, a family that is not supported, or a failed check.
    """
    if isinstance(source, tuple):
        model, processor = source
        name = model.config._name_or_path or type(model).__name__
        vlm = VLM(model, processor, Path(name).name if Path(name).exists() else name)
    else:
        place = DEMO if source == "demo" else source
        name = "demo" if source == "demo" else Path(source).name if Path(source).exists() else str(source)
        options = {"revision": revision, "trust_remote_code": trust_remote_code}
        dtype = dtype or (torch.float32 if source == "demo" else "auto")
        try:
            _refuse_unsupported(AutoConfig.from_pretrained(place, **options), name)
            model = AutoModelForImageTextToText.from_pretrained(
                place, dtype=dtype, attn_implementation=attn_implementation, **options
            )
            processor = AutoProcessor.from_pretrained(place, **options)
        except UnsupportedModelError:
            raise
        except (OSError, ValueError, SafetensorError) as error:
            raise UnsupportedModelError(f"{source} cannot be loaded: {_first_sentence(error)}") from error
        vlm = VLM(_placed(model, device), processor, name)
    if check:
        check_model(vlm)
    return vlm


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
        ValueError: no criterion has that name.
    """
    default = v_sink == "auto" and l_sink == "auto"
    if default and prompt.sinks is not None:
        return prompt.sinks
    sinks = classify(vlm.observe(prompt), prompt.grid, v_sink=v_sink, l_sink=l_sink)
    if default:
        prompt.sinks = sinks
    return sinks


def check_model(vlm: VLM) -> None:
    """Prove on a small prompt that this model is read rightly.

    Raises:
        UnsupportedModelError: visual tokens are not one a patch in order, a layer's attention is not seen, its rows
            do not sum to one, or gating every visual Key does not move the logits.
    """
    prompt = vlm.prompt(_test_picture(), "What is this?")
    order = token_of_patch(vlm, prompt)
    if not torch.equal(order, torch.arange(len(prompt.visual))):
        raise UnsupportedModelError(f"{vlm.name}: patch i does not become visual token i alone; got {order.tolist()[:8]}...")
    plain = vlm.predict(prompt)
    if len(plain.attention) != vlm.num_layers:
        raise UnsupportedModelError(f"{vlm.name}: attention seen in {len(plain.attention)} of {vlm.num_layers} layers")
    if not torch.allclose(plain.attention.sum(-1), torch.ones(()), atol=1e-3):
        raise UnsupportedModelError(f"{vlm.name}: attention rows do not sum to one")
    seen = vlm.observe(prompt)
    everything = classify(seen, prompt.grid, v_sink="norm", l_sink="norm")
    halved = Gates.ones(vlm).set("v_sink", 0.5).set("rest", 0.5)
    if torch.equal(vlm.predict(prompt, halved, everything).probabilities, plain.probabilities):
        raise UnsupportedModelError(f"{vlm.name}: halving every visual Key does not move the logits")


def token_of_patch(vlm: VLM, prompt: Prompt) -> Tensor:
    """Which visual token each patch feeds, measured by two gradients of the projected image.

    With random r, g1 is the gradient of sum_k r.token_k and g2 that of sum_k (k+1) r.token_k with respect to the
    encoder's output; g2 / g1 - 1 is k. -1: the patch feeds no token or several.

    Shapes: -> (V,) int64.
    """
    leaves: list[Tensor] = []

    def cut(module: nn.Module, args: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        leaves.append(hidden.detach().requires_grad_())
        return (leaves[0], *output[1:]) if isinstance(output, tuple) else leaves[0]

    with vlm.lock, torch.enable_grad():
        # before the hooks by which transformers captures hidden states, so that those see the leaf
        hook = vlm.vision_tower.encoder.layers[vlm.feature_layer].register_forward_hook(cut, prepend=True)
        try:
            tokens = torch.cat(list(vlm._encode(prompt).pooler_output)).double()
        finally:
            hook.remove()
        weights = torch.randn(tokens.shape[-1], generator=torch.Generator().manual_seed(0), dtype=torch.double)
        each = tokens @ weights.to(tokens.device)
        order = torch.arange(1, len(each) + 1, device=each.device)
        plain = torch.autograd.grad(each.sum(), leaves[0], retain_graph=True)[0].double()
        counted = torch.autograd.grad((order * each).sum(), leaves[0])[0].double()
    ratio = (counted * plain).sum(-1)[0] / plain.square().sum(-1)[0].clamp_min(1e-300)
    index = ratio.round()
    clean = ((counted - index[:, None] * plain).abs().amax((0, -1)) <= 1e-2 * counted.abs().amax((0, -1))) & (index > 0)
    found = torch.where(clean, index - 1, -1).long().cpu()
    return found[1:] if vlm._has_cls else found


class _StopWhen(StoppingCriteria):
    def __init__(self, stop: Callable[[], bool]) -> None:
        self.stop = stop

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        return torch.full((input_ids.shape[0],), self.stop(), dtype=torch.bool, device=input_ids.device)


def _placed(model: Any, device: str | torch.device | None) -> Any:
    try:
        return model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except (RuntimeError, AssertionError) as error:  # torch was built without it, or no such device is there
        raise UnsupportedModelError(f"the model cannot be put on {device}: {_first_sentence(error)}") from error


def _keep_input(kept: list[Tensor]) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
    def before_layer(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        kept.append(args[0] if args else kwargs["hidden_states"])

    return before_layer


def _refuse_unsupported(config: PretrainedConfig, name: str) -> None:
    if config.model_type != "llava":
        raise UnsupportedModelError(
            f"{name} is a {config.model_type!r} model; this release reads LLaVA-type models (model type 'llava', such as "
            "llava-hf/llava-1.5-7b-hf) and refuses others rather than guess their patch maps"
        )
    tower = config.vision_config.model_type
    if tower not in TOWERS:
        raise UnsupportedModelError(f"{name} has a {tower!r} vision tower; expected one of {', '.join(TOWERS)}")
    if not isinstance(config.vision_feature_layer, int):
        raise UnsupportedModelError(f"{name} joins features of several encoder layers; expected a single vision_feature_layer")


def _test_picture() -> Image.Image:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (64, 64, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(noise.numpy())


def _first_sentence(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
