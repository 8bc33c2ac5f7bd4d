"""Training of learned gates and other small methods on a frozen backbone by transformers' `Trainer`.

Next-token prediction on answers alone (paper, section 4). Several methods learn side by side, each as if alone: the layers below their
first ones are computed once for all (`sinkgate.training.dataset.Prefix`). Learning rate, batch size, schedule and seed are chosen by us; the
paper does not say.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any, cast

import torch
from accelerate.utils import broadcast
from torch import Tensor, nn
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from sinkgate.data import Sample
from sinkgate.errors import SinkgateError, TrainingError
from sinkgate.methods.base import finder_of
from sinkgate.methods.lsg import LSG
from sinkgate.models.vlm import VLM, Finder
from sinkgate.output import track, writable_folder
from sinkgate.training import checkpoints
from sinkgate.training.dataset import BUDGET, ExampleCache, SinkCounts, labels_of
from sinkgate.training.ensemble import MethodEnsemble, frozen

SAVE_MINUTES = 10.0  # the most that a killed run loses
PROBED = 32  # samples to find sinks in before training
GATED = {"v_sink": ("v_sink",), "l_sink": ("l_sink",), "three": ("v_sink", "l_sink")}  # groups of sinks, by grouping
#: Other options have the defaults of `TrainingArguments`. Gradients are not clipped: a common norm would tie methods to each other.
DEFAULTS: Mapping[str, Any] = {
    "num_train_epochs": 2,  # the paper's
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 32,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.03,  # a share of all steps
    "max_grad_norm": 0.0,
    "logging_steps": 10,
    "save_steps": 100,
    "save_total_limit": 2,
    "report_to": "none",
    "ddp_find_unused_parameters": False,
    "seed": 0,
}


@dataclass
class TrainingReport:
    """Report of a training run.

    ``history``: the log entries of `Trainer`: ``loss/<method>`` in nats a token in training, ``eval_loss/<method>`` and
    ``eval_accuracy/<method>`` (share of answers that greedy decoding gets right) on the validation samples, with those of the
    "unmodified" model. ``skipped``: samples of this process that could not be used, by number, with the reason. ``sinks``: numbers of
    images with sinks among those that this process used. ``seconds`` and counts of a resumed run are those of the whole.
    """

    samples: int
    steps: int
    epochs: float
    seconds: float
    history: list[dict[str, float]] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    sinks: SinkCounts = field(default_factory=lambda: SinkCounts(0, 0, None))

    def to_json(self) -> str:
        """Return the report as JSON."""
        return json.dumps(asdict(self), indent=1)

    def last(self, name: str) -> float | None:
        """Return the last value of that name in the history, None if there is none."""
        return next((entry[name] for entry in reversed(self.history) if name in entry), None)


def train(
    methods: LSG | Mapping[str, nn.Module],
    vlm: VLM,
    samples: Sequence[Sample] | Iterable[tuple[Any, ...]],
    *,
    validation: Sequence[Sample] | Iterable[tuple[Any, ...]] = (),
    out: str | Path,
    together: bool = False,
    resume: bool = True,
    patience: int | None = None,
    find: Finder | None = None,
    budget: int = BUDGET,
    allow_empty: bool = False,
    save_minutes: float | None = SAVE_MINUTES,
    progress: bool = True,
    **options: Any,
) -> TrainingReport:
    """Train gates in place; the backbone does not change.

    The same call resumes a killed run, with one process bit for bit as if it had not stopped. Under ``torchrun`` each process takes
    batches of its own.

    Args:
        methods: an `LSG`, or methods by name that are modules; each learns as if alone.
        vlm: the model.
        samples: `Sample`s or ``(image, question, answer)``. One that cannot be used is skipped and counted. Images without V-sinks
            count too: all their tokens are the rest.
        validation: samples for an evaluation after each epoch, or as ``eval_strategy`` says.
        out: folder for checkpoints.
        together: train the gates of an `LSG` as one method; else each by itself, on a common prefix, as in the paper.
        resume: continue from the newest whole checkpoint in ``out``, if there is one.
        patience: stop after so many evaluations without a lower loss, and restore the best weights.
        find: finder of sinks; by the gates' own criterion if None.
        budget: bytes of encoded images to cache between epochs.
        allow_empty: train even if no image, of some spread over the data, has the sinks that the gates are for.
        save_minutes: minutes without a checkpoint after which one is written, in addition to those of ``save_steps``; None for none.
        progress: show a bar.
        options: arguments of transformers' `TrainingArguments` in place of ``DEFAULTS``; ``activation_checkpointing`` runs each
            layer again for the gradient and stores no activations; ``report_to="tensorboard"`` or ``"wandb"`` logs there.

    Raises:
        TrainingError: no image has sinks, the loss is not finite, no sample can be used, early stopping without validation samples,
            fp16, data loaders in other processes, or ``out`` holds checkpoints of other methods, another model, other criteria of sinks or
            other samples.
        SinkgateError: ``out`` cannot be written, or `TrainingArguments` refuses an option.

    Example:
        >>> lsg = sg.LSG.for_vlm(vlm, layers=[2, 7])
        >>> report = sg.train(lsg, vlm, samples, validation=others, out="runs/lsg")
        >>> report.last("eval_loss/layer-2") < report.last("eval_loss/unmodified")
        True
    """
    parts = _parts(methods, vlm, together)
    find = find or finder_of(parts.values(), l_sinks=False)
    examples = ExampleCache(vlm, find, budget)
    data, checks = _Samples("train", Sample.list_of(samples)), _Samples("validation", Sample.list_of(validation))
    if not len(data):
        raise TrainingError("there are no samples to train on")
    if patience is not None and not len(checks):
        raise TrainingError("early stopping needs validation samples; give some, or no patience")
    out = writable_folder(out)
    arguments = _arguments(out, bool(len(checks)), patience, vlm, options)
    ensemble = MethodEnsemble(vlm, parts)
    facts = checkpoints.facts_of(parts, vlm, find, data.samples, checks.samples, arguments)
    checkpoint = checkpoints.newest(out, ensemble, facts) if resume else None
    if checkpoint is None and not allow_empty:
        _refuse_empty(ensemble.methods.values(), examples, data)
    record = checkpoints.Record(examples)
    try:
        trainer = _Trainer(
            facts,
            record,
            model=ensemble,
            args=arguments,
            train_dataset=cast(Any, data),
            eval_dataset=cast(Any, checks) if len(checks) else None,
            data_collator=_Collator(examples),
            compute_metrics=ensemble.metrics,
            callbacks=[EarlyStoppingCallback(patience)] if patience is not None else [],
        )
    except (RuntimeError, ValueError) as error:  # the package that report_to names is missing, or not known
        raise TrainingError(f"training cannot begin: {error}") from error
    trainer.remove_callback(PrinterCallback)
    if save_minutes is not None and arguments.save_strategy != "no":
        trainer.add_callback(_SaveByTime(60 * save_minutes))
    if progress:
        trainer.add_callback(_Progress)
    if checkpoint is not None and trainer.is_world_process_zero():
        record.read(Path(checkpoint))
    with frozen(vlm):
        result = trainer.train(resume_from_checkpoint=checkpoint)
    if sum(name.startswith("train ") for name in examples.skipped) == len(data):
        raise TrainingError(f"no sample could be used; the first: {next(iter(examples.skipped.values()))}")
    return TrainingReport(
        samples=len(data),
        steps=trainer.state.global_step,
        epochs=trainer.state.epoch or 0.0,
        seconds=record.before + result.metrics.get("train_runtime", 0.0),
        # without the last entry, whose time and mean loss leave out the steps before a kill
        history=[cast(Any, entry) for entry in trainer.state.log_history if "train_runtime" not in entry],
        skipped=examples.skipped,
        sinks=SinkCounts.of(examples.counts.values()),
    )


def _refuse_empty(methods: Iterable[nn.Module], examples: ExampleCache, data: _Samples) -> None:
    """Raise, before hours of training, if samples spread over the data have no sinks of the groups to gate."""
    groups = {group for method in methods if isinstance(method, LSG) for group in GATED[method.config.grouping]}
    if not groups:
        return
    spread = sorted({number * len(data) // PROBED for number in range(PROBED)})
    counts = SinkCounts.of(example.counts for index in spread if (example := examples.prepare(*data[index])))
    if counts.images and not any(counts.count(group) for group in groups):
        words = str(counts).replace("\n", "; ")
        raise TrainingError(f"{words}. Choose another criterion or other images, or allow_empty=True (--allow-empty)")


@dataclass(frozen=True)
class _Samples:
    """A dataset of numbered samples."""

    split: str
    samples: list[Sample]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Sample, str]:
        return self.samples[index], f"{self.split} {index}"


@dataclass(frozen=True)
class _Collator:
    examples: ExampleCache

    def __call__(self, rows: list[tuple[Sample, str]]) -> dict[str, Any]:
        examples = [self.examples.prepare(*row) for row in rows]
        return {"examples": examples, "labels": labels_of(examples)}


class _Progress(TrainerCallback):
    """Steps done, with the newest loss, as `track` shows them; on the first process."""

    def __init__(self) -> None:
        self.loss = ""
        self.steps: Iterator[int] = iter(())

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        remaining, shown = range(state.global_step, state.max_steps), state.is_world_process_zero
        self.steps = track(remaining, "train", done=state.global_step, unit="steps", note=lambda: self.loss, show=shown)
        next(self.steps, None)  # `track` counts an item when the next one is taken

    def on_step_end(self, *_: Any, **__: Any) -> None:
        next(self.steps, None)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:  # noqa: ARG002
        if logs and "loss" in logs:
            self.loss = f"loss {logs['loss']:.3f}"

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.steps = iter(())


class _SaveByTime(TrainerCallback):
    """A checkpoint after so many seconds without one, which the first process decides for all."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.saved = seconds, monotonic()

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.saved = monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        due = monotonic() - self.saved >= self.seconds
        if args.world_size > 1:
            due = bool(broadcast(torch.tensor(float(due), device=args.device)))
        control.should_save |= due

    def on_save(self, *_: Any, **__: Any) -> None:
        self.saved = monotonic()


