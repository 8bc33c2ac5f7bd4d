"""Addresses, hosts and bodies of requests."""

from __future__ import annotations

import ipaddress
import re
from typing import IO

import httpx
from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope

CHUNK = 1 << 16  # bytes of a body in one message


def address_of(host: str) -> str:
    """Return a client's IPv4 address, or the network that a household's IPv6 addresses share."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return "unknown"
    return str(address) if address.version == 4 else str(ipaddress.ip_network((int(address), 64), strict=False))


def is_host(host: str) -> bool:
    """Return whether this is a valid host, perhaps with a port."""
    if not re.fullmatch(r"([A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(:\d{1,5})?", host):
        return False
    try:
        return bool(httpx.URL(f"http://{host}/").host)
    except httpx.InvalidURL:
        return False


def declared(scope: Scope) -> int:
    """Return the length that a request declares for its body; 0 without one."""
    length = Headers(scope=scope).get("content-length", "0")
    return int(length) if length.isdecimal() and len(length) < 16 else 0


def with_body(scope: Scope, length: int, kind: bytes) -> Scope:
    """Return a request with a body of this length and content type."""
    headers = [pair for pair in scope["headers"] if pair[0].lower() not in (b"content-length", b"content-type")]
    return {**scope, "headers": [*headers, (b"content-length", str(length).encode()), (b"content-type", kind)]}


def replayed(file: IO[bytes], receive: Receive) -> Receive:
    """Return a ``receive`` that sends a body again."""
    file.seek(0)
    ended = False

    async def read() -> Message:
        nonlocal ended
        if ended:
            return await receive()
        chunk = file.read(CHUNK)
        ended = not chunk
        return {"type": "http.request", "body": chunk, "more_body": bool(chunk)}

    return read
