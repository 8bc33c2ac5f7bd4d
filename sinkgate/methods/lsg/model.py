"""Learned gates on a model: each reads hidden states of the prompt at its layer and scales that layer's Keys.

The backbone stays as it is. In decoding, the scales of the prefill stay unless ``every_step`` is given.

Shapes: L layers of the model, B prompts, T positions, K Keys, V visual tokens, D LLM width, G groups.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sinkgate.attention.patch import Attached
from sinkgate.attention.recorder import Recorder
from sinkgate.errors import GateError, ModelMismatchError
from sinkgate.methods.base import finder_of
from sinkgate.methods.lsg import serialization
from sinkgate.methods.lsg.config import LSGConfig
from sinkgate.methods.lsg.gate import SinkGate
from sinkgate.methods.lsg.model_card import card
from sinkgate.models.batch import Batch
from sinkgate.models.loading import BUILT_IN
from sinkgate.models.prompts import Prompt
from sinkgate.models.vlm import VLM
from sinkgate.models.weights import ANYWAY, origin_mismatch
from sinkgate.sinks.classify import SinkMasks
from sinkgate.sinks.gates import GROUPS, Gates


@dataclass(frozen=True)
class Groups:
    """Masks of the tokens that gates scale and read.

    Shapes: members (L, G, B, K) boolean; prompt (B, T) boolean, without padding and answers.
    """

    members: Tensor
    prompt: Tensor

    @classmethod
    def of(cls, batch: Batch, config: LSGConfig) -> Groups:
        """Return the masks of prompts with their sinks. Without V-sinks in an image, all its tokens belong to the rest."""
        kinds = [torch.stack([s.v_sink.expand_as(s.l_sink), s.l_sink, s.ordinary]) for s in batch.sinks]  # 3, L, V
        groups = [torch.stack([kind[list(columns)].any(0) for columns in config.groups], 1) for kind in kinds]
        return cls(batch.spread(groups), batch.in_prompt)

    @property
    def visual(self) -> Tensor:
        """Visual tokens among the positions, (B, T)."""
        visual = self.members[0].any(0)
        return nn.functional.pad(visual, (0, self.prompt.shape[1] - visual.shape[1]))

    @property
    def last(self) -> Tensor:
        """Position of the last input token, (B,)."""
        return self.prompt.shape[1] - 1 - self.prompt.flip(1).long().argmax(1)


@dataclass
class GateTrace:
    """Scales (B, G) by layer that gates set last."""

    scales: dict[int, Tensor] = field(default_factory=dict)


class LSG(nn.Module):
    """Layer-wise Sink Gating: a `SinkGate` at each of some layers."""

    def __init__(self, config: LSGConfig) -> None:
        super().__init__()
        self.config = config
        self.gates = nn.ModuleDict({str(layer): SinkGate(config) for layer in config.layers})

    @classmethod
    def for_vlm(cls, vlm: VLM, layers: Sequence[int], **options: Any) -> LSG:
        """Return untrained gates for a model; options are fields of `LSGConfig`.

        Raises:
            GateError: there is no such layer, or an option out of its range.
        """
        text = vlm.model.config.get_text_config()
        config = LSGConfig(
            tuple(sorted(layers)),
            text.hidden_size,
            base_model=vlm.name,
            revision=getattr(vlm.model.config, "_commit_hash", None),
            weights=vlm.weights_checksum,
            **options,
        )
        lsg = cls(config).to(vlm.device)
        lsg.check_fits(vlm)
        return lsg

    def check_fits(self, vlm: VLM, any_model: bool = False) -> None:
        """Raise if these gates do not fit a model.

        Models are identified by the checksum of their weights. Gates without a checksum are accepted by the model's name, with a warning
        if that is only the name of a folder or if the revision differs.

        Raises:
            GateError: trained on another model (unless ``any_model``), of another width, or for layers that it does not have.
        """
        config, width = self.config, vlm.model.config.get_text_config().hidden_size
        if not any_model:
            if why := origin_mismatch(vlm, config.base_model, config.weights):
                raise ModelMismatchError(f"these gates were {why}", ANYWAY)
            self._warn_of_names(vlm)
        if width != config.hidden_size:
            raise GateError(
                f"these gates read hidden states {config.hidden_size} wide, those of {vlm.name} are {width}"
            )
        if config.signal == "visual" and vlm.adapter.cross_attention:
            raise GateError(
                f"visual tokens have no hidden states in the LLM of {vlm.name}; let the gates read 'last' or 'mean'"
            )
        if config.layers[-1] >= vlm.num_layers:
            raise GateError(f"there is no layer {config.layers[-1]}: {vlm.name} has layers 0 to {vlm.num_layers - 1}")

    def _warn_of_names(self, vlm: VLM) -> None:
        """Warn if the model's name is the only evidence and may mislead."""
        name, revision = self.config.base_model, getattr(vlm.model.config, "_commit_hash", None)
        if name is None or (self.config.weights and vlm.weights_checksum):
            return
        if None not in (revision, self.config.revision) and revision != self.config.revision:
            text = f"these gates were trained on revision {self.config.revision} of {name}, this is {revision}"
            warnings.warn(text, stacklevel=3)
        if name not in BUILT_IN and "/" not in name and vlm.weights_checksum:
            text = f"these gates name no checksum of weights: they are accepted because the model's folder is called {name}, too"
            warnings.warn(text, stacklevel=3)

    def only(self, layers: Sequence[int]) -> LSG:
        """Return some of these gates as an `LSG` of their own that shares their parameters.

        Raises:
            GateError: there is no gate in one of these layers, or no layer at all.
        """
        missing = sorted(set(layers) - set(self.config.layers))
        if missing:
            raise GateError(f"there is no gate in layer {missing[0]}; there are gates in {list(self.config.layers)}")
        part = LSG(self.config.only(tuple(sorted(layers))))
        part.gates = nn.ModuleDict({str(layer): self.gates[str(layer)] for layer in part.config.layers})
        return part

    @classmethod
    def joined(cls, parts: Sequence[LSG]) -> LSG:
        """Return the gates of several as one `LSG` that shares their parameters, such as those that jobs of an array trained.

        Raises:
            GateError: there are none, two are for one layer, or they differ in more than their layers.
        """
        if not parts:
            raise GateError("there are no gates to join; expected one LSG at least")
        config, layers = parts[0].config, sorted(layer for part in parts for layer in part.config.layers)
        for part in parts[1:]:
            for name, value in vars(part.config).items():
                if name != "layers" and value != getattr(config, name):
                    raise GateError(f"gates to join have {name} {getattr(config, name)!r} and {value!r}; expected one")
        if twice := sorted({layer for layer in layers if layers.count(layer) > 1}):
            raise GateError(f"there are several gates in layer {twice[0]}; expected one in each layer")
        whole = cls(config.only(tuple(layers)))
        each = {name: gate for part in parts for name, gate in part.gates.items()}
        whole.gates = nn.ModuleDict({str(layer): each[str(layer)] for layer in layers})
        return whole

    # --- running

    @property
    def criterion(self) -> str:
        """See `Method`."""
        return self.config.criterion

    @property
    def uses_l_sinks(self) -> bool:
        """See `Method`."""
        return self.config.grouping != "v_sink"

    def first_layer(self, vlm: VLM) -> int:
        """See `Method`."""
        return vlm.adapter.layer_numbers[self.config.layers[0]]

    @contextmanager
    def applied(
        self, vlm: VLM, batch: Batch, recorder: Recorder | None = None, *, every_step: bool = False
    ) -> Iterator[GateTrace]:
        """Apply the gates to every forward and ``generate`` call on these prompts within the block; gradients reach them.

        Args:
            vlm: the model, locked meanwhile.
            batch: prompts with their sinks, as ``vlm.batch`` makes it.
            recorder: takes attention rows.
            every_step: compute the scales again in each decode step, from the newest token; else those of the prompt stay.
        """
        trace, groups = GateTrace(), Groups.of(batch, self.config)
        with vlm.attached(None, recorder, live=self.config.layers) as block, ExitStack() as hooks:
            for layer in self.config.layers:
                reader = self._reader(layer, groups, block, trace, every_step)
                hooks.callback(vlm.adapter.layers[layer].register_forward_pre_hook(reader, with_kwargs=True).remove)
            yield trace

    def read(self, vlm: VLM, prompt: Prompt, sinks: SinkMasks | None = None) -> Gates:
        """Return the fixed gates that a prompt gets, from one prefill in which each gate reads the states that the gates below it leave.

        Everything that takes `Gates` (``vlm.answer``, sessions, the app's faders) then does the same as these gates.

        Raises:
            GateError: the gates do not belong on this model.
        """
        self.check_fits(vlm, any_model=True)
        batch = vlm.batch([prompt], [sinks or self.find_sinks(vlm, prompt)])
        with torch.no_grad(), self.applied(vlm, batch) as trace:
            vlm.adapter.run(**batch.inputs)
        table = torch.ones(vlm.num_layers, len(GROUPS))
        for layer, scales in trace.scales.items():
            for columns, scale in zip(self.config.groups, scales[0].tolist(), strict=True):
                table[layer, list(columns)] = scale
        return Gates(table, vlm.name)

    def find_sinks(self, vlm: VLM, prompt: Prompt) -> SinkMasks:
        """Find sinks by the criterion of these gates; only V-sinks, which is cheaper, where they need no others."""
        return finder_of([self], l_sinks=False)(vlm, prompt)

    def _reader(self, layer: int, groups: Groups, block: Attached, trace: GateTrace, every_step: bool) -> Any:
        def before_layer(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden = args[0] if args else kwargs["hidden_states"]
            first = block.begins
            if first or every_step:
                scales = self.gates[str(layer)](self._signal(hidden, groups if first else None)).to(hidden.device)
                trace.scales[layer] = scales
                members = groups.members[layer].to(hidden.device)  # G, B, K
                block.set_scales(layer, 1 + torch.einsum("gbk,bg->bk", members.to(scales.dtype), scales - 1))

        return before_layer

    def _signal(self, hidden: Tensor, groups: Groups | None) -> Tensor:
        """Return a gate's input, (B, D): of the prompt, or of a decode step (None) its newest token."""
        if groups is None:
            return hidden[:, -1]
        if self.config.signal == "last":
            missing = groups.prompt.shape[1] - hidden.shape[1]  # some models run their last layers on the end alone
            return hidden[torch.arange(len(hidden)), groups.last.to(hidden.device) - missing]
        tokens = groups.prompt if self.config.signal == "mean" else groups.visual
        tokens = tokens[:, : hidden.shape[1]].to(hidden.device, hidden.dtype)
        return torch.einsum("bp,bpd->bd", tokens, hidden) / tokens.sum(1, keepdim=True)

    # --- files

    def save_pretrained(
        self,
        folder: str | Path,
        *,
        license: str | None = None,  # noqa: A002 (the Hub's word)
        training: Mapping[str, Any] | None = None,
    ) -> None:
        """Write ``gate_config.json``, ``gates.safetensors`` and a card; a README.md of the user's own stays. Each file appears whole or not at all.

        Args:
            folder: created if missing.
            license: for the card, as the Hub names it.
            training: for the card: samples, epochs, loss before and after, accuracy by kind, ...; None is left out.

        Raises:
            GateError: the folder cannot be written.
        """
        text = card(self.config, self.num_parameters, license=license, training=training)
        serialization.write(folder, self.config, self.state_dict(), text)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        license: str | None = None,  # noqa: A002
        training: Mapping[str, Any] | None = None,
    ) -> str:
        """Put what ``save_pretrained`` writes on the Hub, over a card that is there; returns the address.

        Raises:
            GateError: the Hub cannot be reached or refuses.
        """
        return serialization.push(
            repo_id,
            self.config,
            self.state_dict(),
            lambda location: card(
                self.config, self.num_parameters, location=location, license=license, training=training
            ),
            private=private,
            revision=revision,
            token=token,
        )

    @classmethod
    def from_pretrained(
        cls,
        location: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        strict: bool = True,
    ) -> LSG:
        """Read what ``save_pretrained`` or ``push_to_hub`` wrote, as float32 on the CPU; no other file is looked at.

        Args:
            location: a folder, or a Hub id.
            revision: branch, tag or commit on the Hub.
            token: for private repositories.
            strict: False ignores unknown tensors, with a warning; missing ones are always refused.

        Raises:
            GateError: there are no gates, a file is broken, or tensors are missing, unknown, of another shape or not finite.
        """
        config, weights = serialization.read(serialization.find(location, revision, token), location)
        with torch.device("meta"):  # takes no memory until the tensors are known to fit
            lsg = cls(config)
        wanted = lsg.state_dict()
        serialization.check(weights, wanted, location, strict)
        lsg.load_state_dict({name: weights[name].to(torch.float32, copy=True) for name in wanted}, assign=True)
        return lsg

    @property
    def num_parameters(self) -> int:
        """Number of parameters of all gates."""
        return sum(parameter.numel() for parameter in self.parameters())

    def trainable_parameters(self) -> str:
        """Return the number of parameters of all gates and of one in words."""
        count = self.num_parameters
        return (
            f"{count:,} trainable parameters, {count // len(self.gates):,} a gate, in layers {list(self.config.layers)}"
        )

    def print_trainable_parameters(self) -> None:
        """Print ``trainable_parameters()``, as peft's method of this name does."""
        print(self.trainable_parameters())  # noqa: T201
