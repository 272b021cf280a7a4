"""Maximal update parametrization: what a step changes does not grow with the width."""

import dataclasses

import jax
import numpy as np
import pytest

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.config.schema import Config, DataConfig, OptimConfig, TrainConfig
from llmasos_jax.data.batch import Batch
from llmasos_jax.errors import ConfigError
from llmasos_jax.models.definition import ModelDef
from llmasos_jax.models.layout import scan_layout
from llmasos_jax.nn.runtime import Runtime
from llmasos_jax.parallel.mesh import make_mesh
from llmasos_jax.train.step import make_trainer

BASE, T, B, V = 16, 16, 8, 64
OPTIM = OptimConfig(
    learning_rate=0.02, schedule="constant", warmup_steps=0, weight_decay=0.0, clip_norm=None
)


def config(width, base=BASE, **optim):
    model = ModelConfig(
        V, width, 2, num_heads=width // 8, head_dim=8, ffn_dim=2 * width, context_length=T,
        logit_scale=1.0 if base is None else base / width,
    )  # fmt: skip
    return Config(
        model,
        data=DataConfig(sequence_length=T),
        optim=dataclasses.replace(OPTIM, mup_base_dim=base, **optim),
        train=TrainConfig(batch_size=B, steps=10, init_std=0.1),
    )


def batch():
    rng = np.random.default_rng(0)
    ids = rng.integers(0, V, (B, T + 1)).astype(np.int32)
    positions = np.tile(np.arange(T, dtype=np.int32), (B, 1))
    ones = np.ones((B, T), np.int32)
    return Batch(ids[:, :-1], ids[:, 1:], ones.astype(np.float32), ones, positions)


def trained(cfg, steps):
    """Weights before and after so many steps, on one device."""
    mesh = make_mesh(dataclasses.replace(cfg.mesh, data=1), jax.devices()[:1])
    trainer = make_trainer(cfg, mesh)
    state = trainer.init(jax.random.key(0))
    before = jax.device_get(state.params)
    for _ in range(steps):
        state, _ = trainer.step(state, trainer.put(batch()))
    return before, jax.device_get(state.params)


def moved_logits(cfg, steps=3):
    """How far the first row's logits move in so many steps, RMS."""
    before, after = trained(cfg, steps)
    definition = ModelDef(cfg.model, scan_layout(cfg.model))

    @jax.jit
    def logits(params):
        model = definition.bind(params)
        return model.logits(model.hidden(batch().tokens, runtime=Runtime()).x_btd, Runtime())

    return float(np.sqrt(np.mean(np.square(logits(after) - logits(before)))))


def test_a_step_moves_wide_logits_as_far_as_narrow_ones():
    """The check of coordinates (Yang et al., 2022, appendix D.1): flat with it, growing without."""
    widths = (16, 128)
    plain = [moved_logits(config(width, base=None)) for width in widths]
    with_mup = [moved_logits(config(width)) for width in widths]
    assert with_mup[0] == plain[0]  # at the base's width it is the same run
    assert plain[1] > 3 * plain[0]
    assert 0.5 < with_mup[1] / with_mup[0] < 2.0


def test_matrices_of_blocks_start_and_move_by_their_rule():
    wide, plain = config(64, weight_decay=0.5), config(64, base=None, weight_decay=0.5)
    (start, moved), (plain_start, plain_moved) = trained(wide, 1), trained(plain, 1)
    block, same = start["periods"]["0"]["mlp"], plain_start["periods"]["0"]["mlp"]
    np.testing.assert_allclose(block["up"], same["up"] / 2, rtol=1e-6)  # 1 / sqrt(64 / 16)
    np.testing.assert_array_equal(start["embed"]["table"], plain_start["embed"]["table"])
    # Adam's first step is the sign of the gradient; decay goes on at its own rate.
    rate = OPTIM.learning_rate
    decayed = lambda w: w * (1 - rate * 0.5)
    step = np.abs(moved["periods"]["0"]["mlp"]["up"] - decayed(block["up"]))
    plain_step = np.abs(plain_moved["periods"]["0"]["mlp"]["up"] - decayed(same["up"]))
    assert np.median(step) == pytest.approx(rate / 4, rel=1e-3)
    assert np.median(plain_step) == pytest.approx(rate, rel=1e-3)
    scale = np.abs(moved["final_norm"]["scale"] - start["final_norm"]["scale"])
    assert np.median(scale) == pytest.approx(rate, rel=1e-3)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"optim": {"name": "sgd"}}, 'optim.name="sgd"; set it to one of adamw, lion'),
        ({"model": {"logit_scale": 1.0}}, "needs model.logit_scale=0.25 .* and it is 1; set it"),
        ({"model": {"head": "mlm", "causal": False}}, "no rule for model.head=mlm"),
        ({"model": {"embedding_dim": 32}}, "needs model.logit_scale=0.5"),
    ],
)
def test_what_the_rule_does_not_fit_is_refused(changes, said):
    cfg = config(64)
    for part, values in changes.items():
        cfg = dataclasses.replace(cfg, **{part: dataclasses.replace(getattr(cfg, part), **values)})
    with pytest.raises(ConfigError, match=said):
        make_trainer(cfg, make_mesh(cfg.mesh))
