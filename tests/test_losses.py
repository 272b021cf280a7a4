"""Cross-entropy against NumPy in float64, at ordinary and at extreme logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerances import PARITY, SIMPLE

from llmasos_jax.config.heads import Classifier
from llmasos_jax.config.model import ModelConfig
from llmasos_jax.config.schema import Config, ObjectiveConfig
from llmasos_jax.errors import ConfigError
from llmasos_jax.nn.runtime import Runtime
from llmasos_jax.train.losses import cross_entropy
from llmasos_jax.train.objective import LossSum, Objective, build_objective


def config(**objective) -> Config:
    return Config(ModelConfig(100, 64, 1), objective=ObjectiveConfig(**objective))


def example(key, scale=3.0, b=2, t=5, v=11):
    keys = jax.random.split(key, 3)
    logits = scale * jax.random.normal(keys[0], (b, t, v))
    targets = jax.random.randint(keys[1], (b, t), 0, v)
    return logits, targets, jax.random.uniform(keys[2], (b, t)).at[0, 1].set(0.0)


def reference(logits, targets, weights):
    x, w = np.asarray(logits, np.float64), np.asarray(weights, np.float64)
    log_z = np.logaddexp.reduce(x, axis=-1)
    target = np.take_along_axis(x, np.asarray(targets)[..., None], -1)[..., 0]
    nll = ((log_z - target) * w).sum()
    correct = ((x.argmax(-1) == np.asarray(targets)) * w).sum()
    return nll, (log_z**2 * w).sum(), correct, w.sum()


@pytest.mark.parametrize("scale", [1e-3, 3.0, 100.0])
def test_sums_equal_float64(key, scale):
    batch = example(key, scale)
    sums = cross_entropy(*batch)
    got = (sums.nll_sum, sums.z_sum, sums.correct_sum, sums.weight_sum)
    np.testing.assert_allclose(got, reference(*batch), rtol=PARITY)
    assert all(value.dtype == jnp.float32 for value in got)


def test_gradient_is_softmax_minus_one_hot(key):
    logits, targets, weights = example(key)
    got = jax.grad(lambda x: cross_entropy(x, targets, weights).nll_sum)(logits)
    x = np.asarray(logits, np.float64)
    probability = np.exp(x - x.max(-1, keepdims=True))
    probability /= probability.sum(-1, keepdims=True)
    want = (probability - np.eye(x.shape[-1])[np.asarray(targets)]) * np.asarray(weights)[..., None]
    np.testing.assert_allclose(got, want, atol=PARITY)


@pytest.mark.parametrize("smoothing", [0.1, 0.7])
def test_smoothed_targets_are_partly_even(key, smoothing):
    """The cross-entropy to (1 - s) one-hot + s / V, and its gradient."""
    logits, targets, weights = example(key)
    loss = lambda x: cross_entropy(x, targets, weights, smoothing).loss_sum(0.0)
    got, grad = jax.value_and_grad(loss)(logits)
    x, w = np.asarray(logits, np.float64), np.asarray(weights, np.float64)[..., None]
    log_p = x - np.logaddexp.reduce(x, axis=-1, keepdims=True)
    wanted = (1 - smoothing) * np.eye(x.shape[-1])[np.asarray(targets)] + smoothing / x.shape[-1]
    np.testing.assert_allclose(got, -(w * wanted * log_p).sum(), rtol=PARITY)
    np.testing.assert_allclose(grad, w * (np.exp(log_p) - wanted), atol=PARITY)
    plain = cross_entropy(logits, targets, weights)
    assert float(cross_entropy(logits, targets, weights, smoothing).nll_sum) == float(plain.nll_sum)


@pytest.mark.parametrize("name", ["regress", "dpo"])
def test_what_has_no_labels_is_not_smoothed(name):
    model = ModelConfig(100, 64, 1, classifier=Classifier(labels=("score",)), pooling="mean")
    cfg = Config(model, objective=ObjectiveConfig(name=name, label_smoothing=0.1))
    with pytest.raises(ConfigError, match=r"no labels to smooth, and .*label_smoothing=0\.1; set"):
        build_objective(cfg)


def test_gradient_of_z_loss(key):
    logits, targets, weights = example(key)
    got = jax.grad(lambda x: cross_entropy(x, targets, weights).z_sum)(logits)
    x = np.asarray(logits, np.float64)
    log_z = np.logaddexp.reduce(x, axis=-1, keepdims=True)
    want = 2.0 * log_z * np.exp(x - log_z) * np.asarray(weights)[..., None]
    np.testing.assert_allclose(got, want, atol=SIMPLE)


def test_extreme_logits_are_exact():
    logits = jnp.array([[[3e38, 0.0], [-3e38, -3e38], [1e30, 1e30], [-1e9, 1e9]]], jnp.float32)
    targets, weights = jnp.array([[0, 1, 0, 1]]), jnp.ones((1, 4))
    fn = lambda x: cross_entropy(x, targets, weights).nll_sum
    assert float(fn(logits)) == pytest.approx(2 * np.log(2.0), rel=PARITY)
    assert bool(jnp.isfinite(jax.grad(fn)(logits)).all())


def test_wrong_by_a_mile_costs_the_mile():
    logits = jnp.array([[[1e6, 0.0, -1e6]]], jnp.float32)
    nll = cross_entropy(logits, jnp.array([[2]]), jnp.ones((1, 1))).nll_sum
    assert float(nll) == 2e6


def test_ties_go_to_the_first():
    logits = jnp.zeros((1, 3, 4))
    correct = cross_entropy(logits, jnp.array([[0, 1, 3]]), jnp.ones((1, 3))).correct_sum
    assert float(correct) == 1.0


def test_bfloat16_logits_are_summed_in_float32(key):
    logits, targets, weights = example(key)
    low = logits.astype(jnp.bfloat16)
    got = cross_entropy(low, targets, weights).nll_sum
    want = reference(low.astype(jnp.float32), targets, weights)[0]
    np.testing.assert_allclose(got, want, rtol=PARITY)


def test_weight_zero_leaves_a_token_out(key):
    logits, targets, weights = example(key)
    other = cross_entropy(logits.at[0, 1].add(50.0), targets.at[0, 1].set(0), weights)
    assert float(other.nll_sum) == float(cross_entropy(logits, targets, weights).nll_sum)


def test_loss_sums_add():
    one = LossSum(*(jnp.float32(x) for x in (1, 2, 3)), extra={"accuracy": jnp.float32(4)})
    both = one + one
    assert (float(both.loss_sum), float(both.weight_sum)) == (2.0, 6.0)
    assert float(both.extra["accuracy"]) == 8.0


def test_causal_objective_adds_the_z_loss(key):
    logits, targets, weights = example(key)

    class Model:
        def hidden(self, tokens, **_):
            return type("Hidden", (), {"x_btd": logits, "routing": None})

        def logits(self, x_btd, runtime):
            return x_btd

    batch = type(
        "Batch",
        (),
        {
            "tokens": None,
            "targets": targets,
            "loss_weights": weights,
            "positions": None,
            "segment_ids": None,
        },
    )
    sums = build_objective(config(z_loss=0.5)).loss(Model(), batch, Runtime(), None)
    nll, z, correct, weight = reference(logits, targets, weights)
    np.testing.assert_allclose(sums.loss_sum, nll + 0.5 * z, rtol=PARITY)
    np.testing.assert_allclose(sums.nll_sum, nll, rtol=PARITY)
    np.testing.assert_allclose(sums.extra["accuracy"], correct, rtol=PARITY)
    np.testing.assert_allclose(sums.weight_sum, weight, rtol=PARITY)


def test_objective_of_a_wrong_name_or_kind():
    with pytest.raises(ConfigError, match='objective.name="casual".*did you mean "causal"'):
        build_objective(config(name="casual"))
    with pytest.raises(ConfigError, match="gives a float; it has to be"):
        build_objective(config(name="math:pi"))
    assert isinstance(build_objective(config()), Objective)
