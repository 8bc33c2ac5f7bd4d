"""Handlers of events that look at the question and gates as they are: lens, tokens, link, sweep, and the public endpoint."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

import sinkgate as sg

from ..api import answer
from ..components import uploaded
from ..guard import address_of
from ..inspection import text_shares
from ..lens import image_positions
from ..pictures import open_picture
from ..share_links import share_value
from ..sweep import sweep
from ..token_view import inspection
from ..user_session import UserSession
from ..view_model import JSON
from .values import PageValues, Update, active, error_value, never_raises


class ViewHandlers(PageValues):
    """Handlers of events that change neither question nor gates."""

    @never_raises
    def set_lens(self, session: UserSession | None, lens: Any) -> Update:
        """Show another layer, head or query; runs the model only if its results were dropped."""
        session = active(session)
        if session.state is None:
            self.engine.set_gates(session, session.wanted or sg.Gates.ones(self.engine.vlm))
        return {"maps": self.frame(session, lens)}

    def inspect(self, session: UserSession | None, lens: Any) -> Update:
        """Measure what the row of prompt tokens and the panel of a patch show.

        Where each run waits for a GPU, tokens are measured when one is chosen as the query, and a patch when it is clicked.
        """
        try:
            session = active(session)
            with self.engine.scheduler.slot(session, "fast"):
                state = session.state
                if state is None:
                    return {}
                view, warm = self.lens(state, lens), state.prompt_session
                image = image_positions(state.prompt)
                texts = [position for position in range(state.prompt.length) if position not in image]
                gates = None if state.gates.is_identity else state.gates
                shares = facts = None
                if self.engine.backend.interactive:
                    before = state.text_shares.get(view.layer)
                    if before is None:
                        before = state.text_shares[view.layer] = text_shares(warm, texts, view.layer, None)
                    shares = before, before if gates is None else text_shares(warm, texts, view.layer, gates)
                if view.patch is not None:
                    token = int(state.prompt.sheets[view.sheet].tokens.flatten()[view.patch])
                    facts = warm.patch(token, view.layer, gates)
                self.engine.cache.use(warm)
                return {"tokens": inspection(state, view, shares, facts)}
        except Exception as error:
            status = error_value(error)
            return {"tokens": {"error": status["text"]}, "status": status}

    @never_raises
    def share(self, session: UserSession | None, lens: Any) -> Update:
        """Build the link and the Python code of the current view."""
        session = active(session)
        return {"share": share_value(session, self.lens(session.state, lens), self.engine)}

    def sweep(self, session: UserSession | None) -> Iterator[Update]:
        """Sweep the question over every layer and group; yields the sweep as it grows, the reason where it fails."""
        value: JSON = {}
        try:
            for value in sweep(self.engine, active(session)):
                yield {"sweep": value}
        except Exception as error:
            yield {"sweep": value | {"status": "failed", "note": error_value(error)["text"]}}

    def stop_sweep(self, session: UserSession | None) -> None:
        """Stop the sweep that runs."""
        if session:
            session.stop_sweep()

    def catch_up(self) -> None:
        """Do nothing: any event makes a page that has missed the end of its stream open another, which brings all that waits."""

    def answer(self, image: JSON | None, question: str | None, gates_json: str | None, request: gr.Request) -> JSON:
        """Answer a question about an image, under gates (JSON; empty: the original model). The public endpoint."""
        try:
            if (source := uploaded(image)) is None:
                raise sg.ImageError("The image is missing.")
            client = address_of(request.client.host)  # each call has a session of its own
            return answer(self.engine, client, open_picture(source), question or "", gates_json or "")
        except Exception as error:
            raise gr.Error(error_value(error)["text"], print_exception=False) from None
