"""The adapter of lmms-eval, against the real lmms-eval where it is installed (``pip install "sinkgate[lmms]"``)."""

import importlib
import sys
from dataclasses import replace
from random import Random

import parquet_files as files
import pytest
import torch
from chat_cases import TEMPLATES, sentencepiece, vlm_with
from lmms_interface import adapter_class
from tiny import noise_image, shaken

import sinkgate as sg
from sinkgate.methods import VAF
from sinkgate.models import loading
from sinkgate.models.finder import SinkFinder
from sinkgate.scenes.scene import Scene

COUNT = {"max_new_tokens": 8, "until": ["\n\n"], "do_sample": False}


def test_without_lmms_eval_the_remedy_is_named(monkeypatch):
    monkeypatch.delitem(sys.modules, "sinkgate.benchmarks.lmms", raising=False)
    monkeypatch.setitem(sys.modules, "lmms_eval", None)
    monkeypatch.setitem(sys.modules, "lmms_eval.api.model", None)
    with pytest.raises(ImportError, match=r'pip install "sinkgate\[lmms\]"'):
        importlib.import_module("sinkgate.benchmarks.lmms")


@pytest.fixture
def adapter(monkeypatch):
    """The adapter's class, on a bare interface where lmms-eval is not installed."""
    return adapter_class(monkeypatch)


def test_sinks_are_those_of_the_gates_unless_others_are_named(adapter, demo, tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "load", lambda *_, **__: demo)
    sg.LSG.for_vlm(demo, [1], criterion="norm").save_pretrained(tmp_path)
    for options, expected in (
        ({}, SinkFinder("norm", "norm", v_only=True)),
        ({"v_sink": "dimensions 5 tau 3"}, SinkFinder("dimensions 5 tau 3", "norm", v_only=True)),
    ):
        assert adapter("demo", str(tmp_path), **options)._find_sinks == expected
    with pytest.raises(sg.SinkgateError, match="no criterion is called 'loud'"):
        adapter("demo", l_sink="loud")


def test_a_published_method_takes_options_as_words(adapter, demo, monkeypatch):
    monkeypatch.setattr(loading, "load", lambda *_, **__: demo)
    model = adapter("demo", method="vaf image 1.3 layers 2-5")
    assert model.gated and model.method == VAF(1.3, layers=(2, 3, 4, 5))
    for options, message in (
        ({"method": "magic"}, "no method is called 'magic'"),
        ({"method": "vaf", "gates": "gates.json"}, "gates are 'gates.json' and method is 'vaf'; expected one of them"),
    ):
        with pytest.raises(sg.SinkgateError, match=message):
            adapter("demo", **options)


