# %% [markdown]
# # 5 · Your own model
#
# Any vision-language model of the [tested architectures](../docs/pages/models.md), from the Hub or from a folder. This notebook walks the way that every new model goes:
#
# 1. load it, and what the checks on load prove;
# 2. what sinkgate sees in it;
# 3. does it have sink dimensions at all?
# 4. the verdicts of all criteria, and why fixed thresholds fail;
# 5. a first small sweep;
# 6. gates, saved and read again;
# 7. memory, several devices, quantization, and what else to watch out for.
#
# It needs no network: `MODEL` is `demo-large`, whose LLM is the first six layers of SmolLM2, with sinks of its own. A tiny LLaVA with **random weights** stands beside it, which has nothing to find: a measurement is worth
# what it says of that one.
#
# **Time**: about half a minute on two cores.

# %% tags=["parameters"]
MODEL = "demo-large"  # or "llava-1.5-7b", "Qwen/Qwen2-VL-2B-Instruct", "path/to/folder"
DEVICE = None  # None: a GPU where there is one
QUESTIONS = 16  # of the sweep
SEED = 0

# %% tags=["install"]
import sys

if "google.colab" in sys.modules:
    import subprocess

    # from a clone of the repository, uploaded beside this notebook: no release is on PyPI
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "-e", "sinkgate[notebooks,train]"], check=True)

# %%
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp

import pandas as pd
import plotly.graph_objects as go
import torch
from transformers import (
    AutoModelForImageTextToText,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    SiglipVisionConfig,
)

import sinkgate as sg
from sinkgate.benchmarks.samples import of_samples
from sinkgate.data import scene_samples
from sinkgate.demo.build import IMAGE, build_processor, build_tokenizer
from sinkgate.models.checks import noise_picture
from sinkgate.models.describe import describe
from sinkgate.models.loading import DEMO, KNOWN_MODELS
from sinkgate.plots.style import COLORWAY, dressed
from sinkgate.plots.sweep import settings_figure
from sinkgate.scenes.scene import BACKGROUNDS, COLORS, SIZES
from sinkgate.sinks.criteria import NormOutliers
from sinkgate.studies.runner import run
from sinkgate.studies.sweep import Sweep, gains

pd.set_option("display.width", 160, "display.max_columns", 12)
work = Path(mkdtemp())

# %% [markdown]
# ## 1. From a folder to a model
#
# A folder on the Hub holds a configuration, weights, a tokenizer, an image processor and a chat template. So does the one of `demo-large`, which comes with sinkgate:

# %%
print(*sorted(file.name for file in (DEMO.parent / "weights-large").iterdir()), sep="\n")

# %% [markdown]
# `sg.load` takes such a folder, a Hub id, a short name (`sinkgate models` lists them), or a (model, processor) that you have loaded already.

# %%
vlm = sg.load(MODEL, device=DEVICE)
print(f"{vlm.name}: {vlm.num_layers} layers that can be gated")
pd.DataFrame([{"name": name, "on the Hub": known["id"]} for name, known in KNOWN_MODELS.items()]).head(6)

# %% [markdown]
# And here is the model beside it: smaller than any you would use, with the tokenizer and processor of the demo model. With random weights of the usual size the output hardly depends on the Keys, so we make the weights larger.


# %%
LARGER = {"vision_tower": 2, "projector": 3, "language_model.layers": 6}


