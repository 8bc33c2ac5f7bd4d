"""Each claim turns with the numbers that it rests on."""

import json

import numpy as np
import pandas as pd
import pytest
from test_sweep_study import planted

from sinkgate.errors import SinkgateError
from sinkgate.studies.claims import claims, table_of
from sinkgate.studies.results import FORMAT, KEYS, VERSION, Results


def results(folder, study, settings=None, **tables):
    folder.mkdir()
    about = {
        "format": FORMAT,
        "version": VERSION,
        **dict.fromkeys(KEYS, ""),
        "study": study,
        "settings": settings or {},
        "finished": "2026",
    }
    (folder / "study.json").write_text(json.dumps(about))
    for name, table in tables.items():
        table.to_parquet(folder / f"{name}.parquet")
    return Results.load(folder)


def verdicts(results):
    return {claim.claim: claim.verdict for claim in results}


def anatomy(folder, spike=100.0, after=3.0, attention=0.05, vision=(7,), l_spike=50.0, images=12, noise=0.0):
    groups = ("v_sink", "l_sink", "ordinary")
    luck = 1 + noise * np.random.default_rng(0).uniform(-1, 1, images)
    tokens = pd.DataFrame(
        [
            {"sample": image, "layer": layer, "group": group, "tokens": 2, "per_token": {"v_sink": luck[image] * attention}.get(group, 0.01),
             "spike": {"l_sink": luck[image] * l_spike}.get(group, 1.0)}
            for image in range(images) for layer in range(4) for group in groups
        ]
    )  # fmt: skip
    projector = pd.DataFrame(
        [
            {"sample": image, **row}
            for image in range(images) for row in (
                {"group": "v_sink", "norm_before": 3.0, "norm_after": 2.0, "peak_before": luck[image] * spike, "peak_after": luck[image] * after},
                {"group": "ordinary", "norm_before": 1.0, "norm_after": 1.0, "peak_before": 4.0, "peak_after": 3.0},
            )
        ]
    )  # fmt: skip
    settings = {"dimensions": {"vision": list(vision), "llm": [1, 2]}}
    listed = pd.DataFrame({"sample": range(images)})
    return results(folder, "anatomy", settings, tokens=tokens, projector=projector, images=listed)


@pytest.mark.parametrize(
    ("change", "claim", "verdict"),
    [
        ({}, "leave the encoder with a spike", "reproduced"),
        ({"spike": 5.0}, "leave the encoder with a spike", "not reproduced"),
        ({"vision": ()}, "leave the encoder with a spike", "not reproduced"),
        ({}, "spreads the spike", "reproduced"),
        ({"after": 50.0}, "spreads the spike", "not reproduced"),
        ({"spike": 5.0}, "spreads the spike", "not testable"),
        ({}, "draw far more attention", "reproduced"),
        ({"attention": 0.01}, "draw far more attention", "not reproduced"),
        ({}, "L-sinks spike", "reproduced"),
        ({"l_spike": 2.0}, "L-sinks spike", "not reproduced"),
        ({"images": 9}, "leave the encoder with a spike", "undecided"),
        ({"images": 1, "l_spike": 2.0}, "L-sinks spike", "undecided"),
        ({"attention": 0.02, "noise": 0.5}, "draw far more attention", "undecided"),
        ({"l_spike": 10.0, "noise": 0.5}, "L-sinks spike", "undecided"),
    ],
)
def test_anatomy(tmp_path, change, claim, verdict):
    (result,) = [each for each in claims([anatomy(tmp_path / "a", **change)]) if claim in each.claim]
    assert result.verdict == verdict and result.numbers


def probes(folder, lead, decay=0.0, noise=0.002):
    """V-sinks lead by so much on each target; ordinary tokens stand at 0.5."""
    rng = np.random.default_rng(0)
    rows = [
        {"target": target, "place": str(layer), "group": group, "labels": "true", "draw": draw, "train": 700.0,
         "accuracy": 0.5 + (more if group == "v_sink" else 0) - decay * layer * (group == "v_sink") + noise * rng.standard_normal()}
        for target, more in lead.items() for layer in range(6) for group in ("v_sink", "ordinary") for draw in range(5)
    ]  # fmt: skip
    return results(folder, "probes", scores=pd.DataFrame(rows))


