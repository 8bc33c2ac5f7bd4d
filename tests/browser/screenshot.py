"""A picture of the running app: ``python tests/browser/screenshot.py page.png [--dark] [--phone] [--learned name] [--share]``.

Starts the app, asks a question of the first example, pulls the V-sink fader of a layer, or chooses learned gates, and waits for
the answers.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from page_user import Tab, chromium, new_window
from playwright.sync_api import ViewportSize

sys.path.append(str(Path(__file__).parents[1]))

from app_process import running_app


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--phone", action="store_true", help="390 pixels wide, the whole page")
    parser.add_argument("--model", default="demo-large", help="as of the app (default: %(default)s)")
    parser.add_argument("--question", default="Is there any blue circle?", help="(default: %(default)s)")
    parser.add_argument("--layer", type=int, default=3, help="counted from 0, as everywhere (default: %(default)s)")
    parser.add_argument("--scale", type=float, default=2, help="where the fader is pulled (default: %(default)s)")
    parser.add_argument("--learned", help="choose these learned gates and leave the faders alone")
    parser.add_argument("--share", action="store_true", help="what there is to take away, opened")
    options = parser.parse_args()

    size: ViewportSize = {"width": 390, "height": 844} if options.phone else {"width": 1366, "height": 768}
    with chromium() as browser, running_app("--model", options.model) as app:
        scheme = "dark" if options.dark else "light"
        tab = Tab(new_window(browser, viewport=size, device_scale_factor=2, color_scheme=scheme), app.address)
        tab.after(lambda: tab.ask(options.question))
        tab.page.locator("#films .film").nth(options.layer).click()
        if options.learned:
            tab.page.locator("#learned select").select_option(options.learned)
            tab.page.wait_for_selector("#mixer .rho:visible")
        else:
            tab.fader(options.layer).scroll_into_view_if_needed()
            tab.drag(options.layer, options.scale)
        tab.settle()
        tab.page.mouse.move(2, 2)
        tab.page.evaluate("window.scrollTo(0, 0)")
        if options.share:
            tab.page.get_by_role("button", name="Share", exact=True).click()
            tab.page.locator("#share summary").click()
        tab.page.screenshot(path=options.picture, full_page=options.phone or options.share)


if __name__ == "__main__":
    main()
