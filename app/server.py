"""The server: the page behind its guard, with health check and metrics, until a signal stops it."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from sinkgate.sinks.glossary import DARK_GROUP_COLORS, GROUP_COLORS, GROUP_LABELS, TERMS

from . import guard
from .engine import MAX_SESSIONS, Engine
from .metrics import Metrics, log
from .page import theme

if TYPE_CHECKING:
    from .mcp_server import McpServer

HERE = Path(__file__).parent
GRACE = 15.0  # seconds in which running answers may end after a signal to stop
TRIM_SECONDS = 30.0  # between two releases of freed memory
POLL_SECONDS = 0.005  # between two looks of Gradio at its empty queue, which by itself looks every 0.001 s
FLUSH_SECONDS = 1.0  # for the last messages to reach the clients


class Server:
    """One page, its engine, and the routes beside it.

    Args:
        page: the page.
        engine: its engine.
        file_bytes: largest size of an uploaded file.
        mcp: server of the Model Context Protocol, served too if given.
    """

    def __init__(self, page: gr.Blocks, engine: Engine, file_bytes: int, mcp: McpServer | None = None) -> None:
        self.page, self.engine, self.file_bytes, self.mcp = page, engine, file_bytes, mcp
        self.metrics = Metrics(engine)
        self._stopping = threading.Event()

    def start(self, host: str, port: int, proxies: str = "") -> None:
        """Start to serve.

        Args:
            host: address to listen on.
            port: port to listen on.
            proxies: addresses or networks whose X-Forwarded-For is trusted, separated by commas.

        Raises:
            OSError: the port is taken, or the address is not this machine's.
        """
        os.environ["FORWARDED_ALLOW_IPS"] = proxies
        guards = guard.middleware(
            guard.Limits(file_bytes=self.file_bytes),
            local=host in ("127.0.0.1", "::1", "localhost") and not proxies,
            proxied=bool(proxies),
            on_space="SPACE_ID" in os.environ,
            scripts=guard.scripts_of(head().encode()),
            first=(HERE / "components" / "first.js").read_text(encoding="utf-8"),
            mcp=self.mcp is not None,
            observe=self.metrics.refuse,
        )
        routes = [self.metrics.health()]
        more: dict[str, Any] = {}
        if self.mcp:
            routes.append(self.mcp.route)
            more["lifespan"] = self.mcp.lifespan
        # the scheduler's limit comes first, and its message says more
        self.page.queue(max_size=4 * self.engine.scheduler.limits.queue)
        self.page._queue.sleep_when_free = POLL_SECONDS
        self.page._queue.progress_update_sleep_when_free = 1.0  # the page has no progress bars
        self.page.launch(
            server_name=host,
            server_port=port,
            share=False,
            allowed_paths=[],
            max_file_size=self.file_bytes,
            state_session_capacity=MAX_SESSIONS,
            show_error=False,
            enable_monitoring=False,
            run_history=False,
            ssr_mode=False,
            footer_links=["api"],
            theme=theme(),
            head=head(),
            mcp_server=False,  # Gradio's own fetches addresses and reads files
            prevent_thread_lock=True,
            app_kwargs={"middleware": guards, "routes": routes, **more},
        )

    def run_until_stopped(self) -> None:
        """Wait for SIGTERM or SIGINT; then refuse jobs that wait, and let the running one end."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._stopping.set())
        while not self._stopping.wait(TRIM_SECONDS):
            trim_memory()
        self.engine.scheduler.close()
        if not self.engine.scheduler.wait_until_idle(GRACE):
            log.warning("stopped with a job running", extra={"waiting": len(self.engine.scheduler)})
        threading.Event().wait(FLUSH_SECONDS)
        self.page.close(verbose=False)
        sys.exit(0)


def trim_memory() -> None:
    """Return freed memory to the system: glibc keeps pages of pictures and tensors for each thread, which add up over hours."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


def head() -> str:
    """Return style and shared script for the page's head: Gradio would rewrite the selectors of its ``css`` parameter."""
    style = (HERE / "style.css").read_text(encoding="utf-8")
    light, dark = (
        "".join(f"--group-{group}: {color}; " for group, color in colors.items())
        for colors in (GROUP_COLORS, DARK_GROUP_COLORS)
    )
    script = (HERE / "components" / "shared.js").read_text(encoding="utf-8")
    script += f"Object.assign(window.sinkgate, {json.dumps({'terms': TERMS, 'groups': GROUP_LABELS})});"
    return f"<style>:root, .on-paper {{ {light}}}\nbody.dark {{ {dark}}}\n{style}</style><script>{script}</script>"
