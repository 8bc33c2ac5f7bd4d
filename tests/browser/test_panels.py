"""The panels of the page agree with each other: each shows the same setting and query, or says that it is older."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from app_process import running_app
from page_user import Tab
from PIL import Image

import sinkgate as sg
from app.examples import CLIP_NOTICE, SCENES_ONLY, example_clip
from app.pictures import FRAMES

HELD = """
const { fetch } = window;
window.held = null; // while it is a list, requests of events wait in it
window.fetch = async (...request) => {
  if (window.held && /queue.join|component_server/.test(String(request[0]?.url || request[0]))) {
    await new Promise((go) => window.held.push(go));
  }
  return fetch(...request);
};
"""


def chart_lines(tab: Tab) -> dict[str, str]:
    """The curves of the chart, as they are drawn."""
    return tab.page.evaluate(
        "Object.fromEntries([...document.querySelectorAll('#chart .plot .line')].map((line) => "
        "[line.getAttribute('class'), line.getAttribute('points')]))"
    )


# --- streams of events

NOT_HELD = """
from app.guard import streams
serve = streams._Reader.serve
async def at_once(reader, receive, send, seconds):
    await serve(reader, receive, send, 0.0)
streams._Reader.serve = at_once
"""
MISSED_END = """
const { fetch, setTimeout } = window;
window.setTimeout = (act, ms, ...rest) => setTimeout(act, ms === 10000 ? 1000 : ms, ...rest); // less patience than users' pages
window.missed = null; // while it is a list, the end of the stream waits in it until the replies of two events have been read
window.fetch = async (...request) => {
  const path = String(request[0]?.url || request[0]);
  const answer = await fetch(...request);
  if (path.includes("/queue/join")) window.missed?.shift()?.();
  if (!path.includes("/queue/data") || !window.missed) return answer;
  const decoder = new TextDecoder();
  return new Response(answer.body.pipeThrough(new TransformStream({
    async transform(chunk, stream) {
      if (decoder.decode(chunk).includes("close_stream")) {
        const replies = [new Promise((go) => window.missed.push(go)), new Promise((go) => window.missed.push(go))];
        await Promise.all(replies);
        await new Promise((go) => setTimeout(go, 500)); // the page reads both replies
        window.missed = null;
      }
      stream.enqueue(chunk);
    },
  })), answer);
};
"""


def test_a_page_that_missed_the_end_of_its_stream_catches_up(enter: Callable[..., Tab]) -> None:
    """It took the ended stream for an open one, and waited for ever for the events that it had sent meanwhile."""
    with running_app(code=NOT_HELD) as app:
        tab = enter(app.address, script=MISSED_END)
        tab.page.evaluate("window.missed = []")
        tab.fader(2).press("ArrowDown")
        tab.wait("window.missed.length === 2")
        tab.fader(2).press("ArrowDown")
        tab.page.locator("#films .film").nth(5).click()
        tab.wait("window.missed === null")  # the last events wait for a stream
        frame = tab.settle()
        assert frame["gates"]["v_sink"][2] == tab.scale(2) < 1 and frame["finished"]
        tab.leave(lambda: tab.page.goto("about:blank"))  # before the app ends


COUNTED = """
const { requestAnimationFrame } = window;
window.requests = 0;
window.requestAnimationFrame = (draw) => { window.requests += 1; return requestAnimationFrame(draw); };
"""


def test_a_page_at_rest_requests_no_frames(enter: Callable[..., Tab], address: str) -> None:
    """The loading mark of the page's start requested every one, for as long as the page was open."""
    page = enter(address, script=COUNTED).page
    second = "new Promise((end) => { window.requests = 0; setTimeout(() => end(window.requests), 1000); })"
    assert any(page.evaluate(second) == 0 for _ in range(10))


MARKS = """
window.changes = 0;
const marks = document.querySelectorAll("[data-testid=status-tracker]");
const observer = new MutationObserver((changes) => { window.changes += changes.length; });
for (const mark of marks) observer.observe(mark, { subtree: true, childList: true, characterData: true });
marks.length
"""


