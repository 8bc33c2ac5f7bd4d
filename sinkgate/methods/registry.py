"""Methods by what people call them: a published name, a folder of what was learned, a file of fixed gates."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sinkgate.errors import SinkgateError
from sinkgate.methods import VAR, Fixed, LoRA, Method, Remove, Reweight, SinkToTheFront, Suppress
from sinkgate.methods.lsg import LSG
from sinkgate.models.vlm import VLM, Finder, find_sinks
from sinkgate.sinks.gates import Gates

PUBLISHED: dict[str, type[Method]] = {"var": VAR, "front": SinkToTheFront, "suppress": Suppress, "remove": Remove}


def published(name: str) -> Method:
    """A published method with its defaults.

    Raises:
        SinkgateError: there is none of that name.
    """
    if name not in PUBLISHED:
        raise SinkgateError(f"no method is called {name!r}; there are: {', '.join(PUBLISHED)}")
    return PUBLISHED[name]()


def finder_of(methods: Iterable[Any]) -> Finder:
    """How methods want sinks to be found: by the criterion of the learned gates among them, by default where there are none.

    Raises:
        SinkgateError: gates want different criteria.
    """
    criteria = sorted({method.config.criterion for method in methods if isinstance(method, LSG)})
    if len(criteria) > 1:
        raise SinkgateError(f"these gates want sinks by different criteria, {', '.join(criteria)}; run them apart")
    name = criteria[0] if criteria else "auto"
    return lambda vlm, prompt: find_sinks(vlm, prompt, v_sink=name, l_sink=name)


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
