"""The documentation builds without a warning, fetches nothing, and has a place for everything."""

from __future__ import annotations

import pkgutil
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

import sinkgate as sg

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs" / "pages"
NOTEBOOKS = sorted(path.stem for path in ROOT.glob("notebooks/*.ipynb"))


class Tags(HTMLParser):
    """All tags of a page, with their attributes."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


@pytest.fixture(scope="module")
def tags(site) -> dict[Path, list[tuple[str, dict[str, str | None]]]]:
    return {path.relative_to(site): Tags(path).tags for path in site.rglob("*.html")}


def test_nothing_but_a_link_leads_outside(site, tags):
    for path, page_tags in tags.items():
        for tag, attributes in page_tags:
            if tag != "a":
                values = [attributes.get(name) or "" for name in ("src", "href", "srcset", "data", "action", "style")]
                assert not re.search(r"(?:^|\()\s*(?:https?:)?//", " ".join(values)), (path, tag, attributes)
    for style in site.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//", style.read_text(encoding="utf-8")), style


def test_every_picture_says_what_it_shows(tags):
    pictures = [(path, attributes) for path, page_tags in tags.items() for tag, attributes in page_tags if tag == "img"]
    assert len(pictures) > 20
    for path, attributes in pictures:
        assert (attributes.get("alt") or "").strip(), (path, attributes)


def test_every_page_is_in_the_navigation(site, tags):
    home = {attributes.get("href") for tag, attributes in tags[Path("index.html")] if tag == "a"}
    for path in tags:
        address = path.parent.as_posix() + "/"
        assert path.name == "404.html" or address == "./" or address in home, path


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_every_notebook_is_a_tutorial_with_its_pictures(site, name):
    page = (site / "tutorials" / name / "index.html").read_text(encoding="utf-8")
    assert f"files/notebooks/{name}.ipynb" in page and (site / "files" / "notebooks" / f"{name}.ipynb").exists()
    for picture in re.findall(r'<img[^>]* src="([^"]+\.(?:svg|png))"', page):
        assert (site / "tutorials" / name / picture).exists(), picture
    assert "<summary>Solution</summary>" in page and "google.colab" not in page


def test_formulas_are_mathml(site):
    for path in site.rglob("*.html"):
        page = re.sub(r"<code.*?</code>", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        assert "arithmatex" not in page and "$$" not in page, path
    assert (site / "tutorials" / NOTEBOOKS[0] / "index.html").read_text(encoding="utf-8").count("<math") > 10


def test_examples_of_docstrings_are_code(site):
    page = (site / "reference" / "gates" / "index.html").read_text(encoding="utf-8")
    assert "language-pycon" in page and '<details class="example"' not in page


def test_every_public_module_is_in_the_reference_once():
    listed = [
        name
        for page in PAGES.glob("reference/*.md")
        for name in re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE)
    ]
    modules = [each.name for each in pkgutil.walk_packages(sg.__path__, "sinkgate.") if "._" not in each.name]
    assert sorted(listed) == sorted(["sinkgate", *modules])


def test_the_references_first_page_has_every_name_of_the_package():
    page = (PAGES / "reference" / "index.md").read_text()
    assert [name for name in sg.__all__ if f"`{name}`" not in page] == []
