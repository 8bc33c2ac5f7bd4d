"""Training of learned gates, and of other small methods, on a frozen backbone, by transformers' `Trainer`.

Next-token prediction on answers alone (paper, section 4). Several methods learn side by side, each as if alone: what lies below
the layers where they begin is computed once for all of them (`sinkgate.training.dataset.Prefix`). Learning rate, batch, schedule and seed
are not known from the paper: the defaults are ours.

Shapes: B samples, M methods.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import EarlyStoppingCallback, EvalPrediction, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import SAFE_WEIGHTS_NAME

from sinkgate.data import Sample
from sinkgate.errors import SinkgateError, TrainingError
from sinkgate.methods.base import Method, finder_of
from sinkgate.methods.lsg import LSG
from sinkgate.models.vlm import VLM, Finder
from sinkgate.output import track, writable_folder
from sinkgate.training.dataset import BUDGET, Lesson, Lessons, Prefix, SinkCounts, batches, labels_of

UNMODIFIED = "unmodified"
PROBED = 32  # samples that are looked at for sinks before training
GATED = {"v_sink": ("v_sink",), "l_sink": ("l_sink",), "three": ("v_sink", "l_sink")}  # groups of sinks, by grouping
#: What is not said is `TrainingArguments`' own. Gradients are not clipped: a common norm would tie methods to each other.
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
    """What a run of training did.

    ``history``: one entry a log, as `Trainer` keeps it: ``loss/<method>`` in nats a token while training, ``eval_loss/<method>`` and
    ``eval_accuracy/<method>`` (share of answers that greedy decoding gets right) on the validation samples, beside them those of the
    "unmodified" model. ``skipped``: samples of this process that could not be used, by number, with the reason. ``sinks``: in how many of
    the images that this process used there are any.
    """

    samples: int
    steps: int
    epochs: float
    seconds: float
    history: list[dict[str, float]] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    sinks: SinkCounts = field(default_factory=lambda: SinkCounts(0, 0, None))

    def to_json(self) -> str:
        """The report as JSON."""
        return json.dumps(asdict(self), indent=1)

    def last(self, name: str) -> float | None:
        """The newest value of that name in the history, None where there is none."""
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
    progress: bool = True,
    **options: Any,
) -> TrainingReport:
    """Train gates in place; the backbone stays as it is.

    A killed run goes on with the same call: with one process bit for bit as if it had never stopped. Under ``torchrun`` each process takes
    batches of its own.

    Args:
        methods: an `LSG`, or methods by name that are modules; each learns as if alone.
        vlm: the model.
        samples: `Sample`s or ``(image, question, answer)``. One that cannot be used is passed over and counted. Images without
            V-sinks are learnt from: all their tokens are the rest.
        validation: looked at after each epoch, unless ``eval_strategy`` says otherwise.
        out: folder for checkpoints.
        together: the gates of an `LSG` learn as one; else each by itself, from a prefix that they share, as the paper trains them.
        resume: go on from the newest whole checkpoint in ``out``, where there is one.
        patience: stop early after so many looks at the validation samples without a lower loss, and take the best weights back.
        find: finds the sinks; by the gates' own criterion where None.
        budget: bytes of encoded images that may be kept between epochs.
        allow_empty: train gates though none of some samples spread over the data has the sinks that they are for; they then scale all
            visual tokens alike.
        progress: show a bar.
        options: arguments of transformers' `TrainingArguments` in place of ``DEFAULTS``; ``activation_checkpointing`` runs each
            layer again for the gradient instead of keeping its activations; ``report_to="tensorboard"`` or ``"wandb"`` logs there.

    Raises:
        TrainingError: no image looked at has sinks, the loss is not finite, no sample can be used, early stopping without validation samples, fp16, workers that load
            data, or ``out`` holds checkpoints of other methods.
        SinkgateError: ``out`` cannot be written, or an option that `TrainingArguments` does not know or cannot use.
    """
    parts = _parts(methods, vlm, together)
    lessons = Lessons(vlm, find or finder_of(parts.values(), l_sinks=False), budget)
    data, checks = _Samples("train", Sample.list_of(samples)), _Samples("validation", Sample.list_of(validation))
    if not len(data):
        raise TrainingError("there are no samples to train on")
    if patience is not None and not len(checks):
        raise TrainingError("early stopping needs validation samples; give some, or no patience")
    out = writable_folder(out)
    arguments = _arguments(out, bool(len(checks)), patience, vlm, options)
    learners = Learners(vlm, parts)
    if not allow_empty:
        _refuse_empty(learners.methods.values(), lessons, data)
    try:
        trainer = _Trainer(
            model=learners,
            args=arguments,
            train_dataset=cast(Any, data),
            eval_dataset=cast(Any, checks) if len(checks) else None,
            data_collator=_Collator(lessons),
            compute_metrics=learners.metrics,
            callbacks=[EarlyStoppingCallback(patience)] if patience is not None else [],
        )
    except RuntimeError as error:  # what report_to names is not installed
        raise TrainingError(f"training cannot begin: {error}") from error
    trainer.remove_callback(PrinterCallback)
    if progress:
        trainer.add_callback(_Progress)
    begun = _newest(out, learners) if resume else None
    with frozen(vlm):
        result = trainer.train(resume_from_checkpoint=begun)
    if sum(name.startswith("train ") for name in lessons.skipped) == len(data):
        raise TrainingError(f"no sample could be used; the first: {next(iter(lessons.skipped.values()))}")
    return TrainingReport(
        samples=len(data),
        steps=trainer.state.global_step,
        epochs=trainer.state.epoch or 0.0,
        seconds=result.metrics.get("train_runtime", 0.0),
        history=cast(Any, trainer.state.log_history),
        skipped=lessons.skipped,
        sinks=SinkCounts.of(lessons.found.values()),
    )


def _refuse_empty(methods: Iterable[nn.Module], lessons: Lessons, data: _Samples) -> None:
    """Look for sinks in samples spread over the data, before hours of training gates for a group that no image has."""
    groups = {group for method in methods if isinstance(method, LSG) for group in GATED[method.config.grouping]}
    if not groups:
        return
    spread = sorted({number * len(data) // PROBED for number in range(PROBED)})
    looked_at = [lesson.found for row in map(data.__getitem__, spread) if (lesson := lessons.ready(*row))]
    counts = SinkCounts.of(looked_at)
    if looked_at and not any(counts.count(group) for group in groups):
        raise TrainingError(
            f"{counts}\nThere is nothing to gate: choose another criterion or other images, or say allow_empty=True (--allow-empty)"
        )


@contextmanager
def frozen(vlm: VLM) -> Iterator[None]:
    """No parameter of the backbone asks for a gradient within the block."""
    asking = [parameter for parameter in vlm.model.parameters() if parameter.requires_grad]
    try:
        for parameter in asking:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in asking:
            parameter.requires_grad_(True)


class Learners(nn.Module):
    """Methods that learn on one frozen model, each as if alone: what `Trainer` trains and saves."""

    def __init__(self, vlm: VLM, methods: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.vlm, self.checkpoint = vlm, False
        self.methods = nn.ModuleDict(methods)

    def activation_checkpointing_enable(self, **_: Any) -> None:
        """What `Trainer` calls where ``activation_checkpointing`` is asked for."""
        self.checkpoint = True

    def forward(self, lessons: Sequence[Lesson | None], labels: Tensor) -> dict[str, Tensor]:
        """Losses (B, M) in nats, summed over an answer's tokens, and whether each answer is right (B, M); zero where no lesson is.

        Without gradients the unmodified model's are a last column.

        Gradients are taken at once, while a method is attached, and given to ``backward`` later: activations of one
        method at a time are held.
        """
        present = [index for index, lesson in enumerate(lessons) if lesson is not None]
        columns = len(self.methods) + (
            not torch.is_grad_enabled()
        )  # last the unmodified model, which costs nothing more
        losses = torch.zeros(len(lessons), columns, device=labels.device)
        right = torch.zeros(len(lessons), columns, dtype=torch.bool, device=labels.device)
        gradients: dict[nn.Parameter, Tensor] = {}
        for part, batch in batches(self.vlm, [lesson for lesson in lessons if lesson is not None]):
            prefix, rows = Prefix(self.vlm, batch, self.checkpoint), present[part]
            for column, method in enumerate(self.methods.values()):
                door = cast(Method, method)
                with door.applied(self.vlm, batch):
                    logits = prefix.within(door)
                    each = prefix.losses(logits)
                    if torch.is_grad_enabled():
                        for parameter, gradient in _gradients(each.sum(), list(method.parameters())):
                            gradients[parameter] = gradients.get(parameter, 0) + gradient
                losses[rows, column] = each.detach().to(losses.device)
                right[rows, column] = prefix.right(logits.detach()).to(right.device)
            if columns > len(self.methods):
                losses[rows, -1] = prefix.losses(prefix.plain).to(losses.device)
                right[rows, -1] = prefix.right(prefix.plain).to(right.device)
        total = losses[:, : len(self.methods)].sum()
        if torch.is_grad_enabled():
            trained = [parameter for parameter in self.methods.parameters() if parameter.requires_grad]
            found = [gradients.get(parameter, torch.zeros_like(parameter)) for parameter in trained]
            total = cast(Tensor, _Delivered.apply(total, found, *trained))
        return {"loss": total, "losses": losses, "right": right}

    def metrics(self, seen: EvalPrediction) -> dict[str, float]:
        """Return loss in nats a token and accuracy of each method, and of the unmodified model, over the validation samples."""
        (losses, right), tokens = cast(Any, seen.predictions), cast(Any, seen.label_ids)
        used = tokens > 0
        found = {}
        for column, name in enumerate([*self.methods, UNMODIFIED]):
            found[f"loss/{name}"] = float(losses[:, column].sum() / max(tokens.sum(), 1))
            found[f"accuracy/{name}"] = float(right[used, column].mean()) if used.any() else 0.0
        mean = sum(found[f"loss/{name}"] for name in self.methods) / len(self.methods)
        return {"loss": mean, **found}


class _Delivered(torch.autograd.Function):
    """A loss whose gradients are known already."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, gradients: list[Tensor], *parameters: Tensor) -> Tensor:  # noqa: ARG004
        ctx.gradients = gradients
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(grads[0].to(gradient) * gradient for gradient in ctx.gradients)