def test_no_loading_mark_changes_while_a_fader_moves(tab: Tab) -> None:
    """Gradio's hidden marks counted tenths of a second, and the browser laid the page out anew for each."""
    assert tab.page.evaluate(MARKS) > 0
    tab.fader(2).press("ArrowDown")
    tab.settle()
    assert tab.page.evaluate("window.changes") == 0


# --- queries


def test_the_chart_shows_the_query_of_the_maps_which_is_left_where_the_next_answer_lacks_it(tab: Tab) -> None:
    tab.after(lambda: tab.ask("Describe the picture."))
    before, numbers = chart_lines(tab), tab.frame()["shares"]
    tab.page.locator("#lens .row").select_option("6")
    tab.wait("document.querySelector('#maps [data-tick]').frame.lens.row === 6")
    assert tab.frame()["shares"] != numbers and chart_lines(tab) != before
    tab.after(lambda: tab.ask("How many objects are there?"))
    frame = tab.frame()
    assert frame["lens"]["row"] == 0 and frame["before"] and frame["after"]
    assert tab.page.locator("#lens .row").input_value() == "0"
    assert tab.page.locator("#maps canvas.stale").count() == 0
    tab.page.locator("#films .film").nth(5).click()  # what the page sends next is the query that it shows
    tab.wait("document.querySelector('#maps [data-tick]').frame.lens.layer === 5")
    assert tab.frame()["lens"]["row"] == 0 and tab.frame()["before"]


def test_a_query_is_named_by_the_tokens_of_both_answers_whose_probabilities_are_no_nought(tab: Tab) -> None:
    tab.drag(2, 0.1)
    words = tab.settle()["words"]
    assert tab.answers() == ("2", "1")
    tab.wait("document.querySelector('#maps [data-tick]').frame.queries[0] === 'last prompt token → “2” / “1”'")
    tab.page.locator("#mixer .preset", has_text="All at 1").click()
    original = {word: before for word, before, _ in tab.settle()["words"]}
    assert all(before == pytest.approx(original[word], abs=1e-5) for word, before, _ in words if word in original)
    assert all(0 < before < 1 for _, before, _ in words)


def test_the_chart_follows_a_fader_while_it_moves(tab: Tab) -> None:
    still = chart_lines(tab)
    box = tab.fader(2).bounding_box()
    assert box
    x = box["x"] + box["width"] / 2
    tab.page.mouse.move(x, box["y"] + box["height"] / 2)
    tab.page.mouse.down()
    tab.page.mouse.move(x, box["y"] + 0.95 * box["height"])
    tab.wait("document.querySelector('#maps [data-tick]').frame.gates.v_sink[2] < 0.2")
    assert chart_lines(tab)["line gated v_sink"] != still["line gated v_sink"]
    assert (
        int(tab.page.locator("#chart [data-sequence]").get_attribute("data-sequence") or 0) == tab.frame()["sequence"]
    )
    tab.page.mouse.up()
    tab.settle()


def test_numbers_are_true_where_sinks_are_masked(tab: Tab, vlm: sg.VLM) -> None:
    true = tab.frame()["after"]
    sink = tab.frame()["marks"][0]
    tab.page.locator("#lens .hide-sinks").check()
    tab.wait("document.querySelector('#maps [data-tick]').frame.lens.hide")
    frame = tab.frame()
    plain = next(index for index, share in enumerate(true) if frame["after"][index] > 1.2 * share > 0.002)
    columns = frame["grid"][1]
    places = {
        "patch": (divmod(plain, columns), true[plain], ""),
        "sink": (sink["cell"], true[sink["cell"][0] * columns + sink["cell"][1]], " (masked)"),
    }
    box = tab.page.locator("#maps .screen").nth(1).bounding_box()
    assert box
    for (row, column), share, note in places.values():
        tab.page.mouse.move(
            box["x"] + (column + 0.5) * box["width"] / columns,
            box["y"] + (row + 0.5) * box["height"] / frame["grid"][0],
        )
        shown = tab.page.locator("#maps output").nth(1).text_content() or ""
        number = shown.removesuffix(note).removesuffix(" %")
        assert shown.endswith(note or " %") and float(number) == pytest.approx(100 * share, abs=0.051)
    assert "rescaled" in (tab.page.locator("#maps .caption").text_content() or "")
    tab.page.locator("#lens .hide-sinks").uncheck()
    tab.wait("!document.querySelector('#maps [data-tick]').frame.lens.hide")


