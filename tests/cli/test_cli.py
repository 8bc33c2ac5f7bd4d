"""The command as users run it: exit codes, output, one sentence for each mistake."""

import json
import os
import re
import sys
import time
from contextlib import suppress
from dataclasses import replace
from errno import EACCES
from io import BytesIO, TextIOWrapper

import pandas as pd
import parquet_files
import pytest
import typer
from forked import Done, Forked
from typer.testing import CliRunner

import sinkgate as sg
from sinkgate import cli
from sinkgate.cli.answers import LISTED
from sinkgate.methods.lsg import LSG
from sinkgate.models import loading
from sinkgate.models.load_errors import LESS_MEMORY
from sinkgate.sinks.criteria import SinkDimensions
from sinkgate.studies.results import Results


@pytest.fixture
def sinkgate(capfd, monkeypatch, demo):
    """The same command within this process, where the demo model is loaded already."""
    real = loading.load

    def load(source, **options):
        return demo if source == "demo" and not any(options.values()) else real(source, **options)

    monkeypatch.setattr(loading, "load", load)

    def run(*args, code=0):
        monkeypatch.setattr(sys, "argv", ["sinkgate", *map(str, args)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
            sys.exit(0)
        done = Done(int(stopped.value.code or 0), *capfd.readouterr())
        assert done.returncode == code, done.stderr
        return done

    return run


@pytest.fixture(scope="module")
def scene_folder(tmp_path_factory):
    """Three scenes, made by the command."""
    folder = tmp_path_factory.mktemp("scenes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["sinkgate", "scenes", "--count", "3", "--seed", "5", "--out", str(folder)])
        with suppress(SystemExit):
            cli.main()
    return folder


def test_a_mistake_ends_the_process_with_2(scene_folder):
    done = Forked(cli.main, "sinkgate", "ask", scene_folder / "scenes.jsonl", "How many?").wait()
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith("sinkgate: this is no picture") and done.stderr.count("\n") == 1


def test_an_argument_of_another_encoding_gets_a_sentence(sinkgate, scene_folder):
    """Python hands on bytes that are no UTF-8, such as Latin-1, as lone surrogates."""
    for question in (os.fsdecode(b"caf\xe9?"), "why\ud83d?"):
        done = sinkgate("ask", scene_folder / "0000.png", question, code=2)
        assert "half a character" in done.stderr and "give it as UTF-8" in done.stderr and done.stderr.count("\n") == 1


def test_help_shows_every_word_of_commands_and_options():
    runner, group = CliRunner(), typer.main.get_command(cli.cli)
    for name, command in group.commands.items():
        arguments = [name, "--help"] if command.add_help_option else ["--help"]
        text = runner.invoke(cli.cli, arguments, env={"COLUMNS": "200"}).output
        shown = set(re.sub("[│╭╮╰╯─]", " ", text).split())
        helps = [command.help, *(getattr(each, "help", None) for each in command.params)]
        words = set(" ".join(filter(None, helps[: None if command.add_help_option else 1])).split())
        assert words <= shown and "``" not in text, (name, words - shown)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["scenes"], "Missing option '--out'; see `.* scenes --help`"),
        (["scenes", "--out", "x", "--size", "5"], "'--size'.*16.*'?5'?.*; see"),
        (["scenes", "--out", "x", "--size", "big"], "'--size'.*'big'.*; see"),
        (["scenes", "--out", "x", "--sides", "5"], "No such option: --sides.*; see"),
        (["ask"], "Missing argument 'IMAGE'; see `.* ask --help`"),
        (["models", "all"], "unexpected extra argument.*all.*; see"),
        (["picture"], "No such command 'picture'; see"),
        (["survey", "--scale", "5"], "'--scale'.*4.*5.*; see"),
        (["report", ".", "--tables", "doc"], "'--tables'.*'doc'.*csv.*; see"),
        (["report", ".", "--figures", "gif"], "'--figures'.*'gif'.*svg.*; see"),
        (["train", "--out", "x", "--learning-rate", "-1"], "'--learning-rate'.*0.*-1.*; see"),
    ],
)
def test_wrong_arguments_are_one_sentence_with_the_value_and_the_help(sinkgate, args, words):
    done = sinkgate(*args, code=2)
    assert re.fullmatch(f"sinkgate: .*{words}.*\n", done.stderr) and not done.stdout, done.stderr


def test_without_a_command_there_is_help(sinkgate):
    assert "Commands" in sinkgate().stdout


