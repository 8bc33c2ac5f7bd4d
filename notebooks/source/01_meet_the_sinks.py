# %% [markdown]
# # 1 · Meet the sinks
#
# Ask a vision-language model how many objects a picture shows: most of its attention goes to an empty corner. That corner is an
# **attention sink**. In this notebook you find the sinks of a model, their places and their origin, hide them so that the map becomes
# readable, and learn why "is this token a sink?" has several answers.
#
# The words are those of [When Sinks Help or Hurt](https://arxiv.org/abs/2604.03316) (ECCV 2026), sections 1 and 3.1. Nothing is downloaded: the model is
# the demo model that comes with sinkgate, a LLaVA of 2.4 million parameters for pictures of flat shapes. To repeat everything on a
# real one, change `MODEL` below and nothing else.
#
# **Time**: about 15 seconds on two cores.

# %% tags=["parameters"]
MODEL = "demo"  # or a Hub id such as "llava-hf/llava-1.5-7b-hf", or a folder
DEVICE = None  # "cuda", "cpu", ...; None takes what there is
PICTURES = 24  # for the measurements at the end
SEED = 71  # of the picture that we look at

# %% tags=["install"]
import sys

if "google.colab" in sys.modules:
    import subprocess

    # from a clone of the repository, uploaded beside this notebook: no release is on PyPI
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "-e", "sinkgate[notebooks,train]"], check=True)

# %%
from random import Random
from textwrap import fill

import pandas as pd

import sinkgate as sg
from sinkgate.plots import maps_figure, shares_figure
from sinkgate.scenes import Scene, SceneObject

vlm = sg.load(MODEL, device=DEVICE)
vlm.num_layers, vlm.num_heads

# %% [markdown]
# ## A picture and a question

# %%
scene = Scene.random(Random(SEED))
image = scene.render()
image.resize((224, 224))

# %%
prompt = vlm.prompt(image, "How many objects are there?")
trace = vlm.answer(prompt)
trace.text

# %% [markdown]
# ## Attention maps
#
# `trace.attention` holds the rows of attention of every generated token. In layer $l$ and head $h$ the row of the token that writes the
# answer is
#
# $$a^{l,h} = \mathrm{softmax}\!\left(\frac{q^{l,h} K^{l,h\top}}{\sqrt{D}}\right),$$
#
# one share for each token of the prompt. [`trace.visual`](../sinkgate/models/trace.py) puts those of the visual tokens back on the grid of
# patches, here as the mean over heads.
#
# **Before you run the next cell**: the model has to count two objects. Which patches do you expect to be dark?

#
# Look for the objects in the dark patches, layer by layer, and at the upper left corner. The number above each map is the share of all attention that its darkest patch gets.

