"""Query-conditioned reweighting of sinks and non-sinks: the ReW of DIYSink (Luo et al., ICLR 2026).

Shapes: B prompts, n beams a prompt, T positions, D LLM width.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sinkgate.errors import GateError, ModelMismatchError, with_remedy
from sinkgate.methods.decoder_inputs import (
    Arguments,
    ChangesInputs,
    beams,
    embeddings,
    ends,
    everywhere,
    placed,
    refuse_cross_attention,
)
from sinkgate.models.batch import Batch
from sinkgate.models.vlm import VLM
from sinkgate.models.weights import ANYWAY, origin_mismatch

CONFIG, WEIGHTS = "reweight_config.json", "reweight.safetensors"
FORMAT = "sinkgate-reweight"


@dataclass(frozen=True)
class ReweightConfig:
    """Configuration of a `Reweight`.

    Attributes:
        hidden_size: width of the LLM, D.
        bottleneck: width between the two linear layers; 64, as in the paper's gates, so that both have as many parameters.
        weighing: ``softmax``, two weights that sum to 2; ``sigmoid``, each for itself in [0, 2]. Both chosen by us; the source does not say.
        criterion: see `Method`.
        base_model: the model that it was trained on, ``weights`` the checksum of its weights.

    Raises:
        GateError: a field is out of its range.
    """

    hidden_size: int
    bottleneck: int = 64
    weighing: Literal["softmax", "sigmoid"] = "softmax"
    criterion: str | None = None
    base_model: str | None = None
    weights: str | None = None

    def __post_init__(self) -> None:
        for name in ("hidden_size", "bottleneck"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise GateError(f"{name} is {value!r}; expected a whole number, at least 1")
        if self.weighing not in ("softmax", "sigmoid"):
            raise GateError(f"weighing is {self.weighing!r}; expected softmax or sigmoid")


class Reweight(ChangesInputs, nn.Module):
    """Two weights, computed from the question, multiply the V-sinks and the other visual tokens as they enter the LLM.

    The question is the mean of the embeddings of the prompt's text after the image (its last token where none follows), at the
    LLM's input; Luo et al. take a sentence encoder instead, and retrain a projector for each group, which is left out here.
    LayerNorm without weights, D -> bottleneck -> 2 without biases: 262,272 parameters at D = 4096. The last layer begins at
    zero: all weights are 1 at first, the unmodified model, bit for bit. Where a model adds more of the image in later layers
    (Qwen3-VL's deepstack), those rows stay as they are.
    """

    def __init__(self, config: ReweightConfig) -> None:
        super().__init__()
        self.config = config
        self.norm = nn.LayerNorm(config.hidden_size, elementwise_affine=False)
        self.down = nn.Linear(config.hidden_size, config.bottleneck, bias=False)
        self.up = nn.Linear(config.bottleneck, 2, bias=False)
        nn.init.zeros_(self.up.weight)

    @classmethod
    def for_vlm(cls, vlm: VLM, **options: Any) -> Reweight:
        """Return a new one for a model; options are fields of `ReweightConfig`."""
        width = vlm.model.config.get_text_config().hidden_size
        return cls(ReweightConfig(width, base_model=vlm.name, weights=vlm.weights_checksum, **options)).to(vlm.device)

    def forward(self, question: Tensor) -> Tensor:
        """Return the weights of V-sinks and of other visual tokens, in [0, 2]: (B, D) -> (B, 2)."""
        scores = self.up(nn.functional.gelu(self.down(self.norm(question.to(self.down.weight.dtype)))))
        return 2 * (scores.softmax(-1) if self.config.weighing == "softmax" else scores.sigmoid())

    @property
    def criterion(self) -> str | None:
        """See `Method`."""
        return self.config.criterion

    def check_fits(self, vlm: VLM, any_model: bool = False) -> None:
        """Refuse a model of another width, and one that this was not trained on unless ``any_model``.

        Raises:
            GateError: the model is one of these.
        """
        width, config = vlm.model.config.get_text_config().hidden_size, self.config
        if not any_model and (why := origin_mismatch(vlm, config.base_model, config.weights)):
            raise ModelMismatchError(f"this Reweight was {why}", ANYWAY)
        if width != config.hidden_size:
            raise GateError(
                f"this Reweight reads embeddings {config.hidden_size} wide, those of {vlm.name} are {width}"
            )

    def change(self, vlm: VLM, batch: Batch) -> Callable[[Arguments], Arguments]:
        """See `ChangesInputs`.

        Raises:
            UnsupportedModelError: images are read by cross-attention, or the decoder gets no embeddings.
            GateError: the model is of another width.
        """
        refuse_cross_attention(vlm, "reweighting", "visual tokens do not enter with the question")
        self.check_fits(vlm, any_model=True)
        text, sinks = question_of(batch), [masks.v_sink for masks in batch.sinks]
        visual = everywhere(batch)

        def weighted(arguments: Arguments) -> Arguments:
            inputs = embeddings(vlm, arguments)
            mask = beams(text, inputs).to(inputs)  # B n, T
            question = torch.einsum("bt,btd->bd", mask, inputs) / mask.sum(1, keepdim=True)
            weights = self(question).to(inputs.device)
            others = torch.where(placed(batch, visual, inputs), weights[:, 1:], 1.0)
            factor = torch.where(placed(batch, sinks, inputs), weights[:, :1], others)
            return {**arguments, "inputs_embeds": (inputs * factor[..., None]).to(inputs.dtype)}

        return weighted

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``reweight_config.json`` and ``reweight.safetensors`` into a folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        content = json.dumps({"format": FORMAT, "version": 1, **asdict(self.config)}, indent=1)
        (folder / CONFIG).write_text(content + "\n", encoding="utf-8")
        save_file({name: value.contiguous().cpu() for name, value in self.state_dict().items()}, folder / WEIGHTS)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Reweight:
        """Read what ``save_pretrained`` wrote.

        Raises:
            GateError: a file is missing or broken, or of another format.
        """
        folder = Path(folder)
        try:
            content = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
            marks = [content.pop(name, None) for name in ("format", "version")] if isinstance(content, dict) else None
            if marks != [FORMAT, 1]:
                raise GateError(
                    f'{folder / CONFIG} says no "format": "{FORMAT}" of version 1; is this a saved Reweight?'
                )
            reweight = cls(ReweightConfig(**content))
            reweight.load_state_dict(load_file(folder / WEIGHTS))
        except GateError:
            raise
        except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
            remedy = "give a folder that save_pretrained wrote"
            raise GateError(f"a Reweight cannot be read from {folder}: {with_remedy(error, remedy)}") from error
        return reweight


def question_of(batch: Batch) -> Tensor:
    """Return a mask of the prompts' text after the image, at least the last token of each, (B, T)."""
    position = torch.arange(batch.in_prompt.shape[1])
    return batch.in_prompt & ((position > ends(batch)[:, None]) | (position == batch.length - 1))