def _gradients(loss: Tensor, parameters: list[nn.Parameter]) -> Iterator[tuple[nn.Parameter, Tensor]]:
    asked = [parameter for parameter in parameters if parameter.requires_grad]
    found = torch.autograd.grad(loss, asked, allow_unused=True) if loss.requires_grad else [None] * len(asked)
    return ((parameter, grad) for parameter, grad in zip(asked, found, strict=True) if grad is not None)


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
    lessons: Lessons

    def __call__(self, rows: list[tuple[Sample, str]]) -> dict[str, Any]:
        ready = [self.lessons.ready(*row) for row in rows]
        return {"lessons": ready, "labels": labels_of(ready)}


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


class _Trainer(Trainer):
    """`Trainer` for `Learners`: losses by the token, each method's apart, and a stop where a loss is not finite."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.model_accepts_loss_kwargs = True  # losses are divided by all tokens of a step
        self._loss_shifts_labels = False
        self._limit, self.args.save_total_limit = self.args.save_total_limit, None  # see `_save_checkpoint`
        self._seen = torch.zeros(len(self._learners.methods) + 1)  # losses summed since the last log, then tokens

    @property
    def _learners(self) -> Learners:
        return cast(Learners, self.accelerator.unwrap_model(cast(Any, self.model)))

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        found, tokens = model(**inputs), int((inputs["labels"] >= 0).sum())
        sums = found["losses"].sum(0).cpu()
        if not torch.isfinite(sums).all():
            names = [name for name, value in zip(self._learners.methods, sums, strict=True) if not value.isfinite()]
            raise TrainingError(
                f"the loss of {', '.join(names)} is not finite at step {self.state.global_step}; checkpoints in "
                f"{self.args.output_dir} are whole: lower learning_rate, or load the model in float32 or bfloat16"
            )
        self._seen += torch.cat([sums, torch.tensor([float(tokens)])])
        among = tokens if num_items_in_batch is None else int(num_items_in_batch)
        loss = found["loss"] / max(among, 1)  # all samples of a step may have been passed over
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # processes' gradients are averaged, their tokens summed
        return (loss, found) if return_outputs else loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs:  # of all processes
            *sums, tokens = cast(Tensor, self.accelerator.reduce(self._seen.to(self.args.device))).tolist()
            found = zip(self._learners.methods, sums, strict=True)
            logs = {**logs, **{f"loss/{name}": total / max(tokens, 1) for name, total in found}}
            self._seen.zero_()
        super().log(logs, *args, **kwargs)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save, then delete the oldest whole checkpoints beyond the limit. Transformers would delete any folder ``checkpoint-*``."""
        super()._save_checkpoint(model, trial)
        if self.args.should_save and self._limit:
            best = self.state.best_model_checkpoint
            *older, _newest = sorted(_checkpoints(Path(str(self.args.output_dir))), key=_saved_at)
            removable = [folder for folder in older if best is None or not folder.samefile(best)]
            for folder in removable[: max(0, len(older) + 1 - self._limit)]:
                shutil.rmtree(folder, ignore_errors=True)

    def prediction_step(self, model: Any, inputs: dict[str, Any], *_: Any, **__: Any) -> tuple[Any, Any, Any]:
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad():
            found = model(**inputs)
        tokens = (inputs["labels"] >= 0).sum(1)
        return None, (found["losses"], found["right"].float()), tokens


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
    chosen = {**DEFAULTS, "eval_strategy": "epoch" if checks else "no"}
    if patience is not None:
        chosen |= {"load_best_model_at_end": True, "metric_for_best_model": "loss", "save_strategy": "epoch"}
    chosen |= {**options, "output_dir": str(out), "remove_unused_columns": False, "label_names": ["labels"]}
    chosen["disable_tqdm"] = True  # no bar of transformers', which in a notebook is a table; `_Progress` is ours
    chosen.setdefault("use_cpu", vlm.device.type == "cpu")
    try:
        arguments = TrainingArguments(**chosen)
    except (TypeError, ValueError) as error:
        raise SinkgateError(f"training options are those of transformers' TrainingArguments: {error}") from error
    if arguments.fp16:  # gradients are taken before a scaler could keep them from underflow
        raise TrainingError("fp16 is not for training gates: their gradients would underflow; say bf16=True")
    if arguments.dataloader_num_workers:
        raise TrainingError(
            f"dataloader_num_workers is {arguments.dataloader_num_workers}; expected 0: the model itself encodes the images, and workers would copy it"
        )
    arguments._n_gpu = min(1, arguments.n_gpu)  # the backbone may lie on all of them; it is never copied
    return arguments


