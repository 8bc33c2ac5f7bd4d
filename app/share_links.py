"""Share links and Python code: a link opens the same view again, the code reproduces it.

A link holds everything in its fragment, the part after ``#`` that browsers send to no server; the page sends it to the
handlers. Links come from the public, so each value is checked like any other input. Uploaded pictures are in no link.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import sinkgate as sg
from sinkgate.data import photographs
from sinkgate.models.loading import BUILT_IN
from sinkgate.scenes import questions
from sinkgate.scenes.scene import Scene

from .engine import MAX_NEW_TOKENS, MAX_QUESTION, Engine
from .examples import random_scene
from .lens import Lens
from .user_session import DEFAULT_CRITERION, UserSession
from .view_model import JSON, mixer_value

VERSION = 1
MAX_LENGTH = 8_000  # characters of a link; the longest question and gates of 100 layers take half
MAX_SHEETS = 1_000
SEEDS = range(1 << 32)
NO_PICTURE = (
    "Your picture is not in the link: it opens with a scene instead. Send the picture along, to be uploaded there."
)
NO_GATES = "Your uploaded gates are not in the link; the scales that they set are."
STAND_IN = "The picture of this link was uploaded and is not in the link: this is a scene in its place. Upload the picture to go on."
GATES_MISSING = "The learned gates of this link are not on this server: the faders show the scales that they set."


class LinkError(sg.SinkgateError):
    """A link that cannot be opened here."""


@dataclass(frozen=True)
class Link:
    """The view of a page without uploads: scene, question, gates, lens."""

    model: str
    question: str
    gates: sg.Gates
    lens: Lens
    seed: int | None = None  # of the scene; None for any other picture
    photograph: str | None = None  # name of a photograph of the package
    scene: Scene | None = None  # where it was edited
    kind: str | None = None  # of the question, where it is one of the scene's examples
    learned: str | None = None  # name of the learned gates
    off: tuple[int, ...] = ()  # their layers that are off

    @classmethod
    def of(cls, session: UserSession, lens: Lens, engine: Engine) -> Link:
        """Return the link to a user's view."""
        state, learned = session.state, session.learned
        offered = learned and any(gates.name == learned.name for gates in engine.learned)
        return cls(
            model=engine.vlm.name,
            question=session.question,
            gates=state.gates if state else sg.Gates.ones(engine.vlm),
            lens=lens,
            seed=session.seed if session.scene else None,
            photograph=session.photograph,
            scene=session.scene if edited(session) else None,
            kind=session.kinds.get(session.question) if session.scene else None,
            learned=learned.name if learned and offered else None,
            off=tuple(sorted(learned.off)) if learned and offered else (),
        )

    def to_text(self) -> str:
        """Return the link as letters, digits, ``-`` and ``_``: JSON without default values, in base64."""
        content = {
            "model": self.model,
            "question": self.question,
            "seed": self.seed,
            "photograph": self.photograph,
            "kind": self.kind,
            "scene": self.scene and self.scene.to_dict(),
            "gates": None if self.gates.is_identity else faders(self.gates),
            "learned": self.learned,
            "off": self.off or None,
            "lens": asdict(self.lens),
        }
        content = {"v": VERSION, **{key: value for key, value in content.items() if value is not None}}
        text = json.dumps(content, separators=(",", ":"), ensure_ascii=False)
        return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")

    @classmethod
    def from_text(cls, text: Any, engine: Engine) -> Link:
        """Return the link of a text that `to_text` wrote; values of the lens that the model lacks are replaced.

        Raises:
            LinkError: it is no such text, or too long, or of another release or model.
            SinkgateError: the scene or the gates are not valid.
        """
        content = _content(text)
        version, model, question, seed, kind, learned, off = (
            content.get(key) for key in ("v", "model", "question", "seed", "kind", "learned", "off")
        )
        if version != VERSION:
            raise LinkError("This link is of another release of sinkgate: the page opens as usual.")
        if not (isinstance(model, str) and isinstance(question, str) and (seed is None or _whole(seed, SEEDS))):
            raise LinkError(
                "This link lacks the model, the question or the scene: the page opens as usual. Copy the link again."
            )
        if model != engine.vlm.name:
            raise LinkError(
                f"This link is for the model {model[:80]}, and this page runs {engine.vlm.name}: the page opens as usual."
            )
        if len(question) > MAX_QUESTION:
            raise LinkError(f"The question of this link is too long: {len(question)} characters, limit {MAX_QUESTION}.")
        gates, scene, photograph = (content.get(key) for key in ("gates", "scene", "photograph"))
        return cls(
            model=model,
            question=question,
            gates=sg.Gates.ones(engine.vlm) if gates is None else engine.read_gates(gates),
            lens=Lens.read(content.get("lens"), engine.vlm, MAX_SHEETS),
            seed=seed,
            photograph=photograph if isinstance(photograph, str) and photograph in photographs() else None,
            scene=None if scene is None or seed is None else Scene.from_dict(scene),
            kind=kind if isinstance(kind, str) and kind in questions.KINDS else None,
            learned=learned if isinstance(learned, str) else None,
            off=tuple(layer for layer in off if _whole(layer)) if isinstance(off, list) else (),
        )


