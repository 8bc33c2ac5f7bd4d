"""ASGI middleware for public deployments: path allow-list, request validation, security headers, cleanup of abandoned streams."""

from .guard import Guard, Limits, address_of, middleware
from .headers import scripts_of

__all__ = ["Guard", "Limits", "address_of", "middleware", "scripts_of"]
