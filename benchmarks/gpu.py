"""Check of gates on a GPU, and their cost on the shapes of two 7B models.

``python benchmarks/gpu.py [--out gpu.json]`` takes at most 8 minutes on an H100, needs sinkgate and this folder, and fetches nothing: weights
are random. Each part is written to the file when it is finished; the same command continues, on the same device.
``--device cpu --size tiny`` runs the same code on a CPU.

Every ratio is against plain transformers in turns within the same run, beside the physical limit: operations over peak, or bytes over
bandwidth, from the device's data sheet or, for devices that are not in `bounds`, measured by a product of matrices and a copy.
"""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated, Any, cast

import attention
import bounds
import torch
import transformers
import typer
from attention import GATED, PLAIN, ROWS, STEPS, forward, use
from models import IMAGE, WORDS, Options, Subject, llava_7b_config, llava_inputs, random_weights, with_prompt
from timing import Row, duration, ratio, take_turns, timed
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    LlavaForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)
from transformers.masking_utils import sdpa_mask
from transformers.utils import logging

import sinkgate as sg
from sinkgate.methods.lsg import LSG, LSGConfig
from sinkgate.sinks.criteria import MassiveActivations, SinkDimensions
from sinkgate.training.dataset import Prefix
from sinkgate.training.ensemble import frozen

KERNELS = (
    "flash_attention_2",
    "flash_attention_3",
    "flex_attention",
    "kernels-community/flash-attn2",
    "kernels-community/vllm-flash-attn3",
)
SETTINGS = 11  # points of the paper's line
DTYPES = {"cuda": torch.bfloat16, "cpu": torch.float32}


@dataclass(frozen=True)
class Shape:
    """A model in code: its class, configuration, inputs, and the rule from patches to visual tokens."""

    name: str
    rule: str
    kind: Any
    config: Callable[[bool], Any]  # True: of a tiny model
    inputs: Callable[[Any], dict[str, Tensor]]  # of a configuration

    def subject(self, device: torch.device, dtype: torch.dtype, tiny: bool) -> Subject:
        """Return the model on a device, with a prompt and some sinks."""
        config = self.config(tiny)
        vlm = random_weights(self.name, self.kind, config, dtype, device)
        if tiny:
            with torch.no_grad():
                for parameter in vlm.model.parameters():
                    if parameter.dim() >= 2:
                        parameter.mul_(4)  # a gate must move the logits of so small a model
        return with_prompt(vlm, self.rule, self.inputs(config))


def qwen_config(tiny: bool) -> Qwen2_5_VLConfig:
    """Qwen2.5-VL-7B: 28 layers, 3584 wide, grouped Keys; a tower of 32 layers with windows."""
    vision = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584}
    vision |= {"fullatt_block_indexes": [7, 15, 23, 31]}
    text = {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28}
    text |= {"num_key_value_heads": 4, "vocab_size": 152064}
    sections = [16, 24, 24]
    if tiny:
        vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64}
        vision |= {"fullatt_block_indexes": [1]}
        text = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4}
        text |= {"num_key_value_heads": 2, "vocab_size": 200}
        sections = [2, 3, 3]
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": sections}
    ids: Options = {"image_token_id": IMAGE, "video_token_id": 6, "vision_start_token_id": 7, "vision_end_token_id": 8}
    return Qwen2_5_VLConfig(vision_config=vision, text_config={**text, "rope_parameters": rope}, **ids)


def qwen_inputs(config: Any) -> dict[str, Tensor]:
    """Return a large picture, 3,952 visual tokens, and a question; for a tiny model 24 visual tokens."""
    height, width = (8, 12) if config.vision_config.depth == 2 else (104, 152)
    tokens = height * width // 4
    words = torch.randint(10, 60, (1, WORDS))
    ids = torch.cat([torch.tensor([[7]]), torch.full((1, tokens), IMAGE), torch.tensor([[8]]), words], 1)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.randn(height * width, 3 * 2 * 14 * 14),
        "image_grid_thw": torch.tensor([[1, height, width]]),
        "mm_token_type_ids": (ids == IMAGE).long(),
    }


SHAPES = {
    "llava": Shape("LLaVA-1.5-7B shape", "blocks", LlavaForConditionalGeneration, llava_7b_config, llava_inputs),
    "qwen": Shape("Qwen2.5-VL-7B shape", "runs", Qwen2_5_VLForConditionalGeneration, qwen_config, qwen_inputs),
}


# --- physical limits


@dataclass(frozen=True)
class Peak:
    """Operations and bytes a second, and whether they are the data sheet's or were measured."""

    operations: float
    bandwidth: float
    source: str


