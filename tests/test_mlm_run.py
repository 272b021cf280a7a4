"""Runs of encoders and encoder-decoders: objectives and a start from other weights, by config."""

import dataclasses
import json
import random
import types

import jax
import numpy as np
import pytest
from small_run import Record, small_config
from tolerances import PARITY

from llmasos_jax.checkpoint.stored import StoredState
from llmasos_jax.config.build import from_dict, to_dict
from llmasos_jax.data.pipeline import open_data
from llmasos_jax.data.target_baselines import target_baselines
from llmasos_jax.data.tokenizers.vocabulary import vocabulary_of
from llmasos_jax.errors import CheckpointError, ConfigError
from llmasos_jax.parallel.mesh import single_device_mesh
from llmasos_jax.train.loop import restore_or_start
from llmasos_jax.train.objective import build_objective
from llmasos_jax.train.run import run
from llmasos_jax.train.start import check_start, weights_of
from llmasos_jax.train.step import make_trainer
from llmasos_jax.train.workdir import saved_tokenizer

WORDS = "the cat sat on a mat and saw one red bird fly over two green trees in may".split()
BERT = {
    "vocab_size": 64,
    "context_length": 48,
    "causal": False,
    "norm": "layernorm",
    "norm_placement": "post",
    "final_norm": False,
    "embedding_norm": True,
    "token_types": 2,
    "position": "learned",
    "mlp": "gelu",
    "mlp_bias": True,
    "head": "mlm",
    "pooler": True,
    "next_sentence": True,
}
WORDPIECE = {"kind": "tokenizers", "model_type": "wordpiece"}


