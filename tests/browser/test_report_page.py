"""The page of the studies, opened without a network."""

import fake_results

from sinkgate.studies.html_report import write_page


def test_every_figure_is_drawn(browser, tmp_path):
    page = browser.new_page()
    messages = []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("request", lambda request: messages.append(request.url) if request.url.startswith("http") else None)
    page.goto(write_page(fake_results.studies(tmp_path)).as_uri())
    page.wait_for_function("document.querySelectorAll('.js-plotly-plot .main-svg').length >= 3 * 17")
    assert page.locator(".figure").count() == page.locator(".js-plotly-plot").count() == 17
    assert messages == []
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.body.scrollWidth") <= 390
    page.close()
