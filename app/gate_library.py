"""Learned gates: those that the server offers, those that users upload, and their scales for a prompt.

Weights are read from safetensors only, and no module is built before the size in its configuration is checked.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import sinkgate as sg
from sinkgate.errors import ModelMismatchError
from sinkgate.methods.lsg import LSG, LSGConfig
from sinkgate.sinks import words

from .backend import LocalSession

CONFIG, WEIGHTS = "gate_config.json", "gates.safetensors"
BOTH = f"Choose the two files of a gate folder together, {CONFIG} and {WEIGHTS}"
CONFIG_BYTES = 64_000
LEAST_WEIGHT_BYTES = 1 << 20
DIGITS = 4  # of a scale, as many as the page gets
SIGNALS = {"last": "the last token", "mean": "the mean of all tokens", "visual": "the mean of the visual tokens"}


@dataclass(frozen=True)
class LearnedGates:
    """Learned gates and their name on the page; layers that are ``off`` keep a scale of 1."""

    name: str
    lsg: LSG
    off: frozenset[int] = frozenset()

    @property
    def layers(self) -> tuple[int, ...]:
        """All layers with a gate, also those that are off."""
        return self.lsg.config.layers

    @property
    def on(self) -> list[int]:
        """Layers with a gate that is not off."""
        return [layer for layer in self.layers if layer not in self.off]

    @property
    def criterion(self) -> str:
        """The sink criterion of these gates."""
        return self.lsg.criterion

    @property
    def about(self) -> str:
        """Layers, size and input of the gates, in a few words."""
        count = sum(parameter.numel() for parameter in self.lsg.parameters())
        return f"{words.layers(list(self.layers))} · {count:,} parameters · read {SIGNALS[self.lsg.config.signal]}"

    def without(self, off: Sequence[int]) -> LearnedGates:
        """Return the same gates with these layers, and no others, off."""
        return replace(self, off=frozenset(off) & frozenset(self.layers))

    def read(self, session: LocalSession) -> sg.Gates:
        """Return the scales for a prompt, rounded as the page shows them: one prefill; 1 where there is no gate."""
        if not self.on:
            return sg.Gates.ones(session.vlm)
        gates = session.read(self.lsg.only(self.on))
        return sg.Gates(gates.scales.double().round(decimals=DIGITS), gates.model)


def weight_bytes(vlm: sg.VLM) -> int:
    """Return the largest size of a file of weights, in bytes: twice that of the paper's gates in every layer, in float32."""
    return max(LEAST_WEIGHT_BYTES, 2 * 4 * 64 * (vlm.model.config.get_text_config().hidden_size + 2) * vlm.num_layers)


def gates_in(folder: Path, vlm: sg.VLM) -> list[LearnedGates]:
    """Return the gates in the folders of a folder, by name; unusable ones are left out with a warning."""
    library = []
    for config in sorted(folder.glob(f"*/{CONFIG}")):
        try:
            library.append(LearnedGates(config.parent.name, open_gates(config.parent, vlm)))
        except sg.GateError as error:
            warnings.warn(f"the gates {config.parent.name} are left out: {error}", stacklevel=2)
    return library


def uploaded_gates(paths: Sequence[str] | None, vlm: sg.VLM) -> LSG:
    """Return gates from the two files that a user uploaded, under any names.

    Raises:
        GateError: these are not the two files, or one is too large or broken, or the gates do not fit this model.
    """
    files = {Path(path).suffix: Path(path) for path in paths or ()}
    if len(paths or ()) != 2 or files.keys() != {".json", ".safetensors"}:
        raise sg.GateError(f"{BOTH}; got {len(paths or ())} {'file' if len(paths or ()) == 1 else 'files'}.")
    with TemporaryDirectory() as folder:
        for name in (CONFIG, WEIGHTS):
            shutil.copyfile(files[Path(name).suffix], Path(folder) / name)
        try:
            return open_gates(Path(folder), vlm)
        except sg.GateError as error:
            text = str(error).replace(f"{folder}/", "").replace(folder, "these files")
            raise sg.GateError(f"these gates cannot be used: {text}") from error


def open_gates(folder: Path, vlm: sg.VLM) -> LSG:
    """Return gates on the model's device, checked for this model.

    Raises:
        GateError: a file is missing, too large or broken, or the gates do not fit this model.
    """
    for name, most in ((CONFIG, CONFIG_BYTES), (WEIGHTS, weight_bytes(vlm))):
        if not (folder / name).is_file():
            raise sg.GateError(f"{name} is missing")
        if (size := (folder / name).stat().st_size) > most:
            raise sg.GateError(f"{name} has {size:,} bytes, limit {most:,} for gates of {vlm.name}")
    try:
        config = LSGConfig.from_json((folder / CONFIG).read_text(encoding="utf-8"))
    except (UnicodeDecodeError, RecursionError):
        raise sg.GateError(f"{CONFIG} is not valid JSON") from None
    claimed, size = len(config.layers) * config.bottleneck * config.hidden_size, (folder / WEIGHTS).stat().st_size
    if claimed > size:  # a parameter takes at least one byte
        raise sg.GateError(f"{CONFIG} claims more parameters than the {size:,} bytes of {WEIGHTS} can hold")
    try:  # before a gate is built for each layer that the file claims
        LSG(config.only(config.layers[-1:])).check_fits(vlm)
    except ModelMismatchError as error:
        raise sg.GateError(error.reason) from error  # its remedy is an option that the page does not have
    return LSG.from_pretrained(folder).to(vlm.device).eval().requires_grad_(False)
