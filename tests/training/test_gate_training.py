"""Training gates: what they learn does not depend on how the work is divided, and nothing is lost when it stops."""

import functools
import itertools
import json
import re
import runpy
import socket
import time
from pathlib import Path

import pytest
import torch
from forked import Forked
from tiny import noise_image, tiny_llava
from transformers import TrainerCallback

import sinkgate as sg
from sinkgate.data import Sample
from sinkgate.errors import TrainingError
from sinkgate.methods import LoRA
from sinkgate.methods.base import configuration
from sinkgate.methods.lsg import LSG
from sinkgate.models.finder import SinkFinder
from sinkgate.training import trainer
from sinkgate.training.checkpoints import RECORD, RUN
from sinkgate.training.dataset import ExampleCache, Prefix, batches, labels_of
from sinkgate.training.ensemble import MethodEnsemble, frozen
from sinkgate.training.trainer import train

HERE = Path(__file__).parent
ANSWERS = ("red", "two", "top left", "a small red circle", "yes")
QUESTIONS = ("What color is the circle?", "How many objects are there?", "Where is the square?")


def samples(count=6, start=0):
    return [
        Sample((noise_image(i),), QUESTIONS[i % 3], ANSWERS[i % 5], kind=QUESTIONS[i % 3])
        for i in range(start, start + count)
    ]


def fresh(vlm, layers=(0, 1, 2), seed=0, **options):
    """Gates with drawn weights: at their start the last layer is zero and the first learns nothing."""
    torch.manual_seed(seed)
    lsg = LSG.for_vlm(vlm, layers, **options)
    for gate in lsg.gates.values():
        torch.nn.init.normal_(gate.up.weight, std=0.1)
    return lsg


def weights(lsg):
    return {name: value.detach().clone() for name, value in lsg.state_dict().items()}


def same(first, second, **near):
    return all(torch.allclose(first[name], second[name], **near) for name in first)


def few_v_sinks(vlm, prompt):
    """Every third token; in one image in three none at all."""
    count = len(prompt.visual)
    some = (torch.arange(count) % 3 == 0) & (prompt.image.getpixel((0, 0))[0] % 3 > 0)
    return sg.SinkMasks(some, torch.zeros(vlm.num_layers, count, dtype=torch.bool))


@pytest.fixture(scope="module")
def vlm():
    return sg.load(tiny_llava("siglip"))


def run(vlm, lsg, out, **options):
    defaults = {"find": few_v_sinks, "progress": False, "per_device_train_batch_size": 2, "num_train_epochs": 1}
    return train(lsg, vlm, options.pop("data", samples()), out=out, **{**defaults, **options})


def worker(out, options, **environment):
    """A run in a process of its own."""
    program = functools.partial(runpy.run_path, str(HERE / "worker.py"), run_name="__main__")
    return Forked(program, "worker.py", out, json.dumps(options), **environment)


def test_gradients_are_those_of_one_forward_and_backward(vlm):
    """Gradients through a resumed forward equal plain autograd through the whole model."""
    lsg = fresh(vlm)
    examples = ExampleCache(vlm, few_v_sinks)
    ready = [examples.prepare(sample, "") for sample in samples(5)]
    single = {f"layer-{layer}": lsg.only([layer]) for layer in (0, 1, 2)}
    with frozen(vlm):
        losses = MethodEnsemble(vlm, single)(ready, labels_of(ready))
        losses["loss"].backward()
        delivered = {name: parameter.grad.clone() for name, parameter in lsg.named_parameters()}
        lsg.zero_grad()
        for column, gate in enumerate(single.values()):
            _, batch = next(batches(vlm, ready))
            with gate.applied(vlm, batch):
                logits = vlm.model(**batch.inputs, use_cache=False).logits[:, :-1]
            loss = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), batch.labels[:, 1:].flatten(), reduction="sum"
            )
            assert loss.item() == pytest.approx(losses["losses"][:, column].sum().item(), rel=1e-5)
            loss.backward()
    for name, parameter in lsg.named_parameters():
        assert parameter.grad.abs().sum() > 0
        assert torch.allclose(parameter.grad, delivered[name], rtol=1e-4, atol=1e-7), name


