# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A first model
#
# One config, a minute of training on text that every machine has, a model in an open format, and a
# look at what it has learned. Open this file as a notebook (`jupytext`, or "open as notebook" in
# your editor), or run it: `python notebooks/01_a_first_model.py`.

# %%
import json
import pathlib
import tempfile

import numpy as np

import llmasos

# %% [markdown]
# A config is an `ml_collections.ConfigDict`. Every field is there, with its type; an unknown one is
# an error that names the nearest.

# %%
config = llmasos.read_config("tiny")
config.train.steps = 40
config.model.embedding_dim = 64
config.model.num_heads = 2
config.model.num_layers = 2

# %%
folder = pathlib.Path(tempfile.mkdtemp())
result = llmasos.train(config, folder / "run")
print(result)

# %% [markdown]
# The curve is in `metrics.jsonl`, one JSON object a line, and in `tensorboard/`.

# %%
rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
curve = [(row["step"], row["loss"]) for row in rows if "loss" in row]
top = max(loss for _, loss in curve)
for step, loss in curve:
    print(f"step {step:3d}  {loss:.2f}  {'#' * round(50 * loss / top)}")

# %% [markdown]
# The checkpoint becomes a folder that any program can read: `model.json` and safetensors.

# %%
print(llmasos.convert(folder / "run", folder / "model"))
model = llmasos.load_model(folder / "model" / "model.json")
print(model)

# %%
print(model.generate_text("def ", max_length=60, temperature=0.8, seed=0, echo=True))

# %% [markdown]
# What does it expect after `import os`? Probabilities of the next byte:

# %%
ids = model.encode("import os")
logits = model.logits([ids])[0, -1]
probabilities = np.exp(logits - np.logaddexp.reduce(logits))
for best in np.argsort(-probabilities)[:5]:
    print(f"{model.decode([int(best)])!r:8} {probabilities[best]:.3f}")
