"""The page of every study: what is on it, and what never can be."""

import re
import sys
from html.parser import HTMLParser

import fake_results
import pandas as pd
import pytest

from sinkgate.cli.reports import report
from sinkgate.errors import SinkgateError
from sinkgate.studies.html_report import contents_of, write_figures, write_page, write_tables
from sinkgate.studies.results import Results
from sinkgate.studies.runner import run
from sinkgate.studies.sections import SECTIONS, Section

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&"


class Page(HTMLParser):
    """The elements of a page, and what they hold."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.marks, self.links, self.loads, self.words = [], set(), set(), [], []
        self.feed(path.read_text(encoding="utf-8"))
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.append(tag)
        self.marks |= {attributes["id"]} if "id" in attributes else set()
        self.links |= {attributes["href"]} if tag == "a" else set()
        self.loads += [attributes[name] for name in ("src", "href") if tag != "a" and name in attributes]
        self.words += [name for name in attributes if name.startswith("on")]

    def handle_data(self, data):
        if self.tags and self.tags[-1] not in ("script", "style"):
            self.words.append(data)

    @property
    def figures(self):
        return [mark for mark in self.marks if mark.startswith("figure-")]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return Page(write_page(fake_results.studies(tmp_path_factory.mktemp("studies"))))


def test_every_study_is_on_it(page):
    for name in ("Anatomy: demo", "Probes: demo", "Oracle sweep: demo", "Evaluation: demo", "Claims of the paper"):
        assert name in page.text
    assert len(page.figures) == 8 + 2 + 4 + 2 + 1  # anatomy, probes, sweep and its two tasks, examination
    assert "revision" in page.text and "1234" in page.text and "torch" in page.text


def test_the_table_of_contents_leads_somewhere(page):
    assert len(page.links) > 20 and {link.removeprefix("#") for link in page.links} <= page.marks


def test_it_loads_nothing(page):
    assert page.loads == []
    assert page.tags.count("script") == 1 + len(page.figures)


def test_it_is_written_where_one_says(tmp_path):
    run(fake_results.FakeStudy("eval", fake_results.evaluation()), tmp_path, progress=False)
    assert write_page(tmp_path) == tmp_path / "report.html"
    assert write_page(tmp_path, tmp_path / "page.html").exists()
    with pytest.raises(SinkgateError, match=r"nowhere.*cannot be written: No such file"):
        write_page(tmp_path, tmp_path / "nowhere" / "page.html")
    with pytest.raises(SinkgateError, match="there is no study in"):
        write_page(tmp_path / "nowhere")


def test_no_name_is_ever_code(tmp_path):
    facts = {"name": HOSTILE, HOSTILE: HOSTILE}
    sweep, eval_ = (
        fake_results.sweep(tasks=(HOSTILE, "b")),
        fake_results.evaluation((HOSTILE,), ("unmodified", HOSTILE)),
    )
    probes = fake_results.probes(targets=(HOSTILE,))
    anatomy = fake_results.anatomy()
    anatomy["images"]["criterion"] = HOSTILE
    for kind, tables in {"sweep": sweep, "eval": eval_, "probes": probes, "anatomy": anatomy, HOSTILE: {}}.items():
        study = fake_results.FakeStudy(
            kind, tables, model=facts, settings={"dimensions": {"vision": [HOSTILE], "llm": []}}
        )
        run(study, tmp_path / str(len(kind)) / "a<b>&", progress=False)
    page = Page(write_page(tmp_path))
    assert page.tags.count("script") == 1 + len(page.figures) and len(page.figures) > 15
    assert "img" not in page.tags and "b" not in page.tags and "onerror" not in page.words
    assert "alert(1)" in page.text  # as words
    assert "<script>alert" not in (tmp_path / "report.html").read_text()


def test_what_is_not_finished_says_how_far_it_is(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(fake_results.FakeStudy("sweep", fake_results.sweep(), units=3), tmp_path / "sweep", progress=False)
    page = Page(write_page(tmp_path))
    assert "Not finished: 1 of 3 parts are there." in page.text
    assert page.figures == [] and "not yet" in page.text


def test_a_study_of_a_kind_not_known_is_told_at_least(tmp_path):
    run(fake_results.FakeStudy("dreams", {}), tmp_path / "dreams", progress=False)
    page = Page(write_page(tmp_path))
    assert "dreams: demo" in page.text and "Model, data and settings" in page.text and page.figures == []


def test_what_a_study_does_not_have_is_left_out(tmp_path):
    tables = fake_results.anatomy()
    for name in ("projector", "agreement"):
        tables[name] = tables[name].iloc[:0]
    run(fake_results.FakeStudy("anatomy", tables), tmp_path, progress=False)
    page = Page(write_page(tmp_path))
    assert len(page.figures) == 6 and "Through the projector" not in page.text


def test_a_model_without_v_sinks_has_no_empty_figures(tmp_path):
    tables = fake_results.anatomy()
    tables["heads"] = tables["heads"].assign(v_sink=0.0)
    nowhere = tables["agreement"]["place"] == "encoder"
    tables["agreement"].loc[nowhere, ["both", "either"]] = 0
    results = run(fake_results.FakeStudy("anatomy", tables), tmp_path, progress=False)
    sections = {section.title: section for section in SECTIONS["anatomy"](results)}
    heads = sections["Broadcast or no-op, head by head"]
    assert "attends to L-sinks" in heads.sentence and "L-sinks" in heads.content.layout.xaxis.title.text
    assert max(heads.content.data[0].x) > 0
    assert (
        nowhere.any()
        and len(sections["Agreement of criteria"].content.data) == tables["agreement"]["place"].nunique() - 1
    )


def test_probes_that_could_not_be_fitted_say_so(tmp_path):
    scores = fake_results.probes()["scores"].assign(accuracy=float("nan"), mean_average_precision=float("nan"))
    run(fake_results.FakeStudy("probes", {"scores": scores}), tmp_path, progress=False)
    page = Page(write_page(tmp_path))
    assert "No probe could be fitted" in page.text and page.figures == []


def test_an_export_lists_its_samples(tmp_path):
    samples = pd.DataFrame(
        {"sample": [0], "image": ["a.png"], "question": ["What?"], "answer": ["a cat"], "error": [None]}
    )
    run(fake_results.FakeStudy("export", {"samples": samples}), tmp_path, progress=False)
    assert "a.png What? a cat" in Page(write_page(tmp_path)).text


def test_answers_that_cannot_be_read_are_counted(tmp_path):
    tables = fake_results.evaluation()
    count = len(tables["answers"])
    tables["answers"] = tables["answers"].assign(text="?", said=["yes", *[None] * (count - 1)])
    run(fake_results.FakeStudy("eval", tables), tmp_path, progress=False)
    assert f"could not read {count - 1} of {count} generated answers" in Page(write_page(tmp_path)).text


def test_moments_are_written_for_people(tmp_path):
    run(fake_results.FakeStudy("eval", fake_results.evaluation()), tmp_path, progress=False)
    assert re.search(r"finished \d{4}-\d\d-\d\d \d\d:\d\d UTC\.", Page(write_page(tmp_path)).text)


def test_a_run_with_other_versions_is_told_too(tmp_path, monkeypatch):
    study = fake_results.FakeStudy("sweep", fake_results.sweep(), units=2)
    with pytest.raises(KeyboardInterrupt):
        run(study, tmp_path, progress=False)
    monkeypatch.setattr("sinkgate.studies.runner.versions", lambda: {"torch": "0.0.7"})
    with pytest.raises(KeyboardInterrupt):
        run(study, tmp_path, progress=False)
    assert "0.0.7" in Page(write_page(tmp_path)).text


def test_a_terminal_gets_bars_while_the_page_is_made(tmp_path, monkeypatch, capsys):
    run(fake_results.FakeStudy("eval", fake_results.evaluation()), tmp_path / "eval", progress=False)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    write_page(tmp_path)
    write_figures(contents_of(tmp_path), "html")
    bars = capsys.readouterr().err
    assert all(f"{name}: 100%" in bars for name in ("report", "page", "figures")), bars


def test_figures_are_written_as_files_of_their_own(tmp_path):
    run(fake_results.FakeStudy("eval", fake_results.evaluation()), tmp_path / "eval", progress=False)
    (written,) = write_figures(contents_of(tmp_path), "html")
    assert written.parent == tmp_path / "eval" and "plotly" in written.read_text(encoding="utf-8")
    with pytest.raises(SinkgateError, match=r"ends in \.gif; expected"):
        write_figures(contents_of(tmp_path), "gif")


def test_what_a_run_tells_of_itself_is_there(tmp_path):
    study = fake_results.FakeStudy("eval", fake_results.evaluation())
    object.__setattr__(study, "about", {"seed": 987, "data": "<b>scenes</b>"})
    run(study, tmp_path, progress=False)
    page = Page(write_page(tmp_path))
    assert "987" in page.text and "<b>scenes</b>" in page.text and "b" not in page.tags


def test_tables_are_written_for_papers(tmp_path):
    studies = fake_results.studies(tmp_path)
    as_csv, as_latex = write_tables(contents_of(studies), "csv"), write_tables(contents_of(studies), "tex")
    assert [path.stem for path in as_csv] == [path.stem for path in as_latex] and len(as_csv) > 3
    for text, path in zip(as_csv, as_latex, strict=True):
        table, latex = pd.read_csv(text), path.read_text(encoding="utf-8").splitlines()
        body = latex[latex.index(r"\midrule") + 1 : latex.index(r"\bottomrule")]
        assert len(body) == len(table)
        assert all(re.sub(r"\\&", "", line).count(" & ") == len(table.columns) - 1 for line in body), path
        assert not re.search(r"(?<!\\)[%_#]", "".join(body)), path
    with pytest.raises(SinkgateError, match="tables cannot be written as 'doc'; expected csv or tex"):
        write_tables(contents_of(studies), "doc")


def test_the_files_of_one_report_share_its_sections(tmp_path, monkeypatch):
    run(fake_results.FakeStudy("eval", fake_results.evaluation()), tmp_path, progress=False)
    calls, sections = [], SECTIONS["eval"]
    monkeypatch.setitem(SECTIONS, "eval", lambda results: calls.append(results) or sections(results))
    report(tmp_path, figures="html", tables="csv")
    assert len(calls) == 1 and len(list(tmp_path.glob("*.html"))) == 2 and list(tmp_path.glob("*.csv"))


def test_titles_that_differ_in_other_alphabets_alone_have_files_of_their_own(tmp_path):
    frames = {f"{task}, layer by layer": pd.DataFrame({"task": [task]}) for task in ("颜色", "数量", "подсчёт")}
    contents = [(Results(tmp_path, {}), [Section(title, "", frame) for title, frame in frames.items()])]
    written = write_tables(contents, "csv")
    assert [pd.read_csv(path)["task"][0] for path in written] == ["颜色", "数量", "подсчёт"]
    labels = [re.search(r"tab:[\w-]+", path.read_text(encoding="utf-8"))[0] for path in write_tables(contents, "tex")]
    assert len({*labels}) == 3