def test_a_gate_learns_beside_others_as_if_alone(vlm, tmp_path):
    together, alone = fresh(vlm), fresh(vlm)
    begin = weights(together)
    report = run(vlm, together, tmp_path / "all", logging_steps=1)
    for layer in (0, 1, 2):
        run(vlm, alone.only([layer]), tmp_path / str(layer))
    assert same(weights(together), weights(alone), atol=1e-6)
    assert not same(weights(together), begin, atol=1e-4)
    assert report.steps == 3 and report.skipped == {}
    assert all(report.last(f"loss/layer-{layer}") > 0 for layer in (0, 1, 2))


def test_gates_that_learn_together_get_other_weights(vlm, tmp_path):
    apart, joint = fresh(vlm), fresh(vlm)
    run(vlm, apart, tmp_path / "apart")
    run(vlm, joint, tmp_path / "joint", together=True)
    assert not same(weights(apart), weights(joint), atol=1e-5)


def test_the_loss_falls_and_the_backbone_stays(vlm, tmp_path):
    before = {name: value.clone() for name, value in vlm.model.state_dict().items()}
    lsg = fresh(vlm, start="identity")
    options = {"num_train_epochs": 8, "learning_rate": 0.01, "validation": samples()}
    report = run(vlm, lsg, tmp_path, **options)
    losses = [entry["eval_loss"] for entry in report.history if "eval_loss" in entry]
    assert losses[-1] < losses[0] - 0.001  # all that a gate can do on a random model
    for layer in (0, 1, 2):
        assert 0 <= report.last(f"eval_accuracy/layer-{layer}") <= 1
    assert all(torch.equal(before[name], value) for name, value in vlm.model.state_dict().items())
    assert all(parameter.requires_grad for parameter in vlm.model.parameters())


@pytest.mark.parametrize("together", [False, True])
def test_checkpointing_changes_nothing(vlm, tmp_path, together):
    plain, saved = fresh(vlm), fresh(vlm)
    run(vlm, plain, tmp_path / "plain", together=together)
    run(vlm, saved, tmp_path / "saved", together=together, activation_checkpointing=True)
    assert same(weights(plain), weights(saved), atol=0, rtol=0)


def test_small_steps_gathered_equal_a_large_one(vlm, tmp_path):
    large, gathered = fresh(vlm), fresh(vlm)
    run(vlm, large, tmp_path / "large", data=samples(8), per_device_train_batch_size=4)
    run(vlm, gathered, tmp_path / "small", data=samples(8), gradient_accumulation_steps=2)
    assert same(weights(large), weights(gathered), atol=1e-5)


def test_bfloat16_comes_near(vlm, tmp_path):
    exact, mixed = fresh(vlm), fresh(vlm)
    options = {
        "logging_steps": 1,
        "optim": "sgd",
        "learning_rate": 0.1,
    }  # Adam makes a whole step of the smallest difference
    precise = run(vlm, exact, tmp_path / "exact", **options)
    rough = run(vlm, mixed, tmp_path / "mixed", bf16=True, **options)
    assert rough.last("loss/layer-1") == pytest.approx(precise.last("loss/layer-1"), rel=0.02)
    assert same(weights(exact), weights(mixed), atol=2e-3) and not same(weights(exact), weights(mixed), atol=0, rtol=0)


def test_a_killed_run_goes_on_bit_for_bit(vlm, tmp_path):
    whole = fresh(vlm)
    options = {"num_train_epochs": 4, "save_steps": 2}
    complete = run(vlm, whole, tmp_path / "whole", **options)
    running = worker(tmp_path / "killed", options, SLOW="0.4")
    checkpoint = tmp_path / "killed" / "checkpoint-4"
    while not (checkpoint / "trainer_state.json").exists():
        assert running.process.is_alive(), "it was to be killed while it ran"
        time.sleep(0.02)
    running.process.kill()
    running.wait()
    half = tmp_path / "killed" / "checkpoint-999"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half written")
    notes = tmp_path / "killed" / "checkpoint-3" / "notes.txt"
    notes.parent.mkdir()
    notes.write_text("of the user")
    again = fresh(vlm)
    report = run(vlm, again, tmp_path / "killed", **options)
    assert same(weights(whole), weights(again), atol=0, rtol=0)
    assert report.steps == complete.steps == 12
    assert half.exists() and notes.read_text() == "of the user", "only whole checkpoints are ever deleted"
    assert _steps(tmp_path / "killed") == [3, 10, 12, 999]