def test_scenes_are_pictures_with_truth_and_the_same_for_the_same_seed(sinkgate, scene_folder, tmp_path):
    lines = [json.loads(line) for line in (scene_folder / "scenes.jsonl").read_text().splitlines()]
    assert [line["image"] for line in lines] == ["0000.png", "0001.png", "0002.png"]
    for line in lines:
        assert sg.open_image(scene_folder / line["image"]).size == (448, 448)
        assert set(line["objects"][0]) == {"shape", "color", "size", "x", "y"}
        assert {"question", "answer", "kind", "scope"} == set(line["questions"][0])
        assert {question["scope"] for question in line["questions"]} == {"global", "local"}
    sinkgate("scenes", "--count", 2, "--seed", 5, "--out", tmp_path)
    again = (tmp_path / "scenes.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in again] == lines[:2]
    assert (tmp_path / "0001.png").read_bytes() == (scene_folder / "0001.png").read_bytes()


def test_ask_prints_the_answer_and_json_says_everything(sinkgate, scene_folder, tmp_path, demo):
    picture, question = scene_folder / "0000.png", "How many objects are there?"
    plain = sinkgate("ask", picture, question).stdout.strip()
    gates = sg.Gates.ones(demo).set("rest", 0.25)
    gates.save(tmp_path / "gates.json")
    printed = json.loads(sinkgate("ask", picture, question, "--gates", tmp_path / "gates.json", "--json").stdout)
    prompt = demo.prompt(picture, question)
    sinks = sg.find_sinks(demo, prompt)
    assert plain == demo.answer(prompt).text
    assert printed["text"] == demo.answer(prompt, gates, sinks).text
    assert printed["scales"]["ordinary"] == [0.25] * 8 and printed["scales"]["v_sink"] == [1.0] * 8
    expected = demo.answer(prompt, gates, sinks).next_token[0]
    assert printed["next_token"][0]["token"] == expected[0]
    assert printed["next_token"][0]["probability"] == pytest.approx(expected[1], abs=1e-4)
    assert printed["v_sink"] == prompt.visual[sinks.v_sink].tolist()
    assert len(printed["l_sink"]) == 8


def test_sinks_are_told_with_their_reasons(sinkgate, scene_folder):
    printed = json.loads(sinkgate("sinks", scene_folder / "0001.png", "--v-sink", "attention", "--json").stdout)
    assert printed["v_criterion"] == "attention share" and printed["grid"] == [8, 8]
    assert len(printed["evidence"]) == len(printed["v_sink"])
    assert "V-sink" in sinkgate("sinks", scene_folder / "0001.png").stdout


CHANNEL = ["--l-sink", "dimensions", "--dimensions", "3", "--tau", "0.5"]  # loud in many tokens of every layer


def test_a_sink_has_one_line_whatever_the_layers(sinkgate, scene_folder, demo):
    command = ["sinks", scene_folder / "0001.png", "--v-sink", "attention", *CHANNEL]
    _, *lines, last = sinkgate(*command).stdout.splitlines()
    prompt = demo.prompt(scene_folder / "0001.png", "What is in the picture?")
    sinks = sg.find_sinks(demo, prompt, v_sink="attention", l_sink=SinkDimensions((3,), 0.5))
    tokens = int((sinks.v_sink | sinks.l_sink.any(0)).sum())
    assert sinks.l_sink.sum() > tokens > len(lines) == LISTED, "more sinks than one can read"
    assert last == f"  and {tokens - LISTED} more, which --json lists by position"
    strongest = sinks.llm_share.where(sinks.l_sink, 0).amax(0).argmax()
    assert lines[int(sinks.v_sink.sum())] == f"  {sinks.explain(strongest)}"
    assert all("L-sink in layer" in line and "dimension 3" in line for line in lines if "V-sink" not in line)
    printed = json.loads(sinkgate(*command, "--json").stdout)
    assert printed["l_sink"] == [prompt.visual[mask].tolist() for mask in sinks.l_sink]
    assert printed["criteria"]["l_sink"] == "SinkDimensions(dims=(3,), tau=0.5, normalize=True)"


def test_a_sweep_scales_the_sinks_of_the_criterion_and_keeps_to_it(sinkgate, tmp_path):
    sweep = ["sweep", "--limit", 4, "--haze", 0.5, "--layers", 2, "--grid", "0,1", "--three", "--v-sink", "norm"]
    by_dimensions, by_norm = tmp_path / "dimensions", tmp_path / "norm"
    done = sinkgate(*sweep, *CHANNEL, "--out", by_dimensions)
    assert "L-sinks by sink dimensions, dimension 3 (tau 0.5)" in done.stderr
    sinkgate(*sweep, "--l-sink", "norm", "--out", by_norm)
    losses = [Results.load(folder).table("answers")["loss"] for folder in (by_dimensions, by_norm)]
    assert len(losses[0]) == len(losses[1]) and (losses[0] - losses[1]).abs().max() > 0.1
    settings = json.loads((by_dimensions / "study.json").read_text())["settings"]
    assert settings["v_sink"] == "NormOutliers(times=2.0, threshold=None)"
    assert settings["l_sink"] == "SinkDimensions(dims=(3,), tau=0.5, normalize=True)"
    for other in (["--l-sink", "norm"], ["--dimensions", "3", "--tau", "0.6"], ["--dimensions", "4", "--tau", "0.5"]):
        refused = sinkgate(*sweep, *other, "--out", by_dimensions, code=2).stderr
        assert "begun with L-sinks by SinkDimensions(dims=(3,), tau=0.5, normalize=True), this is a study of" in refused
    sinkgate(*sweep, *CHANNEL, "--out", by_dimensions)
    record = json.loads((by_norm / "study.json").read_text())
    del record["settings"]["v_sink"], record["settings"]["l_sink"]  # as before criteria were recorded
    (by_norm / "study.json").write_text(json.dumps(record))
    assert len(Results.load(by_norm).table("answers")) == len(losses[1])
    assert "no criterion on record" in sinkgate(*sweep, "--l-sink", "norm", "--out", by_norm, code=2).stderr


def test_auto_is_decided_once_for_a_study(sinkgate, tmp_path, demo, monkeypatch):
    sinkgate("anatomy", "--limit", 2, "--layers", 2, "--out", tmp_path)
    held = sg.sink_criteria(demo)
    about = json.loads((tmp_path / "study.json").read_text())
    assert {side: about["settings"][side] for side in ("v_sink", "l_sink")} == held.settings
    assert about["about"]["sinks"] == str(held)
    monkeypatch.setattr(demo, "criteria", replace(held, l_sink=sg.sink_criteria(demo, l_sink="norm").l_sink))
    refused = sinkgate("anatomy", "--limit", 2, "--layers", 2, "--out", tmp_path, code=2).stderr
    assert "AttentionShare(times=5.0)" in refused and "NormOutliers" in refused


def test_gates_keep_their_criterion_unless_another_is_named(sinkgate, scene_folder, tmp_path, demo):
    train = ["train", "--limit", 4, "--layers", 2, "--epochs", 1, "--batch-size", 4, "--out", tmp_path / "run"]
    sinkgate(*train, "--v-sink", "norm", *CHANNEL, "--allow-empty")  # the demo model has no V-sinks by norm
    lsg = LSG.from_pretrained(tmp_path / "run" / "gates")
    assert lsg.criterion == "norm; dimensions 3 tau 0.5"
    ask = [
        "ask",
        scene_folder / "0001.png",
        "How many objects are there?",
        "--gates",
        tmp_path / "run" / "gates",
        "--json",
    ]
    prompt = demo.prompt(scene_folder / "0001.png", "How many objects are there?")
    for options, v_sink in (([], "norm"), (["--v-sink", "attention"], "attention")):
        printed = json.loads(sinkgate(*ask, *options).stdout)
        sinks = sg.find_sinks(demo, prompt, v_sink=v_sink, l_sink="dimensions 3 tau 0.5")
        assert printed["v_sink"] == prompt.visual[sinks.v_sink].tolist()
        assert printed["l_sink"] == [prompt.visual[mask].tolist() for mask in sinks.l_sink] != [[]] * 8
    sinkgate("stack", tmp_path / "run" / "gates", "--limit", 4, "--v-sink", "attention", "--out", tmp_path / "stack")
    assert LSG.from_pretrained(tmp_path / "stack").criterion == "attention; dimensions 3 tau 0.5"


@pytest.mark.parametrize("command", [["sinks", "none.png"], ["sweep"], ["eval"], ["train", "--out", "run"]])
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--v-sink", "loud"], "no criterion is called 'loud'; there are: auto, "),
        (["--l-sink", "norm", "--dimensions", "3"], "--dimensions belongs to --l-sink dimensions; got --l-sink norm"),
        (["--vision-dimensions", "3;4"], "--vision-dimensions is '3;4'; expected numbers such as 1415,2533"),
        (["--tau", "3"], "--tau is 3; expected a positive number with"),
        (["--dimensions", "3", "--tau", "-1"], "-1"),
        (["--l-sink", "dimensions 3 tau 4", "--tau", "5"], "--tau is 5, and the criterion is 'dimensions 3 tau 4'"),
    ],
)
def test_what_is_wrong_with_criteria_is_one_sentence(sinkgate, monkeypatch, command, options, words):
    monkeypatch.setattr(loading, "load", lambda *_, **__: pytest.fail("the model was loaded"))
    done = sinkgate(*command, *options, code=2)
    assert words in done.stderr and done.stderr.startswith("sinkgate: ") and done.stderr.count("\n") == 1


