# %% [markdown]
# # 2 · What sinks know
#
# A sink lies on a patch of empty background and still receives attention. Does it hold any information? The paper's answer
# ([When Sinks Help or Hurt](https://arxiv.org/abs/2604.03316), section 3.2): sinks hold the *gist*. From the hidden states of V-sinks and L-sinks a linear
# probe reads how many objects there are, how large the largest is, and which colors and shapes, better than from ordinary tokens.
#
# You will
#
# 1. collect hidden states of V-sinks and of ordinary tokens, and look at them;
# 2. train a linear probe on them, with a control;
# 3. see why L-sinks cannot be probed here;
# 4. run the study as the paper does it, on a few hundred pictures;
# 5. read the results for 2,000 pictures that come with sinkgate, and what they do *not* show.
#
# **Time**: about a minute on two cores. To repeat it on LLaVA, change `MODEL`.

# %% tags=["parameters"]
MODEL = "demo"  # or a Hub id such as "llava-hf/llava-1.5-7b-hf", or a folder
DEVICE = None  # "cuda", "cpu", ...; None takes what there is
BY_HAND = 200  # pictures in parts 1 to 3
PICTURES = 300  # of the study in part 4; steady numbers need thousands
SEED = 0

# %% tags=["install"]
import sys

if "google.colab" in sys.modules:
    import subprocess

    # from a clone of the repository, uploaded beside this notebook: no release is on PyPI
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "-e", "sinkgate[notebooks,train]"], check=True)

# %%
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pandas as pd
from plotly.subplots import make_subplots
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import sinkgate as sg
from sinkgate.data.scenes import scene_facts
from sinkgate.plots.style import GROUP_NAMES, SEQUENTIAL, dressed
from sinkgate.studies.features import draw_ordinary

vlm = sg.load(MODEL, device=DEVICE)

# %% [markdown]
# ## 1. Hidden states
#
# Pictures with what is true of them: `scene_facts` draws random scenes, here from the third of all scenes that nothing in sinkgate was trained on.

# %%
pictures = list(scene_facts(BY_HAND, SEED, split="test"))
pictures[0].targets

# %% [markdown]
# `sg.find_sinks` names the sinks of a picture, and `vlm.each_layer` hands over the hidden states $h^l_j$ of the unmodified model at the input of every LLM layer $l$. A
# group $G$ of tokens becomes one vector by its mean,
#
# $$\bar h^l_G = \frac{1}{|G|} \sum_{j \in G} h^l_j .$$
#
# The image stands before the question, so the states of visual tokens do not depend on it; any question will do. V-sinks are two or so of 64 tokens. For a fair comparison the
# paper averages as few ordinary ones: five, drawn from the tokens that are sinks at no layer ([`draw_ordinary`](../sinkgate/studies/features.py)).

# %%
LAYER = 0  # the input of the LLM's first layer


def observed(picture):
    """Return the states of the visual tokens, (tokens, width), and their groups."""
    prompt = vlm.prompt(picture.image, "Describe the picture.")
    sinks = sg.find_sinks(vlm, prompt)
    states = vlm.each_layer(prompt, lambda states: states[prompt.visual].float().cpu())
    return states[LAYER], sinks


def ordinary_states(numbers, tokens):
    """Return the mean state of ``tokens`` ordinary tokens of each picture, drawn at random, by number; without pictures that have fewer."""
    drawn = {n: draw_ordinary(observations[n][1], tokens, draws=1, seed=f"{SEED}/{n}")[0] for n in numbers}
    return {n: observations[n][0][chosen].mean(0).numpy() for n, chosen in drawn.items() if len(chosen)}


observations = [observed(picture) for picture in pictures]
with_v_sinks = [number for number, (_, sinks) in enumerate(observations) if sinks.v_sink.any()]  # without them no mean
enough = len(with_v_sinks) > BY_HAND / 2
ordinary = ordinary_states(with_v_sinks if enough else range(BY_HAND), tokens=5)
there = list(ordinary)
if not enough:
    print(
        f"{vlm.name} has V-sinks in {len(with_v_sinks)} of {BY_HAND} pictures, too few for a probe: the figures show ordinary tokens alone."
    )
