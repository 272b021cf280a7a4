"""Encoders trained by transformers: states, scores, losses and gradients are theirs.

Tiny models, every tensor random; rows of unequal length, padded, with token types. The loss is the
objective's own function on a batch made by hand, and our gradient is given their names by the table
that writes their files.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from encoder_twins import (
    DISTIL,
    GRADIENT,
    LENGTH,
    LENGTHS,
    MODERN,
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
from llmasos_jax.format.read import ModelFiles
from llmasos_jax.format.tensorfile import stored
from llmasos_jax.interop.hf.express import express
from llmasos_jax.interop.tables import unbind
from llmasos_jax.models.definition import file_def
from llmasos_jax.nn.runtime import Runtime

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore:::(torch|transformers)")]
# Class, config class, options, what it gives by our names.
CASES: dict[str, tuple[str, str, dict[str, Any], tuple[str, ...]]] = {
    "bert": ("BertForPreTraining", "BertConfig", WIDTHS, ("logits", "next_sentence")),
    "bert-masked": (
        *("BertForMaskedLM", "BertConfig"),
        *(WIDTHS | dict(hidden_act="gelu_new", type_vocab_size=3), ("logits",)),
    ),
    "bert-untied": (
        *("BertForMaskedLM", "BertConfig", WIDTHS | dict(tie_word_embeddings=False), ("logits",)),
    ),
    "bert-next": ("BertForNextSentencePrediction", "BertConfig", WIDTHS, ("next_sentence",)),
    "bert-sequence": (
        *("BertForSequenceClassification", "BertConfig", WIDTHS | dict(num_labels=3)),
        ("labels",),
    ),
    "bert-token": (
        *("BertForTokenClassification", "BertConfig", WIDTHS | dict(num_labels=5), ("labels",)),
    ),
    "bert-base": ("BertModel", "BertConfig", WIDTHS, ("pooled",)),
    "roberta": ("RobertaForMaskedLM", "RobertaConfig", WIDTHS, ("logits",)),
    "roberta-sequence": ("RobertaForSequenceClassification", "RobertaConfig", WIDTHS, ("labels",)),
    "roberta-token": ("RobertaForTokenClassification", "RobertaConfig", WIDTHS, ("labels",)),
    "xlm-roberta": ("XLMRobertaModel", "XLMRobertaConfig", WIDTHS, ("pooled",)),
    "distilbert": ("DistilBertForMaskedLM", "DistilBertConfig", DISTIL, ("logits",)),
    "distilbert-token": (
        *("DistilBertForTokenClassification", "DistilBertConfig", DISTIL, ("labels",)),
    ),
    "modernbert": ("ModernBertForMaskedLM", "ModernBertConfig", MODERN, ("logits",)),
    "modernbert-biases": (
        *("ModernBertForMaskedLM", "ModernBertConfig"),
        MODERN | dict(norm_bias=True, attention_bias=True, mlp_bias=True, classifier_bias=True),
        ("logits",),
    ),
}
TRAINED = ("bert", "bert-masked", "bert-untied", "roberta", "distilbert", "modernbert")


@pytest.mark.parametrize("name", CASES)
def test_states_and_scores(name: str, tmp_path: Path) -> None:
    model = build(*CASES[name][:3])
    given = inputs(model)
    with torch.no_grad():
        out = theirs_of(model, given, output_hidden_states=True)
    files, params = opened(model, tmp_path)
    found = run(files, params, given)
    seen = given["mask"] > 0
    if "modern" not in name:
        assert len(found["layers"]) == len(out.hidden_states)
        for ours, theirs in zip(found["layers"], out.hidden_states, strict=True):
            assert close(ours[seen], theirs.numpy()[seen])
    keys = {"next_sentence": "seq_relationship_logits", "pooled": "pooler_output"}
    for output in CASES[name][3]:
        key = "prediction_logits" if name == "bert" else "logits"
        key = keys.get(output, key) if name != "bert-next" else "logits"
        ours, theirs = found[output], getattr(out, key).numpy()
        assert ours.shape == theirs.shape and theirs.std() > 0.1
        assert close(ours[seen], theirs[seen]) if ours.ndim == 3 else close(ours, theirs)


def close(ours: np.ndarray, theirs: np.ndarray) -> bool:
    return bool(np.abs(ours - theirs).max() <= SIMPLE * np.abs(theirs).max())


def run(files: ModelFiles, params: Any, given: dict[str, np.ndarray]) -> dict[str, Any]:
    cfg = files.manifest.parameters

    @jax.jit
    def call(params: Any) -> dict[str, Any]:
        bound, runtime = file_def(cfg).bind(params), Runtime()
        hidden = bound.hidden(
            given["tokens"],
            segment_ids_bt=jnp.asarray(given["mask"]),
            token_types_bt=given.get("types"),
            runtime=runtime,
            all_layers=True,
        )
        found: dict[str, Any] = {"layers": hidden.layers}
        pooled = bound.pooled(hidden.x_btd, runtime, given["mask"])
        if cfg.pooler:
            found["pooled"] = pooled
        if cfg.head is not None:
            found["logits"] = bound.logits(hidden.x_btd, runtime)
        if cfg.next_sentence:
            found["next_sentence"] = bound.next_sentence(pooled, runtime)
        if cfg.classifier.labels:
            is_text = cfg.classifier.level == "sequence"
            found["labels"] = bound.classify(pooled if is_text else hidden.x_btd, runtime)
        return found

    return jax.tree.map(np.asarray, call(params))


@pytest.mark.parametrize("name", TRAINED)
def test_loss_and_gradient(name: str, tmp_path: Path) -> None:
    model = build(*CASES[name][:3])
    given = inputs(model)
    rng = np.random.default_rng(3)
    # Three places in each row, the last of the shortest row a filler that does not count.
    places = np.stack([np.sort(rng.choice(n, 3, replace=False)) for n in LENGTHS]).astype(np.int32)
    weights = np.ones(places.shape, np.float32)
    weights[2, 2] = 0
    targets = rng.integers(4, VOCAB, places.shape).astype(np.int32)
    follows = np.array([0, 1, 1], np.int32)

    labels = np.full(given["tokens"].shape, -100)
    for row, (where, what, counts) in enumerate(zip(places, targets, weights, strict=True)):
        labels[row, where[counts > 0]] = what[counts > 0]
    more = {"next_sentence_label": torch.from_numpy(follows).long()} if name == "bert" else {}
    wanted = theirs_of(model, given, labels=torch.from_numpy(labels), **more).loss
    wanted.backward()

    files, params = opened(model, tmp_path)
    positions = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), given["mask"].shape)
    extra = {"masked_positions": places, "next_sentence": follows}
    if "types" in given:
        extra["token_types"] = given["types"]
    batch = Batch(given["tokens"], targets, weights, given["mask"], positions, extra)
    loss, gradient = our_loss(files, params, batch, "mlm_nsp" if name == "bert" else "mlm")
    assert abs(loss - wanted.item()) <= SIMPLE * abs(wanted.item())

    found = express(files.manifest)
    table = found.family.table(files.manifest.parameters)
    ours = {n: stored(np.asarray(x)) for n, x in flatten(gradient).items()}
    named = {n: t.read() for n, t in unbind(table, files.manifest.parameters, ours).items()}
    expected = {n: p.grad.numpy() for n, p in model.named_parameters() if p.grad is not None}
    unread = {n for n, p in model.named_parameters() if p.grad is None}
    # Untied, transformers reads the decoder's own bias, and this one never.
    assert unread == ({"cls.predictions.bias"} if name == "bert-untied" else set())
    assert named.keys() == expected.keys() | unread
    largest = max(float(np.abs(g).max()) for g in expected.values())
    for key, theirs in expected.items():
        if key.endswith(ZERO):
            assert np.abs(named[key]).max() <= 1e-6 * largest
            continue
        assert np.abs(theirs).max() > 1e-5 * largest, key
        apart = np.abs(named[key] - theirs).max()
        assert apart <= GRADIENT * np.abs(theirs).max(), (key, apart)