def test_checkpoints_are_written_by_time_too(vlm, tmp_path, monkeypatch):
    options = {"num_train_epochs": 2, "save_total_limit": None}
    for name, more, expected in (
        ("timed", {"save_minutes": 2}, [2, 4, 6]),
        ("never", {"save_minutes": None}, [6]),  # the last step is always saved
        ("none", {"save_minutes": 2, "save_strategy": "no"}, []),
    ):
        minutes = itertools.count(0, 60)
        monkeypatch.setattr(trainer, "monotonic", lambda minutes=minutes: next(minutes))
        run(vlm, fresh(vlm), tmp_path / name, **options, **more)
        assert _steps(tmp_path / name) == expected


def test_a_run_killed_before_the_first_save_steps_goes_on(vlm, tmp_path):
    whole, again = fresh(vlm), fresh(vlm)
    run(vlm, whole, tmp_path / "whole")
    options = {"save_minutes": 0, "data": samples(), "num_train_epochs": 1}

    def killed(vlm, prompt, calls=[]):  # noqa: B006
        calls.append(prompt)
        if len(calls) > 6 + 5:  # within the third batch, after the look for sinks
            raise KeyboardInterrupt
        return few_v_sinks(vlm, prompt)

    with pytest.raises(KeyboardInterrupt):
        run(vlm, again, tmp_path / "killed", find=functools.wraps(few_v_sinks)(killed), budget=0, **options)
    assert _steps(tmp_path / "killed") == [1]
    again = fresh(vlm)
    report = run(vlm, again, tmp_path / "killed", **options)
    assert report.steps == 3 and same(weights(whole), weights(again), atol=0, rtol=0)


def _steps(folder):
    return sorted(int(path.name.removeprefix("checkpoint-")) for path in folder.glob("checkpoint-*"))


def test_a_finished_run_called_again_computes_nothing_and_reports_the_whole(vlm, tmp_path):
    data = [*samples(5), Sample(("nowhere.png",), "What?", "one")]
    first = run(vlm, fresh(vlm), tmp_path, data=data)
    file = tmp_path / "checkpoint-3" / RECORD
    file.write_text(json.dumps({**json.loads(file.read_text()), "seconds": 3600.0}))
    calls = []

    def counted(vlm, prompt):
        calls.append(prompt)
        return few_v_sinks(vlm, prompt)

    again = run(vlm, fresh(vlm), tmp_path, data=data, find=functools.wraps(few_v_sinks)(counted))
    assert not calls
    assert (again.steps, again.history, again.sinks) == (first.steps, first.history, first.sinks)
    assert again.skipped == first.skipped and list(first.skipped) == ["train 5"]
    assert again.seconds >= 3600


def test_the_limit_of_checkpoints_spares_the_best_and_folders_of_users(vlm, tmp_path):
    mine = tmp_path / "checkpoint-best-so-far"
    mine.mkdir()
    options = {"num_train_epochs": 6, "save_strategy": "epoch", "save_total_limit": 2, "patience": 6}
    run(vlm, fresh(vlm), tmp_path, learning_rate=3.0, lr_scheduler_type="constant", validation=samples(3), **options)
    assert mine.is_dir()
    mine.rmdir()
    best = json.loads((tmp_path / "checkpoint-18" / "trainer_state.json").read_text())["best_global_step"]
    assert best < 15, "the case needs a best step that is not among the newest"
    assert _steps(tmp_path) == [best, 18]


def test_two_processes_equal_one(vlm, tmp_path):
    alone = fresh(vlm)
    run(vlm, alone, tmp_path / "one")
    options = {"per_device_train_batch_size": 1, "use_cpu": True}
    with socket.create_server(("127.0.0.1", 0)) as free:
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "GLOO_SOCKET_IFNAME": "lo"}
    launched = {**meeting, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}  # and what torchrun sets for each process
    ranks = [worker(tmp_path / "two", options, RANK=rank, LOCAL_RANK=rank, **launched) for rank in "01"]
    for rank in ranks:
        done = rank.wait()
        assert done.returncode == 0, done.stderr
    shared = LSG.from_pretrained(tmp_path / "two" / "gates")
    assert same(weights(alone), weights(shared), atol=1e-5)