def test_probes(tmp_path):
    verdict_of = verdicts(
        claims([probes(tmp_path / "all", {"count": 0.2, "largest": 0.1, "colors": 0.1, "shapes": 0.1})])
    )
    assert verdict_of["V-sinks hold more information on the scene than ordinary tokens, on all targets"] == "reproduced"
    assert verdict_of["their lead is largest on the count"] == "reproduced"
    assert verdict_of["the information in V-sinks hardly decays with depth"] == "reproduced"
    assert (
        verdict_of["L-sinks hold more information on the scene than ordinary tokens, on all targets"] == "not testable"
    )
    verdict_of = verdicts(
        claims([probes(tmp_path / "some", {"count": 0.1, "colors": 0.2, "shapes": -0.1}, decay=0.03)])
    )
    assert verdict_of["V-sinks hold more information on the scene than ordinary tokens, on all targets"] == "in part"
    assert verdict_of["their lead is largest on the count"] == "not reproduced"
    assert verdict_of["the information in V-sinks hardly decays with depth"] == "not reproduced"
    assert verdict_of["their lead is larger in early and middle layers"] == "reproduced"
    few = probes(tmp_path / "few", {"count": 0.2})
    rare = few.table("scores").query("group == 'v_sink'").assign(group="l_sink", train=300.0)
    pd.concat([few.table("scores"), rare]).to_parquet(few.folder / "scores.parquet")
    (result,) = [claim for claim in claims([few]) if claim.claim.startswith("L-sinks hold")]
    assert result.verdict == "not testable" and "300 of 700" in result.numbers
    verdict_of = verdicts(claims([probes(tmp_path / "none", {"count": -0.1})]))
    assert (
        verdict_of["V-sinks hold more information on the scene than ordinary tokens, on all targets"]
        == "not reproduced"
    )


def test_sweep(tmp_path):
    items, answers = planted(samples=1000)
    verdict_of = verdicts(claims([results(tmp_path / "planted", "sweep", items=items, answers=answers)]))
    assert verdict_of["O1: whether larger or smaller scales of sinks are better depends on the task"] == "reproduced"
    assert (
        verdict_of[
            "O2: and on the depth: for one task, larger scales are better in one layer and smaller ones in another"
        ]
        == "not reproduced"
    )
    assert (
        verdict_of["O2: for tasks of reasoning, larger scales of sinks are better in most layers (26 of 32)"]
        == "not testable"
    )
    assert verdict_of["O3: scaling L-sinks and ordinary tokens apart adds little"] == "reproduced"
    renamed = items.assign(task=items["task"].replace({"up": "logical reasoning", "down": "logical reasoning"}))
    verdict_of = verdicts(claims([results(tmp_path / "renamed", "sweep", items=renamed, answers=answers)]))
    assert (
        verdict_of["O1: whether larger or smaller scales of sinks are better depends on the task"] == "not reproduced"
    )
    assert (
        verdict_of[
            "O2: and on the depth: for one task, larger scales are better in one layer and smaller ones in another"
        ]
        == "reproduced"
    )
    two = answers[answers["l_sink"] == answers["ordinary"]]
    verdict_of = verdicts(claims([results(tmp_path / "two", "sweep", items=items, answers=two)]))
    assert verdict_of["O3: scaling L-sinks and ordinary tokens apart adds little"] == "not testable"


