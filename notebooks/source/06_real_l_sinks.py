# %% [markdown]
# # 6 · Real L-sinks
#
# The demo model of the first notebooks has V-sinks from a training objective, and almost no L-sinks. This notebook has a model with real ones: the LLM of `demo-large` is the first six layers of
# **SmolLM2-135M**, and its first three are as they were pretrained, on text alone. Before it was trained on any picture, it had learnt to put surplus attention on a token without content. You will
#
# 1. see the text sink of the LLM without any picture, and the one dimension in which it spikes;
# 2. watch patches of the background become L-sinks, layer by layer, in the *same* dimension;
# 3. measure what they take (attention) and what they give (Values);
# 4. change the question, and see that they stay;
# 5. read the words that their states decode to;
# 6. scale each of three groups of tokens, and learn that attention is not influence.
#
# The words are those of [When Sinks Help or Hurt](https://arxiv.org/abs/2604.03316), section 1. Nothing is downloaded: `demo-large` comes with sinkgate ([its card](../sinkgate/demo/weights-large/README.md)).
#
# **Time**: about half a minute on two cores.

# %% tags=["parameters"]
MODEL = "demo-large"  # or what the last cells name
DEVICE = None  # None: a GPU where there is one
SEED = 71  # of the picture that we look at
PICTURES = 8  # for the measurements of part 3

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
import torch

import sinkgate as sg
from sinkgate.plots import maps_figure, words_figure
from sinkgate.plots.anatomy import attention_figure, tokens_figure, value_ratio_figure
from sinkgate.plots.style import GAIN, LOSS, SOFT
from sinkgate.scenes import Scene
from sinkgate.studies.anatomy import dissect

pd.set_option("display.width", 160, "display.max_columns", 12)
vlm = sg.load(MODEL, device=DEVICE)
vlm

# %% [markdown]
# ## 1. A sink without a picture
#
# We give the LLM a sentence, no image, and look at its hidden states $h$. A token is called a sink where one channel is massive against the others of its layer:
#
# $$\max_d \frac{\lvert h_j[d] \rvert}{\mathrm{median}_{k, d'} \lvert h_k[d'] \rvert}.$$
#
# **Before you run the next cell:** which of the words will have the largest value?

# %%
SENTENCE = "are there circles in the picture of the large blue square"
ids = vlm.tokenizer(SENTENCE, add_special_tokens=False, return_tensors="pt").input_ids.to(vlm.device)
with torch.no_grad():
    output = vlm.decoder(input_ids=ids, output_hidden_states=True)
states = torch.stack(output.hidden_states)[: vlm.num_layers, 0].float().cpu()  # layers, tokens, channels
loudness = states.abs() / states.abs().flatten(1).median(1).values[:, None, None]
words = vlm.tokenizer.convert_ids_to_tokens(ids[0].tolist())
pd.DataFrame(loudness.amax(-1).round().int().numpy(), columns=words).rename_axis("layer")

# %%
layer, token, channel = (int(each) for each in (loudness == loudness.max()).nonzero()[0])
print(f"the largest: token {token} ({words[token]!r}) in channel {channel} at the input of layer {layer}")

# %% [markdown]
# The **first** token, whatever it is, from layer 2 on. It can attend to no token before it, so its state does not depend on what follows, and attention to it does little harm: the *text sink*. A word without a meaning of
# its own, "in", joins it. One channel carries both. `sg.discover` looks for such channels on twelve plain pictures, with evidence ([criteria](../docs/pages/concepts/criteria.md#sink-dimensions)):

# %%
discovery = sg.discover(vlm, cache=False)
print(discovery.summary())

# %% [markdown]
# ## 2. Patches that become sinks
#
# Now a picture. In this model's prompts it comes *before* the text, so the first token is a patch.
#
# **Before you run the next cell:** the channel was learnt from text. How many of the 64 patches will spike in it, and where do you expect them in the picture?

# %%
scene = Scene.random(Random(SEED))
image = scene.render()
prompt = vlm.prompt(image, "How many objects are there?")
sinks = sg.find_sinks(vlm, prompt)
print(fill(sinks.summary(), 100))
image.resize((224, 224))

# %% [markdown]
# Each dot is a patch, at the input of each layer. Look at layer 2, where the first ones separate from the others, and at the gap from layer 3 on. Orange triangles are V-sinks, which the *encoder* made.

# %%
tokens_figure(
    sinks.to_frame(),
    "spike",
    "The spike, patch by patch",
    "Magnitude in the sink dimension over the layer's median.",
    "times the median (log scale)",
)

# %% [markdown]
# A few patches jump to a hundred times and more, the rest stay. And both V-sinks jump too: token 0 stands at the first position, where the text sink would be, and the other looks like it. So a V-sink can be an L-sink
# as well; sinkgate counts it as a V-sink then. In their places:

