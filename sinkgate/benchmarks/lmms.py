"""A gated model for all image tasks of lmms-eval: `pip install "sinkgate[lmms]"`, then

    python -m lmms_eval --model sinkgate --model_args model=llava-1.5-7b,gates=runs/stack --tasks mmstar --batch_size 8

or `method=vaf image 1.3` (quoted) in place of gates; or, with the same arguments, `python -m sinkgate.benchmarks.lmms`. Questions, scores and result files are lmms-eval's; the chat format is the
model's own. Written for the interface of "simple" models of release 0.7.3.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from PIL import Image

from sinkgate.errors import SinkgateError
from sinkgate.methods import Fixed, Method, finder_of
from sinkgate.methods.registry import published, read_method
from sinkgate.models import loading
from sinkgate.models.prompts import Prompt
from sinkgate.output import track
from sinkgate.sinks.criteria import read_criterion
from sinkgate.sinks.gates import Gates

try:
    from lmms_eval.api.model import lmms  # pyright: ignore[reportMissingImports]
    from lmms_eval.models.registry_v2 import ModelManifest  # pyright: ignore[reportMissingImports]
except ImportError as error:
    raise ImportError(f'the adapter needs lmms-eval ({error}): run `pip install "sinkgate[lmms]"`') from error

NAME = "sinkgate"
PLACE = "<image>"  # marks the place of an image in a task's text
MAX_NEW_TOKENS = 1024  # default of lmms-eval's LLaVA


class GatedModel(lmms):
    """A model of `sinkgate.load` under a method, with lmms-eval's interface of "simple" models: text and images in, text out.

    Sinks are found in the images of each request. A request without images runs unmodified, since it has no tokens to gate.

    Args:
        model: as `sinkgate.load` takes it: a known name, a Hub id or a folder.
        gates: folder of learned gates, of a LoRA or a reweighting, or JSON file of fixed gates; None is the unmodified model.
        method: a published method instead, with options as words, such as ``vaf image 1.3 layers 9-14``.
        device: as `sinkgate.load` takes it. Each of several processes takes its own GPU.
        batch_size: requests side by side; always 1 for models that encode images again in every call.
        device_map: as `sinkgate.load` takes it.
        dtype: as `sinkgate.load` takes it.
        revision: as `sinkgate.load` takes it.
        quantize: as `sinkgate.load` takes it.
        any_model: accept gates of another model.
        v_sink: criterion of V-sinks, such as ``dimensions 650 tau 20``; that of the gates if None.
        l_sink: criterion of L-sinks, likewise.
        max_batch_size: an argument that lmms-eval passes to every model; not used.

    Raises:
        SinkgateError: the model or the gates cannot be loaded, or do not fit each other.
    """

    is_simple = True

    def __init__(
        self,
        model: str = "demo",
        gates: str | None = None,
        device: str | None = None,
        batch_size: int | str = 1,
        *,
        device_map: str | None = None,
        dtype: str | None = None,
        revision: str | None = None,
        quantize: str | None = None,
        any_model: bool = False,
        v_sink: str | None = None,
        l_sink: str | None = None,
        method: str | None = None,
        max_batch_size: int | str | None = None,  # noqa: ARG002
    ) -> None:
        super().__init__()
        if gates is not None and method is not None:
            raise SinkgateError(f"gates are {gates!r} and method is {method!r}; expected one of them: run them apart")
        baseline = published(method) if method is not None else None
        for criterion in filter(None, (v_sink, l_sink)):
            read_criterion(criterion)
        if not str(batch_size).isdigit() or int(batch_size) < 1:
            raise SinkgateError(f"batch_size is {batch_size!r}; expected a number of requests, 1 or more")
        if device is None and device_map is None and "LOCAL_RANK" in os.environ and torch.cuda.is_available():
            device = f"cuda:{os.environ['LOCAL_RANK']}"
        self.vlm = loading.load(
            str(model), device=device, device_map=device_map, dtype=dtype, revision=revision, quantize=quantize
        )
        self.gated = gates is not None or baseline is not None
        self.method: Method = baseline or Fixed(Gates.ones(self.vlm))
        if gates is not None:
            self.method = read_method(gates, self.vlm, any_model)
        self._find_sinks = finder_of([self.method], v_sink=v_sink, l_sink=l_sink, l_sinks=False)
        self.batch_size = int(batch_size) if self.vlm.adapter.takes_encoded is not None else 1

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return self.vlm.device

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Return the answers in the requests' order, each under the gates for its own images and question.

        Decoding is greedy unless a task sets a temperature. An answer ends at a stop string; a blank line, lmms-eval's default, is no
        stop string, as for its own Qwen2.5-VL.

        Raises:
            SinkgateError: a request has visuals other than images.
        """
        answers = [""] * len(requests)
        parts = list(_batches([request.args[1] for request in requests], self.batch_size))
        for numbers in track(parts, NAME, unit="batches", show=self.rank == 0):
            arguments = [requests[number].args for number in numbers]
            options = arguments[0][1]
            contexts = [(context, self._images(*place)) for context, _, *place in arguments]
            prompts = [self._prompt(context, images) for context, images in contexts if images]
            gated = iter(self._gated(prompts, options) if prompts else ())
            for number, (context, images) in zip(numbers, contexts, strict=True):
                answers[number] = _until(next(gated) if images else self._plain(context, options), options)
        return answers

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Raise NotImplementedError: lmms-eval's interface expects a log-likelihood, but its tasks prefer the smallest value."""
        raise NotImplementedError(_not_offered("loglikelihood", requests))

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Raise NotImplementedError: a prompt is one question."""
        raise NotImplementedError(_not_offered("generate_until_multi_round", requests))

    # --- inside

    def _images(self, visuals_of: Callable[[Any], Any], document: Any, task: str, split: str) -> list[Image.Image]:
        """Return the images of a document, which lmms-eval expects the model to fetch."""
        visuals = visuals_of(self.task_dict[task][split][document]) or []
        for visual in visuals:
            if not isinstance(visual, Image.Image):
                raise SinkgateError(
                    f"task {task}, document {document}: a {type(visual).__name__} is among the visuals; only images can be gated"
                )
        return [visual.convert("RGB") for visual in visuals]

    def _prompt(self, context: str, images: list[Image.Image]) -> Prompt:
        """Return a prompt as `VLM.prompt` does, with the task's unchanged text and several images at their places."""
        return self.vlm.read(self._inputs(context, images), question=context)

    def _text(self, context: str, images: int) -> str:
        parts = context.split(PLACE)
        if images < 2 or len(parts) != images + 1:
            parts = [None] * images + [context.replace(PLACE, "").strip()]
        else:
            parts = [each for part in parts for each in (part, None)][:-1]
        return self.vlm.prompter.chat.text([part for part in parts if part is None or part.strip()])

    def _inputs(self, context: str, images: list[Image.Image]) -> dict[str, Any]:
        return self.vlm.prompter.chat.inputs(self._text(context, len(images)), images)

    def _gated(self, prompts: list[Prompt], options: Mapping[str, Any]) -> list[str]:
        sinks = [self._find_sinks(self.vlm, prompt) for prompt in prompts] if self.gated else ()
        batch = self.vlm.batch(prompts, sinks)
        with torch.no_grad(), self.method.applied(self.vlm, batch):
            return self._generate(batch.inputs, options)

    def _plain(self, context: str, options: Mapping[str, Any]) -> str:
        with torch.no_grad(), self.vlm.attached(None, None):
            return self._generate(self._inputs(context, []), options)[0]

    def _generate(self, inputs: Mapping[str, Any], options: Mapping[str, Any]) -> list[str]:
        temperature = options.get("temperature") or 0
        sampling = {name: options.get(name) for name in ("temperature", "top_p", "top_k")} if temperature > 0 else {}
        length = inputs["input_ids"].shape[1]
        ids = self.vlm.model.generate(
            **inputs,
            max_new_tokens=self.vlm.new_tokens(length, options.get("max_new_tokens", MAX_NEW_TOKENS)),
            num_beams=options.get("num_beams", 1),
            do_sample=temperature > 0,
            **sampling,
        )
        texts = self.vlm.tokenizer.batch_decode(ids[:, length:], skip_special_tokens=True)
        return [text.strip() for text in texts]


