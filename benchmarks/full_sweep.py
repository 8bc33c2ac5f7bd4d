"""Cost of the whole oracle sweep of MMStar and CV-Bench on LLaVA-1.5-7B: work counted, the saving measured, the hours extrapolated.

``python benchmarks/full_sweep.py``. The floating-point work is counted on the model's own shape without weights (torch's counter on the meta
device). How much of the saving in work becomes a saving in time is measured here on a smaller shape. The hours on an H100 are extrapolated from
both with its published peak and a utilisation that is assumed, not measured: no GPU was at hand.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from statistics import median
from typing import Annotated, Any

import torch
import typer
from bounds import H100
from models import Subject, llava_7b_config, onevision
from peers import generate
from timing import take_turns
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlavaForConditionalGeneration

from sinkgate.analysis.sweep import LINE, oracle
from sinkgate.methods import Fixed
from sinkgate.sinks.gates import Gates
from sinkgate.training.dataset import Prefix

ITEMS = {"MMStar": 1500, "CV-Bench": 2638}
ANSWER = 2  # tokens that a full generate writes: a letter and the end


@dataclass(frozen=True)
class Work:
    """Floating-point operations of one item: the encoder with the projector, the LLM over the whole prompt, one step of decoding."""

    encode: float
    prefill: float
    step: float
    layers: int

    def by_generates(self, points: int) -> float:
        """Return the operations of a sweep by full generates, the unmodified one included."""
        return (1 + self.layers * points) * (self.encode + self.prefill + (ANSWER - 1) * self.step)

    def by_engine(self, points: int) -> float:
        """Return the operations of sinkgate's sweep: encoder and LLM once, then each setting from its layer up."""
        passes = sum((self.layers - layer) / self.layers for layer in range(self.layers)) * points
        return self.encode + (1 + passes) * self.prefill


def llava_7b_work(words: int) -> Work:
    """Return the work counted on LLaVA-1.5-7B's shape, 576 visual tokens and ``words`` of text."""
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(llava_7b_config()).eval()
    return counted(model, 336, 576 + words)


def counted(model: Any, side: int, length: int) -> Work:
    """Return the work of a LLaVA on the meta device."""

    def count(run: Any) -> float:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            run()
        return float(counter.get_total_flops())

    def llm(count: int) -> None:
        states = torch.empty(1, count, model.config.text_config.hidden_size, device="meta")
        # the model would read the values of a mask of its own, and tensors on the meta device have none
        model.model.language_model(
            inputs_embeds=states, attention_mask=torch.empty(1, 1, count, count, device="meta"), use_cache=False
        )

    pixels = torch.empty(1, 3, side, side, device="meta")
    return Work(
        encode=count(lambda: model.model.get_image_features(pixels)),
        prefill=count(lambda: llm(length)),
        step=count(lambda: llm(1)),
        layers=model.config.text_config.num_hidden_layers,
    )


def saving(subject: Subject, layers: range, items: int, rounds: int) -> tuple[list[float], Work]:
    """Return the seconds of full generates over those of the engine, by round, for one setting at each of some layers; and the work."""
    vlm = subject.vlm
    settings = oracle(vlm, layers, LINE[3:4])
    sinks, prompt = subject.sinks, subject.prompt

    def engine() -> None:
        prompt.encoded = None
        with torch.no_grad():
            prefix = Prefix(vlm, vlm.batch([prompt] * items, [sinks] * items, [[11, 0]] * items))
            for setting in settings:
                prefix.run(Fixed(setting.gates(vlm)))

    def generates() -> None:
        for setting in settings:
            scales = subject.scales(setting.gates(vlm))[setting.layer, 0]
            generate(subject, setting.layer, scales, ANSWER)
        generate(subject, 0, subject.scales(Gates.ones(vlm))[0, 0], ANSWER)

    seconds = take_turns({"engine": engine, "generates": generates}, rounds)
    ratios = [items * theirs / ours for ours, theirs in zip(seconds["engine"], seconds["generates"], strict=True)]
    with torch.device("meta"):
        shape = LlavaForConditionalGeneration(vlm.model.config).eval()
    return ratios, counted(shape, prompt.inputs["pixel_values"].shape[-1], prompt.length)


def main(
    words: Annotated[int, typer.Option(help="Tokens of text in a prompt; assumed.")] = 80,
    utilisation: Annotated[float, typer.Option(help="Share of the peak that is reached; assumed.")] = 0.4,
    rounds: Annotated[int, typer.Option(help="Rounds of the measurement.")] = 3,
    items: Annotated[int, typer.Option(help="Items side by side in the measurement.")] = 2,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Count, measure, extrapolate."""
    work, questions, points = llava_7b_work(words), sum(ITEMS.values()), len(LINE)
    small = onevision(side=14, layers=12, encoder_layers=13)
    layers = range(1, 12, 3)  # on the mean as deep as all twelve
    ratios, shape = saving(small, layers, items, rounds)
    passes = sum((shape.layers - layer) / shape.layers for layer in layers)
    settings = len(layers)
    expected = (
        (settings + 1)
        * (shape.encode + shape.prefill + shape.step)
        / (shape.encode / items + (1 + passes) * shape.prefill)
    )
    weights = 2 * 7.06e9  # bytes read in a step of decoding
    bandwidth, peak = H100[0], H100[1] * utilisation
    before = questions * (
        work.by_generates(points) / peak + (1 + work.layers * points) * (ANSWER - 1) * weights / bandwidth
    )
    after = questions * work.by_engine(points) / peak
    summary = {
        "work of an item, FLOP": asdict(work),
        "settings": 1 + work.layers * points,
        "items": questions,
        "saving in work": work.by_generates(points) / work.by_engine(points),
        "measured on": f"{shape.layers} layers, {small.prompt.length} positions, {items} items side by side",
        "saving there, in work": expected,
        "saving there, in time": median(ratios),
        "hours by full generates, 1 H100": before / 3600,
        "hours by the engine, 1 H100": after / 3600,
        "hours by full generates, 8 H100": before / 8 / 3600,
        "hours by the engine, 8 H100": after / 8 / 3600,
        "assumed": f"{utilisation:.0%} of the peak of {H100[1] / 1e12:.0f} TFLOP/s, {words} tokens of text, samples shared out evenly",
    }
    if as_json:
        print(json.dumps(summary, indent=1))
        return
    for name, value in summary.items():
        print(f"{name:<36}{value:.3g}" if isinstance(value, float) else f"{name:<36}{value}")


if __name__ == "__main__":
    typer.run(main)