def test_early_stopping_takes_the_best_weights_back(vlm, tmp_path):
    lsg = fresh(vlm)
    options = {"num_train_epochs": 30, "learning_rate": 3.0, "lr_scheduler_type": "constant", "patience": 2}
    report = run(vlm, lsg, tmp_path, validation=samples(6, start=50), **options)
    eval_losses = [entry["eval_loss"] for entry in report.history if "eval_loss" in entry]
    assert len(eval_losses) < 30
    examples = ExampleCache(vlm, few_v_sinks)
    ready = [examples.prepare(sample, "") for sample in samples(6, start=50)]
    singles = {f"layer-{layer}": lsg.only([layer]) for layer in (0, 1, 2)}
    with torch.no_grad():
        losses = MethodEnsemble(vlm, singles)(ready, labels_of(ready))["losses"][:, :3]
        mean = losses.sum() / (labels_of(ready) >= 0).sum() / 3
    assert mean.item() == pytest.approx(min(eval_losses), rel=1e-5)


def test_what_cannot_be_used_is_passed_over_and_counted(vlm, tmp_path):
    missing = Sample((tmp_path / "nowhere.png",), QUESTIONS[0], "red")
    bad = [missing, Sample((noise_image(),), QUESTIONS[0], "  "), Sample((noise_image(),), "", "red")]
    good, mixed = fresh(vlm), fresh(vlm)
    run(vlm, good, tmp_path / "good", data=samples(4), per_device_train_batch_size=8)
    report = run(vlm, mixed, tmp_path / "mixed", data=[*samples(4), *bad], per_device_train_batch_size=8)
    assert sorted(report.skipped) == ["train 4", "train 5", "train 6"]
    assert "nowhere.png" in report.skipped["train 4"] and "answer is empty" in report.skipped["train 5"]
    assert same(weights(good), weights(mixed), atol=1e-6)
    with pytest.raises(TrainingError, match="no sample could be used.*answer is empty"):
        run(vlm, fresh(vlm), tmp_path / "none", data=bad[1:2])
    with pytest.raises(TrainingError, match="no samples"):
        run(vlm, fresh(vlm), tmp_path / "none", data=[])


def no_sinks(vlm, prompt):
    masks = few_v_sinks(vlm, prompt)
    return sg.SinkMasks(torch.zeros_like(masks.v_sink), masks.l_sink)


@pytest.mark.parametrize("grouping", ["v_sink", "l_sink", "three"])
def test_gates_for_sinks_that_no_image_has_are_not_trained_unless_allowed(vlm, tmp_path, grouping):
    lsg = fresh(vlm, [1], grouping=grouping)
    begin = weights(lsg)
    with pytest.raises(TrainingError, match=r"(?s)V-sinks in 0 of 6 images: scaling V-sinks.*allow_empty=True"):
        run(vlm, lsg, tmp_path, find=no_sinks)
    assert same(begin, weights(lsg)) and not list(tmp_path.iterdir())
    report = run(vlm, lsg, tmp_path, find=no_sinks, allow_empty=True)
    assert (report.sinks.images, report.sinks.v_sink) == (6, 0) and "V-sinks in 0 of 6 images" in str(report.sinks)
    assert json.loads(report.to_json())["sinks"]["v_sink"] == 0


def test_images_with_sinks_are_counted(vlm, tmp_path):
    report = run(vlm, fresh(vlm, [1]), tmp_path, validation=samples(2, start=30))
    with_sinks = sum(
        bool(few_v_sinks(vlm, vlm.prompt(each.images, each.question)).v_sink.any())
        for each in [*samples(), *samples(2, start=30)]
    )
    assert 0 < with_sinks < 8 and (report.sinks.images, report.sinks.v_sink) == (8, with_sinks)
    assert str(report.sinks) == f"V-sinks in {with_sinks} of 8 images"


