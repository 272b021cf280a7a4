"""Tiny encoders of transformers with random tensors, and what is compared with them."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmasos_jax.config.schema import Config, DataConfig, ObjectiveConfig
from llmasos_jax.data.batch import Batch
from llmasos_jax.data.tokenizers.vocabulary import stand_in
from llmasos_jax.format.read import ModelFiles
from llmasos_jax.interop.hf import open_hf
from llmasos_jax.models.definition import file_def
from llmasos_jax.nn.runtime import Runtime
from llmasos_jax.train.objective import build_objective

torch = pytest.importorskip("torch", reason="needs the extra `parity`")
transformers = pytest.importorskip("transformers", reason="needs the extra `parity`")

torch.set_num_threads(1)
VOCAB, LENGTH, PAD = 64, 20, 1
LENGTHS = (20, 13, 7)
GRADIENT = 1e-3  # of the largest number of a parameter's gradient
# A key's bias adds the same to all scores of a query, where positions are not rotated.
ZERO = ("key.bias", "k_lin.bias")
WIDTHS = dict(
    **dict(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, num_attention_heads=4),
    **dict(intermediate_size=48, max_position_embeddings=40, pad_token_id=PAD),
)
DISTIL = dict(
    **dict(vocab_size=VOCAB, dim=32, n_layers=2, n_heads=4, hidden_dim=48, pad_token_id=PAD),
    **dict(max_position_embeddings=40),
)
MODERN = WIDTHS | dict(
    **dict(num_hidden_layers=4, local_attention=8, eos_token_id=3, bos_token_id=2),
    **dict(cls_token_id=2, sep_token_id=3),
)


def build(saved: str, config: str, options: dict[str, Any]) -> Any:
    """Their model with random weights: products keep the size of what they read."""
    kind = getattr(transformers, config)
    model = getattr(transformers, saved)._from_config(kind(**options), attn_implementation="eager")
    rng = np.random.default_rng(1)
    with torch.no_grad():
        for key, weight in model.named_parameters():
            noise = rng.standard_normal(weight.shape).astype(np.float32)
            is_norm = weight.ndim == 1 and key.endswith("weight")
            size = (
                0.3 if weight.ndim == 1 else 0.5 if "embed" in key else 1.5 / noise.shape[-1] ** 0.5
            )
            weight.copy_(torch.from_numpy(noise * np.float32(size) + np.float32(is_norm)))
    return model.float().eval()


def inputs(model: Any) -> dict[str, np.ndarray]:
    """Ids, a mask with padding on the right, and types where the model has them."""
    rng = np.random.default_rng(0)
    mask = (np.arange(LENGTH)[None] < np.array(LENGTHS)[:, None]).astype(np.int32)
    tokens = np.where(mask > 0, rng.integers(4, VOCAB, mask.shape), PAD).astype(np.int32)
    types = getattr(model.config, "type_vocab_size", 0)
    found = {"tokens": tokens, "mask": mask}
    if types:
        found["types"] = (rng.integers(0, types, mask.shape) * mask).astype(np.int32)
    return found


def theirs_of(model: Any, given: dict[str, np.ndarray], **labels: Any) -> Any:
    tensors = {n: torch.from_numpy(x.astype(np.int64)) for n, x in given.items()}
    types = {"token_type_ids": tensors["types"]} if "types" in given else {}
    return model(input_ids=tensors["tokens"], attention_mask=tensors["mask"], **types, **labels)


def opened(model: Any, folder: Path) -> tuple[ModelFiles, dict[str, Any]]:
    model.save_pretrained(folder)
    files = open_hf(folder)
    return files, jax.tree.map(jnp.asarray, files.params())


def our_loss(files: ModelFiles, params: Any, batch: Batch, objective: str) -> tuple[float, Any]:
    """The mean that training lowers, and its gradient by every weight."""
    cfg = files.manifest.parameters
    config = Config(
        cfg, data=DataConfig(sequence_length=LENGTH), objective=ObjectiveConfig(name=objective)
    )
    loss_fn = build_objective(config, stand_in(VOCAB)).loss

    @jax.jit
    def call(params: Any) -> tuple[jax.Array, Any]:
        def loss(params: Any) -> jax.Array:
            sums = loss_fn(file_def(cfg).bind(params), batch, Runtime(), None)
            return sums.means()["loss"]

        return jax.value_and_grad(loss)(params)

    value, gradient = call(params)
    return float(value), gradient
