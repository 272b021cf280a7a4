"""Pairs of texts: half and half, from where they are said to be, and the corpus by sentence."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.config.schema import Config, DataConfig, ObjectiveConfig, TrainConfig
from llmasos_jax.data.batch import Batch
from llmasos_jax.data.corpus import open_corpus
from llmasos_jax.data.objectives import mlm_pairs
from llmasos_jax.data.packing import TokenDocuments
from llmasos_jax.data.pairs import PairRows, next_sentence_pair, sentence_order_pair
from llmasos_jax.data.pipeline import open_data
from llmasos_jax.data.sentences import split_sentences
from llmasos_jax.data.sources import documents
from llmasos_jax.data.tokenizers.tokenizer import ByteTokenizer
from llmasos_jax.data.tokenizers.vocabulary import Vocabulary
from llmasos_jax.errors import ConfigError, DataError

CLS, SEP, MASK = 1, 2, 3
DOCUMENT = 1000  # token d * 1000 + i is the i-th of document d


def _corpus(seed: int = 0, count: int = 9, longest: int = 30) -> TokenDocuments:
    """Documents whose ids say where they are from; the last one is a single sentence."""
    rng = np.random.default_rng(seed)
    ids, offsets, sentences = [], [0], [0]
    for document in range(1, count + 1):
        sizes = rng.integers(1, longest, size=1 if document == count else rng.integers(2, 25))
        for size in sizes:
            sentences.append(sentences[-1] + int(size))
        length = int(sizes.sum())
        ids += list(range(document * DOCUMENT, document * DOCUMENT + length))
        offsets.append(offsets[-1] + length)
    return TokenDocuments(np.array(ids, np.uint32), np.array(offsets), np.array(sentences))


def _vocabulary(size: int = 20 * DOCUMENT) -> Vocabulary:
    return Vocabulary(size, CLS, SEP, MASK, 0, (0, 1, 2, 3), np.zeros(size, dtype=bool))


def _config(length: int, **objective) -> Config:
    return Config(
        ModelConfig(20 * DOCUMENT, 8, 1, context_length=512),
        data=DataConfig(sequence_length=length),
        objective=ObjectiveConfig(**{"name": "mlm_nsp"} | objective),
    )


def _unmasked(batch: Batch) -> np.ndarray:
    tokens = batch.tokens.copy()
    used = batch.loss_weights > 0
    tokens[batch.extra["masked_positions"][used]] = batch.targets[used]
    return tokens


def _texts(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    tokens = _unmasked(batch)
    first, second = np.flatnonzero(tokens == SEP)
    assert tokens[0] == CLS and int(batch.segment_ids.sum()) == second + 1
    assert not tokens[second + 1 :].any()
    return tokens[1:first], tokens[first + 1 : second]


def test_rows_are_whole_sentences_of_one_document() -> None:
    corpus = _corpus()
    rows = PairRows(corpus, 35)
    at, borders = 0, corpus.sentences
    assert borders is not None
    for row in rows:
        assert row.first == at and row.last > row.first
        at = row.last
        start, stop = borders[row.first], borders[row.last]
        own = corpus.offsets[row.document : row.document + 2]
        assert own[0] <= start < stop <= own[1] and row.target == 32
        # Filled by the last sentence, not before; less is there at the end of a document alone.
        assert borders[row.last - 1] - start < 32
        assert stop - start >= 32 or stop == own[1]
    assert at == len(borders) - 1


def test_next_sentence_pairs_are_what_their_label_says() -> None:
    corpus = _corpus()
    rows, prepare = mlm_pairs(_config(48), _vocabulary(), order=False)
    made = rows(corpus, 48)
    labels: Counter[int] = Counter()
    tails: Counter[int] = Counter()
    for seed in range(300):
        for index, row in enumerate(made):
            batch = prepare(row, np.random.default_rng([seed, index]))
            a, b = _texts(batch)
            label = int(batch.extra["next_sentence"])
            labels[label] += 1
            assert len(a) >= 1 and len(b) >= 1 and len(a) + len(b) <= 45
            assert len({*a.tolist()} | {*b.tolist()}) == len(a) + len(b)
            assert (np.diff(a) == 1).all() and (np.diff(b) == 1).all()
            if label == 0:
                assert b[0] // DOCUMENT == a[0] // DOCUMENT and b[0] > a[-1]
                tails[int(b[0] - a[-1])] += 1
            else:
                assert b[0] // DOCUMENT != a[0] // DOCUMENT
            types = batch.extra["token_types"]
            assert types.tolist() == [0] * (len(a) + 2) + [1] * (len(b) + 1) + [0] * (
                48 - len(a) - len(b) - 3
            )
            count = len(a) + len(b) + 3
            assert batch.positions[:count].tolist() == list(range(count))
    share = labels[1] / labels.total()
    assert share == pytest.approx(0.5, abs=0.015) and labels.total() > 9_000
    assert tails[1] > 0.25 * tails.total()  # cut at random ends, so not always next to each other


def test_lengths_do_not_tell_the_label() -> None:
    corpus = _corpus(seed=3, count=15)
    rows = PairRows(corpus, 48, short_fraction=0.2)
    lengths: dict[int, list[int]] = {0: [], 1: []}
    for seed in range(100):
        for index, row in enumerate(rows):
            pair = next_sentence_pair(row, np.random.default_rng([seed, index]))
            lengths[pair.label].append(len(pair.b))
    means = [float(np.mean(lengths[label])) for label in (0, 1)]
    assert means[0] == pytest.approx(means[1], rel=0.06)


def test_a_foreign_text_begins_anywhere() -> None:
    corpus = _corpus(count=6)
    row = PairRows(corpus, 20)[0]
    begun = set()
    for seed in range(4000):
        pair = next_sentence_pair(row, np.random.default_rng(seed))
        if pair.label:
            begun.add(int(pair.b[0]) // DOCUMENT)
    assert begun == {2, 3, 4, 5, 6}


def test_sentence_order() -> None:
    rows, prepare = mlm_pairs(_config(48, name="mlm_sop"), _vocabulary(), order=True)
    made = rows(_corpus(), 48)
    labels: Counter[int] = Counter()
    for seed in range(60):
        for index, row in enumerate(made):
            batch = prepare(row, np.random.default_rng([seed, index]))
            a, b = _texts(batch)
            label = int(batch.extra["next_sentence"])
            labels[label] += 1
            assert a[0] // DOCUMENT == b[0] // DOCUMENT
            assert (b[0] > a[-1]) == (label == 0) and (a[0] > b[-1]) == (label == 1)
    assert labels[1] / labels.total() == pytest.approx(0.5, abs=0.03)


def test_a_single_sentence_is_split_at_a_token() -> None:
    documents = TokenDocuments.from_lists([list(range(1000, 1100)), list(range(2000, 2003))])
    rows = PairRows(documents, 23)
    assert [(row.first, row.last) for row in rows] == [(0, 1), (1, 2)]
    for seed in range(200):
        pair = sentence_order_pair(rows[0], np.random.default_rng(seed))
        assert len(pair.a) + len(pair.b) == 20
        pair = next_sentence_pair(rows[1], np.random.default_rng(seed))
        assert len(pair.a) in (1, 2) and (pair.label or pair.b.tolist()[-1] == 2002)


@pytest.mark.parametrize(("sizes", "length"), [((30, 90), 20), ((2, 30), 40), ((2, 200), 64)])
def test_in_a_row_of_one_sentence_nothing_but_its_words_tells_the_label(
    sizes: tuple[int, int], length: int
) -> None:
    """Sentences longer than a row, tails of documents, and both: ends and borders are alike."""
    lengths = np.random.default_rng(5).integers(*sizes, size=(40, 3))
    borders = np.concatenate([[0], lengths.reshape(-1).cumsum()])
    documents = TokenDocuments(np.arange(borders[-1]), borders[::3], borders)
    rows = [row for row in PairRows(documents, length) if row.last - row.first == 1]
    features: dict[int, list[list[float]]] = {0: [], 1: []}
    for index, row in enumerate(rows):
        for seed in range(12_000 // len(rows)):
            pair = next_sentence_pair(row, np.random.default_rng([seed, index]))
            first, last = int(pair.b[0]), int(pair.b[-1])
            inside = np.searchsorted(borders, last, "right") - np.searchsorted(
                borders, first, "right"
            )
            features[pair.label].append(
                [first in borders, last + 1 in borders, inside > 0, len(pair.b) / length]
            )
    assert len(rows) > 10
    true, foreign = (np.mean(features[label], axis=0) for label in (0, 1))
    assert true[0] == foreign[0] == 0 and true[2] == foreign[2] == 0
    assert abs(true[1] - foreign[1]) < 0.04 and abs(true[3] - foreign[3]) < 0.025


def test_short_rows() -> None:
    corpus = _corpus(count=15, longest=4)
    short = sum(row.target < 61 for row in PairRows(corpus, 64, short_fraction=0.5, seed=1))
    rows = PairRows(corpus, 64, short_fraction=0.5, seed=1)
    assert 0.3 < short / len(rows) < 0.8  # short rows are also more
    again = PairRows(corpus, 64, short_fraction=0.5, seed=2)
    assert [r.target for r in rows] != [r.target for r in again]


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    st.lists(st.lists(st.integers(1, 9), max_size=6), min_size=2, max_size=6),
    st.integers(5, 20),
    st.floats(0, 0.9),
)
def test_any_corpus(shapes: list[list[int]], length: int, short: float) -> None:
    """Empty documents, sentences longer than a row, tails of one token."""
    offsets = np.cumsum([0, *(sum(shape) for shape in shapes)])
    sentences = np.cumsum([0, *(size for shape in shapes for size in shape)])
    ids = np.arange(10, 10 + offsets[-1], dtype=np.uint32)
    rows = PairRows(TokenDocuments(ids, offsets, sentences), length, short_fraction=short)
    seen: set[int] = set()
    for index, row in enumerate(rows):
        own = range(rows.borders[row.first], rows.borders[row.last])
        assert not seen & set(own) and len(own) >= 2
        seen |= set(own)
        pair = sentence_order_pair(row, np.random.default_rng(index))
        assert {*pair.a.tolist(), *pair.b.tolist()} <= {place + 10 for place in own}
        if len(rows.filled) > 1:
            pair = next_sentence_pair(row, np.random.default_rng(index))
            assert len(pair.a) >= 1 and 1 <= len(pair.b) <= length - 3 - len(pair.a)
    # Only a document's last token, alone in its row, is left out.
    assert len(ids) - len(seen) <= len(shapes)


def test_what_is_refused() -> None:
    with pytest.raises(ConfigError, match="data.sequence_length=4 is too short"):
        mlm_pairs(_config(4), _vocabulary(), order=False)
    for field, name in (("cls_id", "CLS"), ("sep_id", "SEP")):
        values = {**_vocabulary().__dict__, field: None}
        with pytest.raises(ConfigError, match=rf'"mlm_nsp" takes a tokenizer with \[{name}\]'):
            mlm_pairs(_config(64), Vocabulary(**values), order=False)
    rows, _ = mlm_pairs(_config(64), _vocabulary(), order=False)
    with pytest.raises(DataError, match='from another document.*use "mlm_sop"'):
        rows(TokenDocuments.from_lists([[5, 6, 7]]), 64)
    assert len(rows(TokenDocuments.from_lists([]), 64)) == 0


class MaskedBytes(ByteTokenizer):
    """Bytes with a mask."""

    vocab_size = 260


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    texts = tmp_path / "texts"
    texts.mkdir()
    for i in range(24):
        text = f"第{i}章。" + f"Text {i} begins. Dr. No said so! 为什么？\n\n" * (i + 1)
        (texts / f"{i:02}.txt").write_text(text, encoding="utf-8")
    return tmp_path


def _data_config(folder: Path) -> Config:
    return Config(
        ModelConfig(260, 8, 1),
        data=DataConfig("text", str(folder / "texts"), sequence_length=64, heldout_fraction=0.2),
        objective=ObjectiveConfig(name="mlm_nsp"),
        train=TrainConfig(batch_size=8),
    )


def test_a_corpus_by_sentence(folder: Path) -> None:
    cfg = _data_config(folder)
    source = documents(cfg.data)
    plain = open_corpus(source, MaskedBytes(), cfg.data, folder / "cache")
    for _ in range(2):  # made, then found
        corpus = open_corpus(source, MaskedBytes(), cfg.data, folder / "cache", by_sentence=True)
        assert corpus.digest != plain.digest and plain.train.sentences is None
        train = corpus.train
        assert train.sentences is not None and train.sentences.dtype == np.int64
        assert not np.isin(train.ids, [256, 257]).any()
        assert np.isin(train.offsets, train.sentences).all()
        texts = sorted(Path(p).read_text(encoding="utf-8") for p in (folder / "texts").iterdir())
        for d in range(train.num_documents):
            low, high = np.searchsorted(train.sentences, train.offsets[d : d + 2])
            pieces = [
                bytes(train.ids[i:j].astype(np.uint8)).decode()
                for i, j in zip(
                    train.sentences[low:high], train.sentences[low + 1 : high + 1], strict=True
                )
            ]
            assert "".join(pieces) in texts and pieces == split_sentences("".join(pieces))
    assert len(list((folder / "cache").glob("corpus-*"))) == 2


@pytest.mark.parametrize("unit", ["token", "span"])
def test_batches_are_the_same_for_any_number_of_processes_and_after_a_seek(
    folder: Path, unit: str
) -> None:
    cfg = _data_config(folder)
    vocabulary = Vocabulary(260, 256, 257, 259, 258, (256, 257, 258, 259), np.zeros(260, bool))
    objective = ObjectiveConfig(name="mlm_nsp", mask_unit=unit)
    cfg = Config(cfg.model, data=cfg.data, objective=objective, train=cfg.train)
    rows, prepare = mlm_pairs(cfg, vocabulary, order=False)

    def open_part(process: int, count: int):
        return open_data(
            cfg,
            MaskedBytes(),
            folder / "cache",
            process_index=process,
            process_count=count,
            prepare=prepare,
            rows=rows,
            by_sentence=True,
        )

    one = open_part(0, 1)
    assert one.num_train_rows == len(rows(one.corpus.train, 64))
    for count in (2, 8):
        parts = [open_part(p, count) for p in range(count)]
        for step in (0, 1, 50):
            whole, split = one.train[step], [part.train[step] for part in parts]
            for name in ("tokens", "targets", "loss_weights", "segment_ids"):
                joined = np.concatenate([getattr(batch, name) for batch in split])
                assert joined.tobytes() == getattr(whole, name).tobytes()
            for name, array in whole.extra.items():
                joined = np.concatenate([batch.extra[name] for batch in split])
                assert joined.tobytes() == array.tobytes()
    again = open_part(0, 1)
    again.train.seek(50)
    assert next(again.train).tokens.tobytes() == one.train[50].tokens.tobytes()
    again.close()
    # Dynamic: the same row is masked anew in each epoch.
    length = one.num_train_rows
    epochs = [[one.train[e * length + n] for n in range(3)] for e in (0, 1)]
    assert epochs[0][0].tokens.tobytes() != epochs[1][0].tokens.tobytes()
    last = one.heldout[len(one.heldout) - 1]
    assert last.tokens.shape == (8, 64) and last.extra["next_sentence"].shape == (8,)
    padding = ~last.segment_ids.any(axis=1)
    assert not last.loss_weights[padding].any()