@pytest.mark.parametrize("template", ["bos", "chatml"])
def test_prompts_are_those_of_transformers(adapter, template):
    """With the first token once, where the template writes it and the tokenizer adds it, and images within the text."""
    model = object.__new__(adapter)
    model.vlm = vlm_with(sentencepiece(), TEMPLATES[template])
    pictures = [noise_image(1), noise_image(2, (40, 28))]
    for context, images in (
        ("<image>\nWhy?", pictures[:1]),
        ("first <image> second <image> differ", pictures),
        ("no place for two", pictures),
        ("Why?", []),
    ):
        placed = context.split("<image>") if len(images) == 2 and "<image>" in context else ["", *[""] * len(images)]
        content = [{"type": "text", "text": placed[0]}]
        for image, part in zip(images, placed[1:], strict=True):
            content += [{"type": "image", "image": image}, {"type": "text", "text": part}]
        if not any(placed):
            content.append({"type": "text", "text": context.replace("<image>", "").strip()})
        chat = [{"role": "user", "content": [part for part in content if part.get("text") != ""]}]
        expected = model.vlm.processor.apply_chat_template(
            chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        inputs = model._inputs(context, images)
        assert inputs.keys() == expected.keys()
        assert all(torch.equal(inputs[name], value) for name, value in expected.items())


@pytest.fixture(scope="module")
def lmms():
    pytest.importorskip("lmms_eval")
    return importlib.import_module("sinkgate.benchmarks.lmms")


@pytest.fixture(scope="module")
def documents():
    rng = Random(5)
    texts = ["How many objects are there?", "What is the background color?", "Which shapes are there?"]
    return [{"image": Scene.random(rng).render(128), "question": texts[i % 3]} for i in range(6)]


@pytest.fixture(scope="module")
def requests(lmms, documents):
    """Requests as lmms-eval makes them of documents."""
    from lmms_eval.api.instance import Instance

    def make(options=COUNT, texts=None, visuals_of=lambda document: [document["image"]]):
        texts = texts or [document["question"] for document in documents]
        return [
            Instance(
                "generate_until",
                (text, dict(options), visuals_of, number, "shapes", "test"),
                0,
                {"task": "shapes", "doc_id": number, "repeats": 1},
            )
            for number, text in enumerate(texts)
        ]

    return make


@pytest.fixture(scope="module")
def model(lmms, documents):
    """Makes the adapter as lmms-eval does, from a string of arguments."""

    def make(arguments="", batch_size=1):
        adapter = lmms.GatedModel.create_from_arg_string(
            arguments, {"batch_size": batch_size, "max_batch_size": None, "device": "cpu"}
        )
        adapter.task_dict["shapes"] = {"test": documents}
        return adapter

    return make


@pytest.fixture(scope="module")
def learned(demo, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gates")
    shaken(sg.LSG.for_vlm(demo, range(8)), seed=1, size=3).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def fixed(demo, tmp_path_factory):
    path = tmp_path_factory.mktemp("fixed") / "gates.json"
    sg.Gates.ones(demo).set("ordinary", 0.0).save(path)
    return path


def test_it_is_a_model_of_lmms_evals(lmms):
    from lmms_eval.api.model import lmms as base
    from lmms_eval.models.registry_v2 import ModelRegistryV2

    registry = ModelRegistryV2()
    registry.register_manifest(lmms.manifest())
    kind = registry.get_model_class("sinkgate")
    assert kind.__name__ == "GatedModel" and issubclass(kind, base) and not kind.__abstractmethods__
    assert registry.resolve("sinkgate").model_type == "simple"


@pytest.mark.parametrize("batch_size", [1, 4])
def test_answers_are_those_of_the_unmodified_model(model, requests, documents, demo, batch_size):
    answers = model("model=demo", batch_size).generate_until(requests())
    assert answers == [demo.answer(demo.prompt(each["image"], each["question"])).text for each in documents]
    assert len(set(answers)) > 2


@pytest.mark.parametrize("batch_size", [1, 4])
def test_fixed_gates_act_on_the_sinks_of_each_image(model, requests, documents, demo, fixed, batch_size):
    gates = sg.Gates.load(fixed)
    answers = model(f"gates={fixed}", batch_size).generate_until(requests())
    assert answers == [demo.answer(demo.prompt(each["image"], each["question"]), gates).text for each in documents]
    assert answers != model().generate_until(requests())


@pytest.mark.parametrize("batch_size", [1, 4])
def test_published_methods_act_on_each_image(model, requests, documents, demo, batch_size):
    answers = model("model=demo,method=vaf image 4 system 0 layers 0-7", batch_size).generate_until(requests())
    gates = VAF(4.0, 0.0, tuple(range(8))).gates(demo)
    prompts = [demo.prompt(each["image"], each["question"]) for each in documents]
    most = COUNT["max_new_tokens"]
    assert answers == [demo.answer(prompt, gates, max_new_tokens=most).text for prompt in prompts]
    assert answers != model().generate_until(requests())


@pytest.mark.parametrize("batch_size", [1, 4])
def test_learned_gates_read_each_question(model, requests, documents, demo, learned, batch_size):
    lsg = sg.LSG.from_pretrained(learned)
    answers = model(f"model=demo,gates={learned}", batch_size).generate_until(requests())
    prompts = [demo.prompt(each["image"], each["question"]) for each in documents]
    assert answers == [
        demo.answer(prompt, lsg.read(demo, prompt), lsg.find_sinks(demo, prompt)).text for prompt in prompts
    ]
    assert answers != model().generate_until(requests())


def test_learned_gates_bring_their_criterion(adapter, learned, tmp_path, demo):
    """Not the answers, which need not differ, but the sinks that the gates are given."""
    config = replace(sg.LSG.from_pretrained(learned).config, criterion="norm")
    sg.LSG(config).save_pretrained(tmp_path)
    picture, question = Scene.random(Random(71)).render(), "How many objects are there?"
    criteria = []
    for gates in (None, learned, tmp_path):
        prompt = demo.prompt(picture, question)
        criteria.append(adapter(gates=gates)._find_sinks(demo, prompt).v_sink)
    assert torch.equal(criteria[0], criteria[1]) and criteria[0].any() and not criteria[2].any()


def test_requests_with_other_options_are_kept_apart_and_in_order(model, requests):
    short, long = requests({**COUNT, "max_new_tokens": 1}), requests()
    mixed = [pair[number % 2] for number, pair in enumerate(zip(short, long, strict=True))]
    batches, adapter = [], model(batch_size=4)
    for each in (short, long, mixed):
        batches.append(adapter.generate_until(each))
    assert batches[2] == [pair[number % 2] for number, pair in enumerate(zip(*batches[:2], strict=True))]
    assert batches[0] != batches[1]


def test_stop_strings_but_no_blank_line(lmms):
    options = {"until": ["\n\n", "</s>", "Q:"]}
    assert lmms._until("first\n\nsecond Q: third", options) == "first\n\nsecond "
    assert lmms._until("a stop b", {"until": "stop"}) == "a " and lmms._until("a", {}) == "a"


def test_line_breaks_and_length_of_a_task_are_kept(model, requests):
    adapter = model()
    assert "How\nmany\n\nobjects" in adapter._text("How\nmany\n\nobjects", 1)
    adapter.generate_until(requests(texts=["How many objects are there? " * 40])[:1])  # 1,120 words


def test_several_images_stand_where_the_text_wants_them(model, documents):
    adapter = model()
    pictures = [documents[0]["image"], documents[1]["image"]]
    prompt = adapter._prompt("first <image> and second <image> compare", pictures)
    assert len(prompt.visual) == 2 * len(adapter._prompt("compare", pictures[:1]).visual)
    text = adapter._text("<image>\nHow many objects?", 1)
    assert text.count("<image>") == 1 and "How many objects?" in text


def test_a_request_without_images_runs_unmodified(model, requests, learned):
    blind = requests(visuals_of=lambda _: [])[:2]
    assert model(f"gates={learned}").generate_until(blind) == model().generate_until(blind)
    half = requests(visuals_of=lambda document: [document["image"]] if "many" in document["question"] else None)
    gated = model(f"gates={learned}", batch_size=4)
    answers, whole = gated.generate_until(half), gated.generate_until(requests())
    assert answers[0] == whole[0] and answers[3] == whole[3]


def test_what_cannot_be_asked_is_told(model, requests, tmp_path):
    with pytest.raises(sg.SinkgateError, match="task shapes, document 0: a str is among the visuals; only images"):
        model().generate_until(requests(visuals_of=lambda _: ["film.mp4"]))
    for kind in ("loglikelihood", "generate_until_multi_round"):
        with pytest.raises(NotImplementedError, match=f"shapes needs {kind}, which gated models do not offer"):
            getattr(model(), kind)(requests())
    with pytest.raises(sg.SinkgateError, match="batch_size is 'auto'"):
        model(batch_size="auto")
    with pytest.raises(sg.SinkgateError, match="nothing"):
        model(f"gates={tmp_path / 'nothing.json'}")


TASK = """
dataset_path: parquet
dataset_kwargs:
  data_files:
    test: {path}
task: shapes
test_split: test
output_type: generate_until
doc_to_visual: !function shapes_functions.visual
doc_to_text: !function shapes_functions.text
doc_to_target: question
process_results: !function shapes_functions.results
metric_list:
  - metric: two
    aggregation: mean
    higher_is_better: true
generation_kwargs:
  max_new_tokens: 8
  temperature: 0
"""
FUNCTIONS = """
import io
from PIL import Image
def visual(doc): return [Image.open(io.BytesIO(doc["image"]["bytes"]))]
def text(doc, lmms_eval_specific_kwargs=None): return doc["question"]
def results(doc, results): return {"two": float(results[0] == "2")}
"""


@pytest.fixture
def task(tmp_path, documents):
    """A folder with a task of lmms-eval: how often is the answer a 2?"""
    rows = []
    for document in documents:
        document["image"].save(tmp_path / "a.png")
        image = {"bytes": (tmp_path / "a.png").read_bytes(), "path": None}
        rows.append({"image": image, "question": document["question"]})
    path = files.write(tmp_path / "data.parquet", rows)
    (tmp_path / "shapes_functions.py").write_text(FUNCTIONS)
    (tmp_path / "shapes.yaml").write_text(TASK.format(path=path))
    return tmp_path


def test_lmms_eval_runs_a_task(model, requests, fixed, task):
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    answers = model(f"gates={fixed}").generate_until(requests())
    manager = TaskManager(include_path=str(task))
    adapter = model(f"gates={fixed}", batch_size=4)
    results = simple_evaluate(adapter, tasks=["shapes"], task_manager=manager, bootstrap_iters=0)
    assert results is not None
    assert results["results"]["shapes"]["two,none"] == answers.count("2") / len(answers)
    assert [sample["filtered_resps"][0] for sample in results["samples"]["shapes"]] == answers