if len(there) < BY_HAND / 4:
    raise sg.SinkgateError(
        f"only {len(there)} of {BY_HAND} pictures have five tokens that are sinks in no layer: too few to compare sinks with"
    )
counts = np.array([pictures[number].targets["count"] for number in there])
states = {}
if enough:
    states["v_sink"] = np.stack(
        [each[sinks.v_sink].mean(0).numpy() for each, sinks in map(observations.__getitem__, there)]
    )
states["ordinary"] = np.stack(list(ordinary.values()))
next(iter(states.values())).shape  # pictures, width

# %% [markdown]
# **Before you run the next cell**: every dot will be a picture, its color the number of objects, and the axes the two directions in which the states differ most. The
# directions are computed without the counts. On which side do you expect order?
#
# Look whether dots of one color lie together.

# %%
figure = make_subplots(1, len(states), subplot_titles=[GROUP_NAMES[group] for group in states])
for column, each in enumerate(states.values(), 1):
    x, y = PCA(2, random_state=0).fit_transform(StandardScaler().fit_transform(each)).T
    marker = {"color": counts.astype(int), "colorscale": SEQUENTIAL, "size": 7, "line": {"color": "gray", "width": 0.5}}
    marker["colorbar"] = {"title": "objects", "dtick": 1}
    figure.add_scatter(x=x, y=y, mode="markers", marker=marker, row=1, col=column)
figure.update_xaxes(title_text="first principal component")
figure.update_yaxes(title_text="second principal component", col=1)
dressed(
    figure, "States of many pictures", "Mean state of a group, colored by the number of objects.", 420, legend=False
)

# %% [markdown]
# ## 2. A linear probe
#
# Eyes see two directions of many. A **linear probe** may use them all: multinomial logistic regression on standardised states,
#
# $$p(y = k \mid \bar h) = \mathrm{softmax}_k (W \bar h + b), \qquad
# \min_{W, b} \; \frac{1}{2} \lVert W \rVert_F^2 - C \sum_n \log p(y_n \mid \bar h_n).$$
#
# One half of the pictures trains it, the other tests it. What it gets right there could be read off linearly, by a later layer for instance.
#
# A probe with many weights and few pictures can memorise any labels. So there is a **control**: the same probe, with the counts of its training pictures
# shuffled. Its accuracy is chance, and only accuracy above it shows information in the states.
#
# **Before you run the next cell**: about one picture in four has the most frequent count. What do you expect of V-sinks, of five ordinary tokens, of the controls?


# %%
def accuracy(states, labels, c=0.1):
    """Share of the second half that a probe of the first half gets right."""
    half = len(labels) // 2
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=1000)).fit(states[:half], labels[:half])
    return probe.score(states[half:], labels[half:])


mixed = counts.copy()
half = len(mixed) // 2
mixed[:half] = np.random.default_rng(SEED).permutation(mixed[:half])
rows = {
    GROUP_NAMES[group]: {"true counts": accuracy(each, counts), "shuffled": accuracy(each, mixed)}
    for group, each in states.items()
}
pd.DataFrame(rows).T.map("{:.0%}".format)

# %% [markdown]
# From two tokens on empty background the probe reads the number of objects almost always. But look at the second row too: five ordinary tokens are far above chance. In an encoder with attention from
# everywhere to everywhere, every token has some information on the whole picture.
#
# ## 3. And L-sinks?
#
# A probe needs its group in every picture. In how many is there an L-sink at all, layer by layer?

# %%
has_l_sinks = np.mean([sinks.l_sink.any(1).numpy() for _, sinks in observations], axis=0)
pd.DataFrame({"pictures with an L-sink": has_l_sinks}).rename_axis("layer").T.map("{:.0%}".format)

