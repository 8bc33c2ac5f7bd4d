import asyncio
import io
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath, PureWindowsPath

import pytest
from gradio.utils import get_upload_folder
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from app.guard import Guard, Limits, headers, payload, scripts_of, streams
from app.guard.guard import NO_ROOM, sweep
from app.guard.requests import address_of, is_host

JOIN, UPLOAD, CALL = "/gradio_api/queue/join", "/gradio_api/upload", "/gradio_api/call/answer"


def run(coroutine) -> None:
    """In a thread of its own: a browser's tests leave a loop running in this one."""
    with ThreadPoolExecutor(1) as threads:
        threads.submit(asyncio.run, coroutine).result()


def picture() -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(data, "PNG")
    return data.getvalue()


def uploaded(client, name="a picture.png", data=None) -> str:
    return client.post(UPLOAD, files={"files": (name, data or picture())}).json()[0]


def joined(client, data, index=1, **more):
    return client.post(JOIN, json={"data": data, "fn_index": index, "session_hash": "user", **more})


# --- what gets through


def test_the_page_its_files_and_its_events_pass(visit):
    client = visit()
    assert client.get("/").status_code == client.get("/config").status_code == 200
    assert client.get("/theme.css").status_code == client.get("/gradio_api/info").status_code == 200
    script = re.search(r'src="\.(/assets/[^"]+)"', client.get("/").text)
    assert script and client.get(script[1]).status_code == 200
    assert joined(client, [{"v_sink": [1]}, None]).status_code == 200
    path = uploaded(client)
    assert client.get(f"/gradio_api/file={path}").content == picture()
    file = {"path": path, "url": f"http://127.0.0.1:7860/gradio_api/file={path}", "meta": {"_type": "gradio.FileData"}}
    assert joined(client, [{}, [file]]).status_code == 200
    assert client.post(CALL, json={"data": [file, "How many?", ""]}).status_code == 200
    assert (
        client.post("/gradio_api/call/v2/answer", json={"image": file, "question": "?", "gates_json": ""}).status_code
        == 200
    )


def test_health_is_never_counted():
    requests = []

    async def app(scope, receive, send):
        requests.append(scope["path"])

    async def send(message):
        requests.append(message.get("status"))

    scope = {"type": "http", "method": "GET", "query_string": b"", "headers": [(b"host", b"a")], "client": None}
    guarded = Guard(app, Limits(open_in_all=0))
    for path in ("/healthz", "/"):
        run(guarded({**scope, "path": path}, None, send))
    assert requests[:2] == ["/healthz", 429]


@pytest.mark.parametrize(
    "path",
    [
        "/monitoring", "/login", "/logout", "/gradio_api/run/answer", "/gradio_api/api/answer", "/gradio_api/vibe-edit/",
        "/gradio_api/vibe-code", "/gradio_api/proxy=https://huggingface.co", "/gradio_api/deep_link?session_hash=user",
        "/gradio_api/process_recording", "/gradio_api/component_server", "/gradio_api/dev/reload", "/gradio_api/runs",
        "/gradio_api/stream/x", "/gradio_api/custom_component/a/client/b/c", "/gradio_api/mcp/", "/docs", "/svelte/x",
        "/gradio_api/file=http://127.0.0.1:1/", "/gradio_api/file=/etc/passwd", "/gradio_api/file/etc/passwd",
        "/assets/../../routes.py", "/assets/%2e%2e/%2e%2e/routes.py", "/static//etc/passwd", "/gradio_api/token", "/static/" + "a" * 300,
    ],
)  # fmt: skip
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_what_the_page_does_not_use_is_not_there(visit, path, method):
    answer = visit().request(method, path)
    assert answer.status_code == 404 and answer.json() == {"detail": "There is nothing at this address."}


@pytest.mark.parametrize(
    "change",
    [{"component_id": 10**9}, {"component_id": "1"}, {"fn_name": "close"}, {"fn_name": None}, {"session_hash": "a/b"}, {"data": {"path": "/etc/passwd"}}],
)  # fmt: skip
def test_only_what_a_component_offers_is_called(visit, change):
    client = visit()
    parts = client.get("/config").json()["components"]
    index = next(part["id"] for part in parts if part["props"].get("server_fns"))
    body = {"component_id": index, "fn_name": "moved", "data": [1], "session_hash": "user"}
    assert client.post("/gradio_api/component_server/", json=body).json() == [1]
    assert client.post("/gradio_api/component_server/", json=body | change).status_code in (400, 404)


