"""Linear probes: what can be read off a layer's states by a straight line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmasos_jax.errors import GenerationError
from llmasos_jax.evals.interpret.rows import Text
from llmasos_jax.evals.interpret.svg import bars_svg
from llmasos_jax.generate.model import Model
from llmasos_jax.generate.texts import read_texts


@dataclass(frozen=True)
class Probe:
    """A multinomial logistic regression on states.

    Attributes:
      classes: the C labels, sorted.
      w: float64 [D, C], for states that are not standardised.
      b: float64 [C].
      accuracy: on examples that were held out.
      majority: accuracy of always saying the commonest class of the training part, on the same.
      control: accuracy, on the same, of a probe that was fitted to shuffled labels.
    """

    classes: np.ndarray
    w: np.ndarray
    b: np.ndarray
    accuracy: float
    majority: float
    control: float

    def predict(self, states: Any) -> np.ndarray:
        """The classes of states [N, D]."""
        return self.classes[np.argmax(np.asarray(states, np.float64) @ self.w + self.b, axis=1)]


@dataclass(frozen=True)
class LayerProbes:
    """A probe for the embeddings, and one after each of L layers."""

    probes: tuple[Probe, ...]

    @property
    def accuracies(self) -> np.ndarray:
        """Float64 [L + 1]."""
        return np.array([probe.accuracy for probe in self.probes])

    def svg(self) -> str:
        """Accuracies as bars (an SVG element)."""
        names = ("embedding", *(f"layer {i}" for i in range(len(self.probes) - 1)))
        return bars_svg(self.accuracies, names, "accuracy of linear probes")

    def _repr_html_(self) -> str:
        return self.svg()


def linear_probe(
    states: Any,
    labels: Sequence[Any],
    *,
    l2: float = 1.0,
    held_out: float = 0.25,
    seed: int = 0,
) -> Probe:
    """Fits a linear probe and says how well it reads examples that it has not seen.

    Alain and Bengio, 2016, arXiv 1610.01644; the control is Hewitt and Liang's, 2019, arXiv
    1909.03368: what a probe makes of labels that mean nothing.

    Args:
      states: float [N, D].
      labels: N of them, of two classes at least.
      l2: weight of the squared norm of `w` (of standardised states), as a sum over examples.
      held_out: share of the examples that only measure.
      seed: of that split and of the shuffled labels.

    Raises:
      GenerationError: sizes do not fit, or there is one class only on the training side.

    Example:
      >>> x = np.random.default_rng(0).normal(size=(80, 4))
      >>> probe = linear_probe(x, x[:, 2] > 0)
      >>> probe.accuracy > 0.8, probe.predict(x[:2]).shape
      (True, (2,))
    """
    x, y = np.asarray(states, np.float64), np.asarray(labels)
    if x.ndim != 2 or y.shape != (len(x),):
        raise GenerationError(
            f"states are {list(x.shape)}, labels {list(y.shape)}; give [N, D] and a label for each"
        )
    if not 0 < held_out < 1 or l2 < 0:
        raise GenerationError(f"held_out={held_out}, l2={l2}; give a share, and 0 or more")
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(x))
    num = max(1, round(held_out * len(x)))
    test, train = order[:num], order[num:]
    classes, codes = np.unique(y, return_inverse=True)
    if len(np.unique(codes[train])) < 2:
        raise GenerationError(f"{len(train)} examples of one class; give more, of two at least")
    w, b = _fit(x[train], codes[train], len(classes), l2)
    wrong = _fit(x[train], rng.permutation(codes[train]), len(classes), l2)
    right = lambda w, b: float(np.mean(np.argmax(x[test] @ w + b, axis=1) == codes[test]))
    most = np.bincount(codes[train]).argmax()
    return Probe(classes, w, b, right(w, b), float(np.mean(codes[test] == most)), right(*wrong))


def probe_layers(
    model: Model,
    texts: Sequence[Text],
    labels: Sequence[Any],
    *,
    pool: str = "last",
    l2: float = 1.0,
    held_out: float = 0.25,
    seed: int = 0,
) -> LayerProbes:
    """Fits a probe to the states after each layer.

    Args:
      model: of any family; of an encoder-decoder, its encoder.
      texts: texts, or ids.
      labels: one for each.
      pool: "last" takes a text's last token, "first" its first, "mean" the mean of all.
      l2: as in `linear_probe`, and the next two.
      held_out: there.
      seed: there.

    Raises:
      GenerationError: as `linear_probe`, or `pool` is unknown.
    """
    pools = {"last": lambda x: x[-1], "first": lambda x: x[0], "mean": lambda x: x.mean(0)}
    if pool not in pools:
        raise GenerationError(f'pool="{pool}"; give one of {", ".join(pools)}')
    if all(isinstance(text, str) for text in texts):
        read_texts("texts", texts)
    rows = []
    for text in texts:
        ids = model.encode(text) if isinstance(text, str) else list(text)
        layers = model.hidden_states([ids])
        rows.append([pools[pool](np.asarray(x[0])) for x in layers])
    states = np.array(rows).swapaxes(0, 1)
    options = {"l2": l2, "held_out": held_out, "seed": seed}
    return LayerProbes(tuple(linear_probe(x, labels, **options) for x in states))


def _fit(
    x_nd: np.ndarray, codes_n: np.ndarray, num_classes: int, l2: float
) -> tuple[np.ndarray, np.ndarray]:
    from scipy.optimize import minimize  # with JAX; slow to import

    mean, std = x_nd.mean(0), x_nd.std(0) + 1e-8
    z_nd = (x_nd - mean) / std
    d = z_nd.shape[1]
    rows = np.arange(len(codes_n))

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        w, b = flat[: d * num_classes].reshape(d, num_classes), flat[d * num_classes :]
        logits = z_nd @ w + b
        logits -= logits.max(axis=1, keepdims=True)
        p = np.exp(logits)
        p /= p.sum(axis=1, keepdims=True)
        value = -np.log(p[rows, codes_n] + 1e-300).sum() + l2 / 2 * np.sum(w * w)
        p[rows, codes_n] -= 1
        return value, np.append((z_nd.T @ p + l2 * w).ravel(), p.sum(axis=0))

    start = np.zeros(d * num_classes + num_classes)
    flat = minimize(loss, start, jac=True, method="L-BFGS-B").x
    w = flat[: d * num_classes].reshape(d, num_classes) / std[:, None]
    return w, flat[d * num_classes :] - mean @ w
