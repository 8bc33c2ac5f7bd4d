"""The shipped studies: what the README claims is what the tables say, and the script that made them still runs."""

from pathlib import Path

import pytest

from sinkgate.demo import studies
from sinkgate.studies.claims import claims
from sinkgate.studies.html_report import write_page
from sinkgate.studies.results import Results

SHIPPED = Path(studies.__file__).parent / "studies"


@pytest.mark.parametrize("name", ["anatomy", "probes", "sweep-three"])
def test_the_readme_tells_what_the_tables_say(name):
    readme = (SHIPPED / "README.md").read_text(encoding="utf-8")
    found = [claim for claim in claims([Results.load(SHIPPED / name)]) if claim.claim in readme]
    assert found
    for claim in found:
        row = f"| {claim.source} | {claim.claim} | **{claim.verdict}** | {claim.numbers} |"
        assert row in readme or (name == "sweep-three" and not claim.claim.startswith("O3"))


def test_every_shipped_study_is_whole():
    found = Results.find(SHIPPED)
    assert [each.folder.name for each in found] == [
        "anatomy",
        "eval",
        "probes",
        "sweep-clear",
        "sweep-hazed",
        "sweep-three",
    ]
    for each in found:
        assert each.finished and each.about["model"]["name"] == "demo"
        for table in each.folder.glob("*.parquet"):
            assert len(each.table(table.stem))
    readme = (SHIPPED / "README.md").read_text(encoding="utf-8")
    assert all(f"]({figure.name})" in readme for figure in SHIPPED.glob("*.svg"))


def test_the_script_makes_studies_a_page_and_a_readme(demo, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(studies, "export", lambda figure, path: drawn.append(path.name))
    made = studies.studies(demo, demo, scale=0.01)
    found = {name: made[name](tmp_path / name) for name in ("anatomy", "eval")}
    readme = studies.card(found, tmp_path)
    assert "V-sinks leave the encoder with a spike" in readme and "| 26 |" in readme
    assert len(drawn) == 3 and all(f"]({name})" in readme for name in drawn)
    assert write_page(tmp_path).exists()