def test_a_method_that_an_address_does_not_take_is_named(visit):
    answer = visit().delete(JOIN)
    assert answer.status_code == 405 and answer.headers["allow"] == "POST"
    assert answer.json()["detail"] == "This address takes POST only."


def test_mcp_is_there_where_it_is_asked_for(visit):
    nothing = {"detail": "There is nothing at this address."}
    assert visit().post("/gradio_api/mcp", json={}).json() == nothing
    assert visit(mcp=True).post("/gradio_api/mcp", json={}).json() != nothing


# --- bodies


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"null", b"3", b'"data"', b"\xff\xfe{\x00}\x00", b"NaN", b'{"data": NaN}', b"[" * 100_000,
        b'{"data": [' + b"[" * 40 + b"]" * 40 + b"]}", b'{"data": [' + b"1," * 30_000 + b"1]}",
        b'{"data": [{}, null], "fn_index": 1}', b'{"data": [{}, null], "fn_index": -1, "session_hash": "a"}',
        b'{"data": [{}, null], "fn_index": true, "session_hash": "a"}', b'{"data": [{}], "fn_index": 1, "session_hash": "a"}',
        b'{"data": {}, "fn_index": 1, "session_hash": "a"}', b'{"data": [{}, null], "fn_index": 1, "session_hash": "a/b"}',
        b'{"data": [{}, null], "fn_index": 1e999, "session_hash": "a"}', b'{"fn_index": 1, "session_hash": "a"}',
        b'{"data": [{}, 5], "fn_index": 1, "session_hash": "a"}', b'{"data": [null, 5, ""], "fn_index": 0, "session_hash": "a"}',
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", [JOIN, CALL, "/gradio_api/call/v2/answer", "/gradio_api/cancel", "/gradio_api/reset"])
def test_a_body_that_is_none_of_an_event_is_refused_in_words(visit, body, path):
    answer = visit().post(path, content=body)
    assert answer.status_code in (400, 413) and answer.json()["detail"].endswith(".")


def test_an_event_that_is_not_there(visit):
    assert joined(visit(), [], index=99).json() == {"detail": "There is no event 99 on this page: reload it."}


@pytest.mark.parametrize(
    "file",
    [
        {"path": "/etc/passwd"}, {"path": "http://127.0.0.1:1/x.png"}, {"path": "file:///etc/passwd"}, {"path": 5},
        {"path": None, "url": "http://127.0.0.1:1/x.png"}, {"url": "data:text/html;base64,AAAA"}, {"path": ""},
        {"path": get_upload_folder()}, {"path": f"{get_upload_folder()}/{'0' * 64}/gone.png"}, {"meta": "gradio.FileData"},
        {"path": f"{get_upload_folder()}/{'0' * 64}/../../../etc/passwd"}, {"path": f"{get_upload_folder()}/{'0' * 64}/a\0b"},
    ],
)  # fmt: skip
def test_a_file_that_was_not_uploaded_is_refused_wherever_it_stands(visit, file):
    file = {"meta": {"_type": "gradio.FileData"}, **file}
    for data, index in (([None, file], 1), ([{"lens": [{"deep": file}]}, None], 1), ([file, "", ""], 0)):
        answer = joined(visit(), data, index)
        assert answer.status_code == 400 and "upload" in answer.json()["detail"]


def test_what_goes_on_is_made_anew_from_what_was_checked(visit):
    path = uploaded(visit())
    read = payload.read_json(
        b'{"path": "%s", "url": "http://127.0.0.1:1/", "is_stream": true, "meta": {"_type": "no"}, "size": "x"}'
        % path.encode()
    )
    meta = {"_type": "gradio.FileData"}
    assert read == {"path": path, "url": None, "orig_name": None, "is_stream": False, "meta": meta}


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False) | st.text(),
        lambda children: (
            st.lists(children, max_size=4) | st.dictionaries(st.text().filter(lambda key: key not in FILE), children)
        ),
        max_leaves=20,
    )
)
def test_json_without_files_goes_on_as_it_came(value):
    import orjson

    try:
        body = orjson.dumps(value)
    except TypeError:  # lone surrogates
        return
    assert payload.read_json(body) == orjson.loads(body)


FILE = ("path", "meta", "url")


