"""What gating and recording cost, against the same model without them and against eager attention."""

from __future__ import annotations

import gc
import multiprocessing
import resource
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

import sinkgate as sg
from sinkgate.attention import Recorder, attached

DECODE_STEPS = 16
VARIANTS = ("plain", "gated", "rows", "eager rows")


class Bench:
    """A model with one prompt in it, and the ways to run it."""

    def __init__(self, name: str) -> None:
        self.model = sg.load("demo").model if name == "demo" else half_billion()
        config = self.model.config
        visual = config.image_seq_length
        text = torch.randint(10, 60, (1, 40), generator=torch.Generator().manual_seed(0))
        self.ids = torch.cat([torch.full((1, visual), config.image_token_id), text], 1)
        side = config.vision_config.image_size
        pixels = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            image = self.model.model.get_image_features(pixels.to(self.model.dtype), return_dict=True)
        self.encoded = {"image": image}  # the encoder runs once: it is the same for every variant
        self.decoder = self.model.get_decoder()
        self.modules = [layer.self_attn for layer in self.decoder.layers]
        self.scales = torch.ones(len(self.modules), 1, self.ids.shape[1])
        self.scales[:, :, :visual] = 0.5

    def use(self, implementation: str) -> None:
        """Put the LLM on an attention implementation."""
        self.model.set_attn_implementation({"text_config": implementation})

    def attach(self, variant: str) -> Any:
        """The block of a variant; every layer is gated, every layer's last row recorded."""
        return attached(
            self.modules,
            decoder=self.decoder,
            key_scales=self.scales if variant == "gated" else None,
            recorder=Recorder("last") if variant == "rows" else None,
        )

    def prefill(self, variant: str) -> Any:
        """One forward over the prompt; eager rows through ``output_attentions``."""
        with torch.no_grad(), self.attach(variant):
            return self.model(
                input_ids=self.ids,
                mm_encoder_outputs=dict(self.encoded),
                logits_to_keep=1,
                output_attentions=variant == "eager rows",
            )

    def decode(self, variant: str) -> Callable[[], float]:
        """Seconds of a few decode steps, the prefill not counted."""

        def run() -> float:
            self.use("sdpa")
            with torch.no_grad(), self.attach(variant):
                out = self.model(
                    input_ids=self.ids, mm_encoder_outputs=dict(self.encoded), use_cache=True, logits_to_keep=1
                )
                token, start = out.logits[:, -1:].argmax(-1), time.perf_counter()
                for _ in range(DECODE_STEPS):
                    out = self.model(input_ids=token, past_key_values=out.past_key_values, use_cache=True)
                    token = out.logits[:, -1:].argmax(-1)
                return time.perf_counter() - start

        return run


def half_billion() -> LlavaForConditionalGeneration:
    """A LLaVA with random weights and LLaVA-1.5's proportions: CLIP-L at 336 pixels, 576 visual tokens, 0.6 B parameters."""
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
    )
    text = LlamaConfig(
        vocab_size=8000, hidden_size=1024, intermediate_size=2816, num_hidden_layers=20, num_attention_heads=16
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=5, image_seq_length=576)
    return LlavaForConditionalGeneration(config).eval()


def measure(rounds: int = 15) -> list[dict[str, Any]]:
    """Rows of the table; each is a ratio of medians, variants taking turns within one run."""
    rows: list[dict[str, Any]] = []
    for name, label, times in (("demo", "demo", 4 * rounds), ("half", "0.6 B", max(3, rounds // 2))):
        bench = Bench(name)
        prefill = take_turns({variant: timed(bench, variant) for variant in VARIANTS}, times)
        decode = take_turns({variant: bench.decode(variant) for variant in ("plain", "gated", "rows")}, times)
        plain, eager = median(prefill["plain"]), median(prefill["eager rows"])
        detail = f"plain {plain * 1e3:.1f} ms"
        rows += [
            row(f"{label}: prefill, gated / plain", median(prefill["gated"]) / plain, "1.03", detail),
            row(f"{label}: decode, gated / plain", median(decode["gated"]) / median(decode["plain"]), "1.03",
                f"plain {median(decode['plain']) / DECODE_STEPS * 1e3:.1f} ms a token"),
            row(f"{label}: prefill, rows recorded / plain", median(prefill["rows"]) / plain, "1.10", detail),
            row(f"{label}: decode, rows recorded / plain", median(decode["rows"]) / median(decode["plain"]), "1.10", ""),
            row(f"{label}: prefill, eager output_attentions / rows recorded", eager / median(prefill["rows"]), "", f"eager {eager * 1e3:.1f} ms"),
        ]  # fmt: skip
        del bench
        gc.collect()
    extra = {variant: extra_memory(variant) for variant in ("plain", "rows", "eager rows")}
    ours, eager = (extra[variant] - extra["plain"] for variant in ("rows", "eager rows"))
    rows.append(
        {
            "what": "0.6 B: peak memory above plain, rows recorded",
            "value": ours,
            "unit": "MiB",
            "detail": f"plain {extra['plain']:.0f} MiB",
        }
    )
    rows.append({"what": "0.6 B: peak memory above plain, eager output_attentions", "value": eager, "unit": "MiB"})
    return rows


def row(what: str, ratio: float, aim: str, detail: str) -> dict[str, Any]:
    """One ratio of the table."""
    return {"what": what, "value": ratio, "unit": "x", "aim": f"<= {aim}" if aim else "", "detail": detail}


def timed(bench: Bench, variant: str) -> Callable[[], float]:
    """Seconds of one prefill."""

    def run() -> float:
        bench.use("eager" if variant == "eager rows" else "sdpa")
        start = time.perf_counter()
        bench.prefill(variant)
        return time.perf_counter() - start

    return run


def take_turns(variants: dict[str, Callable[[], float]], times: int) -> dict[str, list[float]]:
    """Run the variants one after the other, ``times`` rounds after one that warms up, so that drift hits all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for index in range(times + 1):
        for name, run in variants.items():
            taken = run()
            if index:
                seconds[name].append(taken)
    return seconds


def extra_memory(variant: str) -> float:
    """MiB by which one prefill raises the process's peak, in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_extra_memory, (variant,))


def _extra_memory(variant: str) -> float:
    bench = Bench("half")
    if variant == "eager rows":
        bench.use("eager")
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5")  # Linux: start the peak afresh, below what building the model took
    before = _peak()
    kept = bench.prefill(variant)
    after = _peak()
    del kept
    return after - before


def _peak() -> float:
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
