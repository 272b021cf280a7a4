"""Learning rates at the borders: first step, end of warm-up, start of decay, last step."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest
from tolerances import PARITY

from llmasos_jax.config.schema import OptimConfig
from llmasos_jax.errors import ConfigError
from llmasos_jax.train.schedules import TABLE, build_schedule

CFG = OptimConfig(learning_rate=0.4, warmup_steps=10, final_fraction=0.25, decay_fraction=0.2)


def rate(name, step, steps=110, **changes):
    """The rate of step `step`, counted from 1."""
    cfg = dataclasses.replace(CFG, schedule=name, **changes)
    return float(build_schedule(cfg, steps)(step - 1))


@pytest.mark.parametrize("name", sorted(TABLE))
def test_warmup_is_a_line_from_zero(name):
    for step in range(1, 11):
        assert rate(name, step) == pytest.approx(0.4 * step / 10, rel=PARITY)


@pytest.mark.parametrize("name", ["cosine", "linear", "wsd"])
def test_last_step_has_the_final_share_and_stays_there(name):
    assert rate(name, 110) == pytest.approx(0.1, rel=PARITY)
    assert rate(name, 200) == pytest.approx(0.1, rel=PARITY)


def test_cosine_between():
    assert rate("cosine", 60) == pytest.approx(0.25, rel=PARITY)  # half way: the middle
    quarter = 0.1 + 0.3 * 0.5 * (1 + math.cos(math.pi / 4))
    assert rate("cosine", 35) == pytest.approx(quarter, rel=PARITY)


def test_linear_between():
    assert rate("linear", 35) == pytest.approx(0.4 - 0.3 / 4, rel=PARITY)


def test_wsd_is_stable_then_decays():
    # 20% of 110 steps are 22: the peak holds up to step 88.
    assert rate("wsd", 11) == rate("wsd", 88) == pytest.approx(0.4, rel=PARITY)
    assert rate("wsd", 89) == pytest.approx(0.4 - 0.3 / 22, rel=PARITY)
    assert rate("wsd", 99) == pytest.approx(0.25, rel=PARITY)


def test_wsd_with_a_decay_longer_than_what_warmup_leaves():
    assert rate("wsd", 10, decay_fraction=1.0) == pytest.approx(0.4, rel=PARITY)
    assert rate("wsd", 60, decay_fraction=1.0) == pytest.approx(0.25, rel=PARITY)


def test_constant_stays():
    assert rate("constant", 11) == rate("constant", 110) == pytest.approx(0.4, rel=PARITY)


def test_no_warmup_starts_near_the_peak():
    assert rate("constant", 1, warmup_steps=0) == pytest.approx(0.4, rel=PARITY)
    assert rate("linear", 1, steps=4, warmup_steps=0) == pytest.approx(0.4 - 0.3 / 4, rel=PARITY)


def test_warmup_longer_than_the_run_is_kept():
    assert rate("cosine", 5, steps=5) == pytest.approx(0.2, rel=PARITY)


def test_one_step_run():
    assert rate("cosine", 1, steps=1, warmup_steps=0) == pytest.approx(0.1, rel=PARITY)


def test_traced_count_gives_float32():
    value = jax.jit(build_schedule(CFG, 110))(jnp.int32(9))
    assert value.dtype == jnp.float32 and float(value) == pytest.approx(0.4, rel=PARITY)


def test_unknown_schedule_names_the_nearest():
    with pytest.raises(ConfigError, match='optim.schedule="cosin".*did you mean "cosine"'):
        build_schedule(dataclasses.replace(CFG, schedule="cosin"), 10)
    with pytest.raises(ConfigError, match="it has to give a function"):
        build_schedule(dataclasses.replace(CFG, schedule="operator:is_"), 10)
