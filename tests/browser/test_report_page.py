"""The page of the studies, opened without a network."""

from io import BytesIO

import fake_results
import pytest
from PIL import Image

from sinkgate.studies.html_report import write_page


@pytest.fixture(scope="module")
def page(browser, tmp_path_factory):
    page = browser.new_page()
    page.messages = messages = []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("request", lambda request: messages.append(request.url) if request.url.startswith("http") else None)
    page.goto(write_page(fake_results.studies(tmp_path_factory.mktemp("studies"))).as_uri())
    page.wait_for_function("document.querySelectorAll('.js-plotly-plot .main-svg').length >= 3 * 17", polling=50)
    yield page
    page.close()


def test_every_figure_is_drawn(page):
    assert page.locator(".figure").count() == page.locator(".js-plotly-plot").count() == 17
    assert page.messages == []
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.body.scrollWidth") <= 390


def test_lines_of_every_group_are_seen_in_the_dark(page):
    page.emulate_media(color_scheme="dark")
    for symbol in page.locator(".figure").first.locator(".legend .layers").all():
        pixels = Image.open(BytesIO(symbol.screenshot())).convert("RGB")
        light = sorted(map(luminance, set(pixels.get_flattened_data())))
        assert (light[-1] + 0.05) / (light[0] + 0.05) >= 3, "WCAG 2.2, 1.4.11"


def luminance(color):
    """Return the relative luminance of a color, as WCAG defines it."""
    red, green, blue = (c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in color)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