def peak_of(device: torch.device, dtype: torch.dtype, tiny: bool) -> Peak:
    """Return the device's limits."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    if name in bounds.DEVICES:
        bandwidth, operations = bounds.DEVICES[name]
        return Peak(operations, bandwidth, f"data sheet of {name}")
    side = 256 if tiny else 8192
    matrix = torch.randn(side, side, device=device, dtype=dtype)
    product = min(take_turns({"": lambda: matrix @ matrix}, 5)[""])
    moved = min(take_turns({"": lambda: matrix.clone()}, 5)[""])
    return Peak(2 * side**3 / product, 2 * matrix.nbytes / moved, f"a product and a copy of {side} x {side} numbers")


# --- equality


class ScaledScores:
    """Attention that scales logits and not Keys, in float64, written without sinkgate."""

    def __init__(self, scales: Tensor) -> None:
        self.scales = scales  # L, K

    def __call__(self, module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any) -> Any:
        repeat = query.shape[1] // key.shape[1]
        query, key, value = (each.double() for each in (query, key, value))
        key, value = key.repeat_interleave(repeat, 1), value.repeat_interleave(repeat, 1)
        scores = query @ key.transpose(-1, -2) * options["scaling"]
        scores[..., : self.scales.shape[1]] *= self.scales[module.layer_idx].to(scores)
        rows = torch.arange(query.shape[2], device=query.device)[:, None] + key.shape[2] - query.shape[2]
        visible = torch.arange(key.shape[2], device=query.device) <= rows
        output = scores.masked_fill(~visible, -torch.inf).softmax(-1) @ value
        return output.transpose(1, 2).to(module.o_proj.weight.dtype), None


@contextmanager
def scaled_scores(subject: Subject, scales: Tensor) -> Iterator[None]:
    """Run the LLM on `ScaledScores`."""
    AttentionInterface.register("scaled_scores", cast(Any, ScaledScores(scales)))
    AttentionMaskInterface.register("scaled_scores", sdpa_mask)
    use(subject, "scaled_scores")
    try:
        yield
    finally:
        use(subject, "sdpa")


def gates_of(subject: Subject) -> sg.Gates:
    """Return scales that differ from layer to layer."""
    gates = sg.Gates.ones(subject.vlm)
    for layer in range(subject.vlm.num_layers):
        gates = gates.set("v_sink", 0.2 + 0.1 * (layer % 5), layer).set("rest", 0.5 + 0.1 * (layer % 4), layer)
    return gates


def equality(device: torch.device, dtype: torch.dtype, tiny: bool) -> list[Row]:
    """Differences of logits over their spread: gated against the reference, a session against full runs, a batch against single prompts.

    The same small models on every device; what plain bfloat16 differs from float32 is the yardstick.
    """
    rows: list[Row] = []
    for shape in SHAPES.values():
        exact = shape.subject(device, torch.float32, True)
        gates, vlm, prompt, sinks = gates_of(exact), exact.vlm, exact.prompt, exact.sinks
        with torch.no_grad():
            gated = vlm.next_logits(prompt, gates, sinks).double()
            with scaled_scores(exact, exact.scales(gates)[:, 0]):
                reference = exact.model(**exact.encoded, use_cache=False, logits_to_keep=1).logits[0, -1].double()
            plain = vlm.next_logits(prompt).double()
            low = shape.subject(device, dtype, True)
            low.model.load_state_dict(exact.model.state_dict())
            noise = (low.vlm.next_logits(low.prompt).double() - plain).abs().max() / plain.std()
            gated_low = low.vlm.next_logits(low.prompt, gates, low.sinks).double()
            session = sg.Session(low.vlm, low.prompt, low.sinks)
            session.predict()
            table = [gates.set("rest", 0.3 + 0.1 * index, layer) for index, layer in enumerate(range(vlm.num_layers))]
            moved = [
                (session.predict(each).probabilities, low.vlm.predict(low.prompt, each, low.sinks).probabilities)
                for each in table
            ]
            side = low.vlm.predict([low.prompt] * 3, gates, [low.sinks] * 3)
            alone = low.vlm.predict(low.prompt, gates, low.sinks)

        def spread(a: Tensor, b: Tensor) -> float:
            return float((a - b).abs().max() / b.std())

        kind = str(dtype).removeprefix("torch.")
        close = f"<= {max(2 * float(noise), 1e-5):.2g}"
        rows += [
            Row("gated float32 / logits scaled in float64", shape.name, spread(gated, reference), "spreads", aim="<= 1e-4"),
            Row(f"plain {kind} / plain float32", shape.name, float(noise), "spreads"),
            Row(f"gated {kind} / logits scaled in float64", shape.name, spread(gated_low, reference), "spreads", aim=close),
            Row("the gates move logits", shape.name, spread(gated, plain), "spreads", aim="> 0.01"),
            Row("session / full run, probabilities", shape.name, max(float((a - b).abs().max()) for a, b in moved), "", aim="<= 1e-3"),
            Row("batch of three / single, probabilities", shape.name, max(float((each.probabilities - alone.probabilities).abs().max()) for each in side), "", aim="<= 0.01"),
        ]  # fmt: skip
    return rows


def compiled(device: torch.device, dtype: torch.dtype, tiny: bool) -> list[Row]:
    """torch.compile of the LLM: gated as without it."""
    subject = SHAPES["llava"].subject(device, dtype, True)
    gates = gates_of(subject)
    before = subject.vlm.next_logits(subject.prompt, gates, subject.sinks)
    decoder = subject.vlm.decoder
    forward = decoder.forward
    decoder.forward = torch.compile(forward, backend="inductor" if device.type == "cuda" else "eager")
    try:
        taken = timed(lambda: subject.vlm.next_logits(subject.prompt, gates, subject.sinks))
        after = subject.vlm.next_logits(subject.prompt, gates, subject.sinks)
    finally:
        decoder.forward = forward
    difference = float((after - before).abs().max() / before.std())
    note = f"{duration(taken)} to compile; backend {'inductor' if device.type == 'cuda' else 'eager'}"
    return [Row("compiled and gated / gated", subject.name, difference, "spreads", aim="<= 0.1", note=note)]


def kernels(device: torch.device, dtype: torch.dtype, tiny: bool) -> list[Row]:
    """Return gates and recorded rows on every installed kernel against sdpa, and the reason where a kernel is not measured."""
    rows: list[Row] = []
    for name in KERNELS:
        for shape in SHAPES.values():
            subject = shape.subject(device, dtype, True)
            vlm, gates = subject.vlm, gates_of(subject)
            what = f"gated on {name} / gated on sdpa"
            expected = vlm.predict(subject.prompt, gates, subject.sinks)
            try:
                use(subject, name)
                if not all(vlm.predict(subject.prompt).probabilities.isfinite().all() for _ in range(8)):
                    raise ValueError("without gates, too, not all of its results are finite")
                actual = vlm.predict(subject.prompt, gates, subject.sinks)
            except Exception as error:  # noqa: BLE001 - missing packages, devices and dtypes show in many ways
                reason = " ".join(str(error).split())[:160]
                rows.append(Row(what, shape.name, None, "", note=f"not available here: {reason}"))
                continue
            used = vlm.model.config.get_text_config()._attn_implementation
            difference = float((actual.probabilities - expected.probabilities).abs().max())
            recorded = float((actual.attention - expected.attention).abs().max())
            rows.append(Row(what, shape.name, difference, "", aim="<= 0.01", note=f"probabilities; ran on {used}"))
            rows.append(Row(f"rows recorded beside {name}", shape.name, recorded, "", aim="<= 0.01"))
    return rows


# --- cost


def cost(shape: Shape, device: torch.device, dtype: torch.dtype, tiny: bool) -> Iterator[list[Row]]:
    """Cost on one shape, part by part; the model is built once."""
    subject = shape.subject(device, dtype, tiny)
    peak = peak_of(device, dtype, tiny)
    rounds = 3 if tiny else 10
    yield prefill(subject, peak, rounds)
    yield decode(subject, peak, rounds)
    yield finding(subject, rounds)
    yield slider(subject, rounds)
    yield sweep_batch(subject, max(2, rounds // 3))
    yield training_step(subject, max(2, rounds // 2))
    yield memory(subject)


def prefill(subject: Subject, peak: Peak, rounds: int) -> list[Row]:
    """Return the cost of a prefill of the encoded prompt: plain, gated, with rows recorded."""
    seconds = take_turns({name: attention.prefill(subject, name) for name in (PLAIN, GATED, ROWS)}, rounds)
    limit = bounds.operations(subject) / peak.operations
    note = f"{duration(median(seconds[PLAIN]))} plain; {duration(limit)} at best, operations over peak ({peak.source})"
    return [
        ratio("gated prefill / plain", subject.name, seconds[GATED], seconds[PLAIN], "<= 1.02", note=note),
        ratio("prefill with rows / plain", subject.name, seconds[ROWS], seconds[PLAIN], "<= 1.05", note=note),
        Row("gated prefill / operations over peak", subject.name, median(seconds[GATED]) / limit, note=note),
    ]


def decode(subject: Subject, peak: Peak, rounds: int) -> list[Row]:
    """Return the cost of a decode step over the prompt's cache: plain, gated, with rows recorded."""
    begun = forward(subject, PLAIN)
    seconds = take_turns({name: attention.decode(subject, name, begun) for name in (PLAIN, GATED, ROWS)}, rounds)
    step, limit = median(seconds[PLAIN]), bounds.bytes_a_token(subject) / peak.bandwidth
    note = f"{duration(step)} a token plain, {STEPS} tokens; {duration(limit)} at best, bytes over bandwidth ({peak.source})"
    return [
        ratio("gated decode / plain", subject.name, seconds[GATED], seconds[PLAIN], "<= 1.02", note=note),
        ratio("decode with rows / plain", subject.name, seconds[ROWS], seconds[PLAIN], "<= 1.05", note=note),
        Row("gated decode / bytes over bandwidth", subject.name, median(seconds[GATED]) / limit, note=note),
    ]


