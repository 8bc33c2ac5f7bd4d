"""LoRA on one layer, the paper's control with as many parameters as a gate (section 4)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from sinkgate.attention.recorder import Recorder
from sinkgate.errors import ModelMismatchError, SinkgateError, with_remedy
from sinkgate.models.batch import Batch
from sinkgate.models.vlm import VLM
from sinkgate.models.weights import ANYWAY, origin_mismatch

if TYPE_CHECKING:
    from peft import LoraConfig

ADAPTER = "default"  # peft's name for an adapter without one
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"  # peft's own files
ORIGIN = "sinkgate_base_weights"  # checksum of the base model, in the metadata of the weights
SIDES = ("lora_A", "lora_B")
PREFIX = "base_model.model."  # what peft puts before a module's name


class LoRA(nn.Module):
    """Low-rank updates of one layer's attention projections: W x + (alpha / r) B A x, with B = 0 at first.

    With rank 8 on q, k, v and o of a model 4096 wide they have 262,144 parameters, in float32. They are built with ``peft`` for one model,
    and are part of it only within `applied`. ``peft.PeftModel.from_pretrained`` also reads the files of `save_pretrained`.
    """

    criterion = None
    uses_l_sinks = False

    def __init__(self, vlm: VLM, layer: int, config: LoraConfig) -> None:
        super().__init__()
        attention = vlm.attention[layer]
        self.layer, self.config, self.base_model = layer, config, vlm.name
        self.weights = vlm.weights_checksum
        self._attention = [attention]  # in a list: no part of this module
        names = sorted(path.rpartition(".")[2] for path in config.target_modules or ())
        self._wrapped = _wrapped({name: getattr(attention, name) for name in names}, config)
        self.updates = nn.ModuleDict(
            {
                name: nn.ModuleDict({side: getattr(part, side)[ADAPTER] for side in SIDES})
                for name, part in self._wrapped.items()
            }
        ).float()

    @classmethod
    def for_vlm(cls, vlm: VLM, layer: int, rank: int = 8, alpha: int = 16) -> LoRA:
        """Return a new one.

        Args:
            vlm: the model.
            layer: counted as `Gates` counts them.
            rank: r; 8 in the paper.
            alpha: the update is scaled by alpha / r. Default chosen by us, twice the rank; the paper does not say.

        Raises:
            SinkgateError: there is no such layer, it has no linear projections, or peft is not installed.
        """
        if not 0 <= layer < vlm.num_layers:
            raise SinkgateError(f"there is no layer {layer}: {vlm.name} has layers 0 to {vlm.num_layers - 1}")
        attention = vlm.attention[layer]
        names = [name for name, part in attention.named_children() if isinstance(part, nn.Linear)]
        if not names:
            raise SinkgateError(f"the attention of layer {layer} of {vlm.name} has no linear projections to update")
        at = _path(vlm, attention)
        paths = [f"{at}.{name}" for name in names]
        config = _peft().LoraConfig(r=rank, lora_alpha=alpha, target_modules=paths, base_model_name_or_path=vlm.name)
        return cls(vlm, layer, config)

    def first_layer(self, vlm: VLM) -> int:
        """See `Method`."""
        return vlm.adapter.layer_numbers[self.layer]

    @contextmanager
    def applied(self, vlm: VLM, batch: Batch, recorder: Recorder | None = None) -> Iterator[None]:  # noqa: ARG002
        """See `Method`.

        Raises:
            SinkgateError: this is not the model that it was made for.
        """
        if vlm.attention[self.layer] is not self._attention[0]:
            raise SinkgateError(
                f"this LoRA was made on {self.base_model} as it was loaded then; for {vlm.name} make or load one: LoRA.for_vlm, LoRA.from_pretrained"
            )
        attention: Any = self._attention[0]
        with vlm.attached(None, recorder):
            before = {name: getattr(attention, name) for name in self._wrapped}
            try:
                for name, part in self._wrapped.items():
                    setattr(attention, name, part)
                yield
            finally:
                for name, part in before.items():
                    setattr(attention, name, part)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write peft's ``adapter_config.json`` and ``adapter_model.safetensors`` into a folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.config.save_pretrained(str(folder))
        tensors = {name: weight.data.contiguous().cpu() for name, weight in self._weights().items()}
        save_file(tensors, folder / WEIGHTS, {ORIGIN: self.weights} if self.weights else None)

    @classmethod
    def from_pretrained(cls, folder: str | Path, vlm: VLM, any_model: bool = False) -> LoRA:
        """Read what ``save_pretrained`` or peft wrote.

        Args:
            folder: with ``adapter_config.json`` and ``adapter_model.safetensors``.
            vlm: the model that it was trained on.
            any_model: accept another model, where it has these modules.

        Raises:
            SinkgateError: a file is missing or broken, the tensors are others than expected, it was trained on another model, or
                the model has not these modules.
        """
        folder, peft = Path(folder), _peft()
        try:
            json.loads((folder / CONFIG).read_text(encoding="utf-8"))  # peft would look for a missing file on the Hub
            config: Any = peft.LoraConfig.from_pretrained(str(folder))
            config.inference_mode = False
            with safe_open(folder / WEIGHTS, "pt") as file:
                weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                origin = (file.metadata() or {}).get(ORIGIN)
            base = str(config.base_model_name_or_path or vlm.name)
            base = base if base == vlm.name else Path(base).name if Path(base).is_dir() else base
            if not any_model and (why := origin_mismatch(vlm, base, origin)):
                raise ModelMismatchError(f"this LoRA was {why}", ANYWAY)
            at = sorted(config.target_modules)[0].rpartition(".")[0]
            layer = [_path(vlm, attention) for attention in vlm.attention].index(at)
            lora = cls(vlm, layer, config)
        except SinkgateError:
            raise
        except (OSError, ValueError, TypeError, AttributeError, IndexError, SafetensorError) as error:
            why = (
                with_remedy(error, "give a folder that save_pretrained wrote")
                if isinstance(error, OSError)
                else repr(error)
            )
            raise SinkgateError(f"a LoRA for {vlm.name} cannot be read from {folder}: {why}") from error
        wanted = lora._weights()
        for name in sorted(wanted.keys() | weights.keys()):
            shapes = [tuple(each[name].shape) if name in each else "missing" for each in (weights, wanted)]
            if shapes[0] != shapes[1]:
                raise SinkgateError(f"{folder / WEIGHTS}: {name} is {shapes[0]}, expected {shapes[1]}")
        for name, parameter in wanted.items():
            parameter.data.copy_(weights[name])
        return lora

    def _weights(self) -> dict[str, nn.Parameter]:
        """Return the parameters by their names in peft's files."""
        paths = {path.rpartition(".")[2]: path for path in self.config.target_modules or ()}
        updates: Any = self.updates
        return {
            f"{PREFIX}{paths[name]}.{side}.weight": updates[name][side].weight for name in updates for side in SIDES
        }


def _wrapped(linear: dict[str, nn.Module], config: LoraConfig) -> dict[str, nn.Module]:
    """Wrap layers in updates as peft does, without changing the modules that hold them."""
    holder = nn.ModuleDict(linear)
    trainable = [parameter for parameter in holder.parameters() if parameter.requires_grad]
    _peft().inject_adapter_in_model(replace(config, target_modules=list(linear)), holder, ADAPTER)
    for parameter in trainable:  # peft freezes what it wraps
        parameter.requires_grad_(True)
    return dict(holder.items())


def _path(vlm: VLM, module: nn.Module) -> str:
    return next(path for path, part in vlm.model.named_modules() if part is module)


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise SinkgateError('LoRA needs peft: run `pip install "sinkgate[train]"`') from error
    return peft