def test_dimensions_and_the_report_of_all_criteria(sinkgate, scene_folder):
    assert "has no sink dimensions" in sinkgate("dimensions").stdout
    printed = json.loads(sinkgate("dimensions", "--no-cache", "--json").stdout)
    assert printed["prompts"] == 12 and printed["llm"]["dimensions"] == []
    image = scene_folder / "0000.png"
    assert "Disagreements:" in sinkgate("sinks", image, "--report").stdout
    assert "leave out --json" in sinkgate("sinks", image, "--report", "--json", code=2).stderr
    chosen = sinkgate("sinks", image, "--report", "--v-sink", "attention", "--l-sink", "norm").stdout
    alone = sinkgate("sinks", image, "--v-sink", "attention", "--l-sink", "norm").stdout
    assert alone.splitlines()[0] in chosen and "attention share calls" in chosen


def test_info_tells_the_facts_in_plain_words(sinkgate):
    facts = json.loads(sinkgate("info", "--json").stdout)
    assert facts["model"] == "demo" and facts["attention"] == "sdpa" and facts["dtype"] == "float32"
    printed = sinkgate("info").stdout
    for line in (
        "vision encoder  siglip_vision_model, 6 layers",
        "features  the output of layer 4 of 0 to 5",
        "patches  each becomes one visual token",
        "gated layers  all 8",
        "v sinks  can be named",
    ):
        assert line in printed


def test_info_fails_where_weights_are_missing(sinkgate, demo, tmp_path):
    demo.processor.save_pretrained(tmp_path)
    weights = {name: value for name, value in demo.model.state_dict().items() if "projector" not in name}
    demo.model.save_pretrained(tmp_path, state_dict=weights)
    done = sinkgate("info", "--model", tmp_path, code=2)
    assert "multi_modal_projector.* (4)" in done.stderr and not done.stdout