def test_the_unmodified_model_is_told_beside_the_gates(vlm, tmp_path):
    report = run(vlm, fresh(vlm, [1]), tmp_path, validation=samples(5, start=50))
    examples = ExampleCache(vlm, few_v_sinks)
    ready = [examples.prepare(sample, "") for sample in samples(5, start=50)]
    prefix = Prefix(vlm, next(batches(vlm, ready))[1])
    expected = prefix.batch.losses(prefix.plain).sum() / (labels_of(ready) >= 0).sum()
    assert report.last("eval_loss/unmodified") == pytest.approx(expected.item(), rel=1e-5)
    assert report.last("eval_accuracy/unmodified") == prefix.right(prefix.plain).float().mean()
    assert report.last("eval_loss") == pytest.approx(report.last("eval_loss/layer-1"))


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_its_checkpoints(vlm, tmp_path):
    lsg = fresh(vlm)
    run(vlm, lsg, tmp_path, save_steps=1)
    broken = fresh(vlm)
    with torch.no_grad():
        broken.gates["1"].down.weight[0, 0] = torch.nan
    with pytest.raises(TrainingError, match="loss of layer-1 is not finite at step 0.*learning_rate"):
        run(vlm, broken, tmp_path, resume=False, num_train_epochs=2)
    assert (tmp_path / "checkpoint-3" / "trainer_state.json").exists()
    with vlm.attached(None, None):
        pass  # nothing was left on the model


@pytest.mark.parametrize("progress", [False, True])
def test_progress_is_one_bar_or_nothing_in_a_notebook_too(vlm, tmp_path, monkeypatch, capsys, progress):
    """There transformers would show a table of its own."""
    tables = []

    class Table(TrainerCallback):
        def on_train_begin(self, *_, **__):
            tables.append(self)

    monkeypatch.setattr("transformers.trainer.DEFAULT_PROGRESS_CALLBACK", Table)
    monkeypatch.setattr("sinkgate.output._in_notebook", lambda: True)
    run(vlm, fresh(vlm, [1]), tmp_path, progress=progress, validation=samples(2), disable_tqdm=False)
    shown = capsys.readouterr()
    assert tables == [] and shown.out == ""
    assert ("3/3" in shown.err) == progress and bool(shown.err) == progress