# --- uploads


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("scene.png", 200), ("scene.JPG", 200), ("phone.HEIC", 200), ("scan.tiff", 200), ("gates.json", 200), ("gates.safetensors", 200), ("../../../scene.png", 200),
        ("<img src=x onerror=alert(1)>.png", 200), ("x" * 3000 + ".png", 200), ("scene.html", 415), ("scene.svg", 415),
        ("scene.png.exe", 415), (".png", 415), ("..", 415), ("scene", 415), ("scene.py", 415),
    ],
)  # fmt: skip
def test_uploads_by_the_kind_that_their_name_tells(visit, name, status):
    answer = visit().post(UPLOAD, files={"files": (name, picture())})
    assert answer.status_code == status, answer.text
    if status == 200:
        assert re.fullmatch(payload.stored(), answer.json()[0]) and Path(answer.json()[0]).is_file()
    else:
        assert "<" not in answer.text and answer.headers["content-type"].startswith("text/plain")


@pytest.mark.parametrize(
    ("folder", "path", "matches"),
    [
        (PurePosixPath("/tmp/gradio"), f"/tmp/gradio/{'0' * 64}/a picture.png", True),
        (PurePosixPath("/tmp/gradio"), f"/tmp/gradio/{'0' * 64}/a/b.png", False),
        (PureWindowsPath(r"C:\Users\a b\Temp\gradio"), rf"C:\Users\a b\Temp\gradio\{'0' * 64}\a picture.png", True),
        (PureWindowsPath(r"C:\Users\a b\Temp\gradio"), f"C:/Users/a b/Temp/gradio/{'0' * 64}/a picture.png", True),
        (PureWindowsPath(r"C:\Users\a b\Temp\gradio"), rf"C:\Users\a b\Temp\gradio\{'0' * 64}\..\a.png", False),
        (PureWindowsPath(r"C:\Users\a b\Temp\gradio"), r"C:\Windows\win.ini", False),
    ],
)
def test_uploads_are_recognised_with_the_separators_of_their_system(folder, path, matches):
    assert bool(re.fullmatch(payload.stored_pattern(folder), path)) is matches


def test_an_upload_too_large_too_many_or_cut_short(visit):
    client = visit(Limits(file_bytes=1000))
    pieces = set(Path(get_upload_folder()).glob("tmp*"))
    assert client.post(UPLOAD, files={"files": ("a.png", b"x" * 1001)}).status_code == 413
    assert client.post(UPLOAD, files={"files": ("a.png", b"x" * 2_000_000)}).status_code == 413
    assert client.post(UPLOAD, files=[("files", ("a.png", b"x"))] * 5).status_code == 400
    assert client.post(UPLOAD, files={"file": ("a.png", b"x")}).status_code == 400
    assert client.post(UPLOAD, data={"files": "no file"}).status_code == 415
    kind = {"content-type": "multipart/form-data; boundary=b"}
    part = b'--b\r\ncontent-disposition: form-data; name="files"; filename="a.png"\r\n\r\nabc'
    for cut in (b"", part, part + b"\r\n--b", b"--c\r\n\r\n", b"rubbish"):
        assert client.post(UPLOAD, content=cut, headers=kind).status_code == 400
    assert client.post(UPLOAD, content=part + b"\r\n--b--\r\n", headers=kind).status_code == 200
    for kind in ("multipart/form-data", f"multipart/form-data; boundary={'b' * 300}", "text/plain", ""):
        assert client.post(UPLOAD, content=part, headers={"content-type": kind}).status_code in (400, 415)
    assert set(Path(get_upload_folder()).glob("tmp*")) == pieces


def test_a_full_disk_is_told(visit):
    answer = visit(Limits(spare_bytes=1 << 62)).post(UPLOAD, files={"files": ("a.png", b"x")})
    assert answer.status_code == 507 and answer.text == NO_ROOM


def test_pieces_that_an_upload_left_are_swept_away(tmp_path):
    (tmp_path / "tmpabc").write_bytes(b"x")
    (tmp_path / "kept").mkdir()
    sweep(tmp_path)
    assert (tmp_path / "tmpabc").exists()  # it may still grow
    sweep(tmp_path, older_than=-1)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


# --- rates and times


def test_each_address_has_its_own_rate(visit):
    client = visit(Limits(pages_per_minute=4))
    answers = [client.get("/") for _ in range(5)]
    assert {answers[0].status_code, answers[1].status_code} == {200} and answers[4].status_code == 429
    assert int(answers[4].headers["retry-after"]) >= 1 and "try again in" in answers[4].json()["detail"]
    assert joined(client, [{}, None]).status_code == 200  # events have another rate