def test_models_lists_known_names(sinkgate):
    lines = sinkgate("models").stdout.splitlines()
    assert lines[0].split() == ["llava-1.5-7b", "llava-hf/llava-1.5-7b-hf", "the", "paper's", "model"]
    known = json.loads(sinkgate("models", "--json").stdout)
    assert len(lines) == len(known) == len(loading.KNOWN_MODELS)
    assert known["smolvlm-256m"]["id"] == "HuggingFaceTB/SmolVLM-256M-Instruct"


@pytest.mark.parametrize("command", [("ask", "{image}", "What?"), ("sinks", "{image}")])
def test_a_system_turn_reaches_the_prompt(sinkgate, scene_folder, demo, monkeypatch, command):
    systems, prompt = [], demo.prompt

    def prompt_with_system(*arguments, system):
        systems.append(system)
        return prompt(*arguments)

    monkeypatch.setattr(loading, "load", lambda *_, **__: demo)
    monkeypatch.setattr(demo, "prompt", prompt_with_system)
    command = [part.format(image=scene_folder / "0000.png") for part in command]
    sinkgate(*command)
    sinkgate(*command, "--system", "Answer with one word.")
    assert systems == ["", "Answer with one word."]


@pytest.mark.parametrize("command", [("ask", "{image}", "What?"), ("sinks", "{image}"), ("info",)])
def test_options_of_loading_reach_load(sinkgate, scene_folder, demo, monkeypatch, command):
    calls = []
    monkeypatch.setattr(loading, "load", lambda source, **options: calls.append((source, options)) or demo)
    options = {"device_map": "auto", "dtype": "bfloat16", "quantize": "4bit", "revision": "v1"}
    arguments = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", value)]
    sinkgate(*(part.format(image=scene_folder / "0000.png") for part in command), "--model", "some/model", *arguments)
    assert calls == [("some/model", {"device": None, **options})]


def test_words_the_model_never_learnt_are_named(sinkgate, scene_folder):
    done = sinkgate("ask", scene_folder / "0000.png", "How many zebras are there?")
    assert "outside the vocabulary of the model: zebras" in done.stderr and done.stdout.strip()


GATES = {
    "nan": '{"scales": {"v_sink": [NaN,1,1,1,1,1,1,1], "rest": [1,1,1,1,1,1,1,1]}}',
    "short": '{"scales": {"v_sink": [1], "rest": [1]}}',
    "other": json.dumps({"model": "other/model", "scales": {"v_sink": [1] * 8, "rest": [1] * 8}}),
    "text": "no json",
}


@pytest.mark.parametrize(
    ("gates", "message"),
    [
        ("nan", "layer 0 is nan"),
        ("short", "have 1 layers, demo has 8"),
        ("other", "made for other/model"),
        ("text", "no valid JSON"),
    ],
)
def test_bad_gates_are_one_sentence_and_exit_2(sinkgate, scene_folder, tmp_path, gates, message):
    (tmp_path / "gates.json").write_text(GATES[gates])
    done = sinkgate("ask", scene_folder / "0000.png", "How many objects?", "--gates", tmp_path / "gates.json", code=2)
    assert done.stderr.startswith("sinkgate: ") and message in done.stderr
    assert not done.stdout and len(done.stderr.strip().splitlines()) == 1


def test_an_error_of_a_file_is_one_sentence(sinkgate, tmp_path, monkeypatch):
    def refuse(_):
        raise PermissionError(EACCES, "Permission denied", "data.json")

    (tmp_path / "data.json").write_text("[]")
    monkeypatch.setattr("sinkgate.data.vqa.is_question_file", refuse)
    done = sinkgate("eval", "--data", tmp_path / "data.json", "--images", tmp_path, code=2)
    assert done.stderr == "sinkgate: data.json: Permission denied; change its permissions, or give another path\n"


def test_remedies_name_options_of_the_command(sinkgate, monkeypatch):
    def refuse(*_, **__):
        raise sg.UnsupportedModelError(f"x does not fit: {LESS_MEMORY}")

    monkeypatch.setattr(loading, "load", refuse)
    remedy = "take a smaller model, --dtype bfloat16, --quantize 4bit or --device-map auto"
    assert sinkgate("info", "--model", "x", code=2).stderr == f"sinkgate: x does not fit: {remedy}\n"


def test_bad_input_is_one_sentence_and_exit_2(sinkgate, scene_folder, tmp_path):
    (tmp_path / "cut.png").write_bytes((scene_folder / "0000.png").read_bytes()[:300])
    cases = [
        (("ask", tmp_path / "none.png", "What?"), "No such file"),
        (("ask", tmp_path / "cut.png", "What?"), "damaged or cut short"),
        (("ask", scene_folder / "scenes.jsonl", "What?"), "no picture"),
        (("ask", scene_folder / "0000.png", "  "), "question is empty"),
        (("ask", scene_folder / "0000.png", "a <image>"), "<image>"),
        (("ask", scene_folder / "0000.png", "What?", "--gates", tmp_path / "none.json"), "cannot be read"),
        (("sinks", scene_folder / "0000.png", "--v-sink", "magic"), "no criterion is called 'magic'"),
        (("info", "--model", tmp_path), "holds no config.json"),
        (("info", "--model", "lava-1.5-7b"), "near it: llava-1.5-7b"),
        (("info", "--model", "llava-1.5-7b"), "`hf download llava-hf/llava-1.5-7b-hf`"),
        (("info", "--device", "nowhere"), "cannot be put on nowhere"),
        (("info", "--dtype", "huge"), "no dtype"),
        (("info", "--quantize", "2bit"), "expected 4bit or 8bit"),
        (("info", "--device", "cpu", "--device-map", "auto"), "give one of them"),
    ]
    for command, message in cases:
        done = sinkgate(*command, code=2)
        assert message in done.stderr and done.stderr.startswith("sinkgate: "), done.stderr
        assert "Traceback" not in done.stderr and len(done.stderr.strip().splitlines()) == 1
    sinkgate("ask", scene_folder / "0000.png", code=2)
    sinkgate("scenes", "--count", -1, "--out", tmp_path, code=2)