def test_absence_is_a_result_only_if_the_study_could_have_shown_a_presence(tmp_path):
    """Six questions, none answered correctly, once read as five failed replications."""
    items, answers = planted(samples=2)
    wrong = results(tmp_path / "wrong", "sweep", items=items, answers=answers.assign(right=False))
    by_claim = {claim.claim[:2]: claim for claim in claims([wrong])}
    assert (
        by_claim["O1"].verdict == by_claim["so"].verdict == "undecided"
        and "answers 0% of the items" in by_claim["O1"].numbers
    )
    tiny = results(tmp_path / "tiny", "sweep", items=items.assign(task="flat"), answers=answers)
    by_claim = {claim.claim[:2]: claim for claim in claims([tiny])}
    assert by_claim["O1"].verdict == "not testable" and "one task only" in by_claim["O1"].numbers
    assert by_claim["so"].verdict == "undecided"
    for samples, verdict in ((5, "undecided"), (60, "undecided"), (400, "not reproduced")):
        items, answers = planted(samples=samples)
        same = answers.merge(answers.query("layer == -1"), on="sample")["right_y"].to_numpy()
        idle = results(tmp_path / str(samples), "sweep", items=items, answers=answers.assign(right=same))
        by_claim = {claim.claim[:2]: claim for claim in claims([idle])}
        assert by_claim["O1"].verdict == by_claim["so"].verdict == verdict, samples
        if samples == 5:
            assert "cannot show any effect, however large" in by_claim["so"].numbers
        if samples == 60:
            assert "smallest lean that this study could have shown is 11.7 points" in by_claim["O1"].numbers


def test_few_or_noisy_pictures_decide_nothing_about_probes(tmp_path):
    claim = "V-sinks hold more information on the scene than ordinary tokens, on all targets"
    few = probes(tmp_path / "few", {"count": 0.2})
    few.table("scores").assign(train=19.0).to_parquet(few.folder / "scores.parquet")
    (result,) = [each for each in claims([few]) if each.claim == claim]
    assert result.verdict == "undecided" and "at most 19 pictures" in result.numbers
    noisy = probes(tmp_path / "noisy", {"count": 0.0}, noise=0.3)
    (result,) = [each for each in claims([noisy]) if each.claim == claim]
    assert result.verdict == "undecided" and "smallest lead that this study could have shown" in result.numbers


def test_too_few_samples_are_said_and_not_stumbled_over(tmp_path):
    items, answers = planted(samples=1)
    verdict_of = verdicts(claims([results(tmp_path / "few", "sweep", items=items, answers=answers)]))
    assert verdict_of["some layer and setting makes a task better (up to +12.02)"] == "undecided"
    empty = probes(tmp_path / "empty", {"count": 0.2})
    empty.table("scores").assign(accuracy=np.nan).to_parquet(empty.folder / "scores.parquet")
    assert {claim.verdict for claim in claims([empty])} == {"not testable"}
    late = probes(tmp_path / "late", {"count": 0.2}, decay=0.01)
    scores = late.table("scores").assign(place=lambda table: (table["place"].astype(int) + 10).astype(str))
    scores.to_parquet(late.folder / "scores.parquet")
    assert verdicts(claims([late]))["their lead is larger in early and middle layers"] == "reproduced"


def test_reasoning_that_leans_by_chance_is_not_reproduced_with_enough_layers(tmp_path):
    claim = "O2: for tasks of reasoning, larger scales of sinks are better in most layers (26 of 32)"
    items, answers = planted()
    idle = items.assign(task="math")
    (result,) = [
        c for c in claims([results(tmp_path / "two", "sweep", items=idle, answers=answers)]) if c.claim == claim
    ]
    assert result.verdict == "undecided" and "2 layers are too few" in result.numbers
    base, swept = answers[answers["layer"] < 0], answers[answers["layer"] >= 0]
    deep = [swept.assign(layer=swept["layer"] + 2 * more) for more in range(16)]
    deep = results(tmp_path / "deep", "sweep", items=idle, answers=pd.concat([base, *deep]))
    assert verdicts(claims([deep]))[claim] == "not reproduced"


def test_what_is_not_finished_is_not_asked(tmp_path):
    folder = anatomy(tmp_path / "a")
    folder.about["finished"] = None
    assert claims([folder]) == []
    with pytest.raises(SinkgateError, match="run anatomy, probe or sweep"):
        table_of([])