# %% [markdown]
# In no layer more than a fifth. The demo model has almost no L-sinks ([notebook 1](01_meet_the_sinks.ipynb)): its L-sinks by attention are patches on objects that are attended to for their
# content. A probe on these few would compare other pictures, and other things. So this model cannot test the paper's claim about L-sinks; LLaVA can.
#
# ## 4. The study
#
# The same with everything that makes numbers trustworthy ([`Features`](../sinkgate/studies/features.py), [`Probes`](../sinkgate/studies/probes.py)): two draws of ordinary tokens,
# each with a split of its own; $C$ chosen by cross-validation on training pictures alone; four targets; shuffled labels beside each; several layers and the encoder. Both
# studies write their results part by part, and the same call resumes a killed run.
#
# It takes longer than all parts above.

# %%
from sinkgate.studies.features import Features
from sinkgate.studies.probes import Probes, advantage, summary
from sinkgate.studies.runner import run

folder = Path(mkdtemp())
layers = sorted({0, (vlm.num_layers - 1) // 2, vlm.num_layers - 1})
pictured = list(scene_facts(PICTURES, SEED + 1, split="test"))
features = run(Features(vlm, pictured, layers=layers, draws=2, chunk=50), folder / "features")
probes = Probes(
    features.parts,
    targets=["count", "largest", "colors", "shapes"],
    regularisers=(0.01, 0.1, 1.0),
    folds=3,
)
scores = run(probes, folder / "probes").table("scores")
scores = scores[scores["train"] > scores["train"].max() / 2]  # what few pictures have is left out: L-sinks
print(f"{len(scores)} scores, from {PICTURES} pictures")

# %% [markdown]
# Each panel is a target. Compare the orange line with the light blue one, and both with the grey ones: shuffled labels, and what the most frequent answer reaches (`chance`). The
# bars are deviations over two overlapping splits: they describe, they are no standard errors.

# %%
from sinkgate.plots.probes import probes_figure

probes_figure(summary(scores))

# %% [markdown]
# The lead of V-sinks in points, draw by draw on the same split. **Before you run the next cell**: in which target is it largest, and is it anywhere below zero?


# %%
def leads(scores):
    """Return the lead of V-sinks over ordinary tokens, in points: a row for each target, a column for each place."""
    table = advantage(scores).query("group == 'v_sink'")
    if table.empty:
        return f"no lead to show: the study has no V-sinks of {vlm.name}"
    wide = table.pivot(index="target", columns="place", values="accuracy")[table["place"].unique()]
    return (100 * wide).loc[["count", "colors", "shapes", "largest"]].map("{:+.1f}".format)


leads(scores)

# %% [markdown]
# The count leads by far, and most where the LLM begins: inside it ordinary tokens learn from the others. The size of the largest object is another story: in the LLM it is
# read off *ordinary* tokens better. So "sinks hold more" is no law; it depends on the target.
#
# ## 5. With 2,000 pictures
#
# With three hundred pictures the bars are several points long. The results for 2,000 pictures and all layers come with sinkgate
# ([all of them](../sinkgate/demo/studies/README.md)). Look at the gap in the count, which narrows with depth and does not close, and at the one in the largest size, which opens.
# (They are of the demo model, whatever `MODEL` is.)

# %%
from sinkgate.studies.claims import claims
from sinkgate.studies.results import Results

shipped = Results.load(Path(sg.__file__).parent / "demo/studies/probes")
large = shipped.table("scores")
large = large[large["target"].isin(scores["target"]) & (large["train"] > large["train"].max() / 2)]
probes_figure(summary(large))

# %%
leads(large)

# %% [markdown]
# Compare with the table above. The small lead in the shapes inside the LLM is gone: with more pictures to learn from, the probe reads them off ordinary tokens as well.
#
# The paper's claims, each with the numbers that decide ([the thresholds](../sinkgate/studies/claims.py) are chosen by us):

# %%
for claim in claims([shipped]):
    print(f"{claim.verdict.upper()}: {claim.claim}\n    {claim.numbers}")

# %% [markdown]
# ## What this does not show
#
# - **The gist was trained into these sinks.** While the demo model's tower was trained, the count, the background and which color-shape pairs there are had to be decoded from the one to four most attended
#   patches ([recipe](../sinkgate/demo/weights/README.md)). That they hold the count is therefore no discovery: it was the training objective. The size of the largest object was not part of it,
#   and there they fall behind inside the LLM. LLaVA has no such objective, which gives the paper's finding its weight.
# - **Information is not use.** A probe shows that something *can* be read. Whether the LLM reads it needs another
#   experiment: scale the sinks' Keys down and measure the loss. That is [notebook 3](03_when_sinks_help_or_hurt.ipynb).
# - **Two tokens against five.** Means of more tokens are cleaner, but mix more. Exercise 2.
#
# ## Exercises
#
# **1. By heart.** Raise `C` of the probe by hand from 0.0001 to 100. When does the control begin to learn by heart, and does it matter on the test pictures?

# %%
# your code here

# %% tags=["solution"] jupyter={"source_hidden": true, "outputs_hidden": true}
rows, first = {}, next(iter(states.values()))  # V-sinks, where there are any
for c in (1e-4, 1e-2, 1.0, 100.0):
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=1000)).fit(first[:half], mixed[:half])
    rows[c] = {
        "control, seen": probe.score(first[:half], mixed[:half]),
        "control, new": probe.score(first[half:], counts[half:]),
        "true, new": accuracy(first, counts, c),
    }