LLAVA = [
    {"id": i, "image": f"{i:04d}.png", "conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": a}]}
    for i, (q, a) in enumerate([("<image>\nHow many objects are there?", "2"), ("What do you see?\n<image>", "red")])
]


def test_gates_are_trained_stacked_examined_and_asked(sinkgate, scene_folder, tmp_path, demo):
    run = tmp_path / "run"
    data = ["--limit", 8, "--haze", 0.5, "--batch-size", 4]
    trained = json.loads(
        sinkgate("train", "--out", run, "--layers", "2,7", "--epochs", 1, "--start", "identity", *data, "--json").stdout
    )
    assert trained["steps"] == 2 and trained["samples"] == 8 and trained["skipped"] == {}
    assert set(trained["validation"]) == {
        f"{what}/{name}" for what in ("loss", "accuracy") for name in ("layer-2", "layer-7", "unmodified")
    }
    assert "| samples | 8 |" in (run / "gates" / "README.md").read_text()
    lsg = LSG.from_pretrained(run / "gates")
    assert lsg.config.layers == (2, 7) and lsg.config.start == "identity" and lsg.config.base_model == "demo"
    assert any(gate.up.weight.abs().sum() > 0 for gate in lsg.gates.values()), "it learnt"
    stacked = json.loads(sinkgate("stack", run / "gates", "--out", tmp_path / "stack", "--limit", 4, "--json").stdout)
    assert set(LSG.from_pretrained(tmp_path / "stack").config.layers) == set(stacked["layers"]) <= {2, 7}
    sg.Gates.ones(demo).set("rest", 0.0, [2]).save(tmp_path / "off.json")
    options = ["--gates", run / "gates", "--gates", tmp_path / "off.json", "--method", "var", "--limit", 13]
    options.append("--attention")
    scores = json.loads(sinkgate("eval", *options, "--out", tmp_path / "eval", "--json").stdout)["methods"]
    assert set(scores) == {"unmodified", "gates", "off.json", "var"}
    assert scores["unmodified"]["accuracy"] > scores["off.json"]["accuracy"]
    assert len(scores["gates"]["kinds"]) == 13
    attention = {name: each["attention"] for name, each in scores.items()}
    assert all(sum(shares.values()) == pytest.approx(1) for shares in attention.values())
    assert attention["var"]["v_sink"] < attention["unmodified"]["v_sink"]
    table = sinkgate("eval", *options, "--out", tmp_path / "eval").stdout  # read again, not asked again
    assert "off.json" in table and f"{scores['unmodified']['accuracy']:.1%}" in table
    assert f"{attention['var']['v_sink']:.1%}" in table
    picture, question = scene_folder / "0000.png", "How many objects are there?"
    answer = json.loads(sinkgate("ask", picture, question, "--gates", run / "gates", "--json").stdout)
    read = lsg.read(demo, demo.prompt(picture, question))
    assert answer["scales"]["v_sink"] == pytest.approx(read.scales[:, 0].tolist())


def test_gates_are_exported_for_a_service(sinkgate, tmp_path, demo):
    gates = tmp_path / "gates.json"
    sg.Gates.ones(demo).set("v_sink", 0.5, 2).save(gates)
    output = sinkgate("export-runtime", gates, "--out", tmp_path / "serve").stdout
    assert "sink_runtime.py, sink_gates.json in" in output and "logits equal" in output
    settings = json.loads((tmp_path / "serve" / "sink_gates.json").read_text())
    assert settings["gated_layers"] == [2] and settings["v_sink"]["name"] == "AttentionShare"


def test_gates_of_another_model_need_the_option_that_their_error_names(sinkgate, scene_folder, tmp_path, demo):
    lsg = sg.LSG.for_vlm(demo, [1, 2])
    lsg.config = replace(lsg.config, base_model="somebody/else", weights=None)
    lsg.save_pretrained(tmp_path / "gates")
    sg.Gates(sg.Gates.ones(8).scales, "somebody/else").save(tmp_path / "gates.json")
    ask = ["ask", scene_folder / "0000.png", "How many objects are there?", "--gates"]
    stack = ["stack", tmp_path / "gates", "--out", tmp_path / "out", "--limit", 3]
    evaluate = ["eval", "--limit", 3, "--gates"]
    for command in (
        [*ask, tmp_path / "gates"],
        [*ask, tmp_path / "gates.json"],
        [*evaluate, tmp_path / "gates"],
        [*evaluate, tmp_path / "gates.json"],
        stack,
    ):
        done = sinkgate(*command, code=2)
        assert "somebody/else, this is demo" in done.stderr and "any_model" in done.stderr
        sinkgate(*command, "--any-model")