# --- pictures


def test_a_refused_upload_leaves_the_picture(tab: Tab, tmp_path: Path) -> None:
    shown, drawn = tab.answers(), tab.pixels("after")
    (tmp_path / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(20))
    (tmp_path / "drawing.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n no picture")
    Image.new("1", (12000, 12000)).save(tmp_path / "bomb.png")
    (tmp_path / "notes.txt").write_text("no picture")
    reasons = {
        "notes.txt": "Invalid file type",  # by Gradio itself
        "phone.heic": "This is a HEIC picture, or a video; save it as JPEG or PNG",
        "drawing.svg": "Use a PNG, JPEG, WebP, GIF, BMP, TIFF or AVIF picture",
        "broken.png": "",
        "bomb.png": "",
    }
    for name, reason in reasons.items():
        tab.page.get_by_label("Remove Image").click()
        tab.page.wait_for_selector("#picture img", state="detached")
        tab.page.locator("#status", has_text="Picture removed").wait_for()  # or it may follow the refusal
        tab.page.locator("#picture input[type=file]").set_input_files(tmp_path / name)
        tab.page.wait_for_selector("#status .warning")
        tab.page.wait_for_selector("#picture img")
        assert tab.status().startswith(reason) and "Traceback" not in tab.status(), name
        assert not tab.page.locator(".toast-body:visible").count(), "an error stands in one place"
        assert tab.answers() == shown and tab.pixels("after") == drawn
    tab.errors.clear()  # the browser reports each refused request
    tab.after(lambda: tab.ask("How many objects are there?"))
    assert tab.answers() == shown and not tab.page.locator("#status .warning").count()


#: Give the page a file by an event on an element that is not the picture box, as a browser does; returns whether the page takes it.
GIVE = """([kind, selector, name, type, data]) => {
  const transfer = new DataTransfer();
  transfer.items.add(new File([Uint8Array.from(atob(data), (c) => c.charCodeAt(0))], name, { type }));
  const options = { bubbles: true, cancelable: true };
  const event = kind === "paste" ? new ClipboardEvent(kind, { clipboardData: transfer, ...options })
    : new DragEvent(kind, { dataTransfer: transfer, ...options });
  document.querySelector(selector).dispatchEvent(event);
  return event.defaultPrevented;
}"""


def test_a_picture_is_pasted_or_dropped_anywhere(tab: Tab) -> None:
    gifts = (
        ("paste", "AVIF", "#question textarea"),
        ("drop", "BMP", "body"),
        ("drop", "TIFF", "#mixer"),
    )
    for width, (kind, suffix, where) in enumerate(gifts, 70):
        data = io.BytesIO()
        Image.new("RGB", (width, 40), "red").save(data, suffix)
        name, mime = f"a.{suffix.lower()}", f"image/{suffix.lower()}"
        file = [name, mime, base64.b64encode(data.getvalue()).decode()]
        if kind == "drop":
            assert tab.page.evaluate(GIVE, ["dragover", where, *file])
            assert tab.page.locator("body.dropping").count() == 1
        tab.after(lambda kind=kind, where=where, file=file: tab.page.evaluate(GIVE, [kind, where, *file]))
        assert tab.status() == SCENES_ONLY and tab.page.locator("body.dropping").count() == 0, suffix
        tab.wait(f"document.querySelector('#picture img').naturalWidth === {width}")  # once it has been loaded


