"""Checkpoints of a training run: the complete ones in a folder, the newest to resume from, and facts that a resumed run must share."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from time import perf_counter

from safetensors.torch import load_file
from torch import nn
from transformers import TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import SAFE_WEIGHTS_NAME

from sinkgate.data import Sample
from sinkgate.data.identity import facts_of_samples
from sinkgate.errors import TrainingError
from sinkgate.methods.base import configuration
from sinkgate.models.finder import finder_settings
from sinkgate.models.vlm import VLM, Finder
from sinkgate.training.dataset import ExampleCache, ImageSinks
from sinkgate.training.ensemble import MethodEnsemble

RUN = "run.json"  # in a checkpoint: facts that must be the same in a resumed run
RECORD = "record.json"  # in a checkpoint: the part of the report that `Trainer` does not keep
SAME = ("learning_rate", "per_device_train_batch_size", "gradient_accumulation_steps", "seed")  # among these, arguments
ANEW = "give another folder, or resume=False (--no-resume) to begin anew"


class Record:
    """Skipped samples, numbers of sinks and time of a run, which each checkpoint holds for the report of a resumed run."""

    def __init__(self, examples: ExampleCache) -> None:
        self.examples, self.before, self.begun = examples, 0.0, perf_counter()

    def write(self, folder: Path) -> None:
        """Write the record to a checkpoint."""
        counts = {name: asdict(each) for name, each in self.examples.counts.items()}
        seconds = self.before + perf_counter() - self.begun
        content = {"seconds": seconds, "skipped": self.examples.skipped, "counts": counts}
        (folder / RECORD).write_text(json.dumps(content), encoding="utf-8")

    def read(self, folder: Path) -> None:
        """Continue the record of a checkpoint; those of older releases have none."""
        if (folder / RECORD).is_file():
            content = json.loads((folder / RECORD).read_text(encoding="utf-8"))
            self.before = content["seconds"]
            self.examples.skipped |= content["skipped"]
            self.examples.counts |= {name: ImageSinks(**each) for name, each in content["counts"].items()}


def whole_in(out: Path) -> list[Path]:
    """Return the complete checkpoints in a folder, by step. A killed run may leave an incomplete one, and users may have folders there too."""
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


def delete_oldest(out: Path, limit: int, best: str | None) -> None:
    """Delete the oldest complete checkpoints beyond a limit, but not the best one."""
    *older, _newest = sorted(whole_in(out), key=lambda folder: (folder / TRAINER_STATE_NAME).stat().st_mtime_ns)
    removable = [folder for folder in older if best is None or not folder.samefile(best)]
    for folder in removable[: max(0, len(older) + 1 - limit)]:
        shutil.rmtree(folder, ignore_errors=True)


def write_facts(out: Path, step: int, facts: Mapping[str, str], record: Record) -> None:
    """Write facts and record of a run into the checkpoint of a step."""
    folder = out / f"{PREFIX_CHECKPOINT_DIR}-{step}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RUN).write_text(json.dumps(facts, indent=1), encoding="utf-8")
    record.write(folder)


def facts_of(
    methods: Mapping[str, nn.Module],
    vlm: VLM,
    find: Finder,
    samples: Sequence[Sample],
    validation: Sequence[Sample],
    arguments: TrainingArguments,
) -> dict[str, str]:
    """Return the facts that must be the same in a resumed run, by name."""
    settings = {f"criterion {side}": criterion for side, criterion in finder_settings(find, vlm).items()}
    facts = {"model": vlm.name, "weights": vlm.weights_checksum, "samples": len(samples), **settings}
    facts["checksum of the samples' content"] = facts_of_samples(samples)["checksum"]
    if arguments.load_best_model_at_end:  # losses on other samples cannot be compared
        facts["checksum of the validation samples' content"] = facts_of_samples(validation)["checksum"]
    facts |= {name: getattr(arguments, name) for name in SAME}
    facts |= {f"method {name}": configuration(method) for name, method in methods.items()}
    return {name: str(value) for name, value in facts.items()}


def newest(out: Path, ensemble: MethodEnsemble, facts: Mapping[str, str]) -> str | None:
    """Return the complete checkpoint of the last step, None if there is none.

    Facts that older releases did not write are not compared.

    Raises:
        TrainingError: the checkpoint is of another run.
    """
    for folder in whole_in(out)[-1:]:
        shapes = {name: value.shape for name, value in load_file(folder / SAFE_WEIGHTS_NAME).items()}
        if shapes != {name: value.shape for name, value in ensemble.state_dict().items()}:
            raise TrainingError(
                f"{folder} is of other gates than these, which are {', '.join(ensemble.methods)}; {ANEW}"
            )
        before = json.loads((folder / RUN).read_text(encoding="utf-8")) if (folder / RUN).is_file() else {}
        for name, value in before.items():
            if value != facts.get(name):
                raise TrainingError(
                    f"{folder} is of another run: {name} is {value} there and {facts.get(name)} here; {ANEW}"
                )
        return str(folder)
    return None
