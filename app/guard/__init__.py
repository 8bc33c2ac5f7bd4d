"""ASGI middleware for public deployments: path allow-list, request validation, security headers, cleanup of abandoned streams."""

from .guard import Guard, Limits, middleware
from .headers import scripts_of
from .requests import address_of

__all__ = ["Guard", "Limits", "address_of", "middleware", "scripts_of"]
