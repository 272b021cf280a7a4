"""Sweeps' folders written by hand: what training would have left there."""

import json
import math

from llmasos_jax.sweep.places import Places, write_json

BASE = {
    "train": {"steps": 100, "seed": 0},
    "optim": {"learning_rate": 3e-3, "weight_decay": 0.0},
    "model": {"mlp": "swiglu"},
}


def write_sweep(root, points, **said):
    """Writes sweep.json.

    Args:
      root: the folder.
      points: (name, setting, overrides, baseline) of each.
      **said: what differs from a usual one.
    """
    asked = {
        "file": "sweep.py",
        "question": "Which rate is best?",
        "metric": "heldout_loss",
        "base": BASE,
        "points": [
            dict(zip(("name", "setting", "overrides", "baseline"), point, strict=True))
            for point in points
        ],
    }
    write_json(root / "sweep.json", asked | said)
    return Places(root)


def write_run(places, name, losses, *, done=True, **result):
    """Writes a point's metrics, one held-out loss a 20 steps, and its result.

    Args:
      places: of the sweep.
      name: of the point.
      losses: held-out losses; the training losses are 0.1 lower.
      done: whether there is a result.
      **result: further values of it.
    """
    folder = places.point(name)
    folder.mkdir(parents=True)
    lines = []
    for i, loss in enumerate(losses, 1):
        lines.append({"step": 20 * i, "loss": loss - 0.1, "tokens": 20.0 * i * 512})
        lines.append({"step": 20 * i, "heldout_loss": loss, "heldout_accuracy": math.exp(-loss)})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text)
    if done:
        values = {
            "workdir": str(folder),
            "step": 20 * len(losses),
            "loss": losses[-1] - 0.1,
            "heldout_loss": losses[-1],
            "heldout_perplexity": math.exp(losses[-1]),
            "unigram_perplexity": None,
            "bigram_perplexity": None,
            "tokens": 20 * len(losses) * 512,
            "seconds": 2.5,
        }
        write_json(folder / "result.json", values | result)


def falling(end, steps=5):
    """Losses of a run that come down to `end`."""
    return [end + 2.0 * math.exp(-i) for i in range(1, steps)] + [end]


def write_seeds(places, points, ends):
    """Done runs of points, each with its last held-out loss."""
    for (name, *_), end in zip(points, ends, strict=True):
        write_run(places, name, falling(end))


def seeds_of(setting, overrides, count, *, baseline=False):
    """Points of a setting, as a sweep's file makes them."""
    return [
        (f"{setting},seed={seed}", setting, {**overrides, "train.seed": seed}, baseline)
        for seed in range(count)
    ]
