"""One prompt held warm: a changed gate costs only the layers from its own upward, and settings run side by side.

What is held is the input of every layer, the KV cache (its Keys scaled) and the attention rows of the last setting.
A new setting starts at the lowest layer whose scales differ: in the model's own forward the layers below return their
input, and that layer gets its stored input. Logits, cache and answers are those of a full run, bit by bit. Models that
cannot start in the middle (`Session.resumes`) run in full every time.

Shapes: L layers, P prompt positions, K Keys, S settings, D LLM width.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from accelerate.utils.memory import should_reduce_batch_size  # pyright: ignore[reportMissingTypeStubs]
from torch import Tensor
from transformers import DynamicCache

from sinkgate.attention.cache import CACHE_NAME, cache_in
from sinkgate.attention.partial_forward import cache_tensors, copied_layer, each_input, ended, prefilled, resumed
from sinkgate.attention.recorder import Recorder
from sinkgate.attention.scales import LogitScales, Scales
from sinkgate.errors import SinkgateError
from sinkgate.models.batch import Batch
from sinkgate.models.generation import generate_options, streamed
from sinkgate.models.model_state import model_state
from sinkgate.models.prompts import Prompt, refuse_several
from sinkgate.models.trace import Trace
from sinkgate.models.vlm import MAX_ROWS, VLM, find_sinks
from sinkgate.sinks.classify import SinkMap
from sinkgate.sinks.fine_gates import AnyGates
from sinkgate.sinks.numbers import whole_numbers

BATCH = 32  # settings side by side at first; fewer where memory does not suffice


@dataclass(frozen=True)
class _State:
    """State after one prefill. model_inputs: those of the forward, the image encoded; scales (L, 1, K), or limited; inputs: one (1, P, D) a layer
    of the LLM; rows and followed (those of the query of `Session.follow`, as far as they were computed): one (1, H, 1, K) a layer.
    """

    model_inputs: dict[str, Any]
    scales: Scales
    inputs: list[Tensor]
    rows: dict[int, list[Tensor]]
    output: Any  # the model's, with logits (1, 1, vocabulary) and the cache
    model: int = 0  # the `model_state` at that time
    followed: dict[int, Tensor] = field(default_factory=dict[int, Tensor])

    @property
    def nbytes(self) -> int:
        """Memory held, in bytes."""
        tensors = {id(tensor): tensor for tensor in [*self.inputs, *cache_tensors(cache_in(self.output))]}
        return sum(tensor.nbytes for tensor in tensors.values())


class Session:
    """A prompt on a model, warm. Calls from several threads take turns, as all calls on one model do."""

    def __init__(self, vlm: VLM, prompt: Prompt, sinks: SinkMap | None = None) -> None:
        refuse_several(prompt, "a session")
        self.vlm, self.prompt = vlm, prompt
        self._sinks = sinks
        self._state: _State | None = None
        self._followed: int | None = None
        self.layers_run = 0  # layers that predictions have cost so far; a full run costs all

    @property
    def sinks(self) -> SinkMap:
        """The groups of the prompt's visual tokens; found by the default criteria where none were given."""
        return self._sinks or find_sinks(self.vlm, self.prompt)  # which the prompt keeps while the model stays as it is

    @property
    def resumes(self) -> bool:
        """Return whether this model can start in the middle; tested once, on the first prompt of any session."""
        adapter = self.vlm.adapter
        if adapter.resumes is None:
            with self.vlm.lock, torch.no_grad():
                adapter.resumes = self._proves_to_resume()
        return adapter.resumes

    @property
    def nbytes(self) -> int:
        """Memory that the session holds, in bytes, without the encoded image."""
        return self._state.nbytes if self._state else 0

    def drop(self) -> None:
        """Release the memory; the next call runs in full."""
        self._state = None

    # --- one setting

    def predict(self, gates: AnyGates | None = None) -> Trace:
        """Return the next-token distribution and the last row's attention under these gates.

        Raises:
            GateError: the gates do not fit this model.
        """
        if not self.resumes:
            return self.vlm.predict(self.prompt, gates, self._sinks)
        state = self._settle(gates)
        return self.vlm.trace(self.prompt, state.output.logits[0, -1], [], state.rows)

    def answer(
        self,
        gates: AnyGates | None = None,
        *,
        max_new_tokens: int = 64,
        max_rows: int = MAX_ROWS,
        streamer: Any = None,
        stop: Callable[[], bool] | None = None,
        **generation: Any,
    ) -> Trace:
        """Return the answer under these gates, from the stored prefill; greedy unless ``generation`` changes it.

        Args:
            gates: scales of the Keys; None leaves the model as it is.
            max_new_tokens: where to stop at the latest.
            max_rows: of how many tokens, from the first, the attention is kept; 0 records none.
            streamer: receives the text as it grows.
            stop: called after every token; True ends the answer early.
            generation: other options of ``generate``; with ``num_beams`` the prompt is run in full, see `VLM.answer`.

        Raises:
            GateError: the gates do not fit this model.
            SinkgateError: options of ``generate`` that lead to several answers.
        """
        vlm = self.vlm
        if not self.resumes or generation.get("num_beams", 1) > 1:
            options = {"max_new_tokens": max_new_tokens, "max_rows": max_rows, "streamer": streamer, "stop": stop}
            return vlm.answer(self.prompt, gates, self._sinks, **options, **generation)
        generation = generate_options(generation, stop, max_rows)
        generation.pop("prefill_chunk_size", None)  # the prefill is there already
        recorder = Recorder("last", most=max_rows - 1) if max_rows > 1 else None
        with vlm.lock, torch.no_grad():
            state = self._settle(gates)
            inputs = vlm.inputs_to_generate(
                self.prompt
            )  # `generate` would encode pixels again, before its first forward
            with (
                vlm.attached(state.scales, recorder, own_cache=True, stored=self.prompt.num_keys),
                prefilled(vlm.model, state.output),
            ):
                output = vlm.model.generate(
                    **inputs,
                    max_new_tokens=vlm.new_tokens(self.prompt.length, max_new_tokens),
                    streamer=streamer,
                    **{CACHE_NAME: DynamicCache(config=vlm.model.config.get_text_config(decoder=True))},
                    **generation,
                )
        later = recorder.attention if recorder else {}
        rows = {layer: calls + later.get(layer, []) for layer, calls in state.rows.items()} if max_rows else {}
        written = output.sequences[0, self.prompt.length :].tolist()
        return vlm.trace(self.prompt, state.output.logits[0, -1], written, rows)

    def stream(
        self,
        gates: AnyGates | None = None,
        *,
        max_new_tokens: int = 64,
        stop: Callable[[], bool] = lambda: False,
        within: AbstractContextManager[Any] | None = None,
    ) -> Generator[str, None, Trace]:
        """Run ``answer`` as a generator of the growing text, which returns the Trace. Closing it stops the model.

        The thread that runs the model enters ``within`` for as long as it runs, however slowly the text is read: use it for a
        lock on a model that several users share.
        """

        def run(streamer: Any, closed: Callable[[], bool]) -> Trace:
            with within or nullcontext():
                return self.answer(
                    gates, max_new_tokens=max_new_tokens, streamer=streamer, stop=lambda: closed() or stop()
                )

        return streamed(self.vlm.tokenizer, run)

    # --- looking at the prompt

    def rows(
        self,
        queries: Sequence[int],
        gates: AnyGates | None = None,
        *,
        layers: Sequence[int] | None = None,
        keys: Sequence[int] | None = None,
    ) -> Tensor:
        """Return attention rows of any prompt positions under these gates; what the session holds stays as it is.

        The run begins at the lowest layer that the gates change against the last setting, or at the lowest layer wanted, and ends
        behind the highest one: a row of one layer costs one layer.

        Shapes: C layers, R queries -> (C, H, R, K), float32 on the CPU, each row sums to one; with ``keys`` their columns only.

        Args:
            queries: positions in the prompt, from 0, rising.
            gates: scales of the Keys; None leaves the model as it is.
            layers: numbers of layers, from 0; all where None.
            keys: positions among the Keys whose columns are kept, which bounds the memory for many queries; all where None.

        Raises:
            SinkgateError: there is no such position or layer.
            GateError: the gates do not fit this model.

        Example:
            >>> rows = session.rows([session.prompt.length - 2], layers=[4])  # of the token in front of the last one
        """
        positions = whole_numbers(queries, self.prompt.length, "query")
        depths = whole_numbers(range(self.vlm.num_layers) if layers is None else layers, self.vlm.num_layers, "layer")
        columns = None if keys is None else whole_numbers(keys, self.prompt.num_keys, "key")
        with self.vlm.lock, torch.no_grad():
            known: dict[int, Tensor] = {}
            if positions == [self._followed] and columns is None and self._holds(gates) and self._state:
                known = self._state.followed
            recorder = Recorder(positions, layers=[layer for layer in depths if layer not in known], keys=columns)
            if recorder.layers:
                self._record(recorder, gates)
                known |= {layer: calls[0] for layer, calls in recorder.attention.items()}
            return torch.stack([known[layer][0].float().cpu() for layer in depths])

    def follow(self, query: int | None) -> None:
        """Keep the row of one more prompt position with every prediction from now on: `rows` then returns it without a run. None ends it.

        Raises:
            SinkgateError: there is no such position.
        """
        if query is not None:
            (query,) = whole_numbers([query], self.prompt.length, "query")
        with self.vlm.lock:
            if query != self._followed and self._state:
                self._state = replace(self._state, followed={})
            self._followed = query

    def received(self, gates: AnyGates | None = None) -> Tensor:
        """Return the attention that each Key receives from the text behind the image, the mean over its queries: (L, H, K) on the CPU.

        Raises:
            GateError: the gates do not fit this model.
        """
        queries = self.vlm.adapter.rows_after_image(self.prompt.inputs, self.prompt.visual)
        recorder = Recorder(queries, mean="rows")
        with self.vlm.lock, torch.no_grad():
            self._record(recorder, gates)
        return torch.stack([recorder.attention[layer][0][0].float().cpu() for layer in range(self.vlm.num_layers)])

    def states(self, gates: AnyGates | None = None) -> list[Tensor]:
        """Return the input of every layer that can be gated under these gates, (1, P, D) each, as `predict` keeps them.

        Raises:
            SinkgateError: this model cannot start in the middle, so no states are held.
            GateError: the gates do not fit this model.
        """
        if not self.resumes:
            raise SinkgateError(
                f"{self.vlm.name} cannot start in the middle, so a session holds none of its states; use vlm.each_layer"
            )
        inputs = self._settle(gates).inputs
        return [inputs[number] for number in self.vlm.adapter.layer_numbers]

    def _holds(self, gates: AnyGates | None) -> bool:
        """Return whether the stored state is that of these gates."""
        if not self.resumes or self._state is None or self._state.model != model_state(self.vlm.adapter):
            return False
        return self._first_change(self._state.scales, self._scales(gates)) == len(self.vlm.adapter.all_layers)

    def _record(self, recorder: Recorder, gates: AnyGates | None) -> None:
        """Run the layers that a recorder wants, from stored inputs where there are any; the state stays as it is."""
        vlm, layers = self.vlm, self.vlm.adapter.all_layers
        if not self.resumes:
            vlm.next_logits(self.prompt, gates, self._sinks, recorder)
            return
        if self._state is None or self._state.model != model_state(vlm.adapter):
            self._settle(gates)
        assert self._state is not None
        scales, numbers = self._scales(gates), vlm.adapter.layer_numbers
        wanted = [numbers[layer] for layer in recorder.layers] if recorder.layers is not None else numbers
        start, end = min(*wanted, self._first_change(self._state.scales, scales)), max(wanted) + 1
        with (
            vlm.attached(scales, recorder, own_cache=True),
            resumed(layers, start, self._state.inputs[start]),
            ended(layers, end),
        ):
            vlm.model(**self._state.model_inputs, use_cache=False, logits_to_keep=1)
        self.layers_run += end - start

    # --- many settings

    def predict_all(self, tables: Sequence[AnyGates], batch_size: int = BATCH) -> Tensor:
        """Return next-token logits under each of many settings, run side by side from the lowest layer that each changes.

        Settings that start at the same layer share a forward; the batch is halved where memory does not suffice.

        Shapes: S tables -> (S, vocabulary), float32 on the CPU.

        Raises:
            GateError: gates do not fit this model.
        """
        vlm = self.vlm
        if not self.resumes:
            runs = [vlm.next_logits(self.prompt, table, self._sinks).float().cpu() for table in tables]
            return torch.stack(runs) if runs else torch.empty(0, vlm.model.config.get_text_config().vocab_size)
        with vlm.lock, torch.no_grad():
            base = self._settle(None)
            scales = [self._scales(table) for table in tables]
            starts = [self._first_change(base.scales, table) for table in scales]
            result = torch.empty(len(scales), base.output.logits.shape[-1])
            for start in sorted(set(starts)):
                indices = [index for index, other in enumerate(starts) if other == start]
                if start == len(vlm.adapter.all_layers):  # nothing changes
                    result[indices] = base.output.logits[0, -1].float().cpu()
                    continue
                for part, logits in self._in_batches(base, [scales[index] for index in indices], start, batch_size):
                    result[[indices[index] for index in part]] = logits
        return result

    def _in_batches(
        self, base: _State, scales: list[Scales], start: int, batch_size: int
    ) -> Iterator[tuple[range, Tensor]]:
        done, size = 0, batch_size
        while done < len(scales):
            part = range(done, min(done + size, len(scales)))
            try:
                logits = self._logits(base, [scales[index] for index in part], start)
            except RuntimeError as error:
                if size == 1 or not should_reduce_batch_size(error):
                    raise
                size = max(1, len(part) // 2)  # not enough memory
                continue
            yield part, logits
            done = part.stop

    def _logits(self, base: _State, scales: list[Scales], start: int) -> Tensor:
        vlm, count = self.vlm, len(scales)
        if count == 1:
            return self._run(base, scales[0], start, keep=False).output.logits[:, -1].float().cpu()
        batch = Batch.of([self.prompt] * count, vlm.adapter, vlm.pad_token)
        begin = base.inputs[start].expand(count, *base.inputs[start].shape[1:])
        with vlm.attached(batch.key_scales(scales), None), resumed(vlm.adapter.all_layers, start, begin):
            logits = vlm.model(**batch.inputs, use_cache=False, logits_to_keep=1).logits[:, -1]
        self.layers_run += count * (len(vlm.adapter.all_layers) - start)
        return logits.float().cpu()

    # --- inside

    def _settle(self, gates: AnyGates | None) -> _State:
        """Return the state under these gates, resumed from the stored one if there is one."""
        with self.vlm.lock, torch.no_grad():
            scales = self._scales(gates)
            now = model_state(self.vlm.adapter)
            if self._state is None or self._state.model != now:
                self._state = replace(self._run(None, scales, 0), model=now)
            start = self._first_change(self._state.scales, scales)
            if start < len(self.vlm.adapter.all_layers):
                self._state = replace(self._run(self._state, scales, start), model=now)
            return self._state

    def _scales(self, gates: AnyGates | None) -> Scales:
        scales = self.vlm.scales(self.prompt, gates, self._sinks)
        return scales if isinstance(scales, LogitScales) else scales.cpu()

    def _first_change(self, old: Scales, new: Scales) -> int:
        """Return the lowest LLM layer whose scales differ; the number of layers if none does."""
        if isinstance(old, Tensor) and isinstance(new, Tensor):
            differs = (old != new).flatten(1).any(1)
        else:
            limited = [
                each if isinstance(each, LogitScales) else LogitScales.unlimited(each, self.prompt.length)
                for each in (old, new)
            ]
            differs = limited[0].changed_layers(limited[1])
        changed = differs.nonzero()[:, 0]
        numbers = self.vlm.adapter.layer_numbers
        return numbers[int(changed[0])] if len(changed) else len(self.vlm.adapter.all_layers)

    def _run(self, old: _State | None, scales: Scales, start: int, keep: bool = True) -> _State:
        """Run one prefill from layer ``start`` on; below, everything is as in ``old``."""
        vlm, layers, recorder = self.vlm, self.vlm.adapter.all_layers, _FollowingRecorder(self._followed)
        inputs = list(old.inputs[:start]) if old else []
        cache = DynamicCache(config=vlm.model.config.get_text_config(decoder=True)) if keep else None
        begin = old.inputs[start] if old and start < len(layers) else None
        model_inputs = old.model_inputs if old else vlm.warm_inputs(self.prompt)
        with (
            vlm.attached(scales, recorder if keep else None, own_cache=True),
            resumed(layers, start, begin),
            each_input(layers[start:], inputs.append),
        ):
            output = vlm.model(**model_inputs, **{CACHE_NAME: cache}, use_cache=keep, logits_to_keep=1)
        self.layers_run += len(layers) - start
        rows, followed = recorder.attention, recorder.followed
        if old and keep:
            below = [layer for layer, number in enumerate(vlm.adapter.layer_numbers) if number < start]
            rows = {**rows, **{layer: old.rows[layer] for layer in below}}
            followed = {**followed, **{layer: old.followed[layer] for layer in below if layer in old.followed}}
            fresh, before = cache_in(output), cache_in(old.output)
            fresh.layers[:start] = [copied_layer(layer) for layer in before.layers[:start]]
        return _State(model_inputs, scales, inputs, rows, output, followed=followed)

    def _proves_to_resume(self) -> bool:
        """Return whether the last layer alone gives the same logits as the full run."""
        adapter = self.vlm.adapter
        if adapter.shares_keys or adapter.takes_encoded is None:
            return False
        try:
            full = self._settle(None)
            again = self._run(full, full.scales, len(adapter.all_layers) - 1)
        except Exception:  # noqa: BLE001 - an architecture may refuse in any way
            self._state = None
            return False
        if torch.equal(again.output.logits, full.output.logits) and all(hidden.dim() == 3 for hidden in full.inputs):
            return True
        self._state = None
        return False


class _FollowingRecorder(Recorder):
    """Recorder of the last row of a prefill, and apart from it of the row of one more position."""

    def __init__(self, query: int | None) -> None:
        super().__init__("last")
        self.query = query
        self.followed: dict[int, Tensor] = {}

    def record(
        self,
        layer: int,
        wanted: slice | Tensor,
        rows_of: Callable[[slice | Tensor], Tensor],
        row_size: int,
        value: Tensor | None = None,
    ) -> None:
        super().record(layer, wanted, rows_of, row_size, value)
        if self.query is not None:
            self.followed[layer] = rows_of(torch.tensor([self.query]))
