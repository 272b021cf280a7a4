"""Masking: the rate, the 80/10/10, whole words whole, nothing special, the same for a seed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.config.schema import Config, ObjectiveConfig
from llmasos_jax.data.masking import Masker, mask_tokens, num_predictions, span_length_cdf
from llmasos_jax.data.objectives import mlm
from llmasos_jax.data.packing import PackedRows, TokenDocuments
from llmasos_jax.data.tokenizers.vocabulary import Vocabulary
from llmasos_jax.errors import ConfigError

SIZE, MASK = 1000, 3
SPECIAL = (0, 1, 2, 3, 4)
IS_INSIDE = np.arange(SIZE) >= 700
VOCABULARY = Vocabulary(SIZE, 1, 2, MASK, 0, SPECIAL, IS_INSIDE)
TOLERANCE = 0.005  # half a percentage point


def _row(rng: np.random.Generator, length: int, specials: int = 3) -> np.ndarray:
    tokens = rng.integers(len(SPECIAL), SIZE, size=length)
    tokens[rng.choice(length, specials, replace=False)] = rng.choice([0, 1, 2, 4], specials)
    return tokens


def _words(tokens: np.ndarray) -> list[list[int]]:
    """Places of each word, one by one: the definition, without the vectors."""
    words: list[list[int]] = []
    for place, token in enumerate(tokens.tolist()):
        if token in SPECIAL:
            continue
        goes_on = IS_INSIDE[token] and words and words[-1][-1] == place - 1
        if goes_on:
            words[-1].append(place)
        else:
            words.append([place])
    return words


@pytest.mark.parametrize("unit", ["token", "word", "span"])
@pytest.mark.parametrize(("rate", "length"), [(0.15, 128), (0.15, 61), (0.4, 128)])
def test_shares(unit: str, rate: float, length: int) -> None:
    cfg = ObjectiveConfig(mask_rate=rate, mask_unit=unit, span_length=3.8)
    masker = Masker(VOCABULARY, cfg)
    rng = np.random.default_rng(0)
    maskable = chosen = masks = kept = 0
    for _ in range(150_000 // length):
        tokens = _row(rng, length)
        masked = masker(tokens, tokens > 4, rng)
        count = int(masked.weights.sum())
        positions, targets = masked.positions[:count], masked.targets[:count]
        assert not masked.weights[count:].any() and not masked.positions[count:].any()
        assert (np.diff(positions) > 0).all() and (tokens[positions] == targets).all()
        assert not np.isin(targets, SPECIAL).any()
        others = np.delete(np.arange(length), positions)
        assert (masked.tokens[others] == tokens[others]).all()
        read = masked.tokens[positions]
        assert not np.isin(read[read != MASK], SPECIAL).any()
        maskable += int((tokens > 4).sum())
        chosen += count
        masks += int((read == MASK).sum())
        kept += int((read == targets).sum())
    assert chosen / maskable == pytest.approx(rate, abs=TOLERANCE)
    # Spans are replaced as a whole: fewer draws.
    wider = 3 if unit == "span" else 1
    assert masks / chosen == pytest.approx(0.8, abs=wider * 2 * TOLERANCE)
    assert kept / chosen == pytest.approx(0.1 + 0.1 / 995, abs=wider * 2 * TOLERANCE)


@pytest.mark.parametrize("unit", ["word", "span"])
def test_words_are_whole(unit: str) -> None:
    masker = Masker(VOCABULARY, ObjectiveConfig(mask_unit=unit))
    rng = np.random.default_rng(1)
    lengths = set()
    for _ in range(300):
        tokens = _row(rng, 96)
        masked = masker(tokens, tokens > 4, rng)
        chosen = set(masked.positions[masked.weights > 0].tolist())
        for word in _words(tokens):
            inside = chosen & set(word)
            assert inside in (set(), set(word))
            lengths |= {len(word)} if inside else set()
    assert lengths >= {1, 2, 3, 4}


@pytest.mark.parametrize("unit", ["word", "span"])
def test_no_word_or_span_goes_over_a_document_border(unit: str) -> None:
    """Documents without bos and eos, of pieces that all go on with a word but the first ones."""
    rng = np.random.default_rng(4)
    documents = TokenDocuments.from_lists(
        [[*([600] if d % 2 else []), *rng.integers(700, SIZE, 3)] for d in range(400)]
    )
    objective = ObjectiveConfig("mlm", mask_unit=unit, mask_share=1.0, random_share=0.0)
    prepare = mlm(Config(ModelConfig(SIZE, 8, 1), objective=objective), VOCABULARY)
    parted, runs = 0, set()
    for index, row in enumerate(PackedRows(documents, 50)):
        batch = prepare(row, np.random.default_rng(index))
        places = batch.extra["masked_positions"][batch.loss_weights > 0]
        is_chosen = np.zeros(50, dtype=bool)
        is_chosen[places] = True
        segments = batch.segment_ids
        for segment in range(1, int(segments.max()) + 1):
            of_word = is_chosen[segments == segment]
            assert of_word.all() or not of_word.any()  # each document here is one word
        parted += int((is_chosen[1:] != is_chosen[:-1])[np.diff(segments) > 0].sum())
        runs |= set(np.bincount(segments[places])[1:].tolist())
    assert parted > 50 and runs >= {0, 3, 4}


def test_token_masking_parts_words() -> None:
    masker = Masker(VOCABULARY, ObjectiveConfig())
    rng = np.random.default_rng(1)
    tokens = _row(rng, 512)
    chosen = set(masker(tokens, tokens > 4, rng).positions.tolist())
    assert any(0 < len(chosen & set(word)) < len(word) for word in _words(tokens))


def test_spans_have_the_mean_length_and_stay_between_special_tokens() -> None:
    cfg = ObjectiveConfig(mask_unit="span", span_length=3.8, mask_share=1.0, random_share=0.0)
    vocabulary = Vocabulary(SIZE, 1, 2, MASK, 0, SPECIAL, np.zeros(SIZE, dtype=bool))
    masker = Masker(vocabulary, cfg)
    rng = np.random.default_rng(2)
    runs = []
    for _ in range(400):
        tokens = _row(rng, 512, specials=1)
        is_masked = masker(tokens, tokens > 4, rng).tokens == MASK
        edges = np.flatnonzero(np.diff(np.concatenate([[0], is_masked, [0]]).astype(int)))
        runs += (edges[1::2] - edges[::2]).tolist()
    # Neighbouring spans are one run, the last span of a row is cut off.
    assert 3.6 < np.mean(runs) < 4.6
    assert np.mean(np.array(runs) >= 3) > 0.5


def test_a_span_is_replaced_as_a_whole() -> None:
    cfg = ObjectiveConfig(mask_unit="span", span_length=4.0, mask_share=0.5, random_share=0.0)
    masker = Masker(Vocabulary(SIZE, 1, 2, MASK, 0, SPECIAL, np.zeros(SIZE, bool)), cfg)
    tokens = np.arange(10, 522)
    rng = np.random.default_rng(3)
    masked = masker(tokens, tokens > 4, rng)
    positions = masked.positions[masked.weights > 0]
    is_mask = masked.tokens[positions] == MASK
    neighbours = np.diff(positions) == 1
    same = is_mask[1:] == is_mask[:-1]
    assert same[neighbours].mean() > 0.9 and 0.2 < is_mask.mean() < 0.8


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.lists(st.integers(0, SIZE - 1), min_size=1, max_size=60),
    st.sampled_from(["token", "word", "span"]),
    st.floats(0.01, 1.0),
    st.floats(1.0, 12.0),
    st.integers(0, 99),
)
def test_any_row(tokens: list[int], unit: str, rate: float, span: float, seed: int) -> None:
    cfg = ObjectiveConfig(mask_rate=rate, mask_unit=unit, span_length=span)
    row = np.array(tokens)
    is_maskable = ~np.isin(row, SPECIAL)
    masked = mask_tokens(row, is_maskable, VOCABULARY, cfg, np.random.default_rng(seed))
    size = num_predictions(len(row), cfg)
    assert masked.positions.shape == masked.targets.shape == masked.weights.shape == (size,)
    assert masked.weights.sum() >= min(1, is_maskable.sum())
    positions = masked.positions[masked.weights > 0]
    assert is_maskable[positions].all()
    back = masked.tokens.copy()
    back[positions] = masked.targets[masked.weights > 0]
    assert (back == row).all()


def test_long_words_count_as_several() -> None:
    tokens = np.full(128, 800)  # one word, as Chinese without blanks can be
    masker = Masker(VOCABULARY, ObjectiveConfig(mask_unit="word"))
    rng = np.random.default_rng(0)
    counts = [masker(tokens, tokens > 4, rng).weights.sum() for _ in range(500)]
    assert np.mean(counts) == pytest.approx(0.15 * 128, abs=1.2) and max(counts) <= 24


def test_a_generator_gives_one_mask_and_two_give_two() -> None:
    tokens = _row(np.random.default_rng(0), 128)
    for unit in ("token", "word", "span"):
        masker = Masker(VOCABULARY, ObjectiveConfig(mask_unit=unit))
        first, again, other = (
            masker(tokens, tokens > 4, np.random.default_rng(seed)) for seed in (5, 5, 6)
        )
        assert first.tokens.tobytes() == again.tokens.tobytes()
        assert first.positions.tobytes() != other.positions.tobytes()


def test_spans_of_a_mean_have_it() -> None:
    for mean in (1.0, 2.5, 3.8, 20.0):
        cdf = span_length_cdf(mean)
        probability = np.diff(cdf, prepend=0.0)
        assert (probability * np.arange(1, len(cdf) + 1)).sum() == pytest.approx(mean, abs=1e-6)


def test_mlm_rows_read_t_tokens_and_keep_documents_apart() -> None:
    documents = TokenDocuments.from_lists([[1, *range(10, 40), 2], [1, *range(40, 55), 2]])
    cfg = Config(ModelConfig(SIZE, 8, 1))
    prepare = mlm(cfg, VOCABULARY)
    rows = PackedRows(documents, 20)
    for row in rows:
        batch = prepare(row, np.random.default_rng(0))
        assert batch.tokens.shape == (20,) and batch.tokens.dtype == np.int32
        assert batch.targets.shape == (num_predictions(20, cfg.objective),)
        assert (batch.segment_ids == row.segment_ids[:20]).all()
        assert (batch.positions == row.positions[:20]).all()
        positions = batch.extra["masked_positions"]
        assert positions.dtype == np.int32
        used = batch.loss_weights > 0
        assert used.any() and (batch.targets[used] == row.tokens[positions[used]]).all()
        assert (batch.tokens[row.segment_ids[:20] == 0] == VOCABULARY.pad_id).all()


def test_a_tokenizer_without_a_mask_or_text() -> None:
    without = Vocabulary(9, 1, 2, None, 0, (0, 1, 2), np.zeros(9, dtype=bool))
    with pytest.raises(ConfigError, match='objective.name="mlm" takes a tokenizer with a mask'):
        mlm(Config(ModelConfig(9, 8, 1), objective=ObjectiveConfig(name="mlm")), without)
    nothing = Vocabulary(4, 1, 2, 3, 0, (0, 1, 2, 3), np.zeros(4, dtype=bool))
    with pytest.raises(ConfigError, match="all 4 ids of the tokenizer are special"):
        Masker(nothing, ObjectiveConfig())