def share_value(session: UserSession, lens: Lens, engine: Engine) -> JSON:
    """Return the link, the Python code, and a sentence about content that the link lacks.

    Args:
        session: the user's session.
        lens: the attention map on the page.
        engine: the model and the server's gates.
    """
    link = Link.of(session, lens, engine)
    own = session.scene is None and session.photograph is None
    lacks = [NO_PICTURE] * own + [NO_GATES] * (session.learned is not None and link.learned is None)
    return {
        "link": link.to_text(),
        "python": python(session, lens, engine.vlm),
        "lacks": " ".join(lacks),
    }


def python(session: UserSession, lens: Lens, vlm: sg.VLM) -> str:
    """Return a program that computes both answers and the attention map on the right.

    Args:
        session: the user's session.
        lens: the attention map on the page.
        vlm: the model.
    """
    state, image = session.state, session.image
    if state is None or image is None:
        return ""
    criterion = (
        "" if state.criterion == DEFAULT_CRITERION else f", v_sink={state.criterion!r}, l_sink={state.criterion!r}"
    )
    scales = faders(state.gates)
    prompt_query = lens.position is not None
    look = [f"layer={lens.layer}"]
    look += [
        f"{name}={getattr(lens, name)}"
        for name in ("head", "row", "sheet")
        if getattr(lens, name) != getattr(Lens, name)
    ]
    look += [f"hide=sinks.v_sink | sinks.l_sink[{lens.layer}]"] if lens.hide else []
    return "\n".join(
        [
            *["from dataclasses import replace"] * prompt_query,
            *_picture(session),
            "",
            *loading(vlm),
            f"prompt = vlm.prompt(image, {session.question!r})",
            f"sinks = sg.find_sinks(vlm, prompt{criterion})",
            "gates = sg.Gates.from_lists(",
            *(f"    {group}={scales[group]}," for group in scales),
            ")",
            f"unchanged = vlm.answer(prompt, None, sinks, max_new_tokens={MAX_NEW_TOKENS})",
            f"gated = vlm.answer(prompt, gates, sinks, max_new_tokens={MAX_NEW_TOKENS})",
            'print(unchanged.text, "|", gated.text)',
            "",
            *(
                [
                    f"rows = sg.Session(vlm, prompt, sinks).rows([{lens.position}], gates)",
                    "gated = replace(gated, attention=rows)",
                ]
                * prompt_query
            ),
            f"attention = gated.visual({', '.join(look)})  # the map in the middle",
            "",
        ]
    )


def loading(vlm: sg.VLM) -> list[str]:
    """Return the lines that load the same weights again; the path of a folder is left to the user."""
    if vlm.name in BUILT_IN:
        return [f'vlm = sg.load("{vlm.name}")']
    config = vlm.model.config
    quantization = getattr(config, "quantization_config", None)
    bits = next((bits for bits in ("4bit", "8bit") if getattr(quantization, f"load_in_{bits}", False)), None)
    options = {
        "revision": getattr(config, "_commit_hash", None),
        "dtype": str(vlm.model.dtype).removeprefix("torch."),
        "quantize": bits,
    }
    written = "".join(f", {name}={value!r}" for name, value in options.items() if value)
    if options["revision"] is None:  # the name of a folder, whose path is the server's own affair
        return [f"folder = {json.dumps(vlm.name)}  # the path of the model's folder", f"vlm = sg.load(folder{written})"]
    return [f"vlm = sg.load({vlm.name!r}{written})"]


def edited(session: UserSession) -> bool:
    """Return whether the picture is a scene that the user edited."""
    return session.scene is not None and session.scene != random_scene(session.seed)


def faders(gates: sg.Gates) -> dict[str, list[float]]:
    """Return scales as the mixer has them, whole ones as integers."""
    return {
        group: [int(scale) if scale == int(scale) else scale for scale in scales]
        for group, scales in mixer_value(gates).items()
    }


def _picture(session: UserSession) -> Iterator[str]:
    """Yield the lines of Python with the imports and the picture."""
    scene, image = session.scene, session.image
    assert image is not None
    if session.photograph:
        yield "import sinkgate as sg"
        yield "from sinkgate.data import photographs"
        yield ""
        yield f"image = sg.open_image(photographs()[{session.photograph!r}])"
        return
    if isinstance(image, sg.Video):
        width, height = image.frames[0].size
        yield "import sinkgate as sg"
        yield ""
        yield 'frames = sg.open_video("clip.gif", frames=' + f"{len(image.frames)}).frames  # the path of your video"
        yield f"image = sg.Video([frame.resize({(width, height)}) for frame in frames], fps={image.fps:g})"
        return
    if scene is None:
        yield "import sinkgate as sg"
        yield ""
        yield f'image = sg.open_image("picture.png").resize({image.size})  # the path of your picture'
        return
    seeded = not edited(session)
    yield from ["from random import Random", ""] if seeded else []
    yield "import sinkgate as sg"
    yield "from sinkgate.scenes.scene import Scene"
    yield ""
    source = f"random(Random({session.seed}))" if seeded else f"from_dict(\n    {scene.to_dict()!r}\n)"
    yield f"image = Scene.{source}.render({image.width})"


def _content(text: Any) -> JSON:
    if not isinstance(text, str) or len(text) > MAX_LENGTH:
        raise LinkError(f"This link is too long, limit {MAX_LENGTH:,} characters: the page opens as usual.")
    try:
        decoded = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True).decode()
        content = json.loads(decoded)
        json.dumps(content, ensure_ascii=False).encode()  # refuses lone surrogates
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise LinkError("This link is damaged or cut: the page opens as usual. Copy the whole link again.")
    return content


def _whole(value: Any, within: range = SEEDS) -> bool:
    return type(value) is int and value in within
