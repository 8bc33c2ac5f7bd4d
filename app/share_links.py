"""What a page shows, to take away: a link that opens it again, and Python that repeats it.

A link keeps everything in its fragment, the part after ``#`` that browsers send to no server: the page reads it and asks
for what it says. It comes from a stranger, so each value is checked like any other that a visitor sends. Pictures that
a visitor uploaded are in no link.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from random import Random
from typing import Any

import sinkgate as sg
from sinkgate.scenes import questions
from sinkgate.scenes.scene import Scene

from .state import DEFAULT_CRITERION, MAX_NEW_TOKENS, MAX_QUESTION, Desk, Session
from .view_model import JSON, Lens, mixer_value

VERSION = 1
MOST = 8_000  # characters of a link: the longest question and gates of a hundred layers take half
MOST_SHEETS = 1_000
SEEDS = range(1 << 32)
NO_PICTURE = (
    "Your picture is not in the link: whoever opens it is shown a scene instead, and can upload the picture again."
)
NO_GATES = "Your uploaded gates are not in the link: only the scales that they set are."
STAND_IN = (
    "The picture of this link was an uploaded one, which no link holds: a scene stands in. Upload the picture to go on."
)
GATES_ARE_AWAY = "The learned gates of this link are not here: the faders stand as they set them."


class LinkError(sg.SinkgateError):
    """A link that cannot be opened here."""


@dataclass(frozen=True)
class Link:
    """A page but for what was uploaded: scene, question, gates, and what is looked at."""

    model: str
    question: str
    gates: sg.Gates
    lens: Lens
    seed: int | None = None  # of the scene; None where the picture was uploaded
    scene: Scene | None = None  # where it was edited
    kind: str | None = None  # of the question, where it is one of the scene's examples
    learned: str | None = None  # gates that read the question
    off: tuple[int, ...] = ()  # layers of theirs that are switched off

    @classmethod
    def of(cls, session: Session, lens: Lens, desk: Desk) -> Link:
        """The link to what a visitor is looking at."""
        case, learned = session.case, session.learned
        offered = learned and any(gates.name == learned.name for gates in desk.learned)
        return cls(
            model=desk.vlm.name,
            question=session.question,
            gates=case.gates if case else sg.Gates.ones(desk.vlm),
            lens=lens,
            seed=session.seed if session.scene else None,
            scene=session.scene if edited(session) else None,
            kind=session.kinds.get(session.question) if session.scene else None,
            learned=learned.name if learned and offered else None,
            off=tuple(sorted(learned.off)) if learned and offered else (),
        )

    def to_text(self) -> str:
        """The link as letters, digits, ``-`` and ``_``: JSON without what is as usual, in base64."""
        content = {
            "model": self.model,
            "question": self.question,
            "seed": self.seed,
            "kind": self.kind,
            "scene": self.scene and self.scene.to_dict(),
            "gates": None if self.gates.is_identity else faders(self.gates),
            "learned": self.learned,
            "off": self.off or None,
            "lens": asdict(self.lens),
        }
        kept = {"v": VERSION, **{key: value for key, value in content.items() if value is not None}}
        text = json.dumps(kept, separators=(",", ":"), ensure_ascii=False)
        return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")

    @classmethod
    def from_text(cls, text: Any, desk: Desk) -> Link:
        """Read what `to_text` wrote, for this page; the lens is bent to what the model has.

        Raises:
            LinkError: no such text, too long, of another release or for another model.
            SinkgateError: the scene or the gates in it are none.
        """
        content = _content(text)
        version, model, question, seed, kind, learned, off = (
            content.get(key) for key in ("v", "model", "question", "seed", "kind", "learned", "off")
        )
        if version != VERSION:
            raise LinkError("This link was made by another release of sinkgate, so the page opens as usual.")
        if not (isinstance(model, str) and isinstance(question, str) and (seed is None or _whole(seed, SEEDS))):
            raise LinkError(
                "This link does not say which model, question and scene it means, so the page opens as usual: copy it again."
            )
        if model != desk.vlm.name:
            raise LinkError(
                f"This link is about the model {model[:80]}, and here {desk.vlm.name} answers: the page opens as usual."
            )
        if len(question) > MAX_QUESTION:
            raise LinkError(
                f"The question of this link has {len(question)} characters; at most {MAX_QUESTION} are read."
            )
        gates, scene = content.get("gates"), content.get("scene")
        return cls(
            model=model,
            question=question,
            gates=sg.Gates.ones(desk.vlm) if gates is None else desk.read_gates(gates),
            lens=Lens.read(content.get("lens"), desk.vlm, MOST_SHEETS),
            seed=seed,
            scene=None if scene is None or seed is None else Scene.from_dict(scene),
            kind=kind if isinstance(kind, str) and kind in questions.KINDS else None,
            learned=learned if isinstance(learned, str) else None,
            off=tuple(layer for layer in off if _whole(layer)) if isinstance(off, list) else (),
        )


def shared(session: Session, lens: Lens, desk: Desk) -> JSON:
    """What the page can copy: the link, the Python, and in words what the link lacks."""
    link = Link.of(session, lens, desk)
    lacks = [NO_PICTURE] * (session.scene is None) + [NO_GATES] * (session.learned is not None and link.learned is None)
    return {
        "link": link.to_text(),
        "python": python(session, lens, desk.vlm),
        "lacks": " ".join(lacks),
    }


def python(session: Session, lens: Lens, vlm: sg.VLM) -> str:
    """A program that repeats what a visitor is looking at: both answers, and the attention map of the gated one."""
    case, image = session.case, session.image
    if case is None or image is None:
        return ""
    criterion = "" if case.criterion == DEFAULT_CRITERION else f", v_sink={case.criterion!r}, l_sink={case.criterion!r}"
    scales = faders(case.gates)
    look = [f"layer={lens.layer}"]
    look += [
        f"{name}={getattr(lens, name)}"
        for name in ("head", "row", "sheet")
        if getattr(lens, name) != getattr(Lens, name)
    ]
    look += [f"hide=sinks.v_sink | sinks.l_sink[{lens.layer}]"] if lens.hide else []
    return "\n".join(
        [
            *_picture(session),
            "",
            *loading(vlm),
            f"prompt = vlm.prompt(image, {session.question!r})",
            f"sinks = sg.find_sinks(vlm, prompt{criterion})",
            "gates = sg.Gates.from_lists(",
            f"    v_sink={scales['v_sink']},",
            f"    rest={scales['rest']},",
            ")",
            f"unchanged = vlm.answer(prompt, None, sinks, max_new_tokens={MAX_NEW_TOKENS})",
            f"gated = vlm.answer(prompt, gates, sinks, max_new_tokens={MAX_NEW_TOKENS})",
            'print(unchanged.text, "|", gated.text)',
            "",
            f"attention = gated.visual({', '.join(look)})  # the map on the right",
            "",
        ]
    )


def loading(vlm: sg.VLM) -> list[str]:
    """Return the lines that load the same weights again; the path of a folder is left to the user."""
    if vlm.name == "demo":
        return ['vlm = sg.load("demo")']
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


def edited(session: Session) -> bool:
    """Whether the picture is a scene that the visitor changed."""
    return session.scene is not None and session.scene != Scene.random(Random(session.seed))


def faders(gates: sg.Gates) -> dict[str, list[float]]:
    """Scales as the mixer has them, whole ones as whole numbers."""
    return {
        group: [int(scale) if scale == int(scale) else scale for scale in scales]
        for group, scales in mixer_value(gates).items()
    }


def _picture(session: Session) -> Iterator[str]:
    """The lines of Python that import what is needed and make the picture."""
    scene, image = session.scene, session.image
    assert image is not None
    if scene is None:
        yield "import sinkgate as sg"
        yield ""
        yield f'image = sg.open_image("picture.png").resize({image.size})  # put the name of your picture here'
        return
    seeded = not edited(session)
    yield from ["from random import Random", ""] if seeded else []
    yield "import sinkgate as sg"
    yield "from sinkgate.scenes.scene import Scene"
    yield ""
    made = f"random(Random({session.seed}))" if seeded else f"from_dict(\n    {scene.to_dict()!r}\n)"
    yield f"image = Scene.{made}.render({image.width})"


def _content(text: Any) -> JSON:
    if not isinstance(text, str) or len(text) > MOST:
        raise LinkError(f"This link is too long: at most {MOST:,} characters are read. The page opens as usual.")
    try:
        decoded = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True).decode()
        content = json.loads(decoded)
        json.dumps(content, ensure_ascii=False).encode()  # half characters, which no text may hold
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise LinkError("This link is damaged or was cut short, so the page opens as usual: copy it again, whole.")
    return content


def _whole(value: Any, within: range = SEEDS) -> bool:
    return type(value) is int and value in within
