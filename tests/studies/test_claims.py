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


def verdicts(found):
    return {claim.claim: claim.verdict for claim in found}


def anatomy(folder, spike=100.0, after=3.0, attention=0.05, vision=(7,), l_spike=50.0):
    groups = ("v_sink", "l_sink", "ordinary")
    tokens = pd.DataFrame(
        [
            {"sample": 0, "layer": layer, "group": group, "tokens": 2, "per_token": {"v_sink": attention}.get(group, 0.01),
             "spike": {"l_sink": l_spike}.get(group, 1.0)}
            for layer in range(4) for group in groups
        ]
    )  # fmt: skip
    projector = pd.DataFrame(
        [
            {"sample": 0, "group": "v_sink", "norm_before": 3.0, "norm_after": 2.0, "peak_before": spike, "peak_after": after},
            {"sample": 0, "group": "ordinary", "norm_before": 1.0, "norm_after": 1.0, "peak_before": 4.0, "peak_after": 3.0},
        ]
    )  # fmt: skip
    settings = {"dimensions": {"vision": list(vision), "llm": [1, 2]}}
    return results(folder, "anatomy", settings, tokens=tokens, projector=projector)


@pytest.mark.parametrize(
    ("change", "claim", "verdict"),
    [
        ({}, "leave the encoder with a spike", "reproduced"),
        ({"spike": 5.0}, "leave the encoder with a spike", "not reproduced"),
        ({"vision": ()}, "leave the encoder with a spike", "not reproduced"),
        ({}, "spreads the spike", "reproduced"),
        ({"after": 50.0}, "spreads the spike", "not reproduced"),
        ({"spike": 5.0}, "spreads the spike", "cannot be asked"),
        ({}, "draw far more attention", "reproduced"),
        ({"attention": 0.01}, "draw far more attention", "not reproduced"),
        ({}, "L-sinks spike", "reproduced"),
        ({"l_spike": 2.0}, "L-sinks spike", "not reproduced"),
    ],
)
def test_anatomy(tmp_path, change, claim, verdict):
    (found,) = [each for each in claims([anatomy(tmp_path / "a", **change)]) if claim in each.claim]
    assert found.verdict == verdict and found.numbers


def probes(folder, lead, decay=0.0):
    """V-sinks lead by so much on each target; ordinary tokens stand at 0.5."""
    rng = np.random.default_rng(0)
    rows = [
        {"target": target, "place": str(layer), "group": group, "labels": "true", "draw": draw, "train": 700.0,
         "accuracy": 0.5 + (more if group == "v_sink" else 0) - decay * layer * (group == "v_sink") + 0.002 * rng.standard_normal()}
        for target, more in lead.items() for layer in range(6) for group in ("v_sink", "ordinary") for draw in range(5)
    ]  # fmt: skip
    return results(folder, "probes", scores=pd.DataFrame(rows))


def test_probes(tmp_path):
    told = verdicts(claims([probes(tmp_path / "all", {"count": 0.2, "largest": 0.1, "colors": 0.1, "shapes": 0.1})]))
    assert told["V-sinks know more of the scene than ordinary tokens, on all targets"] == "reproduced"
    assert told["their lead is largest on the count"] == "reproduced"
    assert told["what V-sinks know hardly decays with depth"] == "reproduced"
    assert told["L-sinks know more of the scene than ordinary tokens, on all targets"] == "cannot be asked"
    told = verdicts(claims([probes(tmp_path / "some", {"count": 0.1, "colors": 0.2, "shapes": -0.1}, decay=0.03)]))
    assert told["V-sinks know more of the scene than ordinary tokens, on all targets"] == "in part"
    assert told["their lead is largest on the count"] == "not reproduced"
    assert told["what V-sinks know hardly decays with depth"] == "not reproduced"
    assert told["their lead is larger in early and middle layers"] == "reproduced"
    few = probes(tmp_path / "few", {"count": 0.2})
    rare = few.table("scores").query("group == 'v_sink'").assign(group="l_sink", train=300.0)
    pd.concat([few.table("scores"), rare]).to_parquet(few.folder / "scores.parquet")
    (found,) = [claim for claim in claims([few]) if claim.claim.startswith("L-sinks know")]
    assert found.verdict == "cannot be asked" and "300 of 700" in found.numbers
    told = verdicts(claims([probes(tmp_path / "none", {"count": -0.1})]))
    assert told["V-sinks know more of the scene than ordinary tokens, on all targets"] == "not reproduced"


def test_sweep(tmp_path):
    items, answers = planted()
    told = verdicts(claims([results(tmp_path / "planted", "sweep", items=items, answers=answers)]))
    assert told["O1: which way sinks should be turned depends on the task"] == "reproduced"
    assert told["O2: and on the depth: one task wants sinks up in one layer and down in another"] == "not reproduced"
    assert told["O2: tasks that need reasoning want sinks up in most layers (26 of 32)"] == "cannot be asked"
    assert told["O3: scaling L-sinks and ordinary tokens apart adds little"] == "reproduced"
    renamed = items.assign(task=items["task"].replace({"up": "logical reasoning", "down": "logical reasoning"}))
    told = verdicts(claims([results(tmp_path / "renamed", "sweep", items=renamed, answers=answers)]))
    assert told["O1: which way sinks should be turned depends on the task"] == "not reproduced"
    assert told["O2: and on the depth: one task wants sinks up in one layer and down in another"] == "reproduced"
    two = answers[answers["l_sink"] == answers["ordinary"]]
    told = verdicts(claims([results(tmp_path / "two", "sweep", items=items, answers=two)]))
    assert told["O3: scaling L-sinks and ordinary tokens apart adds little"] == "cannot be asked"


def test_too_few_samples_are_said_and_not_stumbled_over(tmp_path):
    items, answers = planted(samples=1)
    told = verdicts(claims([results(tmp_path / "few", "sweep", items=items, answers=answers)]))
    assert told["some layer and setting makes a task better (up to +12.02)"] == "cannot be asked"
    empty = probes(tmp_path / "empty", {"count": 0.2})
    empty.table("scores").assign(accuracy=np.nan).to_parquet(empty.folder / "scores.parquet")
    assert {claim.verdict for claim in claims([empty])} == {"cannot be asked"}
    late = probes(tmp_path / "late", {"count": 0.2}, decay=0.01)
    scores = late.table("scores").assign(place=lambda table: (table["place"].astype(int) + 10).astype(str))
    scores.to_parquet(late.folder / "scores.parquet")
    assert verdicts(claims([late]))["their lead is larger in early and middle layers"] == "reproduced"


def test_reasoning_that_leans_by_chance_is_not_reproduced(tmp_path):
    items, answers = planted()
    idle = items.assign(task="math")
    assert (
        verdicts(claims([results(tmp_path / "idle", "sweep", items=idle, answers=answers)]))[
            "O2: tasks that need reasoning want sinks up in most layers (26 of 32)"
        ]
        == "not reproduced"
    )


def test_what_is_not_finished_is_not_asked(tmp_path):
    found = anatomy(tmp_path / "a")
    found.about["finished"] = None
    assert claims([found]) == []
    with pytest.raises(SinkgateError, match="run anatomy, probe or sweep"):
        table_of([])
