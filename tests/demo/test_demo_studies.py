"""The published studies: the cards repeat the tables, and the code that wrote them still runs."""

import pytest

from sinkgate.demo import studies, studies_card
from sinkgate.demo.plans import PLANS
from sinkgate.studies.claims import claims
from sinkgate.studies.html_report import write_page
from sinkgate.studies.results import Results

PUBLISHED = [(plan, results.folder.name) for plan in PLANS.values() for results in Results.find(plan.folder)]
CLAIMED = ("anatomy", "probes", "sweep-three")  # the other sweeps take seconds each


@pytest.mark.parametrize(("plan", "name"), [each for each in PUBLISHED if each[1] in CLAIMED], ids=str)
def test_the_readme_repeats_the_verdicts_of_the_tables(plan, name):
    readme = (plan.folder / "README.md").read_text(encoding="utf-8")
    checked = [claim for claim in claims([Results.load(plan.folder / name)]) if claim.claim in readme]
    assert checked
    for claim in checked:
        row = f"| {claim.source} | {claim.claim} | **{claim.verdict}** | {claim.numbers} |"
        assert row in readme or (name == "sweep-three" and not claim.claim.startswith("O3"))


@pytest.mark.parametrize("plan", PLANS.values(), ids=list(PLANS))
def test_every_published_study_is_finished(plan):
    results = Results.find(plan.folder)
    names = {
        "accuracy",
        "anatomy",
        "groups",
        "methods",
        "probes",
        "scene-sinks",
        *plan.sweeps,
        *(["eval"] if plan.learned else []),
    }
    assert {each.folder.name for each in results} == names
    for each in results:
        assert each.finished and each.about["model"]["name"] == plan.model
        for table in each.folder.glob("*.parquet"):
            assert len(each.table(table.stem))
    readme = (plan.folder / "README.md").read_text(encoding="utf-8")
    assert all(f"]({figure.name})" in readme for figure in plan.folder.glob("*.svg"))
    assert studies_card.groups_table(Results.load(plan.folder / "groups")) in readme
    assert studies_card.attention_table(Results.load(plan.folder / "anatomy")) in readme
    assert studies_card.methods_table(Results.load(plan.folder / "methods")) in readme


def test_the_plan_makes_studies_a_page_and_a_card(demo, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(studies_card, "export", lambda figure, path: drawn.append(path.name))
    plan = PLANS["demo-small"]
    tasks = studies.studies(plan, demo, demo, scale=0.01)
    results = {name: tasks[name](tmp_path / name) for name in ("anatomy", "groups", "eval")}
    readme = studies_card.card(plan, results, tmp_path)
    assert "V-sinks leave the encoder with a spike" in readme and "| 26 |" in readme
    assert "| V-sinks off | global |" in readme and "| 0 | v_sink |" in readme
    assert len(drawn) == 5 and all(f"]({name})" in readme for name in drawn)
    assert write_page(tmp_path).exists()


def test_keys_at_0_act_on_their_own_group(demo):
    off = {name: method.gates for name, method in studies.groups(demo).items()}
    assert off["unmodified"].is_identity
    table = off["V-sinks off"].scales
    assert (table[:, 0] == 0).all() and (table[:, 1:] == 1).all()
    table = off["ordinary tokens off from layer 4"].scales
    assert (table[4:, 2] == 0).all() and (table[:4] == 1).all() and (table[:, :2] == 1).all()


def test_questions_of_some_kinds_take_turns():
    items = studies.questions(12, 0, kinds=("count", "place"))
    assert sorted(item.sample.kind for item in items) == ["count"] * 6 + ["place"] * 6
