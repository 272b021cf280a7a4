"""Models small enough to generate with in a test."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.format.manifest import Generation, Manifest
from llmasos_jax.format.names import expected
from llmasos_jax.format.tensorfile import stored
from llmasos_jax.format.write import write_model
from llmasos_jax.generate.load import init_model
from llmasos_jax.generate.model import Model
from llmasos_jax.generate.weights import Placing, place_tensors
from llmasos_jax.models.definition import ModelDef, file_def, relayout

SMALL = ModelConfig(
    300, 48, 2, context_length=96, num_heads=4, num_kv_heads=2, head_dim=12, ffn_dim=64
)
# One model per kind of position, window and block that decoding treats in its own way.
FAMILIES = {
    "rope": SMALL,
    "learned": SMALL.replace(position="learned", norm="layernorm", mlp="gelu", qkv_bias=True),
    "alibi": SMALL.replace(position="alibi", num_kv_heads=4, block="parallel"),
    "windows": SMALL.replace(attention_windows=(8, None), qk_norm="head", logit_soft_cap=20.0),
    "untied": SMALL.replace(tie_embeddings=False, num_kv_heads=1, norm_placement="sandwich"),
}


def random_params(definition: ModelDef, seed: int = 0) -> Any:
    """Every weight random, biases and scales included, so that none can be left out unseen."""
    rng = np.random.default_rng(seed)

    def make(shape: jax.ShapeDtypeStruct, init: str) -> jax.Array:
        return jnp.asarray(rng.normal(init == "ones", 0.35, shape.shape), jnp.float32)

    unrolled = file_def(definition.cfg)
    params = jax.tree.map(make, unrolled.shapes, unrolled.inits)
    return relayout(params, unrolled.layout, definition.layout)


def small_model(cfg: ModelConfig = SMALL, *, seed: int = 0, **options) -> Model:
    """Random weights, wide enough apart that the likeliest token is no matter of rounding."""
    generation = options.pop("generation", Generation())
    manifest = Manifest("small", cfg, tokenizer={"kind": "bytes"}, generation=generation)
    model = init_model(manifest, seed=seed, **options)
    return scaled(model, 6.0)


def scaled(model: Model, factor: float) -> Model:
    """The model with its embeddings multiplied, which spreads the logits."""
    tensors = model._weights.stored()
    table = np.asarray(tensors["embed.table"].read()) * np.float32(factor)
    placing = Placing(file_def(model.config), model._weights.placing.mesh)
    weights = place_tensors(placing, {**tensors, "embed.table": stored(table)}, None)
    return Model(model.manifest, weights, model.tokenizer)


def loud(model: Model, mesh: Mesh | None = None) -> Model:
    """The model with matrices six times as large: attention then looks at few tokens."""
    tensors = {}
    for name, tensor in model._weights.stored().items():
        tensors[name] = stored(tensor.read() * np.float32(6 if len(tensor.shape) > 1 else 1))
    placing = Placing(file_def(model.config), mesh)
    return Model(model.manifest, place_tensors(placing, tensors, None), model.tokenizer)


def broken_model() -> Model:
    """A model whose weights are not numbers."""
    return scaled(small_model(), float("nan"))


def greedy_by_forward(model: Model, ids: list[int], num: int) -> tuple[list[int], list[float]]:
    """Greedy tokens from whole forward passes, and by how much each one won."""
    ids, margins = list(ids), []
    for _ in range(num):
        scores = np.asarray(model.logits([ids]))[0, -1, : model.tokenizer.vocab_size]
        first, second = np.sort(scores)[::-1][:2]
        margins.append(float(first - second))
        ids.append(int(scores.argmax()))
    return ids[-num:], margins


def start(model: Model, prompts: list[str], max_new: int, **options):
    """A batch on its way, below the level of texts."""
    from llmasos_jax.generate.request import make_requests, read_options

    checked = read_options(max_new, **options)
    requests = make_requests(prompts, checked, model.tokenizer, model.manifest)
    return model.session.start(requests, deterministic=checked.deterministic)


def ids_of(model: Model, prompts: list[str], max_new: int, **options) -> list[list[int]]:
    """The tokens that are drawn for each prompt."""
    run = start(model, prompts, max_new, **options)
    run.advance(max_new)
    return run.new_ids()


def written(folder: Path, cfg: ModelConfig, tokenizer: Any, **manifest: Any) -> Path:
    """A folder with random weights, norms' scales about 1."""
    rng, tensors = np.random.default_rng(0), {}
    for name, spec in expected(cfg).items():
        centre = 1.0 if name.endswith("scale") else 0.0
        array = centre + 0.3 * rng.normal(size=spec.shape)
        tensors[name] = stored(array.astype(np.float32))
    write_model(folder, Manifest("small", cfg, **manifest), tensors, tokenizer)
    return folder


def to_neighbours(w: np.ndarray) -> np.ndarray:
    """The halves of a head, one number of each by turns."""
    return w.reshape(*w.shape[:-1], 2, -1).swapaxes(-1, -2).reshape(w.shape)


def rope_rows(
    cfg: ModelConfig, arrays: dict[str, np.ndarray]
) -> tuple[ModelConfig, dict[str, np.ndarray]]:
    """The rows of q and k as GGUF files of LLaMA have them."""
    turned = {n: to_neighbours(a) for n, a in arrays.items() if n.endswith(("attn.q", "attn.k"))}
    return cfg, {**arrays, **turned}
