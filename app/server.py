"""The page as a server: behind its guard, with health check and metrics, until it is told to stop."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from . import guard
from .metrics import Monitor, log
from .page import theme
from .state import KEPT_VISITORS, Desk

if TYPE_CHECKING:
    from .mcp_server import Tools

HERE = Path(__file__).parent
GRACE = 15.0  # seconds in which answers under way may end when the server is told to stop
TIDY = 30.0  # seconds between two times that memory is given back
FAREWELL = 1.0  # seconds for what is written to reach the visitors


class Server:
    """One page, its desk, and what is served beside it."""

    def __init__(self, page: gr.Blocks, desk: Desk, file_bytes: int, tools: Tools | None = None) -> None:
        self.page, self.desk, self.tools = page, desk, tools
        self.file_bytes = file_bytes  # of a file that a visitor uploads, at most
        self.monitor = Monitor(desk)
        self._told = threading.Event()

    def start(self, host: str, port: int, proxies: str = "") -> None:
        """Serve from now on; ``proxies`` are those whose word on visitors' addresses is taken.

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
            mcp=self.tools is not None,
            observe=self.monitor.refuse,
        )
        routes = [self.monitor.health()]
        more: dict[str, Any] = {}
        if self.tools:
            routes.append(self.tools.route)
            more["lifespan"] = self.tools.lifespan
        self.page.queue(max_size=4 * self.desk.turns.limits.places)  # the turnstile's bound comes first, and says more
        self.page.launch(
            server_name=host,
            server_port=port,
            share=False,
            allowed_paths=[],
            max_file_size=self.file_bytes,
            state_session_capacity=KEPT_VISITORS,
            show_error=False,
            enable_monitoring=False,
            run_history=False,
            ssr_mode=False,
            footer_links=["api"],
            theme=theme(),
            head=head(),
            mcp_server=False,  # Gradio's, which fetches addresses and reads files; ours is in `tools`
            prevent_thread_lock=True,
            app_kwargs={"middleware": guards, "routes": routes, **more},
        )

    def run_until_told(self) -> None:
        """Wait for SIGTERM or SIGINT; then nobody new comes in, who waits is told so, who is being answered is answered."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._told.set())
        while not self._told.wait(TIDY):
            give_back_memory()
        self.desk.turns.close()
        if not self.desk.turns.wait_until_idle(GRACE):
            log.warning("stopped before all was answered", extra={"waiting": len(self.desk.turns)})
        threading.Event().wait(FAREWELL)
        self.page.close(verbose=False)
        sys.exit(0)


def give_back_memory() -> None:
    """Hand freed memory to the system: what glibc keeps of the pictures and tensors of many threads adds up over hours."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


def head() -> str:
    """Style and shared script as written: Gradio rewrites the selectors of what comes in as ``css``."""
    style = (HERE / "style.css").read_text(encoding="utf-8")
    script = (HERE / "components" / "shared.js").read_text(encoding="utf-8")
    return f"<style>{style}</style><script>{script}</script>"
