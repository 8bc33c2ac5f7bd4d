"""Registry of methods by published name, folder of learned weights or file of fixed gates."""

from __future__ import annotations

from pathlib import Path

from sinkgate.errors import SinkgateError
from sinkgate.methods import VAR, Fixed, LoRA, Method, Remove, Reweight, SinkToTheFront, Suppress
from sinkgate.methods.lsg import LSG
from sinkgate.models.vlm import VLM
from sinkgate.sinks.fine_gates import load_gates

PUBLISHED: dict[str, type[Method]] = {
    "front": SinkToTheFront,
    "remove": Remove,
    "suppress": Suppress,
    "var": VAR,
}


def published(name: str) -> Method:
    """Return a published method with its defaults.

    Raises:
        SinkgateError: there is none of that name.
    """
    if name not in PUBLISHED:
        raise SinkgateError(f"no method is called {name!r}; there are: {', '.join(PUBLISHED)}")
    return PUBLISHED[name]()


def read_method(path: str | Path, vlm: VLM, any_model: bool = False) -> Method:
    """Read learned gates, a LoRA or a reweighting from their folder, or fixed gates from their file.

    Args:
        path: folder or file.
        vlm: the model to use them on.
        any_model: accept what was made for another model, where shapes fit.

    Raises:
        SinkgateError: they cannot be read, or do not fit the model.
    """
    path = Path(path)
    if not path.is_dir():
        return Fixed(load_gates(path).for_model(vlm, any_model))
    if (path / "adapter_config.json").exists():
        return LoRA.from_pretrained(path, vlm, any_model)
    kind = Reweight if (path / "reweight_config.json").exists() else LSG
    method = kind.from_pretrained(path)
    method.check_fits(vlm, any_model)
    return method.to(vlm.device)