pd.DataFrame(rows).T.rename_axis("C").map("{:.0%}".format)

# %% [markdown]
# (*seen*: on the pictures of the training; *new*: on the others.) The control learns its pictures by heart and still knows nothing of new ones. So judge probes on test pictures, and against a control of the same size.
#
# **2. How many ordinary tokens?** Average 1 or 20 ordinary tokens instead of 5. Do enough of them know as much as two V-sinks?

# %%
# your code here

# %% tags=["solution"] jupyter={"source_hidden": true, "outputs_hidden": true}
right = {}
for tokens in (1, 5, 20):
    means = ordinary_states(range(len(pictures)), tokens)
    truth = np.array([pictures[number].targets["count"] for number in means])
    right[tokens] = (
        f"{accuracy(np.stack(list(means.values())), truth):.0%}" if len(means) > BY_HAND / 4 else "too few pictures"
    )
pd.DataFrame({"accuracy": right}).rename_axis("ordinary tokens")

# %% [markdown]
# More tokens know more, but a third of the picture still knows less than two sinks.
#
# **3. The color that is everywhere.** Most ordinary tokens lie on the background. Do they know its color as well as the V-sinks do? Guess, then probe.

# %%
# your code here

# %% tags=["solution"] jupyter={"source_hidden": true, "outputs_hidden": true}
backgrounds = np.array([pictures[number].targets["background"] for number in there])
right = {GROUP_NAMES[group]: f"{accuracy(each, backgrounds):.0%}" for group, each in states.items()}
pd.DataFrame({"accuracy": right})

# %% [markdown]
# Not nearly, with a hundred pictures to learn from. Lying on gray is one thing, saying "gray" in the same direction in every picture is another; and now and then one of the five lies on
# an object. With 1,400 training pictures they reach 90 % (the shipped study has the background among its targets).
#
# ## What to keep
#
# - A probe is worth what its control is worth: shuffled labels, a split, and the penalty chosen on training pictures alone.
# - V-sinks of the demo model know the count better than ordinary tokens everywhere, and inside the LLM the largest size worse: they hold the gist that was trained into them.
# - L-sinks cannot be probed here, and a study that says so is better than one that averages over a handful.
#
# Next: [when sinks help or hurt](03_when_sinks_help_or_hurt.ipynb).
