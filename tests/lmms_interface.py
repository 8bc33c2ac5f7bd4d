"""The adapter of lmms-eval in an environment without lmms-eval."""

import importlib
import sys
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import pytest


def adapter_class(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the adapter's class, on a bare interface where lmms-eval is not installed."""
    if find_spec("lmms_eval") is None:
        for name in ("lmms_eval", "lmms_eval.api", "lmms_eval.models"):
            monkeypatch.setitem(sys.modules, name, ModuleType(name))
        model: Any = ModuleType("lmms_eval.api.model")
        registry: Any = ModuleType("lmms_eval.models.registry_v2")
        model.lmms, registry.ModelManifest = type("lmms", (), {}), object
        for module in (model, registry):
            monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.delitem(sys.modules, "sinkgate.benchmarks.lmms", raising=False)
    return importlib.import_module("sinkgate.benchmarks.lmms").GatedModel
