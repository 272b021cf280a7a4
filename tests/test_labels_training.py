"""Training on labelled texts: the same gradients on any mesh, and a planted rule is learned."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import on_meshes
import pytest
from small_bert import LABELLED

from llmasos_jax.config.finetune import FinetuneConfig
from llmasos_jax.config.heads import Classifier
from llmasos_jax.config.model import ModelConfig
from llmasos_jax.config.schema import (
    Config,
    DataConfig,
    MeshConfig,
    ObjectiveConfig,
    OptimConfig,
    TrainConfig,
)
from llmasos_jax.data.batch import Batch
from llmasos_jax.data.examples import Examples
from llmasos_jax.data.pipeline import Data, open_data
from llmasos_jax.data.tokenizers.tokenizer import ByteTokenizer
from llmasos_jax.train.step import make_trainer


def rows_of(cfg: Config) -> Batch:
    """Rows of two or three texts and padding; the last row only fills up the batch."""
    name, rng = cfg.objective.name, np.random.default_rng(5)
    b, t = on_meshes.B, on_meshes.T
    texts = 3 if name == "similarity" else 1
    segments = np.sort(rng.integers(1, texts + 1, (b, t)), axis=1).astype(np.int32)
    segments = np.where(np.arange(t) < rng.integers(t // 2, t, (b, 1)), segments, 0)
    segments[-1] = 0
    begins = np.diff(segments, axis=1, prepend=0) > 0
    index = np.arange(t)
    positions = index - np.maximum.accumulate(np.where(begins, index, 0), axis=1)
    wide = t if name == "classify_tokens" else 1
    weights = (rng.random((b, wide)) < 0.5 if wide > 1 else np.ones((b, 1), bool)) & (
        segments[:, :wide] > 0
    )
    extra = {"token_types": rng.integers(0, 2, (b, t)) * (segments > 0)}
    if name == "regress":
        extra |= {"score": rng.normal(size=b), "centre": np.full(b, 0.5)}
    labels = max(1, len(cfg.model.classifier.labels))
    found = Batch(
        rng.integers(0, on_meshes.V, (b, t)) * (segments > 0),
        rng.integers(0, labels, (b, wide)) * weights,
        weights.astype(np.float32),
        segments,
        positions,
        extra,
    )
    narrow = {"i": np.int32, "f": np.float32}
    return jax.tree.map(lambda x: x.astype(narrow[x.dtype.kind]), found)


MESHES = {
    "data 2, fsdp 2, tensor 2": on_meshes.MIXED,
    "fsdp 2, context 2, tensor 2": MeshConfig(data=1, fsdp=(2,), context=2, tensor=2),
}
ON_MESHES = [("classify", "data 2, fsdp 2, tensor 2"), ("similarity", "data 2, fsdp 2, tensor 2")]
ON_MESHES += [
    (name, "fsdp 2, context 2, tensor 2") for name in ("classify_tokens", "regress", "similarity")
]


@pytest.mark.parametrize(("name", "mesh"), ON_MESHES)
def test_loss_and_gradients_do_not_depend_on_the_mesh(name: str, mesh: str) -> None:
    head = {"pooler": name != "similarity", "classifier": LABELLED[name].classifier}
    head["pooler"] = head["pooler"] and name != "classify_tokens"
    model = on_meshes.BERT.replace(head=None, next_sentence=False, **head)
    cfg = on_meshes.config(model, MESHES[mesh], objective=ObjectiveConfig(name=name))
    # Far colder than 1, or random weights give gradients of nothing.
    cfg = dataclasses.replace(cfg, finetune=FinetuneConfig(temperature=0.5))
    sums = on_meshes.assert_mesh_is_one_device(cfg, rows_of)
    assert 10 < sums.weight_sum < on_meshes.B * on_meshes.T


def animals(folder: Path) -> Path:
    """Texts of ten random letters; those with a "q" are of animals."""
    rng = np.random.default_rng(0)
    texts = {"".join(rng.choice(list("abcdefghq"), 10)) for _ in range(600)}
    records = [{"text": t, "label": "animal" if "q" in t else "none"} for t in sorted(texts)]
    path = folder / "animals.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_a_planted_rule_is_learned(tmp_path: Path) -> None:
    model = ModelConfig(
        *(259, 32, 1),
        causal=False,
        head=None,
        position="learned",
        classifier=Classifier(("none", "animal")),
        context_length=16,
    )
    cfg = Config(
        model,
        data=DataConfig("jsonl", str(animals(tmp_path)), sequence_length=16, heldout_fraction=0.25),
        objective=ObjectiveConfig(name="classify"),
        optim=OptimConfig(learning_rate=1e-2, warmup_steps=5, weight_decay=0.0),
        train=TrainConfig(batch_size=32, steps=60),
    )
    trainer = make_trainer(cfg, on_meshes.mesh_of(on_meshes.ONE))
    objective = trainer.objective
    data = open_data(
        cfg, ByteTokenizer(), tmp_path, prepare=objective.prepare, examples=objective.examples
    )
    lowered = trainer.step.lower(trainer.abstract_state, trainer.abstract_batch)
    step, state = lowered.compile(compiler_options=on_meshes.QUICK), trainer.init(jax.random.key(0))
    assert accuracy_of(trainer, state.params, data)["macro_f1"] < 0.8
    for number in range(cfg.train.steps):
        state, _ = step(state, trainer.put(data.train[number]))
    means = accuracy_of(trainer, state.params, data)
    assert means["accuracy"] > 0.95 and means["macro_f1"] > 0.95


def accuracy_of(trainer: Any, params: Any, data: Data) -> dict[str, float]:
    parts = [trainer.evaluate(params, trainer.put(batch)) for batch in data.heldout]
    total = functools.reduce(lambda a, b: a + b, parts)
    assert isinstance(data.corpus, Examples)
    assert float(total.weight_sum) == len(data.corpus.heldout) > 100
    return {name: float(value) for name, value in total.means().items()}
