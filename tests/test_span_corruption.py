"""Span corruption: T5's lengths, nothing lost, and where the parts stand in a batch."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.config.schema import Config, DataConfig, ObjectiveConfig
from llmasos_jax.data.corruption import (
    TextRows,
    corrupt,
    corrupted_lengths,
    draw_spans,
    noise_counts,
)
from llmasos_jax.data.objectives import span_corruption
from llmasos_jax.data.packing import TokenDocuments
from llmasos_jax.data.tokenizers.vocabulary import Vocabulary
from llmasos_jax.errors import ConfigError

SENTINELS = tuple(range(999, 899, -1))
END = 1


def _vocabulary(**more) -> Vocabulary:
    values = dict(size=1000, cls_id=None, sep_id=END, mask_id=None, pad_id=0)
    values |= dict(special_ids=(0, 1, 2, *SENTINELS), is_inside_v=np.zeros(1000, dtype=bool))
    return Vocabulary(**values | dict(sentinel_ids=SENTINELS) | more)


def _config(length: int, **objective) -> Config:
    return Config(
        ModelConfig(1000, 8, 1, context_length=1024),
        data=DataConfig(sequence_length=length),
        objective=ObjectiveConfig(**{"name": "span_corruption"} | objective),
    )


def _restore(read: list[int], written: list[int]) -> list[int]:
    """The text again: each sentinel that was read becomes what was written after it."""
    assert read[-1] == END and written[-1] == END
    gaps: dict[int, list[int]] = {}
    current: list[int] = []
    for token in written[:-1]:
        if token in SENTINELS:
            current = gaps[token] = []
        else:
            current.append(token)
    assert all(gaps.values()) and list(gaps) == list(SENTINELS[: len(gaps)])
    assert [token for token in read if token in SENTINELS] == list(gaps)
    return [t for token in read[:-1] for t in gaps.get(token, [token])]


def test_the_lengths_of_t5() -> None:
    """As in the paper's runs: 512 tokens read are 568 of text, 114 are written."""
    lengths = corrupted_lengths(512, ObjectiveConfig())
    assert (lengths.text, lengths.encoder, lengths.decoder) == (568, 512, 114)
    lengths = corrupted_lengths(128, ObjectiveConfig(mask_rate=0.5, span_length=8.0))
    assert lengths.encoder == 128


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(3, 300), st.floats(0.01, 0.95), st.floats(1.0, 20.0))
def test_lengths_are_the_longest_that_fit(length: int, rate: float, span: float) -> None:
    cfg = ObjectiveConfig(mask_rate=rate, span_length=span)
    lengths = corrupted_lengths(length, cfg)
    tokens, spans = noise_counts(lengths.text, cfg)
    assert lengths.encoder == lengths.text - tokens + spans + 1 <= length
    assert lengths.decoder == tokens + spans + 1
    tokens, spans = noise_counts(lengths.text + 1, cfg)
    assert lengths.text + 1 - tokens + spans + 1 > length


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.integers(1, 200), st.floats(0.01, 0.95), st.floats(1.0, 10.0), st.integers(0, 999))
def test_read_and_written_are_the_text(length: int, rate: float, span: float, seed: int) -> None:
    cfg = ObjectiveConfig(mask_rate=rate, span_length=span)
    text = np.random.default_rng(seed).integers(10, 800, size=length).astype(np.int32)
    is_noise = draw_spans(length, cfg, np.random.default_rng(seed))
    tokens, spans = noise_counts(length, cfg)
    assert is_noise.sum() == tokens and (length == 1 or tokens >= 1)
    assert not is_noise[0] and (np.diff(is_noise.astype(int)) == 1).sum() == spans
    if spans <= len(SENTINELS):
        read, written = corrupt(text, is_noise, np.array(SENTINELS, np.int32), END)
        assert len(read) == length - tokens + spans + 1 and len(written) == tokens + spans + 1
        assert _restore(read.tolist(), written.tolist()) == text.tolist()


def test_every_place_is_taken_out_about_as_often() -> None:
    cfg = ObjectiveConfig()
    rng = np.random.default_rng(0)
    share = np.mean([draw_spans(200, cfg, rng) for _ in range(4000)], axis=0)
    assert share.mean() == pytest.approx(0.15, abs=1e-9)
    assert share[20:-20].min() > 0.10 and share[20:-20].max() < 0.20
    assert share[0] == 0.0 and share[-1] > 0.2  # stretches that stay begin, spans end


def test_rows_leave_out_what_begins_and_ends_documents() -> None:
    documents = TokenDocuments.from_lists([[2, 10, 11, 1], [], [2, 1], [12], [2, 13, 14, 15, 1]])
    rows = TextRows(documents, 4, ends=(1, 2))
    assert [row.tolist() for row in rows] == [[10, 11, 12, 13], [14, 15]]
    assert len(TextRows(TokenDocuments.from_lists([]), 4, ends=(1,))) == 0
    with pytest.raises(IndexError):
        rows[2]


def test_a_decoder_longer_than_the_context_is_refused() -> None:
    cfg = _config(1000, mask_rate=0.6, span_length=20.0)
    assert corrupted_lengths(1000, cfg.objective).decoder > 1024
    with pytest.raises(ConfigError, match="the decoder writes .* more than model.context_length=1"):
        span_corruption(cfg, _vocabulary())
    span_corruption(_config(1000, mask_rate=0.4, span_length=20.0), _vocabulary())


def test_a_batch() -> None:
    text = np.random.default_rng(0).integers(10, 800, size=700).tolist()
    documents = TokenDocuments.from_lists([[*text[:100], 1], [*text[100:], 1]])
    rows, prepare = span_corruption(_config(512), _vocabulary())
    made = rows(documents, 512)
    assert len(made) == 2 and len(made[0]) == 568
    found = []
    for index, row in enumerate(made):
        batch = prepare(row, np.random.default_rng(index))
        extra = batch.extra
        assert batch.tokens.shape == (114,) and extra["encoder_tokens"].shape == (512,)
        assert all(array.dtype == np.int32 for array in extra.values())
        count = int(batch.segment_ids.sum())
        read = extra["encoder_tokens"][extra["encoder_segment_ids"] > 0].tolist()
        assert extra["encoder_positions"].tolist()[: len(read)] == list(range(len(read)))
        written = batch.targets[:count].tolist()
        assert batch.tokens.tolist()[:count] == [0, *written[:-1]]
        assert (batch.loss_weights == (batch.segment_ids > 0)).all()
        assert not batch.tokens[count:].any() and not batch.targets[count:].any()
        found += _restore(read, written)
        if index == 0:
            assert len(read) == 512 and count == 114
    assert found == text


def test_what_is_refused() -> None:
    with pytest.raises(ConfigError, match="28 sentinels .*this one has an end and 5 sentinels"):
        span_corruption(_config(512), _vocabulary(sentinel_ids=SENTINELS[:5]))
    with pytest.raises(ConfigError, match="this one has no end"):
        span_corruption(_config(512), _vocabulary(sep_id=None))
    with pytest.raises(ConfigError, match="data.sequence_length=2 is too short"):
        span_corruption(_config(2), _vocabulary())
    with pytest.raises(ConfigError, match="mask_rate=1.0 leaves nothing"):
        span_corruption(_config(64, mask_rate=1.0), _vocabulary())
