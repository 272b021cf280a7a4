"""Losses of labelled texts beside transformers and torch: values and every gradient.

Tiny BERTs with random tensors, as in `test_encoder_parity`; "similarity" reads its texts packed in
one row, torch each text alone.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from encoder_twins import (
    GRADIENT,
    LENGTH,
    VOCAB,
    WIDTHS,
    ZERO,
    build,
    inputs,
    opened,
    our_loss,
    theirs_of,
    torch,
)
from tolerances import SIMPLE

from llmasos_jax.data.batch import Batch
from llmasos_jax.format.names import flatten
from llmasos_jax.format.tensorfile import stored
from llmasos_jax.interop.hf.express import express
from llmasos_jax.interop.tables import unbind

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore:::(torch|transformers)")]
TEMPERATURE = 0.05
SCORES = np.array([0.5, -1.0, 3.0], np.float32)
LABELS = np.array([2, 0, 1], np.int32)


def batch_of(given: dict[str, np.ndarray], targets: np.ndarray, **extra: np.ndarray) -> Batch:
    positions = np.tile(np.arange(LENGTH, dtype=np.int32), (3, 1))
    weights = np.ones((3, 1), np.float32)
    types = {"token_types": given["types"]}
    return Batch(
        given["tokens"], targets[:, None], weights, given["mask"], positions, types | extra
    )


def assert_gradients(files: Any, ours: Any, model: Any) -> None:
    found = express(files.manifest)
    table = found.family.table(files.manifest.parameters)
    tensors = {n: stored(np.asarray(x)) for n, x in flatten(ours).items()}
    table_of = unbind(table, files.manifest.parameters, tensors)
    # A trunk alone is written as the trunk of a larger model.
    prefix = "" if hasattr(model, "bert") else "bert."
    named = {n.removeprefix(prefix): t.read() for n, t in table_of.items()}
    expected = {n: p.grad.numpy() for n, p in model.named_parameters() if p.grad is not None}
    largest = max(float(np.abs(g).max()) for g in expected.values())
    assert len(expected) > 30 and expected.keys() <= named.keys()
    for key, theirs in expected.items():
        scale = largest if key.endswith(ZERO) else float(np.abs(theirs).max())
        assert scale > 1e-6 * largest, key
        assert np.abs(named[key] - theirs).max() <= GRADIENT * scale, key


@pytest.mark.parametrize("objective", ["classify", "regress"])
def test_a_classifier_of_texts(objective: str, tmp_path: Path) -> None:
    is_score = objective == "regress"
    options = WIDTHS | {"num_labels": 1 if is_score else 3}
    model = build("BertForSequenceClassification", "BertConfig", options)
    given = inputs(model)
    labels = torch.from_numpy(SCORES) if is_score else torch.from_numpy(LABELS).long()
    wanted = theirs_of(model, given, labels=labels).loss
    wanted.backward()
    files, params = opened(model, tmp_path)
    assert files.manifest.parameters.classifier.is_score == is_score
    extra = {"score": SCORES, "centre": SCORES * 0} if is_score else {}
    batch = batch_of(given, LABELS * (not is_score), **extra)
    loss, gradient = our_loss(files, params, batch, objective)
    assert loss == pytest.approx(wanted.item(), rel=SIMPLE)
    assert_gradients(files, gradient, model)


def test_similarity(tmp_path: Path) -> None:
    model = build("BertModel", "BertConfig", WIDTHS)
    rng = np.random.default_rng(7)
    lengths = np.array([[5, 8, 7], [9, 4, 0], [3, 6, 6]])  # one row has no negative
    tokens, segments, positions, types = np.zeros((4, 3, LENGTH), np.int32)
    vectors: dict[tuple[int, int], Any] = {}
    for row, column in np.ndindex(3, 3):
        if (size := int(lengths[row, column])) == 0:
            continue
        begin = int(lengths[row, :column].sum())
        place = slice(begin, begin + size)
        tokens[row, place] = rng.integers(4, VOCAB, size)
        types[row, place] = np.arange(size) > size // 2
        segments[row, place], positions[row, place] = column + 1, np.arange(size)
        states = model(
            input_ids=torch.from_numpy(tokens[row : row + 1, place]).long(),
            token_type_ids=torch.from_numpy(types[row : row + 1, place]).long(),
        ).last_hidden_state
        vectors[row, column] = torch.nn.functional.normalize(states.mean(dim=1)[0], dim=0)
    anchors = torch.stack([vectors[row, 0] for row in range(3)])
    others = [vectors[row, 1] for row in range(3)] + [vectors[0, 2], vectors[2, 2]]
    scores = anchors @ torch.stack(others).T / TEMPERATURE
    wanted = torch.nn.functional.cross_entropy(scores, torch.arange(3))
    wanted.backward()
    files, params = opened(model, tmp_path)
    weights, targets = np.ones((3, 1), np.float32), np.zeros((3, 1), np.int32)
    batch = Batch(tokens, targets, weights, segments, positions, {"token_types": types})
    loss, gradient = our_loss(files, params, batch, "similarity")
    assert loss == pytest.approx(wanted.item(), rel=SIMPLE)
    assert_gradients(files, gradient, model)
