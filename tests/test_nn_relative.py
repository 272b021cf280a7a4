"""Biases of relative positions, and prefixes, in the kernels."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerances import PARITY

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.errors import ConfigError
from llmasos_jax.nn.cache import LayerCache
from llmasos_jax.nn.kernels import cached, reference
from llmasos_jax.nn.mask import Visibility
from llmasos_jax.nn.relative import buckets
from llmasos_jax.nn.splash import splash_fits

BACK = np.arange(-3000, 3001)
TABLES = [(8, 16), (32, 128), (32, 100), (64, 2048), (12, 50)]


@pytest.mark.parametrize(("num", "max_distance"), TABLES)
@pytest.mark.parametrize("both_ways", [False, True])
def test_buckets_by_the_formula(num: int, max_distance: int, both_ways: bool) -> None:
    each = num // 2 if both_ways else num
    exact = each // 2

    def bucket(back: int) -> int:
        d = abs(back) if both_ways else max(back, 0)
        first = each if both_ways and back < 0 else 0
        if d < exact:
            return first + d
        share = math.log(d / exact) / math.log(max_distance / exact)
        return first + min(each - 1, exact + math.floor(share * (each - exact) + 1e-9))

    found = buckets(jnp.asarray(BACK, jnp.int32), num, max_distance, both_ways=both_ways)
    np.testing.assert_array_equal(found, [bucket(int(back)) for back in BACK])
    # Nothing ahead is 0 away, so that bucket is never used.
    assert len(set(np.asarray(found).tolist())) == num - both_ways


@pytest.mark.parity
@pytest.mark.parametrize(("num", "max_distance"), TABLES)
@pytest.mark.parametrize("both_ways", [False, True])
def test_buckets_of_transformers(num: int, max_distance: int, both_ways: bool) -> None:
    torch = pytest.importorskip("torch", reason="needs the extra `parity`")
    pytest.importorskip("transformers", reason="needs the extra `parity`")
    from transformers.models.t5.modeling_t5 import T5Attention

    theirs = T5Attention._relative_position_bucket(
        torch.tensor(-BACK), bidirectional=both_ways, num_buckets=num, max_distance=max_distance
    )
    ours = buckets(jnp.asarray(BACK, jnp.int32), num, max_distance, both_ways=both_ways)
    np.testing.assert_array_equal(ours, theirs.numpy())


def test_kernels_add_a_bias_to_the_scores_of_each_head() -> None:
    b, t, n, k, h = 2, 5, 4, 2, 3
    rng = np.random.default_rng(0)
    q, key, value = (rng.normal(size=(b, t, heads, h)).astype(np.float32) for heads in (n, k, k))
    bias_nts = rng.normal(size=(n, t, t)).astype(np.float32)
    index = jnp.arange(t, dtype=jnp.int32)[None]
    prefix = np.array([[True, True, True, False, False], [False] * 5])
    visible = Visibility(index, index, None, None, jnp.asarray(prefix))
    wanted = np.zeros((b, t, n, h))
    for row in range(b):
        for head in range(n):
            for at in range(t):
                seen = (np.arange(t) <= at) | prefix[row]
                scores = key[row, :, head // 2] @ q[row, at, head] * 0.7 + bias_nts[head, at]
                weights = np.where(seen, np.exp(scores), 0)
                wanted[row, at, head] = weights / weights.sum() @ value[row, :, head // 2]
    options = {"scale": 0.7, "bias": jnp.asarray(bias_nts)}
    found = reference(q, key, value, visible, **options)
    np.testing.assert_allclose(found, wanted, atol=PARITY, rtol=PARITY)
    cache = LayerCache.of(jnp.asarray(key), jnp.asarray(value), jnp.float32)
    found = cached(jnp.asarray(q), cache, visible, **options)
    np.testing.assert_allclose(found, wanted, atol=PARITY, rtol=PARITY)


def test_the_kernel_of_a_tpu_leaves_biases_and_prefixes_to_the_reference() -> None:
    shape, some = (1, 128, 2, 64), jnp.ones(1)
    assert splash_fits(shape, shape, None, None, None)
    assert not splash_fits(shape, shape, None, some, None)
    assert not splash_fits(shape, shape, None, None, some)


def test_a_cache_of_given_keys_is_one_that_they_were_written_to() -> None:
    key, value = (jax.random.normal(jax.random.key(i), (2, 3, 2, 4)) for i in range(2))
    empty = LayerCache(jnp.zeros((4, 4, 3)), jnp.zeros((4, 3, 4)))
    jax.tree.map(
        np.testing.assert_array_equal,
        LayerCache.of(key, value, jnp.float32),
        empty.write(key, value, jnp.int32(0)),
    )


@pytest.mark.parametrize("change", [{"relative_buckets": 6}, {"relative_max_distance": 16}])
def test_tables_that_cannot_be(change: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="must be a multiple of 4"):
        ModelConfig(8, 8, 1, position="relative", **change)
