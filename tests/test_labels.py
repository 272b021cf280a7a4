"""Labelled texts: rows as inference reads them, losses and reports, wrong records, meshes."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_bert import BERT, LABELLED, SPAM, STARS, TAGS, TRUNK, word_pieces
from small_model import written
from tolerances import SIMPLE

from llmasos_jax.config.finetune import FinetuneConfig
from llmasos_jax.config.heads import Classifier
from llmasos_jax.config.model import ModelConfig
from llmasos_jax.config.schema import (
    Config,
    DataConfig,
    ObjectiveConfig,
    TrainConfig,
)
from llmasos_jax.data.batch import Batch
from llmasos_jax.data.batches import stack
from llmasos_jax.data.records.labels import read_examples
from llmasos_jax.data.tokenizers.inputs import first_pieces
from llmasos_jax.data.tokenizers.tokenizer import ByteTokenizer
from llmasos_jax.errors import ConfigError, DataError
from llmasos_jax.generate.answers import Score
from llmasos_jax.generate.load import load_model
from llmasos_jax.generate.model import Model
from llmasos_jax.train.objective import build_objective
from llmasos_jax.train.sums import LossSum

RECORDS: dict[str, list[dict[str, Any]]] = {
    "classify": [
        {"text": "the cat sat", "label": "ham"},
        {"text": "a dog ran on the mat .", "text_pair": "it was wet", "label": 1},
        {"text": "rain fell .", "label": "spam"},
    ],
    "classify_tokens": [
        {"tokens": ["the", "cats", "sat"], "tags": ["none", "animal", 0]},
        {"tokens": ["on", "a", "mat"], "tags": ["none", "none", "place"]},
        {"tokens": ["rain"], "tags": ["none"]},
    ],
    "regress": [
        {"text": "good cat", "text_pair": "good dog", "score": 4.5},
        {"text": "bad dog", "score": -1},
        {"text": "it was wet .", "score": 0.25},
    ],
    "similarity": [
        {"anchor": "the cat", "positive": "a cat sat", "negative": "it was wet ."},
        {"anchor": "good dog", "positive": "the dog ran on a mat ."},
        {"anchor": "rain fell", "positive": "it was wet", "negative": "a bad cat"},
    ],
}


def config(name: str, path: Path, *, length: int = 16, **more: Any) -> Config:
    parts = {
        "data": DataConfig("jsonl", str(path), sequence_length=length, heldout_fraction=0.0),
        "train": TrainConfig(batch_size=2),
        **more,
    }
    return Config(LABELLED[name], objective=ObjectiveConfig(name=name), **parts)


def file_of(folder: Path, records: list[Any]) -> Path:
    path = folder / "records.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def batch_of(cfg: Config, tokenizer: Any) -> Batch:
    """All training rows, in the order of their scores and ids."""
    rows = read_examples(cfg, tokenizer, Path()).train.rows
    prepare = build_objective(cfg).prepare
    return stack([prepare(row, np.random.default_rng(0)) for row in rows])


def sums_of(cfg: Config, model: Model, batch: Batch) -> LossSum:
    loss, weights = build_objective(cfg).loss, model._weights

    @jax.jit
    def call(params: Any) -> LossSum:
        return loss(weights.definition.bind(params), batch, weights.runtime, None)

    return call(weights.params)


@functools.cache
def model_of(name: str, folder: Path) -> Model:
    return load_model(written(folder / name, LABELLED[name], word_pieces()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("labels")


def test_classify_trains_on_what_the_model_says(folder: Path, tmp_path: Path) -> None:
    records, model = RECORDS["classify"], model_of("classify", folder)
    cfg = config("classify", file_of(tmp_path, records))
    means = sums_of(cfg, model, batch_of(cfg, model.tokenizer)).means()
    nll, right = 0.0, 0
    for record in records:
        found = model.classify(record["text"], pairs=record.get("text_pair"))
        label = record["label"] if isinstance(record["label"], str) else "spam"
        nll -= np.log(next(each.probability for each in found if each.label == label))
        right += found[0].label == label
    assert float(means["loss"]) == pytest.approx(nll / 3, rel=SIMPLE)
    assert float(means["accuracy"]) == pytest.approx(right / 3)


def test_words_train_on_what_the_model_says_of_their_first_piece(
    folder: Path, tmp_path: Path
) -> None:
    model = model_of("classify_tokens", folder)
    cfg = config("classify_tokens", file_of(tmp_path, RECORDS["classify_tokens"]))
    sums = sums_of(cfg, model, batch_of(cfg, model.tokenizer))
    wanted = 0.0
    for record, firsts in zip(RECORDS["classify_tokens"], ([0, 1, 3], [0, 1, 2], [0]), strict=True):
        found = model.classify(" ".join(record["tokens"]))
        for tag, place in zip(record["tags"], firsts, strict=True):
            label = TAGS.labels[tag] if isinstance(tag, int) else tag
            wanted -= np.log(next(e.probability for e in found[place].labels if e.label == label))
    assert float(sums.weight_sum) == 7
    assert float(sums.loss_sum) == pytest.approx(wanted, rel=SIMPLE)


def test_regress_trains_on_the_score_that_the_model_gives(folder: Path, tmp_path: Path) -> None:
    records, model = RECORDS["regress"], model_of("regress", folder)
    cfg = config("regress", file_of(tmp_path, records))
    means = sums_of(cfg, model, batch_of(cfg, model.tokenizer)).means()
    answers = [model.classify(r["text"], pairs=r.get("text_pair")) for r in records]
    assert all(isinstance(answer[0], Score) and len(answer) == 1 for answer in answers)
    found, wanted = [a[0].value for a in answers], [r["score"] for r in records]
    mse = np.mean(np.square(np.subtract(found, wanted)))
    assert float(means["loss"]) == pytest.approx(mse, rel=SIMPLE)
    assert float(means["mse"]) == pytest.approx(mse, rel=SIMPLE)
    assert float(means["pearson"]) == pytest.approx(np.corrcoef(found, wanted)[0, 1], abs=SIMPLE)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_similarity_trains_on_the_vectors_that_the_model_gives(
    pooling: str, folder: Path, tmp_path: Path
) -> None:
    base, records = model_of("similarity", folder), RECORDS["similarity"]
    cfg = config("similarity", file_of(tmp_path, records), length=24)
    cfg = dataclasses.replace(cfg, model=TRUNK.replace(pooling=pooling))
    model = load_model(written(tmp_path / "m", cfg.model, word_pieces()))
    assert base.tokenizer is not None
    batch = batch_of(cfg, base.tokenizer)
    sums = sums_of(cfg, model, batch)
    vectors = {
        key: [None if key not in r else model.embed(r[key]) for r in records]
        for key in ("anchor", "positive", "negative")
    }
    others = np.stack(vectors["positive"] + [v for v in vectors["negative"] if v is not None])
    scores = np.stack(vectors["anchor"]) @ others.T / cfg.finetune.temperature
    nll = np.log(np.exp(scores).sum(axis=1)) - scores[np.arange(3), np.arange(3)]
    assert float(sums.loss_sum) == pytest.approx(nll.sum(), rel=1e-4)
    assert float(sums.extra["accuracy"]) == (scores.argmax(axis=1) == np.arange(3)).sum()


def test_a_row_that_fills_a_heldout_batch_is_no_negative(folder: Path, tmp_path: Path) -> None:
    model = model_of("similarity", folder)
    cfg = config("similarity", file_of(tmp_path, RECORDS["similarity"]), length=24)
    batch = batch_of(cfg, model.tokenizer)
    padded = jax.tree.map(lambda x: np.concatenate([x, np.zeros_like(x[:2])]), batch)
    alone, more = sums_of(cfg, model, batch), sums_of(cfg, model, padded)
    assert float(more.weight_sum) == 3
    assert float(more.loss_sum) == pytest.approx(float(alone.loss_sum), rel=SIMPLE)


def test_reports_add_up_over_batches() -> None:
    from llmasos_jax.train.tallies import ClassCounts, moments

    rng = np.random.default_rng(0)
    # Far from 0 and close together: raw sums in float32 would have lost the variance.
    x, y = rng.normal(0, 2, 900).astype(np.float32), rng.normal(0, 2, 900).astype(np.float32)
    y = (0.6 * x + 0.8 * y).astype(np.float32)
    parts = [moments(*(jnp.asarray(v[i::3]) for v in (x, y, np.ones(900)))) for i in range(3)]
    total = jax.tree.map(lambda *leaves: sum(leaves), *parts)
    assert float(total.values()["pearson"]) == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-5)
    assert float(moments(jnp.ones(4), jnp.arange(4.0), jnp.ones(4)).values()["pearson"]) == 0
    counts = ClassCounts(*(jnp.array(v, jnp.float32) for v in ([3, 0, 0], [4, 1, 0], [3, 2, 0])))
    # The third class is neither said nor true, and counts for nothing.
    assert float(counts.values()["macro_f1"]) == pytest.approx((6 / 7 + 0) / 2)


def test_first_pieces_of_words() -> None:
    cfg = ModelConfig(259, 8, 1, causal=False)
    ids, _, places = first_pieces(cfg, ByteTokenizer(), ["ab", "é", "c"])
    assert [ids[p] for p in places if p is not None] == [97, 0xC3, 99]
    assert first_pieces(BERT, word_pieces(), ["cats", "sat"])[2] == [1, 3]
    # A word that the tokenizer drops has no place.
    assert first_pieces(BERT, word_pieces(), ["cats", "\u3000", "sat"])[2] == [1, None, 3]


LONG = {"text": "the cat sat on a mat . it was wet", "label": "ham"}


def test_too_long_is_refused_dropped_or_cut_as_inference_cuts(tmp_path: Path) -> None:
    path = file_of(tmp_path, [*RECORDS["classify"], LONG])
    cut, drop = (FinetuneConfig(too_long=what) for what in ("truncate", "drop"))
    with pytest.raises(DataError, match=r"records.jsonl:2: 13 tokens, .*sequence_length=8; raise"):
        read_examples(config("classify", path, length=8), word_pieces(), Path())
    found = read_examples(config("classify", path, length=8, finetune=drop), word_pieces(), Path())
    assert (len(found.train), found.counts) == (2, {"dropped, too long": 2})
    found = read_examples(config("classify", path, length=8, finetune=cut), word_pieces(), Path())
    assert (len(found.train), found.counts) == (4, {"cut, too long": 2})
    # [CLS] the cat sat on a mat [SEP]: the end of the text is cut, what ends it stays.
    whole = word_pieces().encode_input(LONG["text"])[0]
    assert any(row.ids.tolist() == [*whole[:7], whole[-1]] for row in found.train.rows)
    path = file_of(tmp_path, [{"tokens": LONG["text"].split(), "tags": [0] * 10}])
    found = read_examples(
        config("classify_tokens", path, length=8, finetune=cut), word_pieces(), Path()
    )
    assert found.train[0].places.tolist() == [1, 2, 3, 4, 5, 6]
    assert found.counts == {"cut, too long": 1, "tags of words that were cut": 4}


def test_texts_of_one_row_are_cut_to_one_length(tmp_path: Path) -> None:
    record = {"anchor": "the cat", "positive": LONG["text"], "negative": LONG["text"] + " ."}
    cfg = config("similarity", file_of(tmp_path, [record]), length=18)
    cfg = dataclasses.replace(cfg, finetune=FinetuneConfig(too_long="truncate"))
    row = read_examples(cfg, word_pieces(), Path()).train[0]
    assert row.lengths == (4, 7, 7)
    assert [row.ids[i] for i in (3, 10, 17)] == [3, 3, 3]


def test_the_split_goes_by_text_and_the_digest_by_content(tmp_path: Path) -> None:
    texts = [f"the cat {'sat ' * i}" for i in range(1, 9)]
    # Each text twice, with other labels: never on both sides.
    records = [{"text": t, "label": label} for label in ("ham", "spam") for t in texts]
    data = DataConfig("jsonl", sequence_length=16, heldout_fraction=0.3)

    def read(records: list[Any], labels: Classifier = SPAM) -> Any:
        path = str(file_of(tmp_path, records))
        cfg = config("classify", tmp_path, data=dataclasses.replace(data, path=path))
        cfg = dataclasses.replace(cfg, model=BERT.replace(classifier=labels))
        return read_examples(cfg, word_pieces(), Path())

    found, again = read(records), read(records)
    train, heldout = ({r.ids.tobytes() for r in s.rows} for s in (found.train, found.heldout))
    assert (len(found.train), len(found.heldout)) == (12, 4)
    assert not train & heldout and found.digest == again.digest
    assert found.train.num_documents == 12
    assert found.train.num_tokens == sum(len(row.ids) for row in found.train.rows)
    assert read(records, Classifier(("spam", "ham"))).digest != found.digest
    assert read([*records[:-1], {"text": texts[-1], "label": "ham"}]).digest != found.digest


WRONG: dict[str, tuple[str, Any, str]] = {
    "no label": ("classify", {"text": "a"}, 'no field "label" (there are: text); objective.name='),
    "a misspelt field": ("classify", {"text": "a", "lable": 1}, 'did you mean "lable"?'),
    "a field too many": (
        "classify",
        {"text": "a", "label": 1, "subject": "b"},
        'nothing would read the field "subject"; objective.name="classify" reads text, label,',
    ),
    "an unknown label": (
        "classify",
        {"text": "a", "label": "spma"},
        'label "spma" is none of model.classifier.labels (ham, spam); did you mean "spam"?',
    ),
    "another label": ("classify", {"text": "a", "label": "news"}, "(ham, spam); correct it, or"),
    "out of range": (
        "classify",
        {"text": "a", "label": 2},
        "label 2 is out of range; expected 0 to 1, an index of model.classifier.labels (ham, spam)",
    ),
    "no kind of label": ("classify", {"text": "a", "label": 0.5}, "label is a number (0.5);"),
    "true": ("classify", {"text": "a", "label": True}, "label is true or false (True); expec"),
    "no text": ("classify", {"text": " ", "label": 1}, '"text" has no text; fill it, or take'),
    "a number as text": ("classify", {"text": 5, "label": 1}, '"text" is a number (5); expe'),
    "half a character": ("classify", {"text": "a\ud800", "label": 1}, "half of a surrogate pair"),
    "a tag too few": (
        "classify_tokens",
        {"tokens": ["the", "cat"], "tags": ["none"]},
        '"tags" has 1, and "tokens" has 2 words; give one for each',
    ),
    "an unknown tag": (
        "classify_tokens",
        {"tokens": ["the", "cat"], "tags": ["none", "aminal"]},
        'tags[1] "aminal" is none of model.classifier.labels (none, animal, place); did you mean',
    ),
    "no words": ("classify_tokens", {"tokens": [], "tags": []}, '"tokens" is empty; take'),
    "a text as words": ("classify_tokens", {"tokens": "a b", "tags": [0]}, "expected a list of wo"),
    "no number": ("regress", {"text": "a", "score": "4"}, '"score" is a text (4); expected a n'),
    "no finite number": ("regress", {"text": "a", "score": float("nan")}, '"score" is nan; expect'),
    "a huge number": (
        "regress",
        {"text": "a", "score": 10**400},
        '"score" is a number of about 2^1329; expected a finite number below 1e30',
    ),
    "no positive": ("similarity", {"anchor": "a"}, 'no field "positive" (there are: anchor);'),
    "an empty negative": (
        "similarity",
        {"anchor": "a", "positive": "a", "negative": ""},
        '"negative" has no text',
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_record_is_named_with_its_line_and_a_remedy(case: str, tmp_path: Path) -> None:
    name, record, words = WRONG[case]
    path = file_of(tmp_path, [*RECORDS[name], record])
    with pytest.raises(DataError) as caught:
        read_examples(config(name, path), word_pieces(), Path())
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert f"{path}:4: " in str(caught.value)


@pytest.mark.parametrize(
    ("name", "record", "words"),
    [
        ("classify", {"sentence": "a", "label": "spam"}, 'no field "text" (there are: label, sent'),
        ("similarity", {"query": "a", "pos": "b"}, 'no field "anchor" (there are: pos, query)'),
    ],
)
def test_fields_are_looked_for_before_the_split(
    name: str, record: dict[str, str], words: str, tmp_path: Path
) -> None:
    path = file_of(tmp_path, [record] * 20)
    cfg = config(name, path)
    cfg = dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, heldout_fraction=0.1))
    with pytest.raises(DataError) as caught:
        read_examples(cfg, word_pieces(), Path())
    assert str(caught.value).startswith(f"{path}:1: {words}")


def test_the_text_may_have_a_name_of_what_is_else_not_read(tmp_path: Path) -> None:
    records = [{"source": f"the {'cat ' * i}", "label": "ham", "id": i} for i in range(4)]
    cfg = config("classify", file_of(tmp_path, records))
    data = dataclasses.replace(cfg.data, text_field="source", heldout_fraction=0.0)
    found = read_examples(dataclasses.replace(cfg, data=data), word_pieces(), Path())
    assert len(found.train) == 4


def test_a_number_that_is_a_name_too_is_refused(tmp_path: Path) -> None:
    path = file_of(tmp_path, [{"text": "the cat", "label": 1}])
    model = BERT.replace(classifier=Classifier(("1", "2")))
    cfg = dataclasses.replace(config("classify", path), model=model)
    with pytest.raises(DataError, match='1 is the index of "2", and "1" is the name of another'):
        read_examples(cfg, word_pieces(), Path())


def test_a_decoder_reads_one_text(tmp_path: Path) -> None:
    path = file_of(tmp_path, [{"text": "a", "text_pair": "b", "label": 1}])
    model = ModelConfig(259, 8, 1, classifier=SPAM)
    cfg = dataclasses.replace(config("classify", path), model=model)
    with pytest.raises(DataError, match=':1: "text_pair" is for encoders'):
        read_examples(cfg, ByteTokenizer(), Path())


@pytest.mark.parametrize(
    ("name", "model", "train", "words"),
    [
        ("classify", {"classifier": Classifier()}, {}, "trains a classifier, and model.classifier"),
        ("classify", {"classifier": TAGS}, {}, 'needs model.classifier.level="sequence", not "to'),
        ("classify", {"classifier": STARS}, {}, "has one alone; name two or more, or set objectiv"),
        ("classify_tokens", {"classifier": SPAM}, {}, 'level="token", not "sequence"; set it'),
        ("regress", {"classifier": SPAM}, {}, "labels has 2 names; leave one"),
        ("similarity", {}, {"accumulate_steps": 2}, "accumulate_steps=2 cuts it into parts that"),
        ("similarity", {}, {"batch_size": 1}, "batch_size=1 has none; raise it"),
        (
            "classify",
            {"causal": True, "head": "linear", "pooler": False, "pooling": "cls"}
            | {"next_sentence": False},
            {},
            'with model.causal=True the first token (model.pooling="cls") sees itself alone',
        ),
    ],
)
def test_a_model_without_what_is_trained_is_refused(
    name: str, model: Any, train: Any, words: str
) -> None:
    cfg = Config(
        LABELLED[name].replace(**model),
        objective=ObjectiveConfig(name=name),
        data=DataConfig(sequence_length=16),
        train=TrainConfig(**{"batch_size": 2, **train}),
    )
    with pytest.raises(ConfigError) as caught:
        build_objective(cfg)
    assert words in str(caught.value) and f'objective.name="{name}"' in str(caught.value)
