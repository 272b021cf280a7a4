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
# # 05 A sweep and its plots
#
# Does a wider model want another learning rate? Five learning rates, two widths, three seeds:
# thirty runs in two programs, one for each width.

# %%
import pathlib
import tempfile

import matplotlib.pyplot as plt
import numpy as np

import llmasos

folder = pathlib.Path(tempfile.mkdtemp())

# %% [markdown]
# ## The sweep's file
#
# A sweep is a Python file: the config that it is over, and a function that adds points. Each point
# is what differs from the config. Seeds differ in initial weights alone here: all runs read the
# same batches.

# %%
FILE = '''"""Does a wider model want another learning rate?"""

from llmasos_jax.config.build import read_config
from llmasos_jax.sweep import grid


def get_config():
    config = read_config("tiny")
    config.train.steps = 60
    config.train.log_every_steps = 2
    config.train.eval_every_steps = 20
    config.train.eval_batches = 8
    config.checkpoint.every_steps = None
    config.sample.prompt = None
    return config


def sweep(add):
    rates = [1e-3, 3e-3, 1e-2, 3e-2, 1e-1]
    for point in grid({"model.embedding_dim": [16, 64], "optim.learning_rate": rates}):
        first = point == {"model.embedding_dim": 16, "optim.learning_rate": 1e-2}
        add(point, seeds=3, baseline=first)
'''
path = folder / "widths.py"
path.write_text(FILE)
report = llmasos.sweep(path, folder / "runs")
report

# %% [markdown]
# Runs that share shapes trained in one program; each is the run that it would have been alone. The
# table has means over seeds with 95% intervals, and tests against the baseline, corrected for
# their number. The same call again trains nothing: what is done is done.

# %% [markdown]
# ## The answer as a picture

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
for width, colour in ((16, "tab:orange"), (64, "tab:blue")):
    rows = [row for row in report.rows if row.setting.overrides["model.embedding_dim"] == width]
    rows = sorted(
        (row for row in rows if row.summary),
        key=lambda row: row.setting.overrides["optim.learning_rate"],
    )
    rates = [row.setting.overrides["optim.learning_rate"] for row in rows]
    means = np.array([row.summary.mean for row in rows])
    spread = np.array([row.summary.half_width or 0.0 for row in rows])
    left.plot(rates, means, color=colour, marker="o", label=f"width {width}")
    left.fill_between(rates, means - spread, means + spread, color=colour, alpha=0.2)
    best = min(rows, key=lambda row: row.summary.mean)
    for outcome in best.setting.outcomes:
        steps, losses = zip(*outcome.curves["loss"], strict=True)
        name = f"width {width}, learning rate {best.setting.overrides['optim.learning_rate']:g}"
        label = name if outcome is best.setting.outcomes[0] else None
        right.plot(steps, losses, color=colour, alpha=0.6, label=label)
left.set(xscale="log", xlabel="learning rate", ylabel="held-out loss, nats per byte")
left.set_title("mean of three seeds, 95% interval")
right.set(xlabel="step", ylabel="training loss, nats per byte", title="the best of each width")
for axes in (left, right):
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# ## What is in the folder
#
# `report.html` has all curves and a plot for each field that varies. Every point is a training
# folder like any other: the best one writes.

# %%
winner = report.best.setting.outcomes[0].name
print(sorted(path.name for path in (folder / "runs").iterdir()))
model = llmasos.load_model(folder / "runs" / "points" / winner)
print(winner, "writes:")
print(model.generate_text("def ", max_length=80, temperature=0.7, seed=0, echo=True))
