"""The atlas page shows the cards that lie beside it."""

from pathlib import Path

from sinkgate.output import markdown
from sinkgate.studies.survey import compared, read_card

PAGES = Path(__file__).parents[2] / "docs" / "pages"


def test_the_table_is_that_of_the_cards():
    page = (PAGES / "atlas.md").read_text()
    table = page.partition("<!-- cards -->\n")[2].partition("\n<!-- end -->")[0]
    names = table.splitlines()[0].strip("| ").split(" | ")
    files = {card["model"]["name"]: card for card in map(read_card, (PAGES / "atlas").glob("*.json"))}
    assert sorted(names) == sorted(files)
    cards = compared([files[name] for name in names])
    assert table == markdown(["", *cards.columns], cards.itertuples())
