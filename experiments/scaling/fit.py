"""Fits L(N) = L_inf + (N_c / N)^alpha to a sweep's smaller models, and predicts the largest.

    python experiments/scaling/fit.py [runs/scaling/report.json]

The form is that of Hoffmann et al., 2022, arXiv 2203.15556, equation 2, at one amount of text; with
L_inf = 0 it is Kaplan et al., 2020, arXiv 2001.08361, equation 1.1. N counts the weights of the
blocks' products, without embedding and norms. Least squares on the mean loss of each size; for a
given alpha these are linear in L_inf >= 0 and N_c^alpha. Intervals are of 2,000 bootstrap draws of
seeds, for each size alone; deviations of seeds from their mean are drawn times sqrt(n / (n - 1)),
for n seeds' own spread is so much too small.

Writes result.json and plot.svg beside this file; exit status 1 where the loss of the largest model
is more than 3% from its prediction.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.optimize import minimize_scalar, nnls

HERE = Path(__file__).parent
LIMIT, DRAWS = 0.03, 2000
WEIGHTS_PER_WIDTH2 = 3 * (4 + 9)  # three layers: attention 4 D^2, a gated MLP 3 D x 3 D


@dataclass(frozen=True)
class Law:
    """L(N) = floor + (scale / N)^alpha, in nats per byte."""

    floor: float
    scale: float
    alpha: float

    def __call__(self, n: float) -> float:
        """The loss of a model of n weights."""
        return self.floor + (self.scale / n) ** self.alpha


def fit(sizes: np.ndarray, losses: np.ndarray, *, has_floor: bool = True) -> Law:
    """The law with the least squares.

    Args:
      sizes: weights of each model.
      losses: of each, nats per byte.
      has_floor: whether L_inf is fitted, or 0.

    Example:
      >>> law = fit(np.array([1e3, 1e4, 1e5, 1e6]), 1 + np.array([1e3, 1e4, 1e5, 1e6]) ** -0.25)
      >>> [round(float(x), 3) for x in (law.floor, law.alpha)]
      [1.0, 0.25]
    """
    middle = math.exp(np.log(sizes).mean())

    def solve(alpha: float) -> tuple[np.ndarray, float]:
        terms = [(sizes / middle) ** -alpha]
        if has_floor:
            terms.append(np.ones_like(sizes))
        return nnls(np.stack(terms, axis=1), losses)

    # The best of a grid, and from there on: one alpha may be a local minimum.
    grid = np.geomspace(0.01, 3.0, 60)
    best = int(np.argmin([solve(alpha)[1] for alpha in grid]))
    ends = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    alpha = float(minimize_scalar(lambda a: solve(a)[1], bounds=ends, options={"xatol": 1e-6}).x)
    factors = solve(alpha)[0]
    floor = float(factors[1]) if has_floor else 0.0
    return Law(floor, middle * float(factors[0]) ** (1 / alpha), alpha)


def read(path: Path) -> dict[int, np.ndarray]:
    """Held-out losses of all seeds, by the width of the model, in rising order."""
    found: dict[int, list[float]] = {}
    for point in json.loads(path.read_text("utf-8"))["points"]:
        if point["status"] != "done":
            raise SystemExit(f"{path}: {point['name']} is {point['status']}; run the sweep again")
        width = int(point["overrides"]["model.embedding_dim"])
        found.setdefault(width, []).append(point["values"]["heldout_loss"])
    return {width: np.array(found[width]) for width in sorted(found)}


def drawn(seeds: np.ndarray, draw: np.random.Generator) -> float:
    """A mean of seeds as it might have been."""
    n = len(seeds)
    deviations = draw.choice(seeds - seeds.mean(), n).mean()
    return float(seeds.mean() + math.sqrt(n / (n - 1)) * deviations)


def interval(values: list[float]) -> list[float]:
    """The middle 95%."""
    return [float(f"{x:.4g}") for x in np.quantile(values, [0.025, 0.975])]


def _told(law: Law, laws: list[Law]) -> dict:
    """Each number of a law, and its interval."""
    fields = {"alpha": "alpha", "L_inf": "floor", "N_c": "scale"}
    return {
        name: {
            "value": float(f"{getattr(law, field):.4g}"),
            "interval": interval([getattr(one, field) for one in laws]),
        }
        for name, field in fields.items()
    }


def analyse(losses: dict[int, np.ndarray]) -> dict:
    """The fit on all widths but the largest, its intervals, and what it says of the largest."""
    *fitted, held = losses
    sizes = np.array([WEIGHTS_PER_WIDTH2 * width**2 for width in fitted], dtype=float)
    size = float(WEIGHTS_PER_WIDTH2 * held**2)
    means = np.array([losses[width].mean() for width in fitted])
    law, measured = fit(sizes, means), float(losses[held].mean())
    draw = np.random.default_rng(0)
    redrawn = [np.array([drawn(losses[w], draw) for w in fitted]) for _ in range(DRAWS)]
    laws = [fit(sizes, values) for values in redrawn]
    plain = fit(sizes, means, has_floor=False)
    plains = [fit(sizes, values, has_floor=False) for values in redrawn]
    error = law(size) / measured - 1
    return {
        "sizes": {
            str(width): {
                "weights": WEIGHTS_PER_WIDTH2 * width**2,
                "heldout_loss": round(float(losses[width].mean()), 4),
                "deviation": round(float(losses[width].std(ddof=1)), 4),
                "seeds": len(losses[width]),
                "fit": round(law(WEIGHTS_PER_WIDTH2 * width**2), 4),
            }
            for width in losses
        },
        "fit": _told(law, laws),
        "fit with L_inf = 0": _told(plain, plains),
        "prediction": {
            "width": held,
            "weights": int(size),
            "predicted": round(law(size), 4),
            "interval": interval([x(size) for x in laws]),
            "measured": round(measured, 4),
            "error": round(error, 4),
            "limit": LIMIT,
            "is_within": abs(error) <= LIMIT,
            "error if it were the loss of the largest fitted": round(means[-1] / measured - 1, 4),
        },
    }


def plot(losses: dict[int, np.ndarray], found: dict) -> str:
    """Seeds, means and the law, as SVG; the horizontal axis is logarithmic."""
    width, height, left, right, top, bottom = 640, 380, 60, 20, 20, 46
    law = Law(*(found["fit"][name]["value"] for name in ("L_inf", "N_c", "alpha")))
    *_, held = losses
    runs = np.concatenate(list(losses.values()))
    low, high = math.floor(runs.min() * 10) / 10, math.ceil(runs.max() * 10) / 10
    first, last = (math.log(39 * w**2 * f) for w, f in ((min(losses), 0.7), (held, 1.5)))

    def x(n: float) -> float:
        return round(left + (math.log(n) - first) / (last - first) * (width - left - right), 1)

    def y(loss: float) -> float:
        return round(top + (high - loss) / (high - low) * (height - top - bottom), 1)

    style = 'font-family="sans-serif" font-size="13" fill="#333"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" {style}>',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for tick in np.arange(low, high + 0.01, 0.1):
        parts += [
            f'<path d="M{left} {y(tick)}H{width - right}" stroke="#ddd"/>',
            f'<text x="{left - 8}" y="{y(tick) + 4}" text-anchor="end">{tick:.1f}</text>',
        ]
    curve = [math.exp(v) for v in np.linspace(first, last, 80)]
    line = " ".join(f"{x(n)},{y(law(n))}" for n in curve if law(n) <= high)
    parts.append(f'<polyline points="{line}" fill="none" stroke="#2563a8" stroke-width="2"/>')
    for d, seeds in losses.items():
        n, color = WEIGHTS_PER_WIDTH2 * d**2, "#c2410c" if d == held else "#2563a8"
        parts += [
            f'<circle cx="{x(n)}" cy="{y(loss)}" r="2.5" fill="{color}" opacity="0.5"/>'
            for loss in seeds
        ]
        parts += [
            f'<circle cx="{x(n)}" cy="{y(seeds.mean())}" r="6" fill="none" stroke="{color}" '
            'stroke-width="2"/>',
            f'<text x="{x(n)}" y="{height - bottom + 18}" text-anchor="middle">{n:,}</text>',
        ]
    fitted = found["fit"]["alpha"]
    told = [
        f"L = {law.floor:.2f} + (N_c / N)^{law.alpha:.3f}",
        f"alpha {fitted['value']:.3f}, 95% {fitted['interval'][0]:.2f} to "
        f"{fitted['interval'][1]:.2f}",
        f"held out (right): error {100 * found['prediction']['error']:+.1f}%",
    ]
    parts += [
        f'<text x="{width - right - 8}" y="{top + 20 + 18 * i}" text-anchor="end">{text}</text>'
        for i, text in enumerate(told)
    ]
    middle = (left + width - right) / 2
    parts += [
        f'<text x="{middle}" y="{height - 8}" text-anchor="middle">weights N of the blocks</text>',
        f'<text x="14" y="{height / 2}" transform="rotate(-90 14 {height / 2})" '
        'text-anchor="middle">held-out nats per byte</text>',
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def main() -> None:
    """Fits, writes, and judges."""
    losses = read(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "report.json")
    found = analyse(losses)
    (HERE / "result.json").write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    (HERE / "plot.svg").write_text(plot(losses, found), "utf-8")
    print(json.dumps(found, indent=1))
    sys.exit(not found["prediction"]["is_within"])


if __name__ == "__main__":
    main()
