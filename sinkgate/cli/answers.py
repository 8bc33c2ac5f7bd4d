"""Commands for one question: the answer of a model, and its sinks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from sinkgate.cli.options import (
    QUESTION,
    AnyModel,
    AsJson,
    ModelChoice,
    Picture,
    SinkChoice,
    System,
    print_json,
    unfolded,
)
from sinkgate.errors import SinkgateError

LISTED = 20  # lines of tokens at most


@unfolded
def ask(
    model: ModelChoice,
    image: Picture,
    question: Annotated[str, typer.Argument(help="Question about the image.")],
    criteria: SinkChoice,
    gates: Annotated[Path | None, typer.Option(help="JSON file of fixed gates, or folder of learned ones.")] = None,
    any_model: AnyModel = False,
    system: System = "",
    max_new_tokens: Annotated[int, typer.Option(min=1, max=4096, help="Most tokens of the answer.")] = 64,
    as_json: AsJson = False,
) -> None:
    """Answer a question about an image, with gated Keys if gates are given; learned gates set them for the question."""
    from sinkgate.methods.lsg import LSG
    from sinkgate.models.vlm import find_sinks
    from sinkgate.sinks.fine_gates import load_gates
    from sinkgate.sinks.gates import Gates

    learned = LSG.from_pretrained(gates) if gates and gates.is_dir() else None
    fixed = load_gates(gates) if gates and not learned else None
    vlm = model.load()
    if learned:
        learned.to(vlm.device).check_fits(vlm, any_model)
    table = (fixed or Gates.ones(vlm)).for_model(vlm, any_model)
    prompt = vlm.prompt(image, question, system=system)
    finder = criteria.finder([learned])
    sinks = find_sinks(vlm, prompt, v_sink=finder.v_sink, l_sink=finder.l_sink)
    if learned:
        table = learned.read(vlm, prompt, sinks)
    trace = vlm.answer(prompt, table, sinks, max_new_tokens=max_new_tokens)
    unknown = vlm.unknown_words(question)
    if as_json:
        print_json(
            text=trace.text,
            next_token=[{"token": token, "probability": probability} for token, probability in trace.next_token],
            v_sink=_positions(sinks.v_sink, prompt.visual),
            l_sink=[_positions(mask, prompt.visual) for mask in sinks.l_sink],
            scales=json.loads(table.to_json())["scales"],
            unknown_words=unknown,
        )
        return
    if unknown:
        typer.echo(f"Words outside the vocabulary of the model: {', '.join(unknown)}.", err=True)
    typer.echo(trace.text)


@unfolded
def sinks(
    model: ModelChoice,
    image: Picture,
    criteria: SinkChoice,
    question: Annotated[str, typer.Option(help="Question to the LLM behind the image.")] = QUESTION,
    system: System = "",
    everything: Annotated[
        bool, typer.Option("--report", help="Print the verdicts of all criteria, and their disagreements.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List the visual tokens of an image that are sinks, one on a line, with the reasons; L-sinks by their attention, 20 tokens at most."""
    from sinkgate.analysis.report import report
    from sinkgate.models.vlm import find_sinks

    if everything and as_json:
        raise SinkgateError("--report prints text; leave out --json, which lists the sinks with their evidence")
    finder = criteria.finder()
    vlm = model.load()
    prompt = vlm.prompt(image, question, system=system)
    if everything:
        typer.echo(str(report(vlm, prompt, v_sink=finder.v_sink, l_sink=finder.l_sink)))
        return
    sink_map = find_sinks(vlm, prompt, v_sink=finder.v_sink, l_sink=finder.l_sink)
    v_sinks = sink_map.v_sink.nonzero()[:, 0].tolist()
    if as_json:
        verdict = sink_map.v_verdict  # None if the vision encoder's states are not available
        print_json(
            summary=sink_map.summary(),
            criteria=finder.settings(vlm),
            grid=list(prompt.grid),
            v_sink=_positions(sink_map.v_sink, prompt.visual),
            l_sink=[_positions(mask, prompt.visual) for mask in sink_map.l_sink],
            v_criterion=verdict.criterion if verdict else None,
            l_criterion=sink_map.l_verdict.criterion,
            v_score=verdict.score[0].tolist() if verdict else [],
            evidence=[sink_map.explain(token) for token in v_sinks],
        )
        return
    typer.echo(sink_map.summary())
    attention = sink_map.llm_share.where(sink_map.l_sink, 0).amax(0).tolist()
    l_sinks = sorted(sink_map.l_sink.any(0).nonzero()[:, 0].tolist(), key=lambda token: -attention[token])
    tokens = [*v_sinks, *(token for token in l_sinks if token not in v_sinks)]
    for token in tokens[:LISTED]:
        typer.echo(f"  {sink_map.explain(token)}")
    if len(tokens) > LISTED:
        typer.echo(f"  and {len(tokens) - LISTED} more, which --json lists by position")


def _positions(mask: Any, visual: Any) -> list[int]:
    return visual.cpu()[mask].tolist()
