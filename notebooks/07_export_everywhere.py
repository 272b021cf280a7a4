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
# # 07 Export everywhere
#
# One model for transformers, llama.cpp, onnxruntime and jax alone. Each export is opened by the
# program that it is for and compared with the model before it gets its name; `parity.json` beside
# it is the receipt. Needs the extras `parity` and `export`.

# %%
import json
import pathlib
import tempfile
import warnings

import matplotlib.pyplot as plt

import llmasos

warnings.filterwarnings("ignore", message="IProgress not found")  # tqdm says so
folder = pathlib.Path(tempfile.mkdtemp())

# %% [markdown]
# ## A small model
#
# A few steps are enough: an export is right or wrong whatever the model has learned. Its
# tokenizer, a sentencepiece model of 1,024 pieces, is trained first.

# %%
config = llmasos.read_config("quickstart")
config.model.vocab_size = 1024
config.tokenizer.train_chars = 300_000
config.data.max_documents = 50
config.data.sequence_length = 64
config.train.steps = 10
config.train.log_every_steps = 5
config.train.eval_every_steps = None
config.optim.warmup_steps = 5
config.checkpoint.every_steps = None
config.sample.prompt = ""
llmasos.train(config, folder / "run")
llmasos.convert(folder / "run", folder / "model")
model = llmasos.load_model(folder / "model")
model

# %% [markdown]
# ## Four formats, and fewer bits
#
# `dtype` is what weights are stored as; without it they keep the model's own.

# %%
wanted = [
    ("hf", None),
    ("onnx", None),
    ("stablehlo", None),
    ("gguf", "F32"),
    ("gguf", "F16"),
    ("gguf", "Q8_0"),
    ("gguf", "Q4_0"),
]
exports = {}
for to, dtype in wanted:
    name = f"{to} {dtype}" if dtype else to
    out = folder / name.replace(" ", "-")
    exports[name] = llmasos.export(folder / "model", to, out, dtype=dtype, iree=False)
    print(f"{name}: {exports[name]}", end="\n\n")

# %% [markdown]
# ## A receipt
#
# What was compared, how far apart the two programs are (of the same, rounded weights), what
# rounding did to the weights and what that did to the outputs, the versions, the SHA-256 of every
# file.

# %%
receipt = json.loads((exports["gguf Q8_0"].path / "parity.json").read_text())
print(json.dumps(receipt, indent=1))

# %% [markdown]
# ## Size, and what it costs
#
# Two differences, each as a share of the largest number of an output. *The program*: its outputs
# beside ours, with the weights as they were written; an export is kept only where that is below
# the bound. *Rounding*: our outputs with those weights beside our outputs with the model's own.

# %%
names = list(exports)
megabytes = [
    sum(file.stat().st_size for file in export.path.rglob("*") if file.is_file()) / 1e6
    for export in exports.values()
]
seconds = [export.seconds for export in exports.values()]

fig, (sizes, times, apart) = plt.subplots(
    1, 3, figsize=(11, 3.8), layout="constrained", sharey=True, width_ratios=(1, 1, 1.4)
)
for ax, values, label in ((sizes, megabytes, "MB on disk"), (times, seconds, "seconds, proof too")):
    bars = ax.barh(names, values, color="tab:blue", alpha=0.7)
    ax.bar_label(bars, fmt="%.1f", padding=3)
    ax.set(xlabel=label, xlim=(0, 1.25 * max(values)))
for n, export in enumerate(exports.values()):
    apart.plot(export.bound, n, "|", color="gray", ms=16)
    if export.difference:
        apart.plot(export.difference, n, "o", color="tab:blue")
    else:
        apart.annotate("none", (0.01, n), xycoords=("axes fraction", "data"), va="center")
    if export.proof.effect:
        rounding = max(compared.difference for compared in export.proof.effect)
        apart.plot(rounding, n, "D", color="tab:orange")
for marker, colour, label in (
    ("|", "gray", "bound"),
    ("o", "tab:blue", "the program"),
    ("D", "tab:orange", "rounding"),
):
    apart.plot([], [], marker, color=colour, ms=12 if marker == "|" else 6, label=label)
apart.set(xscale="log", xlabel="difference (share of the largest)")
apart.grid(axis="x", alpha=0.3)
fig.legend(*apart.get_legend_handles_labels(), loc="outside upper right", ncols=3, frameon=False)
sizes.invert_yaxis()
for ax in (sizes, times, apart):
    ax.spines[["top", "right"]].set_visible(False)
plt.show()
