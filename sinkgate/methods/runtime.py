"""Export of gates as one module without sinkgate, `sink_runtime.py`, for the code that serves a model."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import asdict
from math import isqrt
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors import torch as safetensors
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from sinkgate._version import __version__
from sinkgate.errors import GateError, SinkgateError
from sinkgate.methods.base import Fixed, finder_of
from sinkgate.methods.lsg import LSG
from sinkgate.methods.sink_runtime import FORMAT, VERSION
from sinkgate.models.adapters import Adapter
from sinkgate.models.dimensions import default_prompts
from sinkgate.models.finder import SinkFinder
from sinkgate.models.prompts import Prompt
from sinkgate.models.vlm import VLM, find_sinks
from sinkgate.output import writable_folder
from sinkgate.sinks.criteria import AttentionShare, Choice, Criterion, MassiveActivations, NormOutliers, SinkDimensions
from sinkgate.sinks.gates import Gates

TEMPLATE = Path(__file__).with_name("sink_runtime.py")
SETTINGS, WEIGHTS = "sink_gates.json", "sink_gates.safetensors"
ELSEWHERE = "run these gates with sinkgate itself"


def export_runtime(
    vlm: VLM,
    gates: Gates | LSG,
    out: str | Path,
    *,
    v_sink: str | Criterion | None = None,
    l_sink: str | Criterion | None = None,
    any_model: bool = False,
    prompt: Prompt | None = None,
) -> list[Path]:
    """Write gates as a module that needs only torch and transformers, and compare its logits with sinkgate's.

    The folder holds ``sink_runtime.py``, ``sink_gates.json`` and, for learned gates, ``sink_gates.safetensors``. In the code that serves
    the model, ``apply_gates(model)`` of that module gates every ``generate`` call.

    Args:
        vlm: the model that the gates are for, on attention "sdpa" or a flash kernel.
        gates: fixed gates, scales 0 to 4 by layer and group, or learned ones.
        out: folder, created if missing; files of an earlier export are replaced.
        v_sink: criterion of V-sinks, a name or an object; that of learned gates, or "auto", where None.
        l_sink: criterion of L-sinks, likewise.
        any_model: accept gates that were made for another model.
        prompt: what the logits are compared on; a drawing where None. Without one, a model that has no processor is not compared.

    Returns:
        The files.

    Raises:
        GateError: the gates do not fit the model, or the module cannot serve this architecture or these criteria.
        SinkgateError: the folder cannot be written, or no criterion has that name.

    Example:
        >>> vlm = sg.load("demo")
        >>> sg.export_runtime(vlm, sg.Gates.ones(vlm).set("v_sink", 0.5), "serve")
    """
    if isinstance(gates, LSG):
        gates.check_fits(vlm, any_model)
    elif isinstance(gates, Gates):
        gates = gates.for_model(vlm, any_model)
    else:
        raise GateError(
            f"got {type(gates).__name__}, expected Gates or LSG; scales of single rows or heads are not exported: {ELSEWHERE}"
        )
    folder = writable_folder(out)
    own = finder_of([gates] if isinstance(gates, LSG) else [])
    finder = SinkFinder(v_sink or own.v_sink, l_sink or own.l_sink)
    prompt = prompt or (list(default_prompts(vlm))[-1] if vlm.processor else None)
    files = {
        TEMPLATE.name: TEMPLATE.read_bytes(),
        SETTINGS: (json.dumps(_settings(vlm, gates, finder, prompt), indent=1) + "\n").encode(),
    }
    if isinstance(gates, LSG):
        files[WEIGHTS] = safetensors.save(
            {name: value.detach().float().cpu().contiguous() for name, value in gates.state_dict().items()}
        )
    else:
        (folder / WEIGHTS).unlink(missing_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    if prompt is not None:
        try:
            _compare(vlm, gates, finder, prompt, folder)
        except BaseException:
            for name in files:
                (folder / name).unlink(missing_ok=True)
            raise
    return [folder / name for name in files]


def _settings(vlm: VLM, gates: Gates | LSG, finder: SinkFinder, prompt: Prompt | None) -> dict[str, Any]:
    """Return the content of ``sink_gates.json``.

    Raises:
        GateError: the module cannot serve this.
    """
    learned, scales = None, None
    if isinstance(gates, LSG):
        config = gates.config
        learned = {name: getattr(config, name) for name in ("groups", "signal", "activation", "total")}
        layers, by_v_sink, by_l_sink = list(config.layers), True, gates.uses_l_sinks
    else:
        scales = gates.scales.tolist()
        layers = [layer for layer, row in enumerate(scales) if row != [1.0, 1.0, 1.0]]
        by_l_sink = Fixed(gates).uses_l_sinks
        by_v_sink = by_l_sink or not torch.equal(gates.scales[:, 0], gates.scales[:, 2])
    adapter, text = vlm.adapter, vlm.model.config.get_text_config()
    _refuse_family(vlm)
    criteria = finder.criteria(vlm)
    names = {module: name for name, module in vlm.model.named_modules(remove_duplicate=False)}
    return {
        "format": FORMAT,
        "version": VERSION,
        "sinkgate": __version__,
        "model": {
            "name": vlm.name,
            "type": vlm.model.config.model_type,
            "layers": text.num_hidden_layers,
            "width": text.hidden_size,
            "weights": vlm.weights_checksum,
        },
        "image_token_id": adapter.image_token_id,
        "decoder": names[adapter.decoder],
        "layers": [
            {"layer": names[layer], "attention": names[attention]}
            for layer, attention in zip(adapter.layers, adapter.attention, strict=True)
        ],
        "gated_layers": layers,
        "uses_v_sinks": by_v_sink,
        "uses_l_sinks": by_l_sink,
        "v_sink": _criterion(criteria.v_sink, "V-sinks") if by_v_sink else None,
        "l_sink": _criterion(criteria.l_sink, "L-sinks") if by_l_sink else None,
        "vision": _vision(vlm, prompt, names) if by_v_sink else None,
        "learned": learned,
        "scales": scales,
    }


def _refuse_family(vlm: VLM) -> None:
    reasons = {
        "its images or layers need an adapter of their own": type(vlm.adapter) is not Adapter,
        "some of its layers attend to Keys of others": vlm.adapter.shares_keys,
        "its layers cannot be named": vlm.num_layers == 0,
    }
    for reason, applies in reasons.items():
        if applies:
            raise GateError(f"{vlm.name} ({vlm.model.config.model_type}) is not exported: {reason}; {ELSEWHERE}")


def _criterion(choice: Choice, side: str) -> dict[str, Any]:
    """Return a criterion with its arguments, as the module reads it."""
    criterion = choice.criterion
    if isinstance(criterion, MassiveActivations) and criterion.dims is None:
        raise GateError(
            f"massive activations take the dimensions of {side} from each prompt, which the module does not; name them: "
            '"dimensions 1415,2533", or MassiveActivations(dims=...) in vlm.criteria'
        )
    if not isinstance(criterion, SinkDimensions | MassiveActivations | NormOutliers | AttentionShare):
        raise GateError(
            f"the criterion of {side} is {criterion!r}; the module has dimensions, massive, norm and attention"
        )
    return {"name": type(criterion).__name__, **asdict(criterion)}


def _vision(vlm: VLM, prompt: Prompt | None, names: dict[nn.Module, str]) -> dict[str, Any]:
    """Return where the encoder's features are and how its patches become visual tokens, measured on a prompt."""
    adapter, prompter = vlm.adapter, vlm.prompter
    refused = f"V-sinks of {vlm.name} ({vlm.model.config.model_type}) are not exported"
    if prompt is None:
        raise GateError(
            f"{refused}: the way from patches to tokens is measured on a prompt, and there is no processor; give one"
        )
    if not adapter.encoder_layers or prompter.rule not in ("blocks", "runs") or prompt.token_of_patch is None:
        raise GateError(f"{refused}: its patches do not become tokens one by one or in squares; {ELSEWHERE}")
    features: list[Tensor] = []

    def keep(_module: nn.Module, _args: Any, output: Any) -> None:
        features.append(output if isinstance(output, Tensor) else output[0])

    layer = adapter.encoder_layers[adapter.feature_layer]
    with ExitStack() as hooks, vlm.lock, torch.no_grad():
        hooks.callback(layer.register_forward_hook(keep).remove)
        vlm.encode(prompt)
    grids = adapter.grids(prompt.inputs)
    rows, patches, tokens = torch.cat(features), len(prompt.token_of_patch), len(prompt.visual)
    merge = isqrt(patches // tokens)
    flat = rows.shape[:-1].numel() == patches and (prompter.rule == "runs" or merge == 1)
    leading = 0 if flat or rows.dim() != 3 else adapter.leading_rows(rows.shape[1] - grids[0][0] * grids[0][1])
    side, patch = getattr(vlm.model.config.vision_config, "image_size", None), adapter.patch_size
    fixed = len(set(grids)) == 1 and rows.dim() == 3 and side in (grids[0][0] * patch, [grids[0][0] * patch] * 2)
    if not flat and not fixed:
        raise GateError(f"{refused}: its pictures have several sizes in patches; {ELSEWHERE}")
    return {
        "encoder": names[adapter.base],
        "features": names[layer],
        "attention": names[adapter.encoder_attention[adapter.reading_layer]],
        "merge": merge,
        "grid": None if flat else list(grids[0]),
        "leading": leading,
    }


def _compare(vlm: VLM, gates: Gates | LSG, finder: SinkFinder, prompt: Prompt, folder: Path) -> None:
    """Raise GateError where the module's logits are not sinkgate's."""
    sinks = find_sinks(vlm, prompt, v_sink=finder.v_sink, l_sink=finder.l_sink)
    table = gates.read(vlm, prompt, sinks) if isinstance(gates, LSG) else gates
    wanted = vlm.next_logits(prompt, table, sinks).float()
    runtime, functions = load_runtime(folder), ALL_ATTENTION_FUNCTIONS._global_mapping
    before = dict(functions)
    try:
        with ExitStack() as gating, vlm.lock, torch.no_grad():
            gating.callback(runtime.apply_gates(vlm.model).remove)
            got = vlm.model(**prompt.inputs, use_cache=False, logits_to_keep=1).logits[0, -1].float()
    except (ValueError, RuntimeError, TypeError, AttributeError) as error:
        raise GateError(f"{vlm.name} is not exported: the module cannot gate it: {error}") from error
    finally:  # torch.compile cannot follow functions of a module that is not imported
        own = [name for name, function in functions.items() if getattr(function, "gated", None) is runtime._gated]
        functions.update({name: before[name] for name in own})
    difference, size = float((got - wanted).abs().max()), float(wanted.abs().max())
    if not difference <= size * (1e-4 if vlm.model.dtype in (torch.float32, torch.float64) else 0.05):
        raise GateError(
            f"{vlm.name} ({vlm.model.config.model_type}) is not exported: the module's logits differ from sinkgate's by "
            f"{difference:.3g}, the largest is {size:.3g}; {ELSEWHERE}"
        )


def load_runtime(folder: str | Path) -> ModuleType:
    """Return the module of an exported folder.

    Raises:
        SinkgateError: there is none.
    """
    file = Path(folder) / TEMPLATE.name
    if not file.is_file():
        raise SinkgateError(f"there is no {TEMPLATE.name} in {folder}; write it with sinkgate export-runtime")
    module = ModuleType(TEMPLATE.stem)
    module.__file__ = str(file)
    exec(compile(file.read_bytes(), file, "exec"), vars(module))  # an import would leave bytecode in the user's folder
    return module