def bert_config(folder, objective="mlm_nsp", model=None, train=None, data=None, **groups):
    """A config over a few thousand words of nonsense in sentences."""
    text = folder / "text"
    if not text.exists():
        text.mkdir()
        rng = random.Random(0)
        for number in range(12):
            sentences = [
                " ".join(rng.choices(WORDS, k=rng.randint(3, 8))).capitalize() + "."
                for _ in range(40)
            ]
            (text / f"{number:02d}.txt").write_text(" ".join(sentences))
    train = {"eval_every_steps": 3, "eval_batches": None} | (train or {})
    return small_config(
        folder,
        steps=3,
        model=BERT | (model or {}),
        tokenizer=WORDPIECE,
        objective={"name": objective},
        train=train,
        data={"path": str(text), "sequence_length": 32, "source": "text", "heldout_fraction": 0.3}
        | (data or {}),
        **groups,
    )


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A finished run: its folder, result, what hooks were told, and what was printed."""
    home = tmp_path_factory.mktemp("bert")
    record = Record()
    result = run(bert_config(home), home / "run", (record,), cache=home / "cache")
    return home, result, record


def test_accuracies_stand_beside_their_baselines(bert):
    home, result, record = bert
    assert {"accuracy", "nsp_loss", "nsp_accuracy"} < record.values[1].keys()
    values = record.values[1]
    assert values["loss"] == pytest.approx(values["nll"] + values["nsp_loss"], rel=PARITY)
    told = record.heldout[3]
    assert result.heldout_accuracy == told["heldout_accuracy"]
    assert result.heldout_nsp_accuracy == told["heldout_nsp_accuracy"]
    assert 0.05 < result.most_frequent_accuracy < 0.3, "of 18 words and a full stop"
    assert 0.5 <= result.larger_class_accuracy < 0.8
    assert result.unigram_perplexity < 40 and result.bigram_perplexity is None
    kept = json.loads((home / "run" / "result.json").read_text())
    assert kept["most_frequent_accuracy"] == result.most_frequent_accuracy
    lines = str(result).splitlines()
    assert f"(most frequent {result.most_frequent_accuracy:.1%})" in lines[-2]
    assert lines[-1].startswith("next sentence") and "larger class" in lines[-1]


def test_the_baselines_are_counted_as_they_say(bert):
    home, result, _ = bert
    cfg, tokenizer = bert_config(home), saved_tokenizer(home / "run")
    vocabulary = vocabulary_of(tokenizer, cfg.model.vocab_size)
    objective = build_objective(cfg, vocabulary)
    data = open_data(
        cfg,
        tokenizer,
        home / "cache",
        prepare=objective.prepare,
        rows=objective.rows,
        by_sentence=True,
    )
    ids, counts = np.unique(data.corpus.train.ids, return_counts=True)
    frequent = ids[np.argmax(np.where(np.isin(ids, vocabulary.special_ids), 0, counts))]
    targets, labels = [], []
    for batch in data.heldout:
        targets += batch.targets[batch.loss_weights > 0].tolist()
        labels += batch.extra["next_sentence"][batch.segment_ids[:, 0] > 0].tolist()
    assert result.most_frequent_accuracy == pytest.approx(np.mean(np.equal(targets, frequent)))
    wanted = max(np.mean(labels), 1 - np.mean(labels))
    assert result.larger_class_accuracy == pytest.approx(wanted)
    first = target_baselines(data, vocabulary, is_masked=True, batches=1)
    assert first.most_frequent != pytest.approx(result.most_frequent_accuracy)


OBJECTIVES = {
    "mlm": {"pooler": False, "next_sentence": False},
    "mlm_sop": {},
    "causal": {"causal": True, "head": "linear", "pooler": False, "next_sentence": False},
    "prefix_lm": {
        "causal": True,
        "head": "linear",
        "pooler": False,
        "next_sentence": False,
        "prefix_lm": True,
    },
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_config_alone_chooses_the_objective(bert, name):
    home = bert[0]
    record = Record()
    cfg = bert_config(home, name, OBJECTIVES[name], train={"eval_every_steps": None})
    run(cfg, home / name, (record,), cache=home / "cache")
    values = record.values[3]
    assert values["loss"] < record.values[1]["loss"]
    assert ("sop_accuracy" in values) == (name == "mlm_sop")


def test_an_encoder_decoder_trains_and_stands_beside_unigrams(bert):
    home = bert[0]
    model = {
        "vocab_size": 384,
        "position": "relative",
        "causal": True,
        "encoder": {"num_layers": 1},
        "num_layers": 1,
    }
    cfg = from_dict(
        to_dict(bert_config(home))
        | {
            "model": {"embedding_dim": 32, "num_heads": 2, "context_length": 48} | model,
            "objective": {"name": "span_corruption"},
            "tokenizer": {"kind": "tokenizers", "model_type": "unigram"},
        }
    )
    record = Record()
    result = run(cfg, home / "t5", (record,), cache=home / "cache")
    assert record.values[3]["loss"] < record.values[1]["loss"]
    assert 1 < result.unigram_perplexity < 384 and 0 < result.most_frequent_accuracy < 0.5
    assert result.larger_class_accuracy is None
    read = cfg.train.batch_size * cfg.data.sequence_length
    assert result.tokens > 3 * read, "the encoder's tokens and the decoder's"


def started(cfg):
    trainer = make_trainer(cfg, single_device_mesh())
    fresh = types.SimpleNamespace(latest_step=lambda: None)
    return trainer, restore_or_start(trainer, None, fresh)


def test_a_run_starts_with_the_newest_weights_of_another(bert):
    home = bert[0]
    cfg = bert_config(
        home,
        "mlm_sop",
        train={"start_from": str(home / "run"), "batch_size": 16},
        data={"sequence_length": 48},
        optim={"learning_rate": 1e-3},
    )
    trainer, state = started(cfg)
    stored = StoredState(home / "run")
    table = np.asarray(state.params["embed"]["table"])
    np.testing.assert_array_equal(table, stored.read("params/embed/table"))
    assert int(state.step) == 0
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(state.opt_state))
    random = trainer.init(jax.random.key(cfg.train.seed))
    assert not np.array_equal(table, random.params["embed"]["table"])
    # The whole run: the tokenizer is that of the first, whatever text this one would train it on.
    record = Record()
    run(cfg, home / "second", (record,), cache=home / "cache")
    first, second = home / "run" / "tokenizer", home / "second" / "tokenizer"
    assert sorted(p.name for p in first.iterdir()) == sorted(p.name for p in second.iterdir())
    assert all(p.read_bytes() == (second / p.name).read_bytes() for p in first.iterdir())
    assert record.values[1]["loss"] < bert[2].values[1]["loss"]


def test_a_start_that_does_not_fit(bert):
    home = bert[0]
    start = {"train": {"start_from": str(home / "run")}}
    with pytest.raises(ConfigError) as caught:
        other = {"embedding_dim": 64, "context_length": 64}
        run(bert_config(home, model=other, **start), home / "no", cache=home / "cache")
    message = str(caught.value)
    assert "model.embedding_dim: 32 -> 64" in message and "\n" not in message
    assert "model.context_length: 48 -> 64 (with learned positions)" in message
    assert not (home / "no").exists()
    with pytest.raises(CheckpointError, match='train.start_from: no checkpoint in ".*nowhere"'):
        nowhere = bert_config(home, train={"start_from": str(home / "nowhere")})
        run(nowhere, home / "no", cache=home / "cache")
    # Rotary positions know no end.
    turning = bert_config(home, model={"position": "rope"})
    longer = dataclasses.replace(turning.model, context_length=96)
    check_start(turning, dataclasses.replace(turning, model=longer))
    wider = make_trainer(bert_config(home, model={"embedding_dim": 64}), single_device_mesh())
    with pytest.raises(CheckpointError, match="params/embed/table: checkpoint float32.64,32."):
        weights_of(bert_config(home, **start), wider.abstract_state.params)