def _batches(options: Sequence[Mapping[str, Any]], size: int) -> Iterator[list[int]]:
    """Yield the numbers of requests with equal options, ``size`` at most together."""
    alike: dict[str, list[int]] = {}
    for number, each in enumerate(options):
        alike.setdefault(repr(sorted(each.items())), []).append(number)
    for numbers in alike.values():
        yield from (numbers[start : start + size] for start in range(0, len(numbers), size))


def _until(text: str, options: Mapping[str, Any]) -> str:
    stops = options.get("until") or []
    for stop in [stops] if isinstance(stops, str) else stops:
        text = text.split(stop)[0] if stop.strip() else text
    return text


def _not_offered(kind: str, requests: Sequence[Any]) -> str:
    task = requests[0].task_name if requests else "this task"
    return f"{task} needs {kind}, which gated models do not offer; choose a task of the kind generate_until"


# --- registration


def manifest() -> ModelManifest:
    """Return the manifest for lmms-eval's entry point ``lmms_eval.models``."""
    return ModelManifest(model_id=NAME, simple_class_path=f"sinkgate.benchmarks.lmms.{GatedModel.__name__}")


def main() -> None:
    """Run lmms-eval's command line with this model registered and selected."""
    from lmms_eval.cli.dispatch import main as lmms_eval  # pyright: ignore[reportMissingImports]
    from lmms_eval.models import MODEL_REGISTRY_V2  # pyright: ignore[reportMissingImports]

    MODEL_REGISTRY_V2.register_manifest(manifest(), overwrite=True)
    if "--model" not in sys.argv:
        sys.argv[1:1] = ["--model", NAME]
    lmms_eval()


if __name__ == "__main__":
    main()