def test_gates_are_trained_on_files_in_llavas_format(sinkgate, scene_folder, tmp_path):
    (tmp_path / "data.json").write_text(json.dumps(LLAVA))
    options = ["--data", tmp_path / "data.json", "--images", scene_folder, "--layers", 7, "--epochs", 1]
    printed = json.loads(sinkgate("train", "--out", tmp_path / "run", *options, "--json").stdout)
    assert printed["samples"] == 2 and printed["steps"] == 1 and printed["validation"] == {}


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["train", "--layers", "2-9"], "layers are '2-9'.*0 to 7"),
        (["train", "--layers", "first"], "numbers such as"),
        (["train", "--signal", "first"], "signal is 'first'"),
        (["train", "--report-to", "paper"], "paper is not supported, only .*tensorboard"),
        (["train", "--validation", "none.json"], "no benchmark and no file none.json; expected mmstar"),
        (["eval", "--data", "{broken}", "--images", "{folder}"], "broken.json holds no record that can be used"),
        (["train", "--data", "nowhere.json"], "no benchmark and no file nowhere.json; expected mmstar"),
        (["eval", "--data", "mmbench"], "expected mmstar, cvbench, pope, scenes, cambrian, or a JSON"),
        (["eval", "--data", "cambrian"], "--images"),
        (["eval", "--images", "x"], "--images is x, which scenes does not use; leave it out"),
        (["train", "--method", "lora", "--signal", "mean"], "--signal is mean, which lora does not use; leave it out"),
        (["train", "--method", "lora", "--criterion", "norm"], "--criterion is norm, which lora does not use"),
        (["train", "--method", "lora", "--v-sink", "norm"], "--v-sink is norm, which lora does not use"),
        (["train", "--method", "reweight", "--layers", "2"], "--layers is 2, which reweight does not use"),
        (["train", "--broken", "stop"], "--broken is stop, which scenes does not use; leave it out"),
        (["eval", "--data", "{broken}", "--haze", "0.5"], "--haze is 0.5, which .*broken.json does not use"),
        (["eval", "--data", "pope", "--files", "x", "--data-revision", "v1"], "v1, and --files .* leave out one"),
        (["eval", "--model", "demo", "--revision", "v1"], "revision is 'v1', and demo is part of this package"),
        (["eval", "--attention", "--scoring", "generate"], "needs likelihood scoring; got generate"),
        (["eval", "--extractor", "magic"], "--extractor is magic, which likelihood scoring does not use"),
        (["eval", "--max-new-tokens", "9"], "--max-new-tokens is 9, .* give --scoring generate"),
        (["eval", "--method", "magic"], "no method is called 'magic'.*var"),
        (["eval", "--gates", "nowhere"], "cannot be read"),
        (["stack", "nowhere"], "cannot be read|no gates"),
    ],
)
def test_what_is_wrong_with_gates_is_one_sentence(sinkgate, tmp_path, args, words):
    (tmp_path / "broken.json").write_text("{")
    args = [each.format(broken=tmp_path / "broken.json", folder=tmp_path) for each in args]
    out = [] if args[0] == "eval" else ["--out", tmp_path]
    done = sinkgate(*args, *out, "--limit", 2, code=2)
    assert re.search(words, done.stderr), done.stderr
    assert done.stderr.splitlines()[-1].startswith("sinkgate: ")


def test_a_group_that_no_image_has_is_named(sinkgate, tmp_path):
    options = ["--limit", 6, "--criterion", "massive", "--layers", 2, "--epochs", 1]
    refused = sinkgate("train", "--out", tmp_path / "run", *options, code=2).stderr
    assert "V-sinks in 0 of 2 images by massive activations" in refused and "--allow-empty" in refused
    trained = sinkgate("train", "--out", tmp_path / "run", *options, "--allow-empty")
    sentence = "V-sinks in 0 of {} images by massive activations: scaling V-sinks changes nothing here"
    assert "V-sinks in 0 of 3 images" in trained.stderr, "two to train on and one to look at"
    gates = tmp_path / "run" / "gates"
    for images, command in (
        (2, ["stack", gates, "--out", tmp_path / "stack"]),
        (6, ["sweep", "--layers", 2, "--v-sink", "massive", "--out", tmp_path / "studies" / "sweep"]),
        (6, ["eval", "--gates", gates, "--out", tmp_path / "studies" / "eval"]),
    ):
        assert sentence.format(images) in sinkgate(*command, "--limit", 6).stderr, command
    page = tmp_path / "studies" / "report.html"
    sinkgate("report", tmp_path / "studies")
    assert page.read_text(encoding="utf-8").count(sentence.format(6)) == 2
    for study in ("sweep", "eval"):
        items = pd.read_parquet(tmp_path / "studies" / study / "items.parquet")
        assert (items["v_sinks"] == 0).all() and set(items["v_criterion"]) == {"massive activations"}