def _checkpoints(out: Path) -> list[Path]:
    """The whole checkpoints in a folder, oldest step first. A killed run may leave one half written; users may keep folders beside."""
    folders = {
        int(step): folder
        for folder in out.glob(f"{PREFIX_CHECKPOINT_DIR}-*")
        if (step := folder.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-")).isdecimal()
    }
    return [folders[step] for step in sorted(folders) if _is_whole(folders[step])]


def _is_whole(folder: Path) -> bool:
    try:
        json.loads((folder / TRAINER_STATE_NAME).read_text(encoding="utf-8"))  # written last
    except (OSError, ValueError):
        return False
    return (folder / SAFE_WEIGHTS_NAME).is_file()


def _saved_at(folder: Path) -> int:
    return (folder / TRAINER_STATE_NAME).stat().st_mtime_ns


def _newest(out: Path, learners: Learners) -> str | None:
    """The whole checkpoint of the highest step, None if there is none."""
    for folder in _checkpoints(out)[-1:]:
        kept = {name: value.shape for name, value in load_file(folder / SAFE_WEIGHTS_NAME).items()}
        if kept != {name: value.shape for name, value in learners.state_dict().items()}:
            raise TrainingError(
                f"{folder} is of other gates than these, which are {', '.join(learners.methods)}; "
                "give another folder, or resume=False to begin anew"
            )
        return str(folder)
    return None