def test_uploaded_bytes_have_a_rate(visit):
    client = visit(Limits(uploaded_mib_per_hour=2))
    assert [client.post(UPLOAD, files={"files": ("a.png", b"x" * n)}).status_code for n in (1 << 19, 1 << 19, 9)] == [
        200, 200, 429,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("host", "address"),
    [("203.0.113.7", "203.0.113.7"), ("2001:db8::1:2", "2001:db8::/64"), ("", "unknown"), ("x", "unknown")],
)
def test_a_household_is_one_address(host, address):
    assert address_of(host) == address


def test_a_body_that_stalls_is_ended():
    async def silent():
        await asyncio.sleep(60)

    sent = []

    async def send(message):
        sent.append(message)

    async def never(scope, receive, send):
        raise AssertionError("Gradio was asked")

    scope = {
        "type": "http", "method": "POST", "path": JOIN, "query_string": b"", "headers": [(b"host", b"a")], "client": None,
    }  # fmt: skip
    guarded = Guard(never, Limits(stall_seconds=0.05))
    run(guarded(scope, silent, send))
    assert sent[0]["status"] == 408 and not guarded.open and not guarded.held
    assert (b"connection", b"close") in sent[0]["headers"]

    async def gone():
        return {"type": "http.disconnect"}

    sent.clear()
    run(guarded(scope, gone, send))
    assert not sent and not guarded.open and not guarded.held


def test_streams_are_for_those_who_asked(visit):
    client = visit()
    for path in (
        "/gradio_api/queue/data?session_hash=nobody",
        "/gradio_api/call/answer/0123",
        "/gradio_api/queue/data",
    ):
        assert client.get(path).status_code == 404


def test_what_is_asked_while_a_stream_ends_is_replied_to_when_it_was_put_down(visit):
    client = visit()
    assert joined(client, [{}, None]).status_code == 200
    with ThreadPoolExecutor(1) as threads:
        with client.stream("GET", "/gradio_api/queue/data?session_hash=user") as stream:
            lines = stream.iter_lines()  # to let go of them is to hang up
            assert any("close_stream" in line for line in lines)
            request = threads.submit(joined, client, [{}, None])
            other = client.post(JOIN, json={"data": [{}, None], "fn_index": 1, "session_hash": "other"})
            assert other.status_code == 200
            with pytest.raises(TimeoutError):  # a page that has read no further would go on listening here
                request.result(timeout=0.5)
        assert request.result(timeout=60).status_code == 200
    with client.stream("GET", "/gradio_api/queue/data?session_hash=user") as stream:
        assert any("process_completed" in line for line in stream.iter_lines())


class SharedQueue:
    """Gradio's stream of one session: all readers take messages from one queue, and a hang-up drops them."""

    def __init__(self) -> None:
        self.messages: asyncio.Queue[str] = asyncio.Queue()
        self.readers, self.dropped = 0, False

    async def __call__(self, scope, receive, send) -> None:
        async def stream():
            yield {"type": "http.response.start", "status": 200, "headers": []}
            text = ""
            while "completed" not in text:
                text = await self.messages.get()
                yield {"type": "http.response.body", "body": text.encode(), "more_body": True}
            yield {"type": "http.response.body", "body": streams.LAST, "more_body": True}
            yield {"type": "http.response.body", "body": b"", "more_body": False}

        async def reading() -> None:
            async for message in stream():
                await send(message)

        async def hang_up() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            self.dropped = True

        self.readers += 1
        waits = [asyncio.ensure_future(wait) for wait in (reading(), hang_up())]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        self.readers -= 1


class Connection:
    """A request for the messages of a session."""

    def __init__(self, served: streams.Streams, app: SharedQueue) -> None:
        self.sent: list[dict] = []
        self.closed = asyncio.Event()
        self.task = asyncio.create_task(served.serve(app, {}, self.receive, self.send, "session"))

    async def receive(self) -> dict:
        await self.closed.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict) -> None:
        assert not self.ended, "a message after the end"
        assert self.sent or message["type"] == "http.response.start"
        self.sent.append(message)

    @property
    def ended(self) -> bool:
        return bool(self.sent) and self.sent[-1]["type"] == "http.response.body" and not self.sent[-1].get("more_body")

    @property
    def bodies(self) -> list[str]:
        return [message["body"].decode() for message in self.sent if message.get("body")]


async def turns() -> None:
    """Let all that can run do so."""
    for _ in range(50):
        await asyncio.sleep(0)