def test_gates_that_jobs_trained_apart_are_stacked_by_one_command(sinkgate, tmp_path):
    data = ["--limit", 4, "--haze", 0.5]
    for layer in (2, 5):
        options = ["--layers", layer, "--epochs", 1, "--batch-size", 4, "--save-minutes", 1]
        sinkgate("train", *options, *data, "--out", tmp_path / str(layer))
    folders = [tmp_path / str(layer) / "gates" for layer in (5, 2)]
    printed = json.loads(sinkgate("stack", *folders, *data, "--out", tmp_path / "stack", "--json").stdout)
    assert printed["singles"].keys() == {"2", "5"} and len(printed["steps"]) == 2
    assert (
        "several gates in layer 2" in sinkgate("stack", folders[1], folders[1], "--out", tmp_path / "x", code=2).stderr
    )


def test_samples_behind_the_first_ones(sinkgate, scene_folder, tmp_path, demo):
    sg.LSG.for_vlm(demo, [2]).save_pretrained(tmp_path / "gates")
    turns = [{"from": "human", "value": "How many objects are there?"}]
    records = [
        {"image": "0000.png", "conversations": [*turns, {"from": "gpt", "value": answer}]} for answer in ("1", "2", "2")
    ]
    (tmp_path / "data.json").write_text(json.dumps(records))
    stack = ["stack", tmp_path / "gates", "--data", tmp_path / "data.json", "--images", scene_folder, "--json"]
    scores = {
        skip: json.loads(sinkgate(*stack, *skip, "--out", tmp_path / "stack").stdout)["unmodified"]
        for skip in ((), ("--skip", 1), ("--skip", 1, "--limit", 1), ("--skip", 2))
    }
    whole, behind, second, third = scores.values()
    assert second == pytest.approx(third) and behind == pytest.approx(second) and behind != pytest.approx(whole)
    assert "--skip is 3 of 3 samples" in sinkgate(*stack, "--skip", 3, "--out", tmp_path / "stack", code=2).stderr
    assert "none with the questions" in sinkgate("eval", "--skip", 3, code=2).stderr
    records[1]["image"] = "none.png"
    (tmp_path / "data.json").write_text(json.dumps(records))
    skipped = sinkgate(*stack, "--out", tmp_path / "stack")
    assert "Skipped records" in skipped.stderr and "1 missing image" in skipped.stderr
    assert "record 2" in sinkgate(*stack, "--broken", "stop", "--out", tmp_path / "stack", code=2).stderr


def test_turns_in_their_context_are_other_questions(sinkgate, scene_folder, tmp_path):
    talk = ["How many objects are there?", "2", "What colors are there?", "red and blue"]
    turns = [{"from": ("human", "gpt")[index % 2], "value": text} for index, text in enumerate(talk)]
    (tmp_path / "data.json").write_text(json.dumps([{"image": "0000.png", "conversations": turns}]))
    options = ["eval", "--data", tmp_path / "data.json", "--images", scene_folder]
    tables, checksums = {}, set()
    for way in ("first", "all", "context"):
        sinkgate(*options, "--turns", way, "--out", tmp_path / way)
        tables[way] = Results.load(tmp_path / way).table("answers")["loss"].tolist()
        checksums.add(Results.load(tmp_path / way).about["data"]["checksum"])
    assert [len(table) for table in tables.values()] == [1, 2, 2] and len(checksums) == 3
    assert tables["all"][0] == pytest.approx(tables["first"][0]) == pytest.approx(tables["context"][0])
    assert tables["all"][1] != pytest.approx(tables["context"][1], abs=1e-4), "it reads the turn before"
    assert "another study" in sinkgate(*options, "--turns", "context", "--out", tmp_path / "all", code=2).stderr
    for data in (["--data", "pope", "--files", tmp_path], [], ["--data", "cambrian", "--images", tmp_path]):
        assert "whose questions stand alone" in sinkgate("eval", *data, "--turns", "all", code=2).stderr


def test_a_benchmark_is_not_trained_on_unless_told(sinkgate, tmp_path):
    gates = sg.LSG.for_vlm(sg.load("demo"), [2])
    gates.save_pretrained(tmp_path / "gates")
    parquet_files.write(tmp_path / "a.parquet", map(parquet_files.mmstar, range(4)))
    data = ["--data", "mmstar", "--files", tmp_path / "a.parquet", "--out", tmp_path / "out"]
    for command in (["train", "--layers", 2, "--epochs", 1], ["stack", tmp_path / "gates"]):
        refused = sinkgate(*command, *data, code=2).stderr
        assert "mmstar has one split, 'val', and it is for testing" in refused and "--on-test-split" in refused
        allowed = sinkgate(*command, *data, "--on-test-split", code=2).stderr
        assert "no sample c" in allowed, "the demo model has no words for letters, but its samples were tried"


def test_items_without_a_kind_have_a_task(sinkgate, scene_folder, tmp_path):
    (tmp_path / "data.json").write_text(json.dumps(LLAVA))
    options = ["--data", tmp_path / "data.json", "--images", scene_folder, "--layers", 2]
    assert "no kind" in sinkgate("eval", *options[:4]).stdout
    sinkgate("sweep", *options, "--out", tmp_path / "sweep")
    sinkgate("report", tmp_path / "sweep")
    page = (tmp_path / "sweep" / "report.html").read_text(encoding="utf-8")
    assert "no kind, layer by layer" in page and ">, layer by layer" not in page