class _Trainer(Trainer):
    """`Trainer` for a `MethodEnsemble`: losses by the token and by method, and an error if one is not finite."""

    def __init__(self, facts: Mapping[str, str], record: checkpoints.Record, **options: Any) -> None:
        super().__init__(**options)
        self._facts, self._record = facts, record
        self.model_accepts_loss_kwargs = True  # losses are divided by all tokens of a step
        self._loss_shifts_labels = False
        self._limit, self.args.save_total_limit = self.args.save_total_limit, None  # see `_save_checkpoint`
        self._sums = torch.zeros(len(self._ensemble.methods) + 1)  # losses summed since the last log, then tokens

    @property
    def _ensemble(self) -> MethodEnsemble:
        return cast(MethodEnsemble, self.accelerator.unwrap_model(cast(Any, self.model)))

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        output, tokens = model(**inputs), int((inputs["labels"] >= 0).sum())
        sums = output["losses"].sum(0).cpu()
        if not torch.isfinite(sums).all():
            names = [name for name, value in zip(self._ensemble.methods, sums, strict=True) if not value.isfinite()]
            raise TrainingError(
                f"the loss of {', '.join(names)} is not finite at step {self.state.global_step}; checkpoints in "
                f"{self.args.output_dir} are whole: lower learning_rate, or load the model in float32 or bfloat16"
            )
        self._sums += torch.cat([sums, torch.tensor([float(tokens)])])
        divisor = tokens if num_items_in_batch is None else int(num_items_in_batch)
        loss = output["loss"] / max(divisor, 1)  # all samples of a step may have been skipped
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # processes' gradients are averaged, their tokens summed
        return (loss, output) if return_outputs else loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs:  # of all processes
            *sums, tokens = cast(Tensor, self.accelerator.reduce(self._sums.to(self.args.device))).tolist()
            named = zip(self._ensemble.methods, sums, strict=True)
            logs = {**logs, **{f"loss/{name}": total / max(tokens, 1) for name, total in named}}
            self._sums.zero_()
        super().log(logs, *args, **kwargs)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save, then delete the oldest whole checkpoints beyond the limit. Transformers would delete any folder ``checkpoint-*``."""
        out = Path(str(self.args.output_dir))
        if self.args.should_save:  # before the state, which is written last
            checkpoints.write_facts(out, self.state.global_step, self._facts, self._record)
        super()._save_checkpoint(model, trial)
        if self.args.should_save and self._limit:
            checkpoints.delete_oldest(out, self._limit, self.state.best_model_checkpoint)

    def prediction_step(self, model: Any, inputs: dict[str, Any], *_: Any, **__: Any) -> tuple[Any, Any, Any]:
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad():
            output = model(**inputs)
        tokens = (inputs["labels"] >= 0).sum(1)
        return None, (output["losses"], output["right"].float()), tokens


def _parts(methods: LSG | Mapping[str, nn.Module], vlm: VLM, together: bool) -> dict[str, nn.Module]:
    if not isinstance(methods, LSG):
        return dict(methods)
    methods.check_fits(vlm, any_model=True)
    if together:
        return {"gates": methods}
    return {f"layer-{layer}": methods.only([layer]) for layer in methods.config.layers}


def _arguments(
    out: Path, checks: bool, patience: int | None, vlm: VLM, options: Mapping[str, Any]
) -> TrainingArguments:
    settings = {**DEFAULTS, "eval_strategy": "epoch" if checks else "no"}
    if patience is not None:
        settings |= {"load_best_model_at_end": True, "metric_for_best_model": "loss", "save_strategy": "epoch"}
    settings |= {**options, "output_dir": str(out), "remove_unused_columns": False, "label_names": ["labels"]}
    settings["disable_tqdm"] = True  # its bar, which in a notebook is a table; see `_Progress`
    settings.setdefault("use_cpu", vlm.device.type == "cpu")
    try:
        arguments = TrainingArguments(**settings)
    except (TypeError, ValueError) as error:
        raise SinkgateError(f"training options are those of transformers' TrainingArguments: {error}") from error
    if arguments.fp16:  # gradients are taken before a scaler could keep them from underflow
        raise TrainingError("fp16 makes the gradients of gates underflow; use bf16=True")
    if arguments.dataloader_num_workers:
        raise TrainingError(
            f"dataloader_num_workers is {arguments.dataloader_num_workers}; expected 0: the model itself encodes the images, and workers would copy it"
        )
    arguments._n_gpu = min(1, arguments.n_gpu)  # the backbone may lie on all of them; it is never copied
    return arguments
