"""Attention over pages: what one forward pass gives, for every kind of position and head."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.models.definition import empty_pages, file_def, init_params
from llmasos_jax.nn.paged import PagedCache, Places
from llmasos_jax.nn.runtime import Runtime

PAGE = 8
BASE = dict(vocab_size=61, embedding_dim=32, num_layers=2, num_heads=4, num_kv_heads=2)
KINDS = {
    "rotary": {},
    "window": {"attention_windows": (5, None)},
    "alibi": {"position": "alibi"},
    "learned": {"position": "learned", "context_length": 64},
    "soft cap": {"attention_soft_cap": 2.0},
}


def setup(kind):
    cfg = ModelConfig(**{**BASE, **KINDS[kind]})
    definition = file_def(cfg)
    return definition, jax.jit(lambda key: init_params(definition, key, std=0.3))(jax.random.key(0))


def run(definition, params, layers, tokens_bt, table_bm, first_b, *, is_aligned=False):
    places = Places(jnp.asarray(table_bm), jnp.asarray(first_b), is_aligned)
    cache = PagedCache(layers, places, jnp.zeros(len(table_bm), jnp.int32))
    model = definition.bind(params)
    hidden = model.hidden(jnp.asarray(tokens_bt), cache=cache, runtime=Runtime())
    return model.logits(hidden.x_btd, Runtime()), hidden.cache.layers


RUN = jax.jit(run, static_argnums=0, static_argnames="is_aligned")


@pytest.mark.parametrize("kind", KINDS)
def test_chunks_and_single_tokens_give_what_one_pass_gives(kind):
    definition, params = setup(kind)
    rng = np.random.default_rng(1)
    tokens = rng.integers(0, 61, (1, 29)).astype(np.int32)
    model = definition.bind(params)
    whole = model.logits(model.hidden(jnp.asarray(tokens), runtime=Runtime()).x_btd, Runtime())
    layers = empty_pages(definition, 9, PAGE)
    table = np.array([[7, 2, 5, 1]], np.int32)
    got = []
    for first in (0, 8, 16):
        chunk = tokens[:, first : first + PAGE]
        logits, layers = RUN(definition, params, layers, chunk, table, [first], is_aligned=True)
        got.append(logits)
    for first in range(24, 29):
        chunk = tokens[:, first : first + 1]
        logits, layers = RUN(definition, params, layers, chunk, table, [first])
        got.append(logits)
    np.testing.assert_allclose(np.concatenate(got, axis=1), whole, atol=2e-5)