# %%
shown = range(0, vlm.num_layers, max(1, vlm.num_layers // 8))
maps = {layer: trace.visual(layer) for layer in shown}
maps = {f"layer {layer}: {grid.max():.0%}": grid for layer, grid in maps.items()}
maps_figure(image, maps, "Where the answer looks", "Attention of the token that writes the answer, mean over heads.")

# %% [markdown]
# In layer 2 of the demo model one patch of empty background gets about half of all attention, and layers 4 and 7 come back to it. As an explanation of the answer, such
# a map would mean that the model counts objects in a corner.
#
# ## V-sinks: from the vision encoder
#
# The corner is a sink before the LLM processes a single word. `sg.find_sinks` runs the unmodified model once and sorts the visual tokens:
#
# - **V-sinks** leave the vision encoder as sinks; they are decided once for an image;
# - **L-sinks** become sinks inside the LLM; they are decided at the input of every layer;
# - all others are **ordinary**.

# %%
sinks = sg.find_sinks(vlm, prompt)
print(fill(sinks.summary(), 100))

# %% [markdown]
# How does a V-sink look inside the encoder? For each patch $j$, take the attention that it receives from all $N$ patches and all $H$ heads,
#
# $$s_j = \frac{1}{HN} \sum_{h=1}^{H} \sum_{i=1}^{N} A^{h}_{ij},$$
#
# and divide by the median patch's: this is `sinks.encoder_share` ([code](../sinkgate/sinks/classify.py)).
#
# **Before you run the next cell**: five times the median is called a sink by our default. How far beyond do you expect the corner to be?


# %%
def places(mask):
    """Return the places of the tokens of a mask."""
    return [sinks.where(token).removeprefix("patch ") for token in mask.nonzero()[:, 0].tolist()]


for token in sinks.encoder_share.argsort(descending=True)[:5].tolist():
    print(f"{sinks.where(token)}: {sinks.encoder_share[token]:.1f} times the median")

# %% [markdown]
# Look at how little is left for the objects: the first map has the shares as they are, the second their logarithm.

# %%
share = prompt.sheets[0].spread(sinks.encoder_share)
logarithm = (share.clamp_min(0.5) / 0.5).log10()
maps = {"attention received": share, "its logarithm": logarithm}
maps_figure(image, maps, "What patches receive inside the encoder", "From all patches, mean over heads.", columns=2)

# %% [markdown]
# The numbers drop sharply after two patches of the background. Sinks are not a matter of degree here.
#
# ## Evidence
#
# Every verdict comes with its evidence. `sinks.explain` gives in one sentence the reason for a token's group: the criterion's
# measurement and threshold, and further measurements of the token.

# %%
ordinary = int(sinks.ordinary.all(0).nonzero()[0])
for token in [*sinks.v_sink.nonzero()[:, 0].tolist(), ordinary]:
    print(fill(sinks.explain(token, layer=2), 100, subsequent_indent="  "))

# %% [markdown]
# ## L-sinks: look twice
#
# Inside the LLM a token may become a sink in one layer and be none in the next. Here are the L-sinks of this prompt (six at most):

# %%
for layer, token in sinks.l_sink.nonzero()[:6].tolist():
    print(fill(sinks.explain(token, layer), 100, subsequent_indent="  "))

# %% [markdown]
# The last words are a warning: this verdict is based on attention only. So change the question on the same picture. A sink should stay a sink; a patch that is
# *attended to for its content* should change with the question.
#
# **Before you run the next cell**: which of the two will change, the V-sinks or the L-sinks?

# %%
QUESTIONS = (
    "How many objects are there?",
    "What color is the large circle?",
    "What colors are there?",
    "Is there a red circle?",
)
for question in QUESTIONS:
    each = sg.find_sinks(vlm, vlm.prompt(image, question))
    print(question, "\n  V-sinks:", *places(each.v_sink), sep="  ")
    print("  L-sinks of any layer:", *places(each.l_sink.any(0)), sep="  ")

# %% [markdown]
# The V-sinks are the same for every question, since the encoder does not read it. All but one of the "L-sinks" of the demo model change with
# the question, and all of them are on the two objects: they are content. **This model has almost no L-sinks** ([its card](../sinkgate/demo/weights/README.md)). The paper
# finds them in LLaVA-1.5-7B, where a spike in the hidden state distinguishes them from patches with relevant content.
#
# ## How much do they take?
#
# `trace.shares` adds up where the answer's attention goes in each layer. Look at the orange line: some layers give V-sinks much attention, others almost none.

# %%
shares = trace.shares(sinks)
shares_figure({name: each.tolist() for name, each in shares.items()})

# %% [markdown]
# ## Hide them, and the map can be read
#
# Setting the sinks $S$ to zero would leave a pale map. [`trace.visual(..., hide=...)`](../sinkgate/models/trace.py) stretches the others to the same sum:
#
# $$\tilde a_j = \begin{cases} 0 & j \in S \\ a_j \cdot \dfrac{\sum_k a_k}{\sum_{k \notin S} a_k} & j \notin S. \end{cases}$$
#
# Upper row: the map as it is, in the three layers where V-sinks take most. Lower row: the same with V-sinks hidden. Look at what remains in each layer.

# %%
layers = shares["v_sink"].argsort(descending=True)[:3].tolist()
before = {f"layer {layer}": trace.visual(layer) for layer in layers}
after = {f"layer {layer}, V-sinks hidden": trace.visual(layer, hide=sinks.v_sink) for layer in layers}
maps_figure(image, before | after, "The same attention", "Above as it is, below with V-sinks hidden.", columns=3)

# %% [markdown]
# In layer 4 most of the rest is on the triangle, in layer 7 on the circle: both were in the map before, too pale to see. In layer 2 nothing
# in particular remains; there the attention was on the corner. The first map showed neither.
#
# Hidden is not removed: the model still attended to its sinks. To change the attention of the *model* is
# the subject of [notebook 3](03_when_sinks_help_or_hurt.ipynb). Or try it now: one fader a layer and group scales Keys, and maps, next token and answer follow.

# %%
sg.explore(vlm, image, "How many objects are there?")

# %% [markdown]
# **Try**: bring the V-sinks of layer 2 to 0. Which number does the model say, and which patches have the attention now?
#
# ## Four criteria
#
# The paper decides by **massive activations**: a token $j$ is a sink at layer $l$ when
#
# $$\max_{d \in D_\mathrm{sink}} |h^l_j[d]| \ge \tau,$$
#
# with $D_\mathrm{sink}$ a few dimensions of the model (in LLaMA-2-7B: 1415 and 2533). Others look at the norm of the state, or at attention itself ([the code of each](../sinkgate/sinks/criteria.py)).
# `sg.report` applies all of them, after a search for sink dimensions on the model itself.

# %%
discovery = sg.discover(vlm)
print(sg.report(vlm, prompt, discovery))

# %% [markdown]
# On the demo model the criteria do **not** agree: attention says two sinks, everything else says none. No channel spikes (6 times the median in the encoder, where 100 would be
# needed) and no state is long. In CLIP and LLaMA the paper finds the spike, and so does [notebook 6](06_real_l_sinks.ipynb) in a model whose LLM was pretrained on text. So always name the criterion of a sink.
#
# ## Four measurements that differ
#
# | measurement | meaning | formula |
# |---|---|---|
# | activation spike | whether one channel is massive | $\max_d \lvert h_j[d]\rvert \,/\, \mathrm{median}_d \lvert h_j[d]\rvert$ |
# | attention | attention that it receives | mean of $A_{ij}$ over heads and text queries $i$ |
# | length of the Value | its contribution to the output: 1 as much as others (*broadcast*), 0 nothing (*no-op*) | $\lVert v_j\rVert \,/\, \mathrm{mean}_k \lVert v_k\rVert$ |
# | stable rank of a head's output $O$ | similarity of the output over queries: 1 for the same output | $\lVert O\rVert_F^2 \,/\, \sigma_1(O)^2$ |
#
# [`dissect`](../sinkgate/studies/anatomy.py) takes all of them for one prompt. We put a few pictures together.
#
# **Before you run the next cell**: V-sinks receive hundreds of times the median in the encoder. How long do you expect their states to be, and their Values?

# %%
from sinkgate.studies.anatomy import dissect, strongest_heads

dimensions = {side: discovery.dimensions(side) for side in ("vision", "llm")}
pictures = [Scene.random(Random(seed)).render() for seed in range(PICTURES)]
prompts = [vlm.prompt(picture, "How many objects are there?") for picture in pictures]
anatomies = [dissect(vlm, each, dimensions, sample=number) for number, each in enumerate(prompts)]
tokens = pd.concat(each["tokens"] for each in anatomies)
heads = pd.concat(each["heads"] for each in anatomies)
projector = pd.concat(each["projector"] for each in anatomies)

measures = ["peak", "norm", "per_token", "value_ratio"]
tokens.groupby("group", sort=False)[measures].mean().round(3)

# %% [markdown]
# Spike (`peak`) and `norm` of the demo model's V-sinks are no larger than those of ordinary tokens, their attention per token is about twice as high over all
# layers and all text, their Values are about as long as others. Before the projector it is no different:

# %%
projector.groupby("group", sort=False)[["norm_before", "norm_after", "peak_before", "peak_after"]].mean().round(2)

# %% [markdown]
# The paper's V-sinks have a spike before the projector (`peak_before`), which the projector spreads over all dimensions, which leaves a long state (`norm_after`). These have
# neither. Attention, over the layers: on the left what *one* token of a group gets, on the right the group together. Look where V-sinks lie above ordinary tokens, and where not.

# %%
from sinkgate.plots import anatomy as plots

plots.attention_figure(tokens)

# %% [markdown]
# A Value near the dotted line contributes as much as any other token's: these sinks are no *no-op*. Whether all queries get the same from them (*broadcast*) is not in this figure.

# %%
plots.value_ratio_figure(tokens)

# %% [markdown]
# The last measurement is on heads. Each dot is a head: to the right, heads that attend to V-sinks. If only V-sinks gave all queries the same content, these
# dots would be lowest.

# %%
plots.broadcast_figure(heads)

# %%
strongest_heads(heads)[["layer", "head", "v_sink", "stable_rank"]].head(4).round(2)

# %% [markdown]
# They are not: heads that attend to V-sinks are among the others. Here all heads have a low stable rank, because Values of all tokens have much in common; so compare a
# head with other heads, never with 1.
#
# ## Exercises
#
# **1. Evict a sink.** Put a large red square on the upper left corner of the scene. Is the corner still a sink? Which patch is?

# %%
# your code here

# %% tags=["solution"] jupyter={"source_hidden": true, "outputs_hidden": true}
square = SceneObject("square", "red", "large", 0.21, 0.21)
evicted = vlm.prompt(Scene(scene.background, (square, *scene.objects)).render(), "How many objects are there?")
now = sg.find_sinks(vlm, evicted)
for token in sinks.v_sink.nonzero()[:, 0].tolist():
    old, new = sinks.encoder_share[token], now.encoder_share[token]
    print(f"{sinks.where(token)}: {old:.0f} times the median before, {new:.0f} with a square on the corner")

# %% [markdown]
# The patch under the square falls from hundreds of times the median to the edge of what we call a sink at all; the other corner takes over. V-sinks
# are mostly on patches with little content.
#
# **2. Always the same place?** Where do the V-sinks of many random scenes lie?

# %%
# your code here

# %% tags=["solution"] jupyter={"source_hidden": true, "outputs_hidden": true}
sink_map = [place for each in prompts for place in places(sg.find_sinks(vlm, each).v_sink)]
pd.Series(sink_map, name="place").value_counts().head().to_frame("pictures")

# %% [markdown]
# **3. A criterion of your own.** A criterion is a function from signals to a verdict. Ask for 100 times the median attention instead of 5, and for the
# opposite: a norm *below* 0.8 of the median. Do they find the same patches? (`sg.find_sinks(vlm, prompt, v_sink=...)` takes any object like those in
# [criteria.py](../sinkgate/sinks/criteria.py).)

# %%
# your code here

# %% tags=["solution"] jupyter={"source_hidden": true, "outputs_hidden": true}
import torch

from sinkgate.sinks.criteria import AttentionShare, Verdict


class ShortStates:
    """Tokens whose state is shorter than ``times`` the median one."""

    name = "short states"
    times = 0.8

    def __call__(self, signals):
        norms = torch.linalg.vector_norm(signals.judged_hidden, dim=-1)
        score = norms.median(-1, keepdim=True).values / norms
        threshold = torch.full((len(score), 1), 1 / self.times)
        return Verdict(self.name, "median / ||h||", score >= threshold, score, threshold)


for criterion in (AttentionShare(times=100), ShortStates()):
    mine = sg.find_sinks(vlm, prompt, v_sink=criterion)
    print(f"{criterion.name}: {places(mine.v_sink)}")

# %% [markdown]
# The sinks of this model are its *shortest* states. In CLIP they are the longest (Luo et al.), and a criterion that looks for long states would find none here.
#
# ## What to keep
#
# - An attention map is no explanation until you know its sinks; hide them, and say that you did.
# - V-sinks come from the encoder, which does not read the question; L-sinks arise in the LLM, layer by layer.
# - Spike, attention, length of the Value and stable rank are four different facts. Say which one you mean.
# - The demo model's V-sinks are real in attention, but they come from a **training objective**: facts of the whole scene had to be decoded from the most attended patches
#   ([its card](../sinkgate/demo/weights/README.md)). The paper's findings were made on LLaVA-1.5-7B.
#
# Next: [information in sinks](02_what_sinks_know.ipynb).