def finding(subject: Subject, rounds: int) -> list[Row]:
    """Return the cost of ``find_sinks`` over a plain prefill of the same pixels."""
    criteria = {"sink dimensions": SinkDimensions((7,)), "massive activations": MassiveActivations()}
    runs: dict[str, Callable[[], Any]] = {"plain": subject.prefill}
    runs |= {
        name: partial(sg.find_sinks, subject.vlm, subject.prompt, v_sink="norm", l_sink=each)
        for name, each in criteria.items()
    }
    seconds = take_turns(runs, rounds)
    note = f"{duration(median(seconds['plain']))} plain, from the pixels"
    return [
        ratio(
            f"find_sinks by {name} / plain prefill", subject.name, seconds[name], seconds["plain"], "<= 1.25", note=note
        )
        for name in criteria
    ]


def slider(subject: Subject, rounds: int) -> list[Row]:
    """Return the cost of a slider moved in the first layer, the middle and the last quarter, beside the layers' share of a forward."""
    vlm, layers = subject.vlm, subject.vlm.num_layers
    session = sg.Session(vlm, subject.prompt, subject.sinks)
    gates = sg.Gates.ones(vlm)
    session.predict(gates)
    rows: list[Row] = []
    for layer in (0, layers // 2, layers - layers // 4):
        values = iter(range(10_000))

        def move(layer: int = layer, values: Iterator[int] = values) -> None:
            session.predict(gates.set("rest", 0.3 + 0.4 * (next(values) % 2), layer))

        seconds = take_turns({"moved": move, "warm": partial(forward, subject, PLAIN)}, rounds)
        share = (layers - layer) / layers
        rows.append(
            ratio(
                f"slider at layer {layer} / warm forward", subject.name, seconds["moved"], seconds["warm"],
                f"<= {share + 0.02:.3g}", note=f"the layers' share is {share:.3g}",
            )
        )  # fmt: skip
    return rows


def sweep_batch(subject: Subject, rounds: int) -> list[Row]:
    """The paper's line at the middle layer, side by side, against a full prefill from the pixels for each setting."""
    vlm, layer = subject.vlm, subject.vlm.num_layers // 2
    session = sg.Session(vlm, subject.prompt, subject.sinks)
    session.predict()
    tables = [sg.Gates.ones(vlm).set("rest", 0.05 + 0.09 * index, layer) for index in range(SETTINGS)]
    seconds = take_turns({"ours": lambda: session.predict_all(tables), "one": subject.prefill}, rounds)
    peer = [SETTINGS * each for each in seconds["one"]]
    note = f"{SETTINGS} settings: {duration(median(seconds['ours']))}; one prefill from the pixels {duration(median(seconds['one']))}"
    return [
        ratio(
            "a full prefill for each setting / settings side by side",
            subject.name,
            seconds["ours"],
            peer,
            "> 1",
            speedup=True,
            note=note,
        )
    ]


def training_step(subject: Subject, rounds: int) -> list[Row]:
    """Forward and backward of one learned gate in the middle layer: from the shared prefix, against the whole model."""
    vlm, layer = subject.vlm, subject.vlm.num_layers // 2
    width = vlm.model.config.get_text_config().hidden_size
    lsg = LSG(LSGConfig((layer,), width)).to(vlm.device)
    batch = vlm.batch([subject.prompt], [subject.sinks], [[11, 12]])
    seconds: dict[str, list[float]] = {}
    with frozen(vlm):
        prefix = Prefix(vlm, batch)

        def shared() -> None:
            with lsg.applied(vlm, batch):
                prefix.batch.losses(prefix.within(lsg)).mean().backward()

        def whole() -> None:
            with lsg.applied(vlm, batch):
                logits = vlm.model(**batch.inputs, use_cache=False).logits[:, :-1].float()
                assert batch.labels is not None
                cross_entropy(logits.flatten(0, 1), batch.labels[:, 1:].flatten()).backward()

        seconds = take_turns({"shared": shared, "whole": whole}, rounds)
    if not any(parameter.grad is not None and parameter.grad.any() for parameter in lsg.parameters()):
        raise AssertionError("the gate got no gradient")
    note = f"{duration(median(seconds['whole']))} by the whole model"
    return [
        ratio(
            "training step, whole model / from the prefix",
            subject.name,
            seconds["shared"],
            seconds["whole"],
            "> 1",
            speedup=True,
            note=note,
        )
    ]


def memory(subject: Subject) -> list[Row]:
    """Peak memory above the weights, over that of a plain prefill from the pixels; measured on CUDA alone."""
    if subject.vlm.device.type != "cuda":
        return [Row("peak memory / plain prefill", subject.name, None, note="measured on CUDA alone")]

    def peak(run: Callable[[], Any]) -> int:
        subject.prompt.encoded = None
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    vlm, prompt, gates = subject.vlm, subject.prompt, gates_of(subject)
    runs: dict[str, Callable[[], Any]] = {
        "predict, gated": lambda: vlm.predict(prompt, gates, subject.sinks),
        "find_sinks": lambda: sg.find_sinks(vlm, prompt, v_sink="norm", l_sink=SinkDimensions((7,))),
        "observe": lambda: vlm.observe(prompt),
    }
    base = peak(partial(subject.prefill, use_cache=True))
    note = f"{base / 2**20:.0f} MiB above the weights plain"
    return [
        Row(f"peak memory, {name} / plain prefill", subject.name, peak(run) / base, aim="<= 1.1", note=note)
        for name, run in runs.items()
    ]


# --- the file

CHECKS: dict[str, Callable[[torch.device, torch.dtype, bool], list[Row]]] = {
    "equality": equality,
    "compile": compiled,
    "kernels": kernels,
}
COSTS = ("prefill", "decode", "find_sinks", "slider", "sweep", "training", "memory")


def main(
    out: Annotated[Path, typer.Option(help="File of the results; the same command continues it.")] = Path("gpu.json"),
    device: Annotated[str, typer.Option(help="cuda or cpu.")] = "cuda",
    size: Annotated[str, typer.Option(help="full: shapes of 7B models; tiny: the same code in a minute.")] = "full",
    minutes: Annotated[float, typer.Option(help="Begin no further part after so many minutes.")] = 7,
) -> None:
    """Measure what the file lacks, and print it."""
    if size not in ("full", "tiny"):
        raise typer.BadParameter(f"{size!r}; expected full or tiny", param_hint="--size")
    logging.set_verbosity_error()
    place, tiny, begin = torch.device(device), size == "tiny", time.perf_counter()
    dtype = DTYPES[place.type]
    machine = {
        "device": torch.cuda.get_device_name(place)
        if place.type == "cuda"
        else f"cpu, {torch.get_num_threads()} threads",
        "size": size,
        "dtype": str(dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "sinkgate": sg.__version__,
    }
    stored = (
        json.loads(out.read_text())
        if out.exists()
        else {"machine": machine, "date": date.today().isoformat(), "parts": {}}
    )
    if stored["machine"] != machine:
        raise typer.BadParameter(
            f"{out} holds results of {stored['machine']}, this is {machine}; name another file", param_hint="--out"
        )

    def save(part: str, rows: list[Row]) -> None:
        stored["parts"][part] = [row.as_json() for row in rows]
        aside = out.with_suffix(".partial")
        aside.write_text(json.dumps(stored, indent=1))
        aside.replace(out)
        for row in rows:
            typer.echo(f"{part}: {row}")

    def late() -> bool:
        return time.perf_counter() - begin > 60 * minutes

    for name, check in CHECKS.items():
        if name not in stored["parts"] and not late():
            save(name, check(place, dtype, tiny))
    for key, shape in SHAPES.items():
        missing = [part for part in COSTS if f"{part}, {key}" not in stored["parts"]]
        if not missing or late():
            continue
        for part, rows in zip(COSTS, cost(shape, place, dtype, tiny), strict=True):
            if part in missing:
                save(f"{part}, {key}", rows)
            if late():
                break
        gc.collect()
    if left := [
        name
        for name in [*CHECKS, *(f"{part}, {key}" for key in SHAPES for part in COSTS)]
        if name not in stored["parts"]
    ]:
        typer.echo(f"left: {', '.join(left)}; the same command continues", err=True)


if __name__ == "__main__":
    typer.run(main)
