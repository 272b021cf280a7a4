"""Every family's tiny preset on data 2 x fsdp 2 x tensor 2: the loss of one device."""

import jax
import numpy as np
import pytest
from on_meshes import MIXED, ONE, QUICK, T, config, params, trainer_of
from tolerances import SIMPLE

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.config.schema import MeshConfig, ObjectiveConfig
from llmasos_jax.data.batch import Batch
from llmasos_jax.models.zoo import preset, presets

B, M, V = 8, 4, 272
# Of each family one, the one with the most options where they differ.
CHOSEN = {
    "Gemma": "gemma-2-2b",
    "DeepSeek": "deepseek-v3",
    "Qwen": "qwen3-30b-a3b",
    "T5": "t5-v1_1-small",
}
FAMILIES = {row.architecture: row.name for row in reversed(presets().values())} | CHOSEN


def objective(model: ModelConfig) -> str:
    if model.encoder.num_layers:
        return "span_corruption"
    if model.causal:
        return "causal"
    return "mlm_nsp" if model.next_sentence else "mlm"


def batch(model: ModelConfig) -> Batch:
    """Rows of two texts and padding, and whatever an objective reads besides."""
    rng = np.random.default_rng(0)
    segments = np.sort(rng.integers(1, 3, (B, T)), axis=1).astype(np.int32)
    segments[:, -3:] = 0
    positions = np.tile(np.arange(T, dtype=np.int32), (B, 1))
    draw = lambda *shape: rng.integers(0, V, shape).astype(np.int32)
    tokens, names = draw(B, T), ("encoder_tokens", "encoder_segment_ids", "encoder_positions")
    extra, length = {}, T
    if model.encoder.num_layers:
        extra = dict(zip(names, (draw(B, T), segments, positions), strict=True))
    elif not model.causal:
        length = M
        places = rng.integers(0, T - 3, (B, M)).astype(np.int32)
        extra = {"masked_positions": places, "token_types": (segments == 2).astype(np.int32)}
        extra["next_sentence"] = rng.integers(0, 2, B).astype(np.int32)
        if not model.token_types:
            del extra["token_types"]
    weights = rng.random((B, length)).astype(np.float32)
    weights = weights * (segments > 0) if length == T else weights
    return Batch(tokens, draw(B, length), weights, segments, positions, extra)


def losses(model: ModelConfig, mesh: MeshConfig) -> dict[str, float]:
    cfg = config(
        model,
        mesh,
        objective=ObjectiveConfig(name=objective(model)),
        batch_size=B,
        dropout_rate=0.0,
    )
    trainer = trainer_of(cfg)
    weights = jax.tree.map(lambda leaf: leaf * np.float32(2 / 3), params(model))
    weights = jax.device_put(weights, trainer.state_shardings.params)
    run = jax.jit(trainer.held_out_sums, compiler_options=QUICK)
    return {n: float(v) for n, v in run(weights, trainer.put(batch(model))).means().items()}


def test_every_family_is_here():
    assert FAMILIES.keys() == {row.architecture for row in presets().values()}
    assert all(preset(name).architecture == family for family, name in FAMILIES.items())
    assert len(FAMILIES) >= 17


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_loss_is_one_devices(family):
    model = preset(FAMILIES[family]).tiny
    found, wanted = losses(model, MIXED), losses(model, ONE)
    assert found == pytest.approx(wanted, rel=SIMPLE, abs=1e-7)
    assert found["loss"] > 4.0
