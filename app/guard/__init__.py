"""What stands between strangers and the page: which requests come through, what they may hold, what every answer carries."""

from .guard import Guard, Limits, address_of, middleware
from .headers import scripts_of

__all__ = ["Guard", "Limits", "address_of", "middleware", "scripts_of"]
