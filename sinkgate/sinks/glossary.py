"""Terms, names and colours of token groups that app, widgets and figures share."""

from __future__ import annotations

#: Short definitions; the glossary of the documentation begins each entry with the same sentences.
TERMS = {
    "V-sink": "A visual token that is a sink of the vision encoder. Decided once for an image.",
    "L-sink": "A visual token that becomes a sink inside the LLM. Decided layer by layer.",
    "Key scale": "The factor by which the Key of a token is multiplied in one layer, after RoPE and before the dot product. "
    "1 changes nothing; 0 sets the attention logit to 0, which does not remove the token.",
    "criterion": "A rule that decides from activations whether a token is a sink: its share of attention, its norm, "
    "massive activations, or the magnitude in sink dimensions.",
    "rho": "The paper's name for the Key scales that a learned gate returns; those of one layer sum to 1.",
    "head mean": "Attention averaged over all heads of a layer. Single heads may differ much from it.",
    "query": "The token whose attention is shown. The last token of the prompt is the query that generates the first token "
    "of the answer.",
    "attention share": "Sum of the attention that a group of tokens receives from one query, or averaged over queries. "
    "Between 0 and 1.",
    "next-token probability": "The probability of a token as the next one, by the softmax over the model's vocabulary.",
}
ORIGINAL, GATED, DIFFERENCE = "Original model", "Gated", "Difference"  # runs and maps
GROUP_LABELS = {
    "v_sink": "V-sinks",
    "l_sink": "L-sinks",
    "ordinary": "ordinary tokens",
    "rest": "other visual tokens",
    "separator": "separators",
    "text": "text",
}
#: Colours of groups on light ground, distinct with normal, red-blind, green-blind and blue-blind sight.
GROUP_COLORS = {
    "v_sink": "#e8590c",
    "l_sink": "#1864ab",
    "ordinary": "#4dabf7",
    "separator": "#9030f0",
    "text": "#868e96",
    "first": "#a5694b",
    "rest": "#1c7ed6",  # between L-sinks and ordinary, of which it is made, and never beside them
}
#: The same on dark ground: a dark page, or a map of attention.
DARK_GROUP_COLORS = {
    "v_sink": "#ff922b",
    "l_sink": "#a5d8ff",
    "ordinary": "#2497d4",
    "separator": "#af58ff",
    "text": "#9495a7",
    "first": "#bd405e",
    "rest": "#86adf9",
}


def preset_name(v_sink: float, rest: float) -> str:
    """Return the name of a setting that is the same in every layer: its scales."""
    if v_sink == rest:
        return "All at 1" if rest == 1 else f"All × {rest:g}"
    return f"V-sinks × {v_sink:g}" if rest == 1 else f"Others × {rest:g}"
