"""The modern encoder: no norm before the first attention, windows, documents packed into rows."""

import jax
import jax.numpy as jnp
import numpy as np
from tolerances import SIMPLE

from llmasos_jax.config.build import build, default_config
from llmasos_jax.data.objectives import mlm
from llmasos_jax.data.packing import PackedRows, TokenDocuments
from llmasos_jax.data.tokenizers.vocabulary import stand_in
from llmasos_jax.models import zoo
from llmasos_jax.models.definition import ModelDef, init_params, relayout
from llmasos_jax.models.layout import Layout, scan_layout, unrolled_layout
from llmasos_jax.nn.runtime import Runtime

CFG = zoo.preset("modernbert-base").tiny.replace(num_layers=7, attention_windows=(None, 3, 3))


def random_params(definition: ModelDef, key: jax.Array) -> dict:
    """Large enough that attention is not even, and scales that are not one."""
    params = init_params(definition, key, std=0.15)
    keys = iter(jax.random.split(key, 200))
    return jax.tree.map(lambda x: x + 0.1 * jax.random.normal(next(keys), x.shape), params)


def test_only_the_first_block_has_no_norm_before_attention(key: jax.Array) -> None:
    params = init_params(ModelDef(CFG, unrolled_layout(CFG)), key)
    assert ["attn_norm" in params["prefix"][str(i)] for i in range(7)] == [False] + [True] * 6
    # The first block stands alone; global and local ones come in turn after it.
    assert scan_layout(CFG) == Layout(prefix=1, period=3, count=2, suffix=0)
    assert scan_layout(CFG.replace(first_attn_norm=True)).prefix == 0


def test_the_layouts_agree(key: jax.Array) -> None:
    scanned, flat = ModelDef(CFG, scan_layout(CFG)), ModelDef(CFG, unrolled_layout(CFG))
    params = random_params(scanned, key)
    tokens = jax.random.randint(key, (1, 12), 0, CFG.vocab_size)
    hidden = scanned.bind(params).hidden(tokens, runtime=Runtime()).x_btd
    other = relayout(params, scanned.layout, flat.layout)
    assert "attn_norm" not in other["prefix"]["0"]
    found = flat.bind(other).hidden(tokens, runtime=Runtime()).x_btd
    np.testing.assert_allclose(found, hidden, atol=SIMPLE)


def test_a_document_in_a_packed_row_has_the_states_that_it_has_alone(key: jax.Array) -> None:
    """What the masked objective reads: rows with no padding between documents."""
    config = default_config()
    config.model.update(zoo.values("modernbert-base", tiny=True))
    config.data.sequence_length = 24
    documents = [list(range(5, 14)), list(range(30, 37)), list(range(50, 54)), [60] * 30]
    row = PackedRows(TokenDocuments.from_lists(documents), 24)[0]
    batch = mlm(build(config), stand_in(CFG.vocab_size))(row, np.random.default_rng(0))
    segments = np.asarray(batch.segment_ids)
    assert sorted(set(segments.tolist())) == [1, 2, 3, 4] and (segments > 0).all()
    cfg = CFG.replace(num_layers=4)  # each kind of layer; rounding adds up over more
    definition = ModelDef(cfg, scan_layout(cfg))
    model = definition.bind(random_params(definition, key))

    @jax.jit
    def hidden(tokens: jax.Array, positions: jax.Array, segment_ids: jax.Array) -> jax.Array:
        return model.hidden(
            tokens, positions_bt=positions, segment_ids_bt=segment_ids, runtime=Runtime()
        ).x_btd

    packed = hidden(*(jnp.asarray(x)[None] for x in (batch.tokens, batch.positions, segments)))
    for segment in (1, 2, 3, 4):
        inside = segments == segment
        tokens = jnp.asarray(batch.tokens)[inside][None]
        alone = model.hidden(tokens, runtime=Runtime()).x_btd
        assert float(jnp.abs(alone).max()) > 1.0
        np.testing.assert_allclose(packed[0][inside], alone[0], atol=SIMPLE)
    one = hidden(
        *(jnp.asarray(x)[None] for x in (batch.tokens, batch.positions, np.ones_like(segments)))
    )
    assert float(jnp.abs(one - packed).max()) > 0.01
