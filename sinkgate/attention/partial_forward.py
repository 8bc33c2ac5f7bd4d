"""Forward passes that start at a layer, and generation that continues from an earlier prefill.

Each is a context manager that restores the model when the block ends, also by an exception. `sinkgate.models.session`
checks which models support it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from copy import copy, deepcopy
from typing import Any

from torch import Tensor, nn
from torch.utils import checkpoint
from transformers.cache_utils import LinearAttentionCacheLayerMixin

from sinkgate.attention.cache import CACHE_NAME, cache_in

_checkpointing: Any = checkpoint  # torch gives no complete types for it


@contextmanager
def resumed(layers: Sequence[nn.Module], start: int, begin: Tensor | None) -> Generator[None]:
    """Skip the layers below ``start``, and give that layer the input ``begin``."""
    if begin is None or start == 0:
        yield
        return

    def feed(
        _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return ((begin, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": begin})

    hook = layers[start].register_forward_pre_hook(feed, with_kwargs=True, prepend=True)
    try:
        with replaced(layers[:start], _identity):
            yield
    finally:
        hook.remove()


@contextmanager
def ended(layers: Sequence[nn.Module], end: int) -> Generator[None]:
    """Skip the layers from ``end`` on: the module after the last one gets the output of the layer below ``end``."""
    with replaced(layers[end:], _identity):
        yield


@contextmanager
def prefilled(model: nn.Module, output: Any) -> Generator[None]:
    """Replace the model's first forward by this output, with a copy of its cache to continue with."""
    cache, begun = copy(cache_in(output)), copy(output)
    cache.layers = [copied_layer(layer) for layer in cache.layers]
    begun[CACHE_NAME] = cache
    run, calls = model.forward, iter([begun])

    def forward(*args: Any, **kwargs: Any) -> Any:
        stored = next(calls, None)
        return run(*args, **kwargs) if stored is None else stored

    with replaced([model], functools.wraps(run)(forward)):
        yield


@contextmanager
def replaced(modules: Sequence[nn.Module], forward: Callable[..., Any]) -> Generator[None]:
    """Replace forwards; restore those set on the modules before (as accelerate does)."""
    before = [module.__dict__.get("forward") for module in modules]
    try:
        for module in modules:
            module.forward = forward
        yield
    finally:
        for module, old in zip(modules, before, strict=True):
            if old is None:
                module.__dict__.pop("forward", None)
            else:
                module.forward = old


@contextmanager
def each_input(layers: Sequence[nn.Module], take: Callable[[Tensor], None]) -> Generator[None]:
    """Call a function on the input of each layer as it runs."""

    def before_layer(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        take(args[0] if args else kwargs["hidden_states"])

    hooks = [layer.register_forward_pre_hook(before_layer, with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def kept_output(layer: nn.Module, outputs: list[Tensor], first: bool = False) -> Generator[None]:
    """Append the output of a layer to ``outputs`` as it runs; ``first``: before other hooks change it."""

    def keep(_module: nn.Module, _args: Any, output: Any) -> None:
        outputs.append(output if isinstance(output, Tensor) else output[0])

    hook = layer.register_forward_hook(keep, prepend=first)
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def checkpointed(layers: Sequence[nn.Module]) -> Generator[None]:
    """Activation checkpointing: layers store only their input and recompute the rest for the gradient.

    Take the gradient within the block in which scales are attached: the second run needs them too.
    """
    with ExitStack() as stack:
        for layer in layers:
            run: Callable[..., Any] = functools.partial(_checkpointing.checkpoint, layer.forward, use_reentrant=False)
            stack.enter_context(replaced([layer], run))
        yield


def _identity(hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
    return hidden_states


def copied_layer(layer: Any) -> Any:
    """Return a copy of a cache layer that may grow without the first one; states that are written in place are copied deeply."""
    return deepcopy(layer) if isinstance(layer, LinearAttentionCacheLayerMixin) else copy(layer)


def cache_tensors(cache: Any) -> list[Tensor]:
    """Return all tensors of a cache."""
    held: list[dict[str, Any]] = [vars(layer) for layer in cache.layers]
    return [value for values in held for value in values.values() if isinstance(value, Tensor)]