# %%
first, last = int(sinks.l_sink.any(1).nonzero()[0]), vlm.num_layers - 1
sheet = prompt.sheets[0]
maps = {f"spike at layer {each}": sheet.spread(sinks.spike[each]) for each in (1, first, last)}
maps |= {"V-sinks (encoder)": sheet.spread(sinks.v_sink.float())}
maps_figure(image, maps, "Where they lie", "Magnitude in the sink dimension; each map has its own scale.")

# %% [markdown]
# All of them on the background, one at the rim of the circle. In evidence, for one of them and for an ordinary patch:

# %%
an_l_sink = int(sinks.spike[last].masked_fill(~sinks.l_sink[last], 0).argmax())
an_ordinary = int(sinks.ordinary.all(0).nonzero()[20])
for each in (an_l_sink, an_ordinary):
    print(fill(sinks.explain(each), 100, subsequent_indent="  "))

# %% [markdown]
# ## 3. What they take, and what they give
#
# The attention weights of a query always sum to 1, even if no token is relevant. What a token contributes is its share times its **Value**.
#
# **Before you run the next cell:** ten tokens of 64 are sinks. Guess: what share of the text's attention do they get in the upper layers? And how long are their Values, against others: as long (*broadcast*), or
# near nothing (*no-op*)?

# %%
dimensions = {side: discovery.dimensions(side) for side in ("vision", "llm")}
pictures = [Scene.random(Random(SEED + number)).render() for number in range(PICTURES)]
anatomies = [
    dissect(vlm, vlm.prompt(each, "How many objects are there?"), dimensions, sample=number)
    for number, each in enumerate(pictures)
]
tokens = pd.concat(each["tokens"] for each in anatomies)
attention_figure(tokens)

# %%
value_ratio_figure(tokens)

# %% [markdown]
# From layer 3 on the two kinds of sinks together get three quarters and more of the text's attention, a single L-sink about twenty times what an ordinary patch gets. And their Values shrink in the same layers to a third of the mean.
# That is the other half of a sink: attention goes where it does **nothing**. (The demo model of notebook 1 had sinks whose Values are as long as others.)

# %%
upper = tokens[tokens["layer"] >= 3].groupby("group")[["share", "per_token", "value_ratio"]].mean()
upper.assign(contribution=upper["per_token"] * upper["value_ratio"]).round(4)

# %% [markdown]
# `contribution` is attention of one token times the length of its Value. The lead of an L-sink over an ordinary patch is what is left when both are counted.
#
# ## 4. Another question
#
# Patches stand before the question in the prompt, and attention looks back only.
#
# **Before you run the next cell:** so what of the L-sinks can change with the question?

# %%
QUESTIONS = (
    "How many objects are there?",
    "What color is the large circle?",
    "What colors are there?",
    "Is there a red circle?",
)
rows = {}
for question in QUESTIONS:
    each = sg.find_sinks(vlm, vlm.prompt(image, question))
    rows[question] = {f"layer {at}": each.l_sink[at].nonzero()[:, 0].tolist() for at in (first, last)}
same = all(row == rows[QUESTIONS[0]] for row in rows.values())
print("the same L-sinks for every question:", same)
pd.DataFrame(rows).T

# %% [markdown]
# Nothing. In notebook 1 the "L-sinks" by *attention* changed with the question, since they were content. A spike in the state is decided before the question is read.
#
# **Exercise 1.** And another picture? Find the L-sinks of the last layer in all `pictures`, and count by patch: are there places that are always sinks?

# %%
# your code here

# %% tags=["solution"] jupyter={"source_hidden": true, "outputs_hidden": true}
always = torch.zeros(len(sinks.v_sink))
for each in pictures:
    always += sg.find_sinks(vlm, vlm.prompt(each, QUESTIONS[0])).l_sink[last]
print(
    f"L-sinks a picture: {always.sum() / PICTURES:.1f}; patches that are one in all pictures: {int((always == PICTURES).sum())}"
)
maps_figure(
    image, {"pictures in which a patch is an L-sink": sheet.spread(always)}, "L-sinks of other pictures", "", columns=1
)

# %% [markdown]
# ## 5. Words
#
# The logit lens decodes a hidden state by the LLM's own last layer, as if it were the end ([logit_lens.py](../sinkgate/analysis/logit_lens.py)).
#
# **Before you run the next cell:** an ordinary patch on a circle, and a sink on the background. Which of the two will decode to words about the picture?

# %%
lens = sg.logit_lens(vlm, prompt)
patches = {"L-sink": an_l_sink, "ordinary": an_ordinary}
decoded = {
    (name, f"input of layer {at}"): ", ".join(f"{word} {share:.0%}" for word, share in lens.words(token, at)[:3])
    for name, token in patches.items()
    for at in (2, 4, last)
}
pd.Series(decoded, name="words").to_frame()

# %% [markdown]
# Over all tokens of a group, behind the last layer:

# %%
table = lens.by_group(sinks)
table[table["layer"] == vlm.num_layers].round(2)

