"""App and documentation define their terms in the same words."""

from __future__ import annotations

import re
from pathlib import Path

from sinkgate.sinks.glossary import TERMS

ROOT = Path(__file__).parents[2]


def test_the_glossary_of_the_documentation_begins_with_the_same_sentences():
    page = (ROOT / "docs/pages/concepts/glossary.md").read_text(encoding="utf-8")
    entries = dict(re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", page.replace("`", ""), re.MULTILINE))
    for term, text in TERMS.items():
        assert entries[term].startswith(text), term


def test_each_term_of_the_app_has_one_help_button():
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "app/components").iterdir()]
    used = [name for text in sources for name in re.findall(r'data-term="([^"]+)"|page\.help\("([^"]+)"\)', text)]
    assert sorted(first or second for first, second in used) == sorted(TERMS)
