"""Methods by what people call them: a published name, a folder of what was learned, a file of fixed gates."""

from __future__ import annotations

from pathlib import Path

from sinkgate.errors import SinkgateError
from sinkgate.gates import Gates
from sinkgate.lsg import LSG
from sinkgate.methods import VAR, Fixed, LoRA, Method, Remove, Reweight, SinkToTheFront, Suppress
from sinkgate.vlm import VLM

PUBLISHED: dict[str, type[Method]] = {"var": VAR, "front": SinkToTheFront, "suppress": Suppress, "remove": Remove}


def published(name: str) -> Method:
    """A published method with its defaults.

    Raises:
        SinkgateError: there is none of that name.
    """
    if name not in PUBLISHED:
        raise SinkgateError(f"no method is called {name!r}; there are: {', '.join(PUBLISHED)}")
    return PUBLISHED[name]()


def read_method(path: str | Path, vlm: VLM, any_model: bool = False) -> Method:
    """Learned gates, a LoRA or a reweighting from their folder, fixed gates from their file.

    ``any_model``: gates of another model too, where their shapes fit.

    Raises:
        SinkgateError: they cannot be read, or do not fit the model.
    """
    path = Path(path)
    if not path.is_dir():
        return Fixed(Gates.load(path).for_model(vlm))
    if (path / "adapter_config.json").exists():
        return LoRA.from_pretrained(path, vlm)
    if (path / "reweight_config.json").exists():
        return Reweight.from_pretrained(path).to(vlm.device)
    lsg = LSG.from_pretrained(path)
    lsg.check_fits(vlm, any_model)
    return lsg.to(vlm.device)
