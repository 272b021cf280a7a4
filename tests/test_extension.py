"""Parts that are defined outside the package train through a config, by name."""

import sys

import jax.numpy as jnp
import pytest
from small_run import Record, small_config

from llmasos_jax.errors import ConfigError
from llmasos_jax.train.run import run

PARTS = '''
import dataclasses

import jax.numpy as jnp
import numpy as np
import optax

from llmasos_jax.data.objectives import causal
from llmasos_jax.train.hooks import Hook
from llmasos_jax.train.losses import cross_entropy
from llmasos_jax.train.objective import LossSum, Objective

calls = {"attention": 0, "prepare": 0, "hook": 0}


def prepare(row, rng):
    """Says the present token again; half of the tokens count."""
    calls["prepare"] += 1
    batch = causal(row, rng)
    counted = (np.arange(batch.tokens.shape[-1]) % 2 == 0) & (batch.segment_ids > 0)
    return dataclasses.replace(
        batch,
        targets=batch.tokens,
        loss_weights=counted.astype(np.float32),
        extra={"bonus": np.float32(2.0)},
    )


def loss(model, batch, runtime, dropout):
    hidden = model.hidden(
        batch.tokens, segment_ids_bt=batch.segment_ids, runtime=runtime, dropout=dropout
    )
    logits = model.logits(hidden.x_btd, runtime)
    sums = cross_entropy(logits, batch.targets, batch.loss_weights)
    bonus = jnp.sum(batch.loss_weights * batch.extra["bonus"][:, None])
    return LossSum(sums.nll_sum, sums.nll_sum, sums.weight_sum, {"bonus": bonus})


echo = Objective(prepare=prepare, loss=loss)


def mean_attention(q_btnh, k_bskh, v_bskh, visible, *, scale, soft_cap, slopes, runtime):
    """Each position takes the mean of the values of its row."""
    calls["attention"] += 1
    mean = jnp.mean(v_bskh, axis=1, keepdims=True)
    groups = q_btnh.shape[2] // v_bskh.shape[2]
    return jnp.broadcast_to(jnp.repeat(mean, groups, axis=2), q_btnh.shape)


def signs(cfg, schedule):
    return optax.chain(optax.scale_by_sign(), optax.scale_by_learning_rate(schedule))


def halves(cfg, steps):
    return lambda count: cfg.learning_rate * 0.5**count


class Counting(Hook):
    def on_step(self, step, values):
        calls["hook"] += 1
'''


@pytest.fixture
def parts(tmp_path, monkeypatch):
    (tmp_path / "outside_parts.py").write_text(PARTS)
    monkeypatch.syspath_prepend(tmp_path)
    import outside_parts

    yield outside_parts
    del sys.modules["outside_parts"]


def outside(tmp_path, **groups):
    cfg = small_config(
        tmp_path,
        steps=12,
        objective={"name": "outside_parts:echo"},
        model={"attention": "outside_parts:mean_attention"},
        train={"hooks": ("outside_parts:Counting",), "eval_every_steps": 12},
        **groups,
    )
    return cfg


def test_objective_attention_and_hook_from_outside(tmp_path, parts):
    record = Record()
    result = run(outside(tmp_path), tmp_path / "run", (record,), cache=tmp_path / "cache")
    assert parts.calls["attention"] > 0 and parts.calls["prepare"] >= 12 * 8
    assert parts.calls["hook"] == 12
    # Repeating what is read is easier than foretelling: tied embeddings know it at once.
    assert result.loss < 0.6 * record.values[1]["loss"]
    assert record.values[3]["bonus"] == pytest.approx(2.0)
    assert "accuracy" not in record.values[3]
    assert result.heldout_loss is not None and result.unigram_perplexity is None


def test_optimizer_and_schedule_from_outside(tmp_path, parts):
    optim = {"name": "outside_parts:signs", "schedule": "outside_parts:halves"}
    cfg = small_config(tmp_path, steps=3, optim={**optim, "learning_rate": 0.25, "warmup_steps": 0})
    record = Record()
    run(cfg, tmp_path / "run", (record,), cache=tmp_path / "cache")
    rates = [record.values[step]["learning_rate"] for step in (1, 2, 3)]
    assert rates == [0.25, 0.125, 0.0625]
    # Every weight moves by the rate itself (padding rows of the table too: sign(0) is 0 for those).
    moved = [record.values[step]["update_norm"] / rates[step - 1] for step in (1, 2)]
    assert moved[0] > 50 and float(jnp.float32(moved[0])) == pytest.approx(moved[1], rel=0.2)


def test_a_part_that_is_not_there(tmp_path, parts):
    cfg = small_config(tmp_path, objective={"name": "outside_parts:ecko"})
    with pytest.raises(
        ConfigError, match='objective.name="outside_parts:ecko".*did you mean "echo"'
    ):
        run(cfg, tmp_path / "run", cache=tmp_path / "cache")
    cfg = small_config(tmp_path, train={"hooks": ("outside_parts:calls",)})
    with pytest.raises(ConfigError, match="gives a dict; it has to be a"):
        run(cfg, tmp_path / "run2", cache=tmp_path / "cache")
