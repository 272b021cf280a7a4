"""One training step of a tiny model against recorded figures: no change of maths goes unseen."""

import json
import os
from pathlib import Path

import jax
import numpy as np
import pytest
from tolerances import SIMPLE

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.config.schema import Config, DataConfig, ObjectiveConfig, OptimConfig, TrainConfig
from llmasos_jax.data.batch import Batch
from llmasos_jax.models.count import count_parameters
from llmasos_jax.parallel.mesh import single_device_mesh
from llmasos_jax.train.step import make_trainer

OPTIMIZED = True  # conftest.py: programs as users have them

GOLDEN = Path(__file__).parent / "golden" / "first_step.json"
REGENERATE = "LLMASOS_REGENERATE_GOLDEN"
ADVICE = f"""
The first training step is not what {GOLDEN.name} recorded. If nobody meant to change initial
weights, the model, the loss or the optimizer, this is a bug: find the commit that did it.
If the change was meant, say so in CHANGELOG.md (old runs will not go on as they would have), show
that a real run still learns, and record the new figures:

    {REGENERATE}=1 python -m pytest tests/test_golden.py
"""
CONFIG = Config(
    model=ModelConfig(
        vocab_size=61,
        embedding_dim=32,
        num_layers=4,
        context_length=16,
        num_heads=4,
        num_kv_heads=2,
        attention_windows=(6, None),
        qk_norm="head",
        qkv_bias=True,
        tie_embeddings=False,
    ),
    data=DataConfig(sequence_length=16),
    objective=ObjectiveConfig(z_loss=1e-3),
    optim=OptimConfig(learning_rate=1e-2, schedule="constant", warmup_steps=0, clip_norm=0.5),
    train=TrainConfig(steps=4, batch_size=4, accumulate_steps=2, init_std=0.1),
)


def fixed_batch() -> Batch:
    """Two documents and padding in each row, the same on every machine."""
    rng = np.random.default_rng(7)
    ids = rng.integers(0, 61, (4, 17)).astype(np.int32)
    segments = np.array([[1] * 9 + [2] * 5 + [0] * 2] * 4, np.int32)
    positions = np.array([[*range(9), *range(5), 0, 0]] * 4, np.int32)
    weights = (segments > 0).astype(np.float32)
    weights[:, 8] = 0.0
    weights[0, :4] = 0.0
    return Batch(ids[:, :-1], ids[:, 1:], weights, segments, positions)


def first_step() -> dict[str, float]:
    trainer = make_trainer(CONFIG, single_device_mesh())
    state = trainer.init(jax.random.key(5))
    _, metrics = trainer.step(state, trainer.put(fixed_batch()))
    names = ("loss", "nll", "weight", "grad_norm", "param_norm", "update_norm")
    figures = {name: float(getattr(metrics, name)) for name in names}
    return {**figures, "parameters": count_parameters(CONFIG.model)}


def test_the_first_step_is_the_recorded_one() -> None:
    figures = first_step()
    if os.environ.get(REGENERATE):
        GOLDEN.write_text(json.dumps(figures, indent=2) + "\n")
    expected = json.loads(GOLDEN.read_text())
    assert set(figures) == set(expected), ADVICE
    wrong = {
        name: f"{figures[name]!r}, recorded {value!r}"
        for name, value in expected.items()
        if figures[name] != pytest.approx(value, rel=SIMPLE)
    }
    assert not wrong, f"{wrong}{ADVICE}"
