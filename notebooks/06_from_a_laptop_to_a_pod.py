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
# # 06 From a laptop to a pod
#
# The same config trains on this machine and on a TPU pod. Before the pod is paid for, `plan` asks
# the real TPU compiler (the extra `tpu`; no TPU is needed) what a step would need and take there.
# Without the extra it answers in closed form, and says so.

# %%
import pathlib
import tempfile

import matplotlib.pyplot as plt

import llmasos

folder = pathlib.Path(tempfile.mkdtemp())
GIB = 2**30

# %% [markdown]
# ## On this machine
#
# A few steps of a tiny model show that data, model and optimizer go together.


# %%
def decoder(width, num_layers, sequence_length):
    """A decoder with heads of width 128 (32 for the tiny one)."""
    config = llmasos.default_config()
    config.name = "decoder"
    config.model.embedding_dim = width
    config.model.num_layers = num_layers
    config.model.num_heads = max(2, width // 128)
    config.model.context_length = config.data.sequence_length = sequence_length
    config.optim.warmup_steps = 5
    return config


tiny = decoder(width=64, num_layers=2, sequence_length=64)
tiny.tokenizer.kind = "bytes"
tiny.model.vocab_size = 259
tiny.data.max_documents = 20
tiny.train.batch_size, tiny.train.steps, tiny.train.log_every_steps = 8, 20, 10
tiny.train.eval_every_steps = tiny.checkpoint.every_steps = None
llmasos.train(tiny, folder / "tiny")

# %% [markdown]
# ## On four chips
#
# The same function, larger: a few hundred million parameters, a batch of 131,072 tokens.
# Parameters and optimizer are cut over all chips (`mesh.fsdp`, an axis of the mesh for each of the
# torus).


# %%
def on_chips(side):
    config = decoder(width=1024, num_layers=24, sequence_length=512)
    config.tokenizer.kind = "sentencepiece"
    config.model.vocab_size = 32768
    config.train.batch_size = 256
    config.precision.dtype = "bfloat16"
    config.mesh.fsdp = (side, side)
    return config


plans = {"v5e:2x2": llmasos.plan(on_chips(2), "v5e:2x2")}
print(plans["v5e:2x2"])

# %% [markdown]
# Where it does not fit, the plan says by how much, and what to change in the config with what each
# change may save. Another way is more chips.
#
# ## On more
#
# The same batch on 16 and on 64 chips. Compiling takes about a minute each; asked again, the plan
# comes from a cache.

# %%
for side in (4, 8):
    topology = f"v5e:{side}x{side}"
    plans[topology] = llmasos.plan(on_chips(side), topology, tokens="10B")
    print(f"{topology}: {plans[topology].verdict}")
plans["v5e:4x4"]

# %% [markdown]
# ## What grows, what shrinks
#
# Left, the fullest moment of one chip. Right, the least time that a step can take: all that
# overlaps does, and the tallest bar is the bound. From 16 chips to 64 with the same batch each
# chip computes a quarter, but still gathers all weights.

# %%
names = list(plans)
memory = {"parameters": [], "optimizer": [], "activations, gradients, gathered weights": []}
for plan in plans.values():
    figures = plan.figures
    state = figures.state.parameters + figures.state.optimizer
    if figures.memory is not None:
        rest = figures.memory.peak - state
    else:  # the compiler stopped at what it could not place
        rest = figures.out_of_memory.needed
    parts = (figures.state.parameters, figures.state.optimizer, rest)
    for values, part in zip(memory.values(), parts, strict=True):
        values.append(part / GIB)

fig, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4.2), layout="constrained")
bottom = [0.0] * len(names)
for label, values in memory.items():
    left.bar(names, values, bottom=bottom, label=label, width=0.6)
    bottom = [low + value for low, value in zip(bottom, values, strict=True)]
available = plans["v5e:2x2"].available / GIB
left.axhline(available, color="black", ls="--", lw=1)
left.annotate("what a chip has", (1, available), xycoords=("axes fraction", "data"), ha="right",
              xytext=(0, 4), textcoords="offset points")  # fmt: skip
left.set(ylabel="GiB of one chip", title="Memory")
left.legend(frameon=False)

fitting = {name: plan for name, plan in plans.items() if plan.roofline is not None}
for n, part in enumerate(("compute", "memory", "links")):
    values = [1e3 * plan.roofline.parts[part] for plan in fitting.values()]
    places = [place + 0.27 * (n - 1) for place in range(len(fitting))]
    bars = right.bar(places, values, width=0.25, label=part, color=f"C{n + 3}")
    right.bar_label(bars, fmt="%.1f", padding=2, fontsize=9)
right.set_xticks(range(len(fitting)), fitting)
right.set(ylabel="least milliseconds of a step", title="Time")
right.legend(frameon=False)
for ax in (left, right):
    ax.spines[["top", "right"]].set_visible(False)
plt.show()

for name, plan in fitting.items():
    print(f"{name}: at most {plan.tokens_per_s:,.0f} tokens/s and {plan.mfu:.0%} MFU, by", end=" ")
    print(plan.roofline.bound_by)

# %% [markdown]
# ## Start it
#
# `launch` writes the files that start the config on a cluster; nothing is sent anywhere.

# %%
config = on_chips(4)
config.data.source, config.data.path = "jsonl", "/data/text/*.jsonl"
print(
    llmasos.launch(
        config,
        "tpu-vm",
        folder / "launch",
        topology="v5e:4x4",
        workdir="/data/runs/decoder",
        tpu="my-tpu",
        project="my-project",
        zone="us-west4-a",
    )
)
