"""The page's protocol without a browser: events joined over HTTP, what comes back read from the stream."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from typing import Any

import httpx

API = "/gradio_api"
WAIT = httpx.Timeout(60, connect=10)


class RawClient:
    """One user's connection to a running app. Inputs of events are the newest values, as in a page."""

    def __init__(self, address: str) -> None:
        self.http = httpx.Client(base_url=address, timeout=WAIT)
        config = self.http.get("/config").raise_for_status().json()
        named = {part["id"]: part["props"].get("elem_id") or part["type"] for part in config["components"]}
        self._ids = {name: number for number, name in named.items()}
        self.values = {named[part["id"]]: part["props"].get("value") for part in config["components"]}
        self.session = uuid.uuid4().hex[:12]
        self._events: dict[tuple[str, str], tuple[int, list[str], list[str]]] = {}
        self._next: dict[tuple[str, str], tuple[str, str]] = {}
        number = {}
        for event in config["dependencies"]:
            component, trigger = event["targets"][0]
            key = (named.get(component, ""), trigger)
            if trigger == "then":  # belongs to the event before it
                key = (str(event["id"]), "then")
                self._next[number[event["trigger_after"]]] = key
            number[event["id"]] = key
            self._events[key] = (event["id"], [named[i] for i in event["inputs"]], [named[i] for i in event["outputs"]])

    def close(self) -> None:
        """Leave, as a closed tab does."""
        self.http.close()

    def send(self, component: str, trigger: str, **changes: Any) -> dict[str, Any]:
        """Run one event to its end; gives what the components got, without those that were left alone."""
        *_, last = self.stream(component, trigger, **changes)
        return last

    def call(self, component: str, function: str, *arguments: Any) -> dict[str, Any]:
        """Call a component's function on the server; gives new values of components."""
        body = {
            "component_id": self._ids[component],
            "fn_name": function,
            "data": arguments,
            "session_hash": self.session,
        }
        return self.http.post(f"{API}/component_server/", json=body).raise_for_status().json()

    def follow(self, component: str, trigger: str) -> dict[str, Any]:
        """Run what the page runs after this event."""
        return self.send(*self._next[component, trigger])

    def stream(self, component: str, trigger: str, **changes: Any) -> Iterator[dict[str, Any]]:
        """Run one event; yields what comes back, a generator's parts too (the first whole, the later ones as Gradio's differences).

        Raises:
            httpx.HTTPStatusError: the server refused the event.
            RuntimeError: the event failed.
        """
        event, inputs, outputs = self._events[component, trigger]
        self.values |= changes
        data = [None if name == "state" else self.values.get(name) for name in inputs]
        body = {"fn_index": event, "session_hash": self.session, "data": data}
        joined = self.http.post(f"{API}/queue/join", json=body).raise_for_status().json()["event_id"]
        for message in self._messages():
            if message.get("event_id") != joined or message["msg"] not in ("process_generating", "process_completed"):
                continue
            if not message["success"]:
                raise RuntimeError(f"{component}.{trigger} failed: {message['output']}")
            output = message["output"]["data"]
            got = {
                name: value
                for name, value in zip(outputs, output, strict=True)
                if not (isinstance(value, dict) and value.get("__type__") == "update")
            }
            if message["msg"] == "process_completed":
                self.values |= {name: value for name, value in got.items() if name in self.values and name != "state"}
            yield got
            if message["msg"] == "process_completed":
                return

    def _messages(self) -> Iterator[dict[str, Any]]:
        with self.http.stream("GET", f"{API}/queue/data", params={"session_hash": self.session}) as stream:
            stream.raise_for_status()
            for line in stream.iter_lines():
                if line.startswith("data:"):
                    yield json.loads(line[5:])
        raise RuntimeError("the server ended the stream before the event was over")
