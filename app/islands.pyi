"""The page's own components: each a `gradio.HTML` whose markup, style and behaviour are files in components/.

Values travel as JSON and are drawn by the component's script with ``textContent`` and canvas. Nothing a
visitor or the model wrote is ever put into a template: Gradio evaluates those.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
from gradio.data_classes import ImageData

COMPONENTS = Path(__file__).parent / "components"

from gradio.events import Dependency

class Island(gr.HTML):
    """A component drawn by ``components/<name>.html`` and ``.js``; a missing file counts as empty."""

    name = ""
    schema: dict[str, Any] = {"type": "object"}

    def __init__(self, value: Any = None, **settings: Any) -> None:
        super().__init__(
            value,
            html_template=_read(f"{self.name}.html"),
            css_template="",
            js_on_load=_read(f"{self.name}.js"),
            apply_default_css=False,
            elem_id=self.name,
            elem_classes=["island"],
            **settings,
        )

    def preprocess(self, payload: Any) -> Any:
        """The value as the page holds it; whoever reads it checks it."""
        return payload

    def postprocess(self, value: Any) -> Any:
        """JSON values go out as they are."""
        return value

    def api_info(self) -> dict[str, Any]:
        """The JSON schema of the value."""
        return self.schema
    from typing import Callable, Literal, Sequence, Any, TYPE_CHECKING
    from gradio.blocks import Block
    if TYPE_CHECKING:
        from gradio.components import Timer
        from gradio.components.base import Component


class Header(Island):
    """Title, the one sentence that says what this is, the light switch."""

    name = "header"
    from typing import Callable, Literal, Sequence, Any, TYPE_CHECKING
    from gradio.blocks import Block
    if TYPE_CHECKING:
        from gradio.components import Timer
        from gradio.components.base import Component


class Questions(Island):
    """Example pictures and questions; for a random scene also its ground truth, on request."""

    name = "questions"
    from typing import Callable, Literal, Sequence, Any, TYPE_CHECKING
    from gradio.blocks import Block
    if TYPE_CHECKING:
        from gradio.components import Timer
        from gradio.components.base import Component


class Answers(Island):
    """The unchanged answer beside the gated one."""

    name = "answers"
    from typing import Callable, Literal, Sequence, Any, TYPE_CHECKING
    from gradio.blocks import Block
    if TYPE_CHECKING:
        from gradio.components import Timer
        from gradio.components.base import Component


class Words(Island):
    """The likeliest first words before and after, as paired bars."""

    name = "words"
    from typing import Callable, Literal, Sequence, Any, TYPE_CHECKING
    from gradio.blocks import Block
    if TYPE_CHECKING:
        from gradio.components import Timer
        from gradio.components.base import Component


class LensPicker(Island):
    """Which layer, head and query the maps show: ``{"layer": 3, "head": null, "row": 0, "hide": false}``."""

    name = "lens"
    from typing import Callable, Literal, Sequence, Any, TYPE_CHECKING
    from gradio.blocks import Block
    if TYPE_CHECKING:
        from gradio.components import Timer
        from gradio.components.base import Component


class Maps(Island):
    """Attention over the image, unchanged beside gated, on one scale. Its value is a whole frame."""

    name = "maps"
    from typing import Callable, Literal, Sequence, Any, TYPE_CHECKING
    from gradio.blocks import Block
    if TYPE_CHECKING:
        from gradio.components import Timer
        from gradio.components.base import Component


class Status(Island):
    """One sentence: ``{"text": "...", "tone": "calm" | "warning"}``."""

    name = "status"
    from typing import Callable, Literal, Sequence, Any, TYPE_CHECKING
    from gradio.blocks import Block
    if TYPE_CHECKING:
        from gradio.components import Timer
        from gradio.components.base import Component


class Mixer(Island):
    """Two faders a layer: ``{"v_sink": [1.0, ...], "rest": [1.0, ...]}``, scales from 0 to 2."""

    name = "mixer"
    schema = {
        "type": "object",
        "properties": {group: {"type": "array", "items": {"type": "number"}} for group in ("v_sink", "rest")},
        "required": ["v_sink", "rest"],
    }
    from typing import Callable, Literal, Sequence, Any, TYPE_CHECKING
    from gradio.blocks import Block
    if TYPE_CHECKING:
        from gradio.components import Timer
        from gradio.components.base import Component


class Picture(gr.Image):
    """An image box that hands on the uploaded file unopened, so that a broken one meets our own check."""

    is_template = True  # drawn by gradio's image component

    def preprocess(self, payload: ImageData | None) -> str | None:
        """The file's path (Gradio has checked that it is an upload) or a data URL."""
        if payload is None:
            return None
        if payload.url and payload.url.startswith("data:"):
            return payload.url
        return payload.path
    from typing import Callable, Literal, Sequence, Any, TYPE_CHECKING
    from gradio.blocks import Block
    if TYPE_CHECKING:
        from gradio.components import Timer
        from gradio.components.base import Component


def _read(name: str) -> str:
    path = COMPONENTS / name
    return path.read_text(encoding="utf-8") if path.exists() else ""