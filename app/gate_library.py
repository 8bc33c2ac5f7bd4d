"""Learned gates on the page: which there are, which a visitor brings, and what they make of a prompt.

Gates come as safetensors only, and nothing is built before the size that their configuration claims is checked.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import sinkgate as sg
from sinkgate.methods.lsg import LSG, LSGConfig
from sinkgate.sinks.classify import ranges

from .backend import Warm

CONFIG, WEIGHTS = "gate_config.json", "gates.safetensors"
BOTH = f"Choose the two files of a gate folder together, {CONFIG} and {WEIGHTS}"
CONFIG_BYTES = 64_000
LEAST_WEIGHT_BYTES = 1 << 20
DIGITS = 4  # of a scale, as many as the page is sent
SIGNALS = {"last": "the last token", "mean": "the mean of all tokens", "visual": "the mean of the visual tokens"}


@dataclass(frozen=True)
class Learned:
    """Gates under the name that the page gives them, without those of the layers that are switched off."""

    name: str
    lsg: LSG
    off: frozenset[int] = frozenset()

    @property
    def layers(self) -> tuple[int, ...]:
        """All layers with a gate, also those switched off."""
        return self.lsg.config.layers

    @property
    def on(self) -> list[int]:
        """Layers whose gates read."""
        return [layer for layer in self.layers if layer not in self.off]

    @property
    def criterion(self) -> str:
        """How these gates find sinks."""
        return self.lsg.criterion

    @property
    def about(self) -> str:
        """Where the gates are and what they read, in a few words."""
        count = sum(parameter.numel() for parameter in self.lsg.parameters())
        return f"{in_layers(self.layers)} · {count:,} parameters · read {SIGNALS[self.lsg.config.signal]}"

    def without(self, off: Sequence[int]) -> Learned:
        """The same gates with these layers, and no others, switched off."""
        return replace(self, off=frozenset(off) & frozenset(self.layers))

    def read(self, warm: Warm) -> sg.Gates:
        """The faders' setting for a prompt, rounded as the page shows it: one prefill; 1 where there is no gate."""
        if not self.on:
            return sg.Gates.ones(warm.vlm)
        told = warm.read(self.lsg.only(self.on))
        return sg.Gates(told.scales.double().round(decimals=DIGITS), told.model)


def in_layers(layers: Sequence[int]) -> str:
    """ "layer 3" or "layers 1-3, 7"."""
    return f"layer{'' if len(layers) == 1 else 's'} {ranges(list(layers))}"


def weight_bytes(vlm: sg.VLM) -> int:
    """Bytes that a file of weights may have: twice what gates of the paper's size in every layer take in float32."""
    return max(LEAST_WEIGHT_BYTES, 2 * 4 * 64 * (vlm.model.config.get_text_config().hidden_size + 2) * vlm.num_layers)


def gates_in(folder: Path, vlm: sg.VLM) -> list[Learned]:
    """The gate folders within a folder, by name; one that is broken, or not for this model and this page, is left out with a warning."""
    found = []
    for config in sorted(folder.glob(f"*/{CONFIG}")):
        try:
            found.append(Learned(config.parent.name, open_gates(config.parent, vlm)))
        except sg.GateError as error:
            warnings.warn(f"the gates {config.parent.name} are left out: {error}", stacklevel=2)
    return found


def uploaded_gates(paths: Sequence[str] | None, vlm: sg.VLM) -> LSG:
    """Gates from the two files that a visitor chose, whatever these are called.

    Raises:
        GateError: not these two files, one too large, broken, or not for this model and this page.
    """
    files = {Path(path).suffix: Path(path) for path in paths or ()}
    if len(paths or ()) != 2 or files.keys() != {".json", ".safetensors"}:
        raise sg.GateError(f"{BOTH}; {len(paths or ())} {'file' if len(paths or ()) == 1 else 'files'} came.")
    with TemporaryDirectory() as folder:
        for name in (CONFIG, WEIGHTS):
            shutil.copyfile(files[Path(name).suffix], Path(folder) / name)
        try:
            return open_gates(Path(folder), vlm)
        except sg.GateError as error:
            text = str(error).replace(f"{folder}/", "").replace(folder, "these files")
            raise sg.GateError(f"these gates cannot be taken: {text}") from error


def open_gates(folder: Path, vlm: sg.VLM) -> LSG:
    """Gates on the model's device, checked for this model and this page.

    Raises:
        GateError: a file is missing, too large or broken, or the gates are not for this model or not for two faders.
    """
    for name, most in ((CONFIG, CONFIG_BYTES), (WEIGHTS, weight_bytes(vlm))):
        if not (folder / name).is_file():
            raise sg.GateError(f"{name} is missing")
        if (size := (folder / name).stat().st_size) > most:
            raise sg.GateError(f"{name} has {size:,} bytes; that of gates for {vlm.name} has at most {most:,}")
    try:
        config = LSGConfig.from_json((folder / CONFIG).read_text(encoding="utf-8"))
    except (UnicodeDecodeError, RecursionError):
        raise sg.GateError(f"{CONFIG} is no valid JSON") from None
    claimed, held = len(config.layers) * config.bottleneck * config.hidden_size, (folder / WEIGHTS).stat().st_size
    if claimed > held:  # a parameter takes a byte at least
        raise sg.GateError(f"{CONFIG} claims more parameters than {held:,} bytes of {WEIGHTS} can hold")
    LSG(config.only(config.layers[-1:])).check_fits(vlm)  # before there is a gate for each layer that the file claims
    if config.grouping != "v_sink":
        raise sg.GateError(
            f"they group tokens by {config.grouping!r}; the mixer has one fader for L-sinks and ordinary patches, "
            "so that it can show only gates that group by 'v_sink'"
        )
    return LSG.from_pretrained(folder).to(vlm.device).eval().requires_grad_(False)
