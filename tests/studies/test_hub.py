"""Surveys are uploaded through the Hub's own client to a server on this machine; what would fail later is refused before."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import huggingface_hub
import pytest
from typer.testing import CliRunner

import sinkgate as sg
from sinkgate.cli import cli
from sinkgate.data import photographs
from sinkgate.studies.hub import check_target
from sinkgate.studies.survey import Survey, read_card


@pytest.fixture
def hub(monkeypatch):
    """The few endpoints of an upload, with the requests that they got; ``refused`` answers commits with an error."""
    state = SimpleNamespace(requests=[], files={}, refused="", account={"name": "you", "orgs": [{"name": "lab"}]})

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def reply(self, content, status=200, **headers):
            body = json.dumps(content).encode()
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self):
            path = self.path.partition("?")[0]
            state.requests += [path] * (path != "/api/agent-harnesses")  # a habit of the client's
            if self.headers["Authorization"] != "Bearer hf_token":
                self.reply({"error": "Invalid credentials"}, 401)
            elif path == "/api/whoami-v2":
                self.reply(state.account)
            elif path.startswith("/api/datasets/"):
                self.reply({"id": "you/sinks", "sha": "0" * 40, "siblings": []})
            else:
                self.reply({"error": "Entry not found"}, 404, X_Error_Code="EntryNotFound")

        def do_POST(self):
            path = self.path.partition("?")[0]
            state.requests += [path] * (path != "/api/agent-harnesses")  # a habit of the client's
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if path == "/api/repos/create":
                state.created = json.loads(body)
                self.reply({"url": f"{state.address}/datasets/you/sinks"})
            elif path.endswith("/preupload/main"):
                names = [file["path"] for file in json.loads(body)["files"]]
                files = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]
                self.reply({"files": files})
            elif path.endswith("/commit/main") and state.refused:
                self.reply({"error": state.refused}, 403, X_Error_Message=state.refused)
            elif path.endswith("/commit/main"):
                for line in map(json.loads, body.decode().splitlines()):
                    if line["key"] == "file":
                        state.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                self.reply(
                    {
                        "success": True,
                        "commitUrl": f"{state.address}/datasets/you/sinks/commit/{1:040}",
                        "commitOid": "1" * 40,
                    }
                )
            else:
                self.reply({"error": f"no such endpoint: {path}"}, 404)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    state.address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", state.address)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_token")
    yield state
    server.shutdown()
    server.server_close()


def survey(out, *options):
    command = ["survey", str(photographs()["cat"]), "--question", "How many objects are there?", "--out", str(out)]
    return CliRunner().invoke(cli, [*command, *options])


def test_a_survey_is_kept_when_the_push_fails_and_the_same_command_uploads_it(hub, tmp_path, monkeypatch):
    out, push = tmp_path / "out", ("--push", "you/sinks")
    hub.refused = "Your storage is full"
    failed = survey(out, *push)
    assert isinstance(failed.exception, sg.SinkgateError)
    message = str(failed.exception)
    assert f"cannot be uploaded to you/sinks: Your storage is full; it stays in {out}" in message
    assert "same command" in message and not hub.files
    content = read_card(out)

    monkeypatch.setattr(Survey, "work", lambda *_: pytest.fail("measured again"))
    hub.refused = ""
    done = survey(out, *push)
    assert done.exit_code == 0, done.output
    assert f"uploaded {hub.address}/datasets/you/sinks/tree/main/demo" in done.stderr
    assert hub.created == {"name": "sinks", "organization": "you", "type": "dataset"}
    assert json.loads(hub.files["demo/survey.json"]) == content
    tables = {f"demo/{path.name}" for path in out.glob("*.parquet")}
    assert tables and set(hub.files) == {"demo/survey.json", "demo/report.html", "demo/study.json", *tables}
    for name, sent in hub.files.items():
        assert sent == (out / name.removeprefix("demo/")).read_bytes(), name


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("sinks", {}, "expected its owner too, such as you/sinks"),
        ("a/b/c", {}, "the data set is 'a/b/c': Repo id"),
        ("you/..", {}, "the data set is 'you/..'"),
        ("you/sinks", {"token": None}, "no token of the Hub.*hf auth login"),
        ("you/sinks", {"token": "hf_other"}, "uploaded to you/sinks later: Invalid user token"),
        ("you/sinks", {"offline": True}, "HF_HUB_OFFLINE is set"),
        ("you/sinks", {"address": "http://127.0.0.1:9"}, "uploaded to you/sinks later: .*refused"),
        ("others/sinks", {}, "belongs to you, lab, and the data set is 'others/sinks'"),
        ("lab/sinks", {"role": "read"}, "may only read.*write access"),
    ],
)
def test_a_push_that_would_fail_is_refused_before_the_model_is_loaded(
    hub, tmp_path, monkeypatch, name, change, message
):
    if "token" in change:
        monkeypatch.delenv("HF_TOKEN")
        monkeypatch.setattr("sinkgate.studies.hub.get_token", lambda: change["token"])
        monkeypatch.setattr("huggingface_hub.hf_api.get_token", lambda: change["token"])
        monkeypatch.setattr("huggingface_hub.utils._headers.get_token", lambda: change["token"])
    if "offline" in change:
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    if "address" in change:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", change["address"])
    hub.account["auth"] = {"accessToken": {"role": change.get("role", "write")}}
    refused = survey(tmp_path / "out", "--push", name, "--model", "nowhere")
    assert isinstance(refused.exception, sg.SinkgateError)
    with pytest.raises(sg.SinkgateError, match=message):
        raise refused.exception
    assert not (tmp_path / "out").exists() and hub.requests in ([], ["/api/whoami-v2"])


def test_a_target_of_the_owner_or_an_organisation_passes(hub):
    check_target("you/sinks")
    check_target("lab/sinks")
    assert hub.requests == ["/api/whoami-v2"] * 2
    check_target("others/sinks", connect=False)
    assert len(hub.requests) == 2