@pytest.mark.parametrize("command", [("train",), ("stack", "{gates}"), ("sweep",), ("eval",), ("anatomy",)])
def test_an_output_that_cannot_be_written_is_refused_before_the_model_runs(
    sinkgate, tmp_path, monkeypatch, demo, command
):
    sg.LSG.for_vlm(demo, [2]).save_pretrained(tmp_path / "gates")
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(sg.VLM, "prompt", lambda *_: pytest.fail("the model ran"))
    args = [part.format(gates=tmp_path / "gates") for part in command]
    done = sinkgate(*args, "--limit", 2, "--out", tmp_path / "file", code=2)
    assert "file" in done.stderr and "cannot be written" in done.stderr and "Traceback" not in done.stderr


def test_a_stack_that_cannot_be_saved_is_still_printed(sinkgate, tmp_path, monkeypatch, demo):
    sg.LSG.for_vlm(demo, [2]).save_pretrained(tmp_path / "gates")

    def full(*_, **__):
        raise sg.GateError("no space left")

    monkeypatch.setattr(sg.LSG, "save_pretrained", full)
    for form in ((), ("--json",)):
        done = sinkgate("stack", tmp_path / "gates", "--limit", 2, "--out", tmp_path / "out", *form, code=2)
        assert "unmodified" in done.stdout and "no space left" in done.stderr


def test_an_answer_outside_the_code_page_of_the_output_is_escaped(sinkgate, scene_folder, monkeypatch, demo):
    picture, question = scene_folder / "0000.png", "How many objects are there?"
    trace = replace(demo.answer(demo.prompt(picture, question)), text="größer \N{CAT FACE}")
    monkeypatch.setattr(sg.VLM, "answer", lambda *_, **__: trace)
    file = BytesIO()
    monkeypatch.setattr(sys, "stdout", TextIOWrapper(file, encoding="cp1252", write_through=True))
    sinkgate("ask", picture, question)
    assert file.getvalue().decode("cp1252").strip() == "größer \\U0001f431"


def test_a_killed_sweep_goes_on_and_two_processes_equal_one(sinkgate, tmp_path):
    options = ["--limit", 18, "--haze", 0.6, "--layers", "1-2", "--grid", "0,1", "--batch-size", 3]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    sinkgate("sweep", *options, "--out", whole)
    command = ["sinkgate", "sweep", *options, "--out", killed]
    running = Forked(cli.main, *command)
    while not list(killed.glob("parts/0*")):
        assert running.process.is_alive(), "it ended before it could be killed"
        time.sleep(0.01)
    running.process.kill()
    running.wait()
    assert not (killed / "answers.parquet").exists()
    ranks = [Forked(cli.main, *command, RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank)) for rank in range(2)]
    for done in [rank.wait() for rank in ranks]:  # as torchrun starts them
        assert done.returncode == 0, done.stderr
    for table in ("answers", "items"):
        assert (killed / f"{table}.parquet").read_bytes() == (whole / f"{table}.parquet").read_bytes()
    assert "holds a study already" in sinkgate("sweep", *options, "--out", killed, "--no-resume", code=2).stderr
    assert (
        "layers is [1, 2] there and [5] here"
        in sinkgate("sweep", *options, "--layers", 5, "--out", killed, code=2).stderr
    )


def test_shards_are_merged(sinkgate, tmp_path):
    options = ["--limit", 8, "--layers", "2", "--batch-size", 4]
    shares = [tmp_path / str(rank) for rank in range(2)]
    for rank, share in enumerate(shares):
        assert "share" in sinkgate("sweep", *options, "--out", share, "--shard", f"{rank}/2").stderr
    assert "2 of 2 parts" in sinkgate("merge", *shares, "--out", tmp_path / "all").stdout
    assert (tmp_path / "all" / "answers.parquet").exists()
    assert "--out" in sinkgate("sweep", *options, "--shard", "0/2", code=2).stderr


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["sweep", "--data", "mmstar", "--files", "nowhere"], "nowhere"),
        (["sweep", "--three"], "--grid"),
        (["sweep", "--grid", "a,b"], "--grid is 'a,b'"),
        (["sweep", "--grid", "9"], "--grid is '9'; expected scales from 0 to 4"),
        (["sweep", "--shard", "0/2"], "--out is missing"),
        (["sweep", "--shard", "3"], "the shard is '3'; expected two numbers"),
        (["sweep", "--layers", "9"], "layers 0 to 7"),
        (["anatomy", "--l-sink", "loud"], "no criterion is called 'loud'"),
        (["probe", "--jobs", "0"], "--jobs is 0; expected 1 or more, or -1"),
        (["probe", "--images", "x"], "--images is x, which scenes does not use; leave it out"),
        (["probe", "--data", "scenes.json"], "--data is scenes.json; there is no such file"),
        (["eval", "--asking", "written", "--extractor", "strict"], "no extractor 'strict'"),
        (["report", "."], "no study"),
    ],
)
def test_what_is_wrong_with_a_study_is_one_sentence(sinkgate, tmp_path, monkeypatch, args, words):
    monkeypatch.chdir(tmp_path)
    limit = [] if args[0] == "report" else ["--limit", 12]
    done = sinkgate(*args, *limit, code=2)
    assert re.search(words, done.stderr), done.stderr
    assert done.stderr.splitlines()[-1].startswith("sinkgate: ")