def random_llava(seed: int = SEED):
    """A LLaVA of four encoder and six LLM layers, with random weights."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
    config = LlavaConfig(
        vision_config=SiglipVisionConfig(
            **shape, num_hidden_layers=4, image_size=64, patch_size=8, vision_use_head=False
        ),
        text_config=LlamaConfig(
            **shape, num_hidden_layers=6, num_key_value_heads=2, vocab_size=len(tokenizer), bos_token_id=None
        ),
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=64,
        vision_feature_layer=-2,
        vision_feature_select_strategy="full",
    )
    model = LlavaForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, weights in model.named_parameters():
            times = next((times for part, times in LARGER.items() if part in name), 1)
            weights.mul_(times if weights.dim() > 1 else 1)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model, build_processor(tokenizer)


random_vlm = sg.load(random_llava())
print(random_vlm)

# %% [markdown]
# If you see this, both models have passed the **checks on load** ([checks.py](../sinkgate/models/checks.py)). On a small prompt they prove that
#
# - attention is seen in every layer, and its rows sum to one: nothing overflows, no layer goes another way;
# - halving every visual Key moves the next token: the layers do read the image where sinkgate believes it is;
# - patches become visual tokens as believed: measured by gradients at the first prompt.
#
# They do not measure the quality of the model. If a check fails, the error names the remedy:

# %%
for wrong in ({"source": "lava-1.5"}, {"source": "demo", "attn_implementation": "fast"}):
    try:
        sg.load(**wrong)
    except sg.UnsupportedModelError as error:
        print(f"{error}\n")

# %% [markdown]
# **Exercise 1.** Break a random LLaVA so that the checks notice: how could its layers stop reading the image?

# %%
# your code here

# %% tags=["solution"] jupyter={"source_hidden": true, "outputs_hidden": true}
model, processor = random_llava()
with torch.no_grad():
    for layer in model.model.language_model.layers:
        layer.self_attn.o_proj.weight.zero_()  # the attention is unchanged, but its output is zero
try:
    sg.load((model, processor))
except sg.UnsupportedModelError as error:
    print(error)

# %% [markdown]
# ## 2. What sinkgate sees in it
#
# `sinkgate info --model ...` prints this. Four lines deserve a look before anything else: `patches`, `gated_layers`, and those that say whether V-sinks and L-sinks can be named.

# %%
prompt = vlm.prompt(noise_picture(), "What is this?")
for name, fact in describe(vlm, prompt).items():
    print(f"{name:>14}  {fact}")

# %% [markdown]
# Many models merge patches: Qwen2-VL makes one token of 2 x 2. Then a token counts as a V-sink when *any* of its patches is one; that is our choice, and `sg.find_sinks(vlm, prompt, merged="most")` or `"all"` is
# another. Where tokens mix all patches (Q-Formers, resamplers), patches can be named and tokens cannot.
#
# ## 3. Sink dimensions, or none
#
# Massive activations live in a few channels, the *sink dimensions* (paper, section 1): 1415 and 2533 in LLaMA-2-7B, 650 in LLaVA's CLIP. `sg.discover` looks for them on twelve plain pictures: a channel must reach 100 times the layer's median and dominate
# its token, and the tokens must fall into two populations, loud and quiet ([criteria](../docs/pages/concepts/criteria.md#sink-dimensions)).
#
# **Before you run the next cell:** which of the four sides has sink dimensions: the encoders and the LLMs of the two models?

# %%
discovery = sg.discover(vlm, cache=False)
for each in (discovery, sg.discover(random_vlm, cache=False)):
    print(each.summary(), end="\n\n")

# %% [markdown]
# One: the LLM that was pretrained on text. "None" is an answer too, and a common one: the loudest channel comes nowhere near 100 times the median. Then no token is a sink by its activations, and other criteria have to
# decide. ([Notebook 6](06_real_l_sinks.ipynb) looks at that dimension closely.)
#
# Take dimensions from a paper only for the very same weights. They are positions in a basis that training chose, so they do not transfer, not even between two models that grew from the same LLM. sinkgate keeps
# published ones with their sources, as a start and no proof:

# %%
print("LLaMA-2-7B:", sg.known("llama-2-7b", "llm"))
print("found here:", discovery.dimensions("llm"))
try:
    sg.find_sinks(vlm, prompt, l_sink=sg.SinkDimensions(sg.known("llama-2-7b", "llm")))
except sg.SinkgateError as error:
    print(error)

# %% [markdown]
# **Exercise 2.** Plant a sink dimension: give one channel of one word's embedding a huge value, and let `sg.discover(..., cache=False)` find it. The word `<|user|>` stands behind every picture. In how many of the twelve
# prompts does it show, in which layers, and how sure is it?

# %%
# your code here

# %% tags=["solution"] jupyter={"source_hidden": true, "outputs_hidden": true}
model, processor = random_llava()
with torch.no_grad():
    model.get_input_embeddings().weight[processor.tokenizer.convert_tokens_to_ids("<|user|>"), 7] = 3000.0
print(sg.discover(sg.load((model, processor)), cache=False).summary())

# %% [markdown]
# ## 4. Every criterion, side by side
#
# Is a token a sink because one channel spikes, because its vector is long, or because attention goes there? These differ, so `sg.report` applies all criteria to one prompt.

# %%
sample = next(scene_samples(1, SEED, kinds=["background"], size=224))
prompt = vlm.prompt(sample.images[0], sample.question)
print(sg.report(vlm, prompt, discovery))

# %% [markdown]
# Read it from the top: how many, by which criterion, and then who disagrees. Inside the LLM sink dimensions and norms agree on most; attention calls three times as many tokens sinks, since it names what draws attention,
# whatever the reason. In the encoder attention is the only evidence. And on random weights?

# %%
on_random = random_vlm.prompt(sample.images[0], sample.question)
print(sg.find_sinks(random_vlm, on_random).summary())

# %% [markdown]
# No training made sinks of these tokens. Results are safer where criteria agree; if attention is the only evidence, look at the picture.
#
# **Why a fixed threshold fails.** Residual streams grow with depth. A norm that is outstanding in layer 0 is ordinary in the last, and a fixed threshold calls many tokens of the upper layers sinks, in deep models all. So the
# criteria of sinkgate compare a token with its own layer ([criteria.py](../sinkgate/sinks/criteria.py)); the fixed ones of the literature are there too, by name.
#
# **Before you run the next cell:** we take a threshold that suits layer 0, twice its median norm. What share of the tokens will it call sinks in the last layer? Look at where its line ends.

# %%
observation = vlm.observe(prompt)
norms = observation.hidden[:, observation.visual].norm(dim=-1)  # layers, visual tokens
fixed = 2 * float(norms[0].median())
share = {
    "fixed: twice the median of layer 0": (norms >= fixed).float().mean(1),
    "relative: twice the layer's own median": (norms >= 2 * norms.median(1, keepdim=True).values).float().mean(1),
}
print("median norm by layer:", [round(float(each)) for each in norms.median(1).values])
figure = go.Figure()
for (name, line), color, dash in zip(share.items(), COLORWAY, ("solid", "dash"), strict=False):
    figure.add_scatter(
        y=line.tolist(), name=name, mode="lines+markers", line={"color": color, "width": 2.5, "dash": dash}
    )
figure.update_xaxes(title_text="layer", dtick=1 if vlm.num_layers <= 16 else 4)
figure.update_yaxes(title_text="called sinks", range=[-0.03, 1.03], tickformat=".0%")
dressed(figure, "Norm outliers by two thresholds", "Share of the visual tokens, at the input of each layer.", 360)

# %% [markdown]
# Both are `NormOutliers`, with and without a `threshold`, and any criterion can name the sinks that are gated:

# %%
criteria = {"norm, fixed": NormOutliers(threshold=fixed), "norm, relative": NormOutliers()}
criteria |= {"attention": "attention", "dimensions": "dimensions"}
for name, criterion in criteria.items():
    sinks = sg.find_sinks(vlm, prompt, l_sink=criterion)
    print(f"{name:>14}: L-sinks in each layer {sinks.l_sink.sum(1).tolist()}")

# %% [markdown]
# ## 5. A first sweep
#
# A handful of pictures, each layer alone, three settings: V-sinks off, all other visual tokens off, all visual tokens at a half. The questions have options, so only the first token among them counts. For real numbers take a benchmark: `sinkgate sweep --data mmstar --model ... --out runs/sweep`.

# %%
OPTIONS = {"background": BACKGROUNDS, "color": COLORS, "size": SIZES, "presence": ("yes", "no")}
samples = scene_samples(QUESTIONS, SEED, split="test", kinds=list(OPTIONS), size=224)
_, items = of_samples("options", [replace(each, options=tuple(OPTIONS[each.kind])) for each in samples])
points = [(0.0, 1.0), (1.0, 0.0), (0.5, 0.5)]
study = run(Sweep(vlm, items, points=points), work / "sweep", progress=False)
table = gains(study.table("items"), study.table("answers"))
print(f"{len(items)} questions, right unmodified: {table.groupby('task')['base'].first().mean():.0%}")
print(f"kinds x settings: {len(table)}")
print(f"settings that hold after correction: {int((table['corrected'] < 0.05).sum())}")

# %% [markdown]
# Look at the colors, and then for triangles, which would mark what holds after correction. Four questions of a kind cannot show that: a first sweep says where to look, and no more.

# %%
settings_figure(table)

# %% [markdown]
# The study's folder holds what is needed to say later what was done: model and revision, a checksum of the data, settings, versions.

# %%
print({key: study.about[key] for key in ("study", "units")}, study.about["settings"])

# %% [markdown]
# ## 6. Gates, saved and read again
#
# A setting that you like is a small JSON file, with the name of the model it was made for. `sinkgate ask picture.png "..." --gates gates.json` and the app read it too.

# %%
gates = sg.Gates.ones(vlm).set("v_sink", 0.2, layers=[1, 2]).set("rest", 1.5, layers=-1)
gates.save(work / "gates.json")
again = sg.Gates.load(work / "gates.json")
print("the same:", again == gates, "| made for", again.model)

# %% [markdown]
# Gates of another model are refused, not stretched:

# %%
try:
    demo = sg.load("demo")
    demo.predict(demo.prompt(noise_picture(), "What is this?"), again)
except sg.GateError as error:
    print(error)

# %% [markdown]
# ## 7. Before you load something large
#
# Parameters can be counted without a byte of weights, on the `meta` device; `sg.load` does so and refuses a model that cannot fit before it downloads anything. transformers' default `LlavaConfig` has the shape of LLaVA-1.5-7B:

# %%
with torch.device("meta"):
    parameters = AutoModelForImageTextToText.from_config(LlavaConfig()).num_parameters()
bits = {"float32": 32, "bfloat16": 16, '8 bit (quantize="8bit")': 8, '4 bit (quantize="4bit")': 4}
print(f"{parameters / 1e9:.2f} billion parameters")
pd.DataFrame({"GB of weights": {name: round(parameters * each / 8e9, 1) for name, each in bits.items()}})

# %% [markdown]
# ```python
# sg.load("llava-1.5-7b", dtype="bfloat16")                       # one GPU of 24 GB
# sg.load("llava-1.5-7b", quantize="4bit")                        # a smaller one; needs bitsandbytes
# sg.load("llava-1.5-13b", device_map="auto")                     # several GPUs, CPU memory, disk
# sg.load("someone/model", revision="<commit>")                   # the same weights for good
# ```
#
# What to watch out for:
#
# - **Fixed thresholds** fail by norm drift, as above. Look at `sg.report` before you trust a count of sinks.
# - **Sink dimensions do not transfer.** Discover them on the model at hand, and believe a confidence only as far as twelve prompts go.
# - **"None" is an answer.** Without V-sinks their scale does nothing, and a sweep of it shows noise.
# - **Merged tokens**: one loud patch of four makes a V-sink, unless you pass `merged="most"`.
# - **Memory**: weights take most of it, but an `sg.Session` keeps the inputs of all layers (`session.nbytes` is their size), and a sweep runs several prompts side by side (`chunk`).
# - **Half precision**: in float16 massive activations may overflow, in bfloat16 they do not. The checks on load see it on their prompt.
# - **`device_map`**: gates follow each layer to its device; only the first module must stay off the disk.
# - **Quantized weights** are different weights: results hold for them only.
# - CUDA, several devices and bitsandbytes are written for and were not run by us ([limits](../README.md#limits)).
#
# **Exercise 3.** How much does a warm session of your model hold, in KiB, and how much would it be for a prompt of 3,000 positions? It grows in proportion. Try `sg.Session(vlm, prompt)`, `predict()` and `nbytes`.

# %%
# your code here

# %% tags=["solution"] jupyter={"source_hidden": true, "outputs_hidden": true}
session = sg.Session(vlm, prompt)
session.predict()
held = session.nbytes / 1024
print(f"{held:.0f} KiB for {prompt.length} positions, {held * 3000 / prompt.length:,.0f} KiB for 3,000")

# %% [markdown]
# **From here:** the same way [on the command line](../docs/pages/guides/command-line.md), [studies](../docs/pages/guides/studies.md) that take hours, and
# [gates that learn](04_train_lsg.ipynb) on your model.