@pytest.mark.parametrize("started", [False, True])
def test_a_session_has_one_reader_which_sends_to_the_newest_request(started):
    """Two requests that took messages in turns left the page waiting for those that it did not read."""

    async def test() -> None:
        served, app = streams.Streams(60), SharedQueue()
        older = Connection(served, app)
        if started:
            await turns()
            app.messages.put_nowait("first")
            await turns()
        newer = Connection(served, app)
        await turns()
        assert older.ended and older.task.done() and older.bodies == ["first"] * started
        older.closed.set()
        await turns()
        assert app.readers == 1 and not app.dropped  # the hang-up of the older concerns nobody
        for text in ("second", "third", "completed"):
            app.messages.put_nowait(text)
            await turns()
        assert newer.bodies == ["second", "third", "completed", streams.LAST.decode()] and not newer.ended
        newer.closed.set()
        await newer.task
        assert app.readers == 0 and not app.dropped and not served._readers

    run(test())


def test_a_newer_request_releases_the_replies_that_wait_for_the_end_of_the_older():
    async def test() -> None:
        served, app, replies = streams.Streams(60), SharedQueue(), []
        older = Connection(served, app)
        app.messages.put_nowait("completed")
        await turns()

        async def reply(message: dict) -> None:
            replies.append(message)

        send = served.replying(reply, "session")
        waiting = asyncio.create_task(send({"type": "http.response.start"}))
        await turns()
        assert not replies and not older.ended
        newer = Connection(served, app)
        await turns()
        assert replies and older.ended and older.task.done()
        app.messages.put_nowait("completed")
        await turns()
        assert newer.bodies == ["completed", streams.LAST.decode()]
        newer.closed.set()
        await asyncio.gather(newer.task, waiting)

    run(test())


def test_a_hang_up_before_the_end_drops_the_events_of_the_session():
    async def test() -> None:
        served, app = streams.Streams(60), SharedQueue()
        only = Connection(served, app)
        await turns()
        only.closed.set()
        await only.task
        assert app.dropped and not app.readers and not served._readers

    run(test())


def test_a_stream_ends_also_for_those_who_do_not_hang_up(visit):
    client = visit(Limits(hang_up_seconds=0.1))
    assert joined(client, [{}, None]).status_code == 200
    events = client.get("/gradio_api/queue/data?session_hash=user").text
    assert events.rstrip().splitlines()[-1].startswith('data: {"msg":"close_stream"')
    assert joined(client, [{}, None]).status_code == 200


def test_answers_that_nobody_fetches_are_let_go(visit):
    client = visit(Limits(calls_per_address=1, unread_seconds=0.3, hang_up_seconds=0.1))
    request = {"data": [{}, None], "fn_index": 1}
    stream = "/gradio_api/queue/data?session_hash="
    assert client.post(JOIN, json=request | {"session_hash": "listens"}).status_code == 200
    assert "process_completed" in client.get(f"{stream}listens").text
    assert client.post(JOIN, json=request | {"session_hash": "leaves"}).status_code == 200
    event = client.post(CALL, json={"data": [None, "", ""]}).json()["event_id"]
    while client.post(CALL, json={"data": [None, "", ""]}).status_code == 429:  # until the last of them is dropped
        time.sleep(0.1)
    assert client.get(f"{stream}leaves").status_code == client.get(f"{stream}listens").status_code == 404
    assert client.get(f"{CALL}/{event}").status_code == 404


def test_calls_of_one_address_are_bounded_until_they_are_fetched(visit):
    """Each call of the JSON endpoint has a session of its own: a limit for sessions would bound nobody."""
    client = visit(Limits(calls_per_address=2, hang_up_seconds=0.1))
    call = {"data": [None, "", ""]}
    events = [client.post(CALL, json=call).json()["event_id"] for _ in range(2)]
    refused = client.post("/gradio_api/call/v2/answer", json={"image": None, "question": "", "gates_json": ""})
    assert refused.status_code == 429 and "fetch them first" in refused.json()["detail"]
    assert client.post(JOIN, json={"data": [{}, None], "fn_index": 1, "session_hash": "page"}).status_code == 200
    assert "event: complete" in client.get(f"{CALL}/{events[0]}").text
    assert client.post(CALL, json=call).status_code == 200
    assert client.post(CALL, json=call).status_code == 429


