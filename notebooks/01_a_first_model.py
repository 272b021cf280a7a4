# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 01 A first model
#
# One config, a short run on text that every machine has (the Python standard library's own
# source), a model in an open format, and a look at what it has learned. Nothing is downloaded.

# %%
import json
import math
import pathlib
import tempfile

import matplotlib.pyplot as plt
import numpy as np

import llmasos

folder = pathlib.Path(tempfile.mkdtemp())

# %% [markdown]
# ## Train
#
# A config is an `ml_collections.ConfigDict`. Every field is there, with its type; an unknown one
# is an error that names the nearest. This is a decoder that reads bytes: 2 layers of width 64.

# %%
config = llmasos.read_config("tiny")
config.model.embedding_dim = 64
config.model.context_length = 128
config.data.sequence_length = 128
config.train.batch_size = 16
config.train.steps = 200
config.train.log_every_steps = 10
config.train.eval_every_steps = 25
config.train.eval_batches = 4
config.optim.warmup_steps = 20
config.checkpoint.every_steps = None

result = llmasos.train(config, folder / "run")
result

# %% [markdown]
# ## Is that good?
#
# A loss says little alone. The run also counts bytes and pairs of bytes of its training text, and
# scores the same held-out text with those counts (`result.unigram_perplexity` and
# `result.bigram_perplexity`, add-one smoothed). A model that stays above the lower line does no
# better than a table of pairs. Every line of `metrics.jsonl` is one JSON object; `tensorboard/`
# has the same.

# %%
lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
rows = [json.loads(line) for line in lines]
batch = result.tokens // result.step
train, heldout = (
    np.array([(row["step"] * batch / 1000, row[name]) for row in rows if name in row])
    for name in ("loss", "heldout_loss")
)

fig, ax = plt.subplots(figsize=(7, 4), layout="constrained")
ax.plot(*train.T, color="tab:blue", label="training batches")
ax.plot(*heldout.T, "o-", color="tab:orange", label="held-out text")
for name, perplexity in (
    ("counts of bytes", result.unigram_perplexity),
    ("counts of pairs of bytes", result.bigram_perplexity),
):
    ax.axhline(math.log(perplexity), color="gray", linestyle="--", linewidth=1)
    ax.annotate(name, (1, math.log(perplexity)), xycoords=("axes fraction", "data"), ha="right",
                xytext=(0, 3), textcoords="offset points", color="gray")  # fmt: skip
ax.set(xlabel="thousand bytes read", ylabel="loss (nats per byte)", title="Learning curve")
ax.spines[["top", "right"]].set_visible(False)
ax.legend(frameon=False)
plt.show()

# %% [markdown]
# ## Keep it
#
# The checkpoint becomes a folder that any program can read: `model.json`, safetensors, and the
# tokenizer.

# %%
print(llmasos.convert(folder / "run", folder / "model"))
model = llmasos.load_model(folder / "model" / "model.json")
print(model)
print(model.generate_text("def ", max_length=100, temperature=0.7, seed=0, echo=True))

# %% [markdown]
# ## What does it expect?
#
# `logits` gives the scores of the next byte after each byte. Below, each byte of a line with the
# probability that the model gave it before it was read, and its surprise in bits.

# %%
text = "    def __init__(self, name):\n        self.name = name"
ids = model.encode(text)  # a token that begins the text, then its bytes
logits = model.logits([ids])[0]
logprobs = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
surprise = -logprobs[np.arange(len(ids) - 1), ids[1:]] / math.log(2)

fig, ax = plt.subplots(figsize=(9, 2.6), layout="constrained")
colours = plt.get_cmap("viridis_r")(surprise / surprise.max())
ax.bar(range(len(text)), surprise, color=colours, width=0.9)
shown = [{" ": "·", "\n": "↵"}.get(byte, byte) for byte in text]
ax.set_xticks(range(len(text)), shown, family="monospace")
ax.tick_params(axis="x", length=0)
ax.set(xlim=(-0.6, len(text) - 0.4), ylabel="surprise (bits)", title="Where the model is surprised")
ax.set_xlabel("byte that comes next (· is a space, ↵ the end of a line)")
ax.spines[["top", "right"]].set_visible(False)
plt.show()
