"""Security headers of every response, and the Content-Security-Policy of the page."""

from __future__ import annotations

import re
from base64 import b64encode
from hashlib import sha256

from starlette.datastructures import MutableHeaders
from starlette.types import Message, Send

POLICY = (  # Gradio's components need 'unsafe-eval'
    "default-src 'self'; script-src 'self' 'unsafe-eval'{scripts}; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' blob:; font-src 'self' data:; connect-src 'self' data: blob:; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors {frames}"
)
LOCKED = "default-src 'none'; sandbox; frame-ancestors 'none'"  # for uploaded files
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), clipboard-read=(self), geolocation=(), microphone=(), payment=(), usb=()",
}
#: Path of a file whose name has a checksum of its content.
HASHED = re.compile(r"/assets/[\w.-]+-[\w-]{8}\.[a-z0-9]+")
FOREVER = "public, max-age=31536000, immutable"  # a year
SPACES = "'self' https://huggingface.co https://*.huggingface.co https://*.hf.space"


class SecurityHeaders:
    """A ``send`` that adds security headers, and a first script to a page; a page's inline scripts are allowed by their hashes.

    Args:
        send: the server's ``send``.
        frames: sources that may frame the page.
        scripts: hashes of scripts that are allowed beside those of the page.
        first: script that a page runs before its own.
        path: of the request; files whose names change with their content are cached for ever.
    """

    def __init__(self, send: Send, frames: str, scripts: str, first: bytes, path: str) -> None:
        self.send, self.frames, self.scripts, self.first = send, frames, scripts, first
        self.uploaded, self.hashed = "/file=" in path, HASHED.fullmatch(path)
        self.started = False
        self._start: Message | None = None  # of a page, held back until its body is complete
        self._page = b""

    async def __call__(self, message: Message) -> None:
        """Send one ASGI message."""
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
            if self.hashed and message["status"] == 200:
                headers["Cache-Control"] = FOREVER
            if headers.get("content-type", "").startswith("text/html"):
                self._start = message
                return
            headers["Content-Security-Policy"] = LOCKED if self.uploaded else self._policy()
        elif self._start is not None:
            self._page += message.get("body", b"")
            if message.get("more_body"):
                return
            page, headers = self._page, MutableHeaders(scope=self._start)
            if self.first:
                page = page.replace(b"<head>", b"<head><script>" + self.first + b"</script>", 1)
                headers["Content-Length"] = str(len(page))
            headers["Content-Security-Policy"] = self._policy(scripts_of(page))
            await self.send(self._start)
            message, self._start = {"type": "http.response.body", "body": page}, None
        self.started = True
        await self.send(message)

    def _policy(self, scripts: str = "") -> str:
        return POLICY.format(scripts=self.scripts + scripts, frames=self.frames)


def scripts_of(page: bytes) -> str:
    """Return the hashes of a page's inline scripts, as sources of a policy."""
    scripts = re.findall(rb"<script(?![^>]*\ssrc=)[^>]*>(.*?)</script>", page, re.DOTALL)
    return "".join(f" 'sha256-{b64encode(sha256(script).digest()).decode()}'" for script in scripts)
