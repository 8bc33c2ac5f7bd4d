"""Chat formats: text of prompts, and token ids of answers as continuations of a prompt.

The format is the processor's chat template, else the tokenizer's, else a plain form of the family. Prompts are those of transformers'
``processor.apply_chat_template(tokenize=True)``. Answers are continuations of a prompt: a template prints a past turn, which may begin
and end with text that no model writes.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np
from jinja2 import TemplateError
from PIL import Image

from sinkgate.errors import PromptError

#: Prompts of families whose processors have no chat template, by model type.
PLAIN_TEMPLATES = {
    "llava": "USER: {image}\n{question} ASSISTANT:",
    "vipllava": "###Human: {image}\n{question}###Assistant:",
    "llava_next": "[INST] {image}\n{question} [/INST]",
    "paligemma": "{image}answer en {question}\n",
    "blip-2": "Question: {question} Answer:",
    "instructblip": "{question}",
}
PLAIN_TEMPLATE = "{image}\n{question}\n"
#: Marks around the thoughts of reasoning models.
THINKING = {"<think>": "</think>", "◁think▷": "◁/think▷"}
#: Texts whose surroundings in a rendered template are read.
QUESTION, ANSWER, LATER = "SampleQuestion", "SampleAnswer", "LaterSample"
Parts = Sequence[str | None]  # of a turn: texts, and None at the place of an image
Turns = Sequence[tuple[Parts, str]]  # earlier ones: questions with their answers
_REFUSALS = (TypeError, ValueError, KeyError, TemplateError)  # of a template that cannot print a conversation


@dataclass(frozen=True)
class EncodedOptions:
    """Options as the model would write them.

    Args:
        ids: ids of each option with its end token, by its text, all different.
    """

    ids: dict[str, list[int]]

    @property
    def shared(self) -> int:
        """Number of first tokens in which all options agree: an empty thought, a bracket."""
        columns = zip(*self.ids.values(), strict=False)
        return next(i for i, column in enumerate((*columns, (0, 1))) if len(set(column)) > 1)

    @property
    def deciding(self) -> list[int]:
        """The token of each option behind the shared ones; one forward decides where all differ."""
        return [ids[self.shared] for ids in self.ids.values() if len(ids) > self.shared]

    @property
    def decided_at_once(self) -> bool:
        """True where the token behind the shared ones differs between any two options."""
        return len(set(self.deciding)) == len(self.ids)


@dataclass(frozen=True)
class AnswerForm:
    """Surroundings of an answer.

    Args:
        lead: text of the prompt behind the question.
        before: text that the model writes in front of its answer.
        end: the id that ends an answer; None where the model has none.
    """

    lead: str
    before: str
    end: int | None

    @property
    def opens_thought(self) -> bool:
        """True where the prompt ends within a thought, which the model has to close."""
        return any(mark in self.lead and close not in self.lead for mark, close in THINKING.items())


class ChatFormat:
    """The chat format of a model with its processor.

    Args:
        processor: the model's; its tokenizer encodes text.
        model: names image tokens and end tokens in its configs.
        name: for messages.
    """

    def __init__(self, processor: Any, model: Any, name: str) -> None:
        self.processor, self.model, self.name = processor, model, name
        self._by_text: dict[tuple[str | None, str], bool] = {}
        self._answers: dict[tuple[str | None, tuple[int, ...]], AnswerForm] = {}
        self._earlier: dict[str | None, bool] = {}

    @property
    def template(self) -> str | None:
        """The Jinja template in use; None where neither processor nor tokenizer has one."""
        for owner in (self.processor, self.processor.tokenizer):
            template: Any = getattr(owner, "chat_template", None)
            if isinstance(template, Mapping):
                template = cast(Any, template).get("default")
            if template:
                return template
        return None

    @property
    def source(self) -> str:
        """Origin of the format, in words."""
        if self.template is None:
            return f"no chat template; sinkgate's plain form {self._plain!r}"
        own = getattr(self.processor, "chat_template", None)
        return f"chat template of the {'processor' if own else 'tokenizer'}"

    @property
    def ends(self) -> tuple[int, ...]:
        """Ids that end an answer in generation."""
        tokenizer = getattr(self.processor, "tokenizer", None)
        value = self.model.generation_config.eos_token_id
        if value is None or value == []:
            value = getattr(tokenizer, "eos_token_id", None)
        return () if value is None else (value,) if isinstance(value, int) else tuple(value)

    @cached_property
    def commands(self) -> tuple[str, ...]:
        """Tokens that no question or answer may hold: special tokens and places of images, videos and sound."""
        tokenizer = self.processor.tokenizer
        ids: list[Any] = [
            value for name, value in cast(dict[str, Any], vars(self.model.config)).items() if _MEDIA_TOKEN.search(name)
        ]
        names = [
            *tokenizer.all_special_tokens,
            *(
                str(value)
                for name, value in cast(dict[str, Any], vars(self.processor)).items()
                if name.endswith("_token") and value
            ),
            *tokenizer.convert_ids_to_tokens([value for value in (*ids, *self.ends) if isinstance(value, int)]),
        ]
        marks = {*THINKING, *THINKING.values()}
        return tuple(dict.fromkeys(name for name in names if name and name.strip() and name not in marks))

    # --- prompts

    @property
    def has_video_input(self) -> bool:
        """True where processors of this kind take videos; this one may lack its video part."""
        return "video_processor" in inspect.signature(type(self.processor).__init__).parameters

    def text_of_video(self, parts: Parts, system: str = "", earlier: Turns = ()) -> str:
        """Return the same as ``text`` with a video at the place of None.

        Raises:
            PromptError: the processor was loaded without its video part, or the template has no place for a video.
        """
        if getattr(self.processor, "video_processor", None) is None:
            raise PromptError(
                f'videos for {self.name} need torchvision, as its video processor does: run `pip install "sinkgate[vision]"` and '
                "load the model again, or give the frames as pictures: vlm.prompt(video.frames, question)"
            )

        def with_video(parts: Parts) -> dict[str, Any]:
            content = [{"type": "video"} if part is None else {"type": "text", "text": part} for part in parts]
            return {"role": "user", "content": content}

        text = self._conversation(parts, system, earlier, with_video) if self.template else ""
        if text.count(self.processor.video_token) != 1:
            raise PromptError(
                f"the chat template of {self.name} has no place for a video; give the frames as pictures: "
                "vlm.prompt(video.frames, question)"
            )
        return text

    def text(self, parts: Parts, system: str = "", earlier: Turns = ()) -> str:
        """Return the prompt's text up to where the model answers.

        Args:
            parts: of the user's last turn: texts, and None at the place of an image.
            system: the system turn; "" leaves it to the template.
            earlier: questions, as parts, with their answers.

        Raises:
            PromptError: the template has no place for the question, the images, the system turn or earlier turns; a text holds half a
                character.
        """
        for part in (*parts, system):
            refuse_half_characters(part or "", "question")
        if self.template is None:
            if system:
                raise PromptError(
                    f"{self.name} has no chat template, so no system turn either; put the text into the question"
                )
            if earlier:
                raise PromptError(
                    f"{self.name} has no chat template, so no earlier turns either; put what matters of them into the question"
                )
            question = "".join(part for part in parts if part is not None)
            return self._plain.format(image=self._place * list(parts).count(None), question=question)
        return self._conversation(parts, system, earlier, lambda parts: self._turn("user", parts))

    def inputs(self, text: str, images: Sequence[Image.Image], fps: float | None = None) -> dict[str, Any]:
        """Return the processor's tensors for a text and its images, on the model's device, batch 1.

        As in transformers, no special tokens are added where the template has written the first of them.

        Args:
            text: with a place for each image, or one for the video.
            images: the images, or the frames of a video.
            fps: frames in a second of a video; None: these are images.

        Raises:
            PromptError: there is no image, but a place for one, which some templates write in any case.
        """
        if not images and self._place in text:
            raise PromptError(
                "the text has a place for an image, but there is none; this model's template takes no question without an image"
            )
        bos = self.processor.tokenizer.bos_token
        options: dict[str, Any] = {"add_special_tokens": False} if bos and text.startswith(bos) else {}
        if fps is None:
            options["images"] = [list(images)] if images else None
        else:
            count = len(images)
            options["videos"] = [np.stack([np.asarray(image) for image in images])]
            options["video_metadata"] = [
                {"total_num_frames": count, "fps": fps, "duration": count / fps, "frames_indices": list(range(count))}
            ]
            options["do_sample_frames"] = False  # they are chosen
        features = self.processor(text=[text], return_tensors="pt", **options)
        return dict(features.to(self.model.device, self.model.dtype))

    def refuse_commands(self, text: str, kind: str) -> None:
        """Raise PromptError where a text holds half a character or a token with a meaning of its own."""
        refuse_half_characters(text, kind)
        for token in self.commands:
            if token in text:
                raise PromptError(f"the {kind} holds {token}, which the model reads as a command; leave it out")

    # --- answers

    @property
    def answer_form(self) -> AnswerForm:
        """Surroundings of an answer in this format."""
        key = self.template, self.ends
        if key not in self._answers:
            self._answers[key] = self._read_answer_form()
        return self._answers[key]

    def encode_answer(self, question: str, answer: str) -> list[int]:
        """Return the ids of an answer as a continuation of the prompt, with the token that ends it.

        Args:
            question: the prompt's; only its last characters matter, where a tokenizer joins words.
            answer: the text; line breaks within are kept.

        Raises:
            PromptError: the answer is empty, or holds half a character or a token with a meaning of its own.
        """
        answer = stripped(answer, "answer")
        if not answer:
            raise PromptError("the answer is empty; there is nothing to learn from it")
        self.refuse_commands(answer, "answer")
        form = self.answer_form
        before = form.before
        for mark, close in THINKING.items():
            if close in answer:  # an answer with its own thought needs no empty one
                before = "" if close in before else before
                answer = answer.removeprefix(mark).lstrip("\n") if form.opens_thought else answer
        ids = self._behind(question[-100:] + form.lead, before + answer)
        inner = next((token for token in self._behind("\n", answer) if token in self.ends), None)
        if inner is not None:
            raise PromptError(
                f"the answer holds {self.processor.tokenizer.decode([inner])!r}, with which {self.name} ends an answer; leave it out"
            )
        return ids if form.end is None else [*ids, form.end]

    def encode_options(self, question: str, options: Sequence[str]) -> EncodedOptions:
        """Return options as the model would write them behind a question.

        Raises:
            PromptError: fewer than two options, two of the same tokens, or one that is no answer (see ``encode_answer``).
        """
        encoded = {option: self.encode_answer(question, option) for option in options if stripped(option, "option")}
        if len(options) < 2 or len({tuple(ids) for ids in encoded.values()}) < len(options):
            raise PromptError(f"options are {list(options)}; expected at least two texts that differ in tokens")
        return EncodedOptions(encoded)

    # --- inside

    @property
    def _place(self) -> str:
        token = getattr(self.processor, "image_token", None)
        return str(token or self.processor.tokenizer.decode(self.model.config.image_token_id))

    @property
    def _plain(self) -> str:
        return PLAIN_TEMPLATES.get(self.model.config.model_type, PLAIN_TEMPLATE)

    def _conversation(self, parts: Parts, system: str, earlier: Turns, user: Callable[[Parts], dict[str, Any]]) -> str:
        """Return a conversation as the template prints it, up to where the model answers."""
        turns = [self._turn("system", [system])] if system else []
        if not earlier:
            return self._render([*turns, user(parts)], add_generation_prompt=True)
        if not self._prints_earlier():
            raise PromptError(
                f"the chat template of {self.name} prints no earlier turns; put what matters of them into the question"
            )
        for question, answer in earlier:
            turns += [user(question), self._turn("assistant", [answer])]
        try:
            return self._render([*turns, user(parts)], add_generation_prompt=True)
        except _REFUSALS as error:
            raise PromptError(
                f"the chat template of {self.name} refuses a conversation of {len(earlier) + 1} questions: {error}"
            ) from error

    def _prints_earlier(self) -> bool:
        """Return whether the template prints the question and the answer of an earlier turn."""
        if self.template not in self._earlier:
            text = self._past(ANSWER, LATER)
            self._earlier[self.template] = all(each in text for each in (QUESTION, ANSWER, LATER))
        return self._earlier[self.template]

    def _render(self, turns: Sequence[Mapping[str, Any]], **options: Any) -> str:
        return self.processor.apply_chat_template(list(turns), chat_template=self.template, **options)

    def _turn(self, role: str, parts: Parts) -> dict[str, Any]:
        """Return a turn as the template takes it: a list of parts, or a text with tokens for images."""
        key = self.template, role
        if key not in self._by_text:
            self._by_text[key] = self._takes_text(role)
        return self._written(role, parts, self._by_text[key])

    def _written(self, role: str, parts: Parts, by_text: bool) -> dict[str, Any]:
        if by_text:
            return {"role": role, "content": "\n".join(self._place if part is None else part for part in parts)}
        content = [{"type": "image"} if part is None else {"type": "text", "text": part} for part in parts]
        return {"role": role, "content": content}

    def _takes_text(self, role: str) -> bool:
        """Return True where a turn's content has to be one text; a list of parts is preferred, unless it is printed as a list."""
        sample: list[Any] = {"user": [None, QUESTION], "assistant": [ANSWER], "system": [ANSWER]}[role]
        for by_text in (False, True):
            text = self._sample(role, sample, by_text)
            printed = re.search(rf"""['"]text['"]\s*:\s*['"]{sample[-1]}""", text)
            # some templates place an image by themselves, whatever the turn holds
            placed = None not in sample or self._place in text or text != self._sample(role, sample[1:], by_text)
            if sample[-1] in text and not printed and placed:
                return by_text
        raise PromptError(
            f"the chat template of {self.name} prints no {role} turn"
            + ("; put its text into the question" if role == "system" else "; load the model's own processor")
        )

    def _sample(self, role: str, parts: Parts, by_text: bool) -> str:
        """Return a rendered conversation with such a turn; "" where the template raises."""
        turn = self._written(role, parts, by_text)
        try:
            if role == "user":
                return self._render([turn], add_generation_prompt=True)
            user = self._turn("user", [None, QUESTION])
            return self._render([turn, user] if role == "system" else [user, turn])
        except _REFUSALS:
            return ""

    def _read_answer_form(self) -> AnswerForm:
        end = next(iter(self.ends), None)
        prompt = self.text([None, QUESTION])
        lead = prompt.rpartition(QUESTION)[2]
        past = self._past(ANSWER) if self.template is not None else ""
        if ANSWER not in past:
            joined = not lead or not (lead[-1].isspace() or lead.endswith(self.commands))
            return AnswerForm(lead, " " if joined else "", end)
        head, _, closing = past.rpartition(ANSWER)
        before = head.removeprefix(prompt) if head.startswith(prompt) else _closed(lead)
        marks = dict(zip(self.ends, self.processor.tokenizer.convert_ids_to_tokens(list(self.ends)), strict=True))
        for text in (closing, self._past(ANSWER, QUESTION).rpartition(ANSWER)[2]):
            places = {text.index(mark): token for token, mark in marks.items() if mark and mark in text}
            if places:
                return AnswerForm(lead, before, places[min(places)])
        return AnswerForm(lead, before, end)

    def _past(self, answer: str, later: str = "") -> str:
        """Return the sample question with its answer as the template prints past turns; "" where it cannot."""
        try:
            turns = [self._turn("user", [None, QUESTION]), self._turn("assistant", [answer])]
            return self._render([*turns, self._turn("user", [later])] if later else turns)
        except (PromptError, *_REFUSALS):
            return ""

    def _behind(self, context: str, text: str) -> list[int]:
        """Return the ids of a text behind another one, whose own ids stay.

        Where a tokenizer would join both, the text is encoded behind a line break: alone it might get a blank of its own.
        """
        tokenizer = self.processor.tokenizer
        for start in (context, "\n"):
            before, both = (tokenizer(part, add_special_tokens=False).input_ids for part in (start, start + text))
            if both[: len(before)] == before:
                return both[len(before) :]
        return tokenizer(text, add_special_tokens=False).input_ids


_MEDIA_TOKEN = re.compile(r"(image|video|audio|vision)\w*token_(id|index)$")


def refuse_half_characters(text: str, kind: str) -> None:
    """Raise PromptError where a text holds a lone surrogate, which no tokenizer takes."""
    half = re.search("[\ud800-\udfff]", text)
    if half:
        raise PromptError(
            f"the {kind} holds half a character (U+{ord(half[0]):04X}) at position {half.start()}, as a cut emoji or text of "
            "another encoding leaves it; give it as UTF-8"
        )


def stripped(text: object, kind: str) -> str:
    """Return a text without surrounding blanks; raise PromptError where it is no text."""
    if not isinstance(text, str):
        raise PromptError(f"the {kind} is a {type(text).__name__}; expected text")
    return text.strip()


def _closed(lead: str) -> str:
    """Return the text that closes a thought that the prompt has opened; "" where it has opened none."""
    opened = (close for mark, close in THINKING.items() if mark in lead and close not in lead)
    return next((f"\n{close}\n\n" for close in opened), "")