# %% [markdown]
# Ordinary patches name shapes and colors; sinks say "and": a word that fits anywhere. They are alike, and they are not about the picture.
#
# ## 6. Attention is not influence
#
# The map of attention is where the answer *looks*. Relevancy is what the answer *loses*, when a patch's Keys are scaled ([relevancy.py](../sinkgate/analysis/relevancy.py)): it changes the model and measures.
#
# **Before you run the next cell:** the two maps have the same picture below. In which patches do they agree?

# %%
trace = vlm.answer(prompt)
relevancy = sg.relevancy(vlm, prompt, trace.text)
loss = relevancy.map().clamp_min(0)
maps = {"attention, mean of layers 3 to 5": torch.stack([trace.visual(each) for each in (3, 4, 5)]).mean(0)}
maps |= {f'relevancy for "{trace.text}"': loss, "its square root": loss.sqrt()}
maps_figure(image, maps, "Looks and losses", "Each map has its own scale; the last shows small losses too.", columns=3)

# %% [markdown]
# The attention of the upper layers is on sinks of both kinds. The losses are in the top row: most on the V-sink at its right end and on ordinary patches beside, little on the V-sink at its left end, which gets most
# attention, and next to nothing on any L-sink. Is an L-sink's attention for nothing, then? Scale each group as a whole, in all layers:
#
# **Before you run the next cell:** which group can be turned off without any change, and which answer comes when L-sinks are turned *up*?

# %%
GROUPS = {"v_sink": "V-sinks", "l_sink": "L-sinks", "ordinary": "ordinary"}
runs = {
    (group, scale): vlm.predict(prompt, sg.Gates.ones(vlm).set(group, scale), sinks)
    for group in GROUPS
    for scale in (0.0, 0.5, 1.0, 2.0)
}
right = trace.next_token[0][0]
rows = {name: {} for name in GROUPS.values()}
for (group, scale), run in runs.items():
    word, share = run.next_token[0]
    rows[GROUPS[group]][f"s = {scale:g}"] = f"{word} ({share:.0%})"
print(f"unmodified: {right}")
pd.DataFrame(rows).T

# %%
words_figure(
    {
        "L-sinks off": runs["l_sink", 0.0].next_token,
        "unmodified": trace.next_token,
        "L-sinks doubled": runs["l_sink", 2.0].next_token,
    },
    f'"{prompt.question}"',
    "Keys of all L-sinks in all layers, scaled by 0, 1 and 2.",
    colors=(LOSS, SOFT, GAIN),
)

# %% [markdown]
# - **L-sinks off**: the answer stays. Their attention goes to other tokens, mostly to the V-sinks, which have the same function. A no-op was removed.
# - **L-sinks up**: the answer is wrong. Not because they contribute anything, but because other tokens lose the attention.
# - **V-sinks down**: the answer is wrong. In this model they hold facts of the whole picture (its encoder was trained so), and by the map of relevancy one of the two is read.
#
# One prompt proves little; [the studies](../sinkgate/demo/studies-large/README.md) of this model have hundreds of questions each. Try more by hand, with "Separate L-sinks":

# %%
sg.explore(vlm, image, prompt.question)

# %% [markdown]
# **Exercise 2.** In which layer does turning L-sinks up hurt? Set the scale 2 in one layer at a time, and print the probability of the right answer.

# %%
# your code here

# %% tags=["solution"] jupyter={"source_hidden": true, "outputs_hidden": true}
number = vlm.tokenizer.convert_tokens_to_ids(right)
chance = [
    float(vlm.predict(prompt, sg.Gates.ones(vlm).set("l_sink", 2.0, each), sinks).probabilities[number])
    for each in range(vlm.num_layers)
]
print({f"layer {each}": round(value, 3) for each, value in enumerate(chance)})

# %% [markdown]
# ## On a model from the Hub
#
# The same notebook runs on SmolVLM-256M, whose LLM is the whole SmolLM2-135M, with photographs. This cell is not run here, since it downloads 0.5 GB; a start token stands before the image there, and is the text sink:
#
# ```python
# MODEL = "HuggingFaceTB/SmolVLM-256M-Instruct"
# image = sg.open_image("photograph.jpg")                 # instead of the scene
# ```
#
# Or put the two parts together yourself, without training: SmolLM2 with DINOv2 as the encoder has no use for its projector, and the LLM's sinks are there all the same. Its card is in [the atlas](../docs/pages/atlas.md), and
# `sinkgate survey --model ... --out runs/survey` measures one for any model.
#
# ## What to keep
#
# - L-sinks are made by the LLM: a channel that it learnt from text, in patches with little content, layer by layer, before the question is read.
# - They take most of the attention and give little: short Values. So a map of attention shows them and not the reasons of the answer.
# - To turn a no-op off changes nothing; to turn it up takes attention from those that matter. A test by scaling needs both directions.
# - Real in the LLM, but a small one: six layers, flat shapes. On photographs and larger models, measure again.