def test_a_log_gets_lines_with_the_loss(vlm, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sinkgate.output.SECONDS", 0.0)
    run(vlm, fresh(vlm, [1]), tmp_path, progress=True, logging_steps=1)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "train: 0/3 steps" and "loss " in lines[2] and lines[3].startswith("train: 3/3 steps")


def test_wrong_options_are_named(vlm, tmp_path):
    with pytest.raises(sg.SinkgateError, match="TrainingArguments.*learning_rat"):
        run(vlm, fresh(vlm), tmp_path, learning_rat=1)
    with pytest.raises(sg.SinkgateError, match="TrainingArguments"):
        run(vlm, fresh(vlm), tmp_path, save_strategy="sometimes")
    with pytest.raises(TrainingError, match="bf16=True"):
        run(vlm, fresh(vlm), tmp_path, fp16=True)
    with pytest.raises(TrainingError, match="dataloader_num_workers is 2; expected 0"):
        run(vlm, fresh(vlm), tmp_path, dataloader_num_workers=2)
    with pytest.raises(TrainingError, match="validation"):
        run(vlm, fresh(vlm), tmp_path, patience=1)
    (tmp_path / "file").write_text("")
    with pytest.raises(sg.SinkgateError, match="file cannot be written: .*; give another one"):
        run(vlm, fresh(vlm), tmp_path / "file")
    mixed = {"a": fresh(vlm, criterion="norm"), "b": fresh(vlm, criterion="attention")}
    with pytest.raises(sg.SinkgateError, match="different criteria"):
        train(mixed, vlm, samples(2), out=tmp_path)


def test_checkpoints_of_other_gates_are_not_gone_on_from(vlm, tmp_path):
    run(vlm, fresh(vlm, layers=[1]), tmp_path)
    other = fresh(vlm, layers=[2])
    begin = weights(other)
    with pytest.raises(
        TrainingError, match="checkpoint-3 is of other gates than these, which are layer-2.*resume=False"
    ):
        run(vlm, other, tmp_path)
    assert same(begin, weights(other), atol=0, rtol=0)
    run(vlm, other, tmp_path, resume=False)
    assert not same(begin, weights(other), atol=1e-4)


def test_checkpoints_of_another_run_are_refused(vlm, tmp_path):
    run(vlm, fresh(vlm), tmp_path)
    for change, name in (
        ({"find": SinkFinder("norm", "norm")}, "criterion v_sink is few_v_sinks there and NormOutliers"),
        ({"data": samples(8)}, "samples is 6 there and 8 here"),
        ({"data": samples(start=50)}, "checksum of the samples' content is .* there and .* here"),
    ):
        with pytest.raises(TrainingError, match=f"checkpoint-3 is of another run: {name}.*resume=False"):
            run(vlm, fresh(vlm), tmp_path, **change)
    with pytest.raises(TrainingError, match="method layer-0 is .*signal='last'.* there and .*signal='mean'"):
        run(vlm, fresh(vlm, signal="mean"), tmp_path)
    for name, value in {"learning_rate": 3e-4, "per_device_train_batch_size": 6, "seed": 5}.items():
        with pytest.raises(TrainingError, match=f"another run: {name} is .* there and {value} here"):
            run(vlm, fresh(vlm), tmp_path, **{name: value})
    with pytest.raises(TrainingError, match="model is .* there and other here"):
        other = sg.load(tiny_llava("siglip"))
        other.name = "other"
        run(other, fresh(vlm), tmp_path)
    file = tmp_path / "checkpoint-3" / RUN
    recorded = json.loads(file.read_text())
    file.write_text(json.dumps({name: value for name, value in recorded.items() if "checksum" not in name}))
    run(vlm, fresh(vlm), tmp_path, data=samples(start=50))  # of an earlier release, like the next
    file.unlink()
    run(vlm, fresh(vlm), tmp_path, data=samples(8))


def test_the_best_checkpoint_is_of_the_same_validation_samples(vlm, tmp_path):
    options = {"patience": 3, "num_train_epochs": 1}
    run(vlm, fresh(vlm), tmp_path, validation=samples(4, 40), **options)
    with pytest.raises(TrainingError, match="checksum of the validation samples' content is .* there"):
        run(vlm, fresh(vlm), tmp_path, validation=samples(4, 60), **options)
    run(vlm, fresh(vlm), tmp_path / "all", validation=samples(4, 40), num_train_epochs=1)
    run(vlm, fresh(vlm), tmp_path / "all", validation=samples(4, 60), num_train_epochs=2)  # no best one is sought


def test_facts_of_a_run_hold_sets_in_order(demo):
    """Their own order differs between processes, so that a run would be refused as another."""
    modules = re.findall(r"self_attn\.\w+", configuration(LoRA.for_vlm(demo, 2)))
    assert len(modules) == 4 and modules == sorted(modules)


def test_a_seed_repeats_a_run(vlm, tmp_path):
    first, second, other = fresh(vlm), fresh(vlm), fresh(vlm)
    run(vlm, first, tmp_path / "1")
    run(vlm, second, tmp_path / "2")
    run(vlm, other, tmp_path / "3", seed=1)
    assert same(weights(first), weights(second), atol=0, rtol=0)
    assert not same(weights(first), weights(other), atol=1e-6)


def test_lessons_are_kept_within_their_budget(vlm):
    calls = []

    def find(vlm, prompt):
        calls.append(prompt)
        return few_v_sinks(vlm, prompt)

    data = samples(4)
    everything, two = ExampleCache(vlm, find), ExampleCache(vlm, find, budget=1)
    size = everything.prepare(data[0], "").nbytes
    two.budget = 2 * size + size // 2
    for examples, runs in ((everything, 4), (two, 4 + 2)):
        calls.clear()
        for _ in range(2):
            prepared = [examples.prepare(sample, "") for sample in data]
        assert len(calls) == runs - (examples is everything)
    batch = next(batches(vlm, prepared))[1]
    assert Prefix(vlm, batch).plain.shape[:2] == batch.labels[:, batch.length :].shape