def test_a_video_file_is_read(tab: Tab, tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    path = tmp_path / "clip.webm"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libvpx", rate=3)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for picture in example_clip().frames:
            container.mux(stream.encode(av.VideoFrame.from_image(picture.resize((64, 64)))))
        container.mux(stream.encode())
    file = [path.name, "video/webm", base64.b64encode(path.read_bytes()).decode()]
    for give in (
        lambda: tab.page.evaluate(GIVE, ["drop", "#picture img", *file]),
        lambda: tab.upload(path),
    ):
        frame = tab.after(give)
        assert frame["video"] and len(frame["sheets"]) == FRAMES and tab.status() == CLIP_NOTICE
        tab.wait("document.querySelector('#picture img').naturalWidth === 64")
        tab.after(lambda: tab.page.get_by_label("Example picture 1").click())
    path.write_bytes(b"no video")
    tab.upload(path)
    tab.page.wait_for_selector("#status .warning")
    assert "this is no video" in tab.status().lower()
    tab.page.wait_for_selector("#picture img")


def test_a_text_is_refused_where_it_is_dropped_and_a_removed_picture_stays_what_it_was(tab: Tab) -> None:
    shown = tab.answers()
    assert tab.page.evaluate(GIVE, ["drop", "#maps", "notes.txt", "text/plain", base64.b64encode(b"no").decode()])
    tab.page.wait_for_selector("#status .warning")
    assert tab.status().startswith("This file is no picture or video") and tab.answers() == shown
    assert not tab.page.evaluate(
        """() => {
          const transfer = new DataTransfer();
          transfer.setData("text/plain", "how many");
          const event = new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true, cancelable: true });
          document.querySelector("#question textarea").dispatchEvent(event);
          return event.defaultPrevented;
        }"""
    )
    scene = tab.scene()
    tab.page.get_by_label("Remove Image").click()
    tab.wait("document.querySelector('#status').textContent.includes('Picture removed')")
    assert tab.scene() == scene and tab.page.locator("#edit-scene").is_visible()
    tab.after(lambda: tab.ask("What color is the background?"))
    tab.page.wait_for_selector("#picture img")
    assert tab.scene() == scene


# --- panels side by side

EDGES = """(names) => names.map((name) => {
  const box = document.querySelector(name).getBoundingClientRect();
  return [box.top, box.bottom];
})"""


def test_panels_leave_each_other_in_sight(tab: Tab) -> None:
    """The panel of a patch stands below the likeliest next tokens, a notice above the cards, and the query is seen in its row."""
    names = ["#words .word:nth-child(3)", ".beside", "#status .status", ".looking", ".tokens"]
    for width, height in ((1280, 720), (1440, 900)):
        tab.page.set_viewport_size({"width": width, "height": height})
        tab.after(lambda: tab.page.get_by_label("Example picture 6").click())
        assert tab.status() == CLIP_NOTICE
        tab.page.evaluate("window.sinkgate.publish('choose', { patch: 20 })")
        tab.wait("!document.querySelector('.patch').hidden")
        word, panel, notice, card, row = tab.page.evaluate(EDGES, names)
        assert word[0] < word[1] <= panel[0] + 1 < panel[1] - 80
        assert notice[1] <= card[0] + 1
        (query,) = tab.page.evaluate(EDGES, [".token[aria-pressed=true]"])
        assert row[0] - 1 <= query[0] and query[1] <= row[1] + 1


# --- old, offline, and back again


def test_the_way_back_to_the_page_keeps_what_it_showed_and_a_new_visit_begins_anew(tab: Tab, address: str) -> None:
    tab.after(lambda: tab.ask("What color is the background?"))
    tab.drag(2, 0.3)
    frame = tab.settle()
    answers = tab.answers()
    tab.leave(lambda: tab.page.goto("about:blank"))
    tab.page.go_back()
    tab.page.wait_for_selector("#answers [data-done=true]")
    assert tab.settle()["gates"] == frame["gates"] and tab.answers() == answers
    assert tab.page.locator("#question textarea").input_value() == "What color is the background?"
    tab.leave(lambda: tab.page.goto("about:blank"))
    tab.page.goto(address)
    assert tab.settle()["identity"]


def test_panels_that_wait_for_the_model_say_so(enter: Callable[..., Tab], address: str) -> None:
    tab = enter(address, script=HELD)
    page = tab.page
    page.evaluate("window.held = []")
    tab.drag(2, 0.1)
    tab.wait("document.body.dataset.sync === 'updating'")
    assert "updating…" in page.locator("#answers .gated h2").inner_text()
    faded = "getComputedStyle(document.querySelector('{}')).opacity < 0.6"
    for name in ("#maps canvas.after", "#words .bars", "#chart .plot", "#answers .gated p"):
        tab.wait(faded.format(name))
    assert (
        page.evaluate("getComputedStyle(document.querySelector('#maps .sync'), '::after').content") == '"· updating…"'
    )
    page.evaluate("{ const held = window.held; window.held = null; held.forEach((go) => go()); }")
    tab.settle()
    tab.wait("document.body.dataset.sync === 'current'")
    assert tab.answers() == ("2", "1")


def test_an_offline_page_says_that_it_shows_its_last_result_and_goes_on(tab: Tab) -> None:
    """Gradio loads the page again when the server is back: it opens as this tab showed it last."""
    tab.drag(2, 0.1)
    tab.settle()
    tab.page.context.set_offline(True)
    tab.drag(4, 0.5)  # is lost
    tab.wait("document.querySelector('#status').textContent.includes('Offline')")
    assert tab.page.evaluate("document.body.dataset.sync") == "offline"
    assert "offline" in tab.page.locator("#answers .gated h2").inner_text()
    for name in ("#maps canvas.before", "#maps canvas.after", "#words .bars", "#chart .plot", "#answers .unchanged p"):
        tab.wait(f"getComputedStyle(document.querySelector('{name}')).opacity < 0.6")
    tab.page.wait_for_selector("#status .warning:has-text('Offline')")
    tab.page.wait_for_selector("text=Connection to the server was lost", state="attached")
    assert not tab.page.locator(".toast-body").is_visible()
    with tab.page.expect_navigation():
        tab.page.context.set_offline(False)
    tab.errors.clear()  # of requests that found no network
    tab.settle()
    frame = tab.settle()
    assert frame["gates"]["v_sink"][4] == 1 and frame["gates"]["v_sink"][2] == tab.scale(2) < 0.2
    assert tab.page.evaluate("document.body.dataset.sync || 'current'") == "current" and tab.answers() == ("2", "1")


# --- what covers what


def boxes(tab: Tab, *names: str) -> list[dict[str, Any]]:
    rectangles = [tab.page.locator(name).first.bounding_box() for name in names]
    assert all(rectangles), names
    return [box for box in rectangles if box]


def test_the_status_line_covers_neither_the_models_name_nor_buttons(tab: Tab) -> None:
    tab.ask("why " * 200)
    tab.page.wait_for_selector("#status .warning")
    for width in (1120, 1280, 1440):
        tab.page.set_viewport_size({"width": width, "height": 720})
        status, *others = boxes(tab, "#status .status", ".masthead .model", ".masthead .share", ".light-switch")
        assert all(status["x"] + status["width"] <= other["x"] for other in others), width


def test_nothing_is_written_over_the_sources_of_pictures(tab: Tab) -> None:
    tab.page.get_by_label("Capture from camera").click()
    access = tab.page.get_by_text("Click to Access Webcam")
    access.wait_for()
    text = access.evaluate(
        "(node) => { const range = document.createRange(); range.selectNodeContents(node);"
        " const box = range.getBoundingClientRect(); return { y: box.y, height: box.height }; }"
    )
    (sources,) = boxes(tab, "#picture .source-selection")
    assert text["y"] + text["height"] <= sources["y"]