def test_calls_that_nobody_fetches_are_bounded_for_a_time_only(visit):
    client = visit(Limits(calls_per_address=1, unread_seconds=0.3, hang_up_seconds=0.1))
    call = {"data": [None, "", ""]}
    assert client.post(CALL, json=call).status_code == 200
    assert client.post(CALL, json=call).status_code == 429
    while client.post(CALL, json=call).status_code == 429:
        time.sleep(0.1)


def test_who_fetches_nothing_may_not_ask_for_ever(visit):
    client = visit(Limits(unread_messages=6, hang_up_seconds=0.1))
    assert joined(client, [{}, None]).status_code == 200
    while (answer := joined(client, [{}, None]).status_code) == 200:  # an event has messages once it has run
        time.sleep(0.1)
    assert answer == 429
    assert "process_completed" in client.get("/gradio_api/queue/data?session_hash=user").text
    assert joined(client, [{}, None]).status_code == 200


# --- who asks, and what every answer carries


def test_a_page_for_this_machine_alone_is_no_other_hosts(visit):
    client = visit(local=True)
    assert (
        client.get("/", headers={"host": "evil.example"}).status_code == 421
    )  # a name that was bound to 127.0.0.1 anew
    assert client.get("/", headers={"host": "localhost:7860"}).status_code == 200
    assert visit().get("/", headers={"host": "sinks.example"}).status_code == 200


@pytest.mark.parametrize("host", ["", "a b", "a/b", "[::1", "a:99999999", "a@b", "xn--\xff", "a\tb"])
def test_a_host_that_is_none(host):
    assert not is_host(host)
    assert is_host("[::1]:7860") and is_host("sinks.example") and is_host("127.0.0.1:7860")


def test_other_sites_may_not_ask(visit):
    client = visit()
    body = {"data": [{}, None], "fn_index": 1, "session_hash": "a"}
    assert client.post(JOIN, json=body, headers={"sec-fetch-site": "cross-site"}).status_code == 403
    assert client.post(JOIN, json=body, headers={"sec-fetch-site": "same-origin"}).status_code == 200


def test_the_host_of_a_proxy_counts_only_behind_one(visit):
    forwarded = {"x-forwarded-host": "sinks.example", "x-gradio-server": "http://evil.example"}
    client = visit()
    assert client.get("/config", headers=forwarded).json()["root"] == str(client.base_url).rstrip("/")
    assert visit(proxied=True).get("/config", headers=forwarded).json()["root"] == "http://sinks.example"
    assert visit(proxied=True).get("/", headers={"x-forwarded-host": "a b"}).status_code == 400


def test_every_answer_is_dressed(visit):
    client = visit()
    for answer in (client.get("/"), client.get("/nothing"), client.get("/config"), client.post(JOIN, content=b"")):
        assert answer.headers["x-content-type-options"] == "nosniff" and answer.headers["referrer-policy"]
        policy = answer.headers["content-security-policy"]
        assert "'unsafe-inline'" not in policy.split("style-src")[0] and "frame-ancestors 'self'" in policy
    assert "huggingface.co" in visit(on_space=True).get("/").headers["content-security-policy"]
    stored = client.get(f"/gradio_api/file={uploaded(client)}").headers["content-security-policy"]
    assert stored == headers.LOCKED


def test_files_named_by_their_content_are_cached_for_ever(visit):
    client = visit()
    scripts = re.findall(r"""["']\.?(/assets/[^"']+\.(?:js|css))["']""", client.get("/").text)
    assert scripts
    for path in scripts:
        assert client.get(path).headers["cache-control"] == "public, max-age=31536000, immutable", path
    for path in ("/", "/config", "/theme.css", "/favicon.ico", "/assets/missing-0aNuD791.js"):
        assert "immutable" not in client.get(path).headers.get("cache-control", ""), path


@pytest.mark.parametrize("first", ["", "window.first = 1"])
def test_the_pages_own_scripts_are_named_by_hash(visit, first):
    page = visit(first=first).get("/")
    assert page.text.count("<head><script>window.first = 1</script>") == bool(first)
    hashes = scripts_of(page.content).split()
    assert len(hashes) >= 3 and all(hashed in page.headers["content-security-policy"] for hashed in hashes)
    assert int(page.headers["content-length"]) == len(page.content)
    assert scripts_of(b'<script src="x.js"></script><script type="module">1</script>').count("sha256-") == 1


def test_a_query_that_is_no_ones(visit):
    client = visit()
    assert client.get("/", params={"deep_link": "../../etc"}).status_code == 200
    assert client.get("/", params={"x": "y" * 3000}).status_code == 414
