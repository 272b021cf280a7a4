"""What an objective makes of packed rows."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.config.schema import Config
from llmasos_jax.data.objectives import causal, prefix_lm
from llmasos_jax.data.packing import PackedRow, PackedRows, TokenDocuments, empty_row
from llmasos_jax.data.tokenizers.vocabulary import stand_in


def test_causal_shift_by_hand() -> None:
    row = PackedRows(TokenDocuments.from_lists([[11, 12, 13], [21, 22], [31]]), 7)[0]
    batch = causal(row)
    assert batch.tokens.tolist() == [11, 12, 13, 21, 22, 31, 0]
    assert batch.targets.tolist() == [12, 13, 0, 22, 0, 0, 0]
    assert batch.loss_weights.tolist() == [1, 1, 0, 1, 0, 0, 0]
    assert batch.segment_ids.tolist() == [1, 1, 1, 2, 2, 3, 0]
    assert batch.positions.tolist() == [0, 1, 2, 0, 1, 0, 0]
    assert batch.loss_weights.dtype == np.float32
    assert batch.tokens.dtype == batch.targets.dtype == batch.segment_ids.dtype == np.int32


def test_a_document_that_goes_on_is_scored_at_the_border() -> None:
    batch = causal(PackedRows(TokenDocuments.from_lists([[1, 2, 3, 4]]), 2)[0])
    assert batch.targets.tolist() == [2, 3] and batch.loss_weights.tolist() == [1, 1]


def test_padding_weighs_nothing() -> None:
    batch = causal(empty_row(4))
    assert batch.loss_weights.sum() == 0 and batch.targets.sum() == 0


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.lists(st.lists(st.integers(1, 99), min_size=1, max_size=20), min_size=1, max_size=8))
def test_scored_tokens_are_all_but_the_first_of_each_document(documents: list[list[int]]) -> None:
    rows = PackedRows(TokenDocuments.from_lists(documents), 5)
    scored = [b.targets[b.loss_weights > 0].tolist() for b in map(causal, rows)]
    assert sum(scored, []) == [token for d in documents for token in d[1:]]


def test_many_rows_at_once_are_the_rows_one_by_one() -> None:
    rows = PackedRows(TokenDocuments.from_lists([list(range(1, 20)), list(range(20, 33))]), 6)[:]
    together = causal(
        PackedRow(*(np.stack([getattr(r, n) for r in rows]) for n in PackedRow.__annotations__))
    )
    for i, row in enumerate(rows):
        np.testing.assert_array_equal(together.targets[i], causal(row).targets)
        np.testing.assert_array_equal(together.loss_weights[i], causal(row).loss_weights)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.lists(st.lists(st.integers(4, 99), min_size=1, max_size=20), min_size=1, max_size=8),
    st.integers(0, 99),
)
def test_prefixes(documents: list[list[int]], seed: int) -> None:
    prepare = prefix_lm(Config(ModelConfig(100, 8, 1)), stand_in(100))
    for row in PackedRows(TokenDocuments.from_lists(documents), 9):
        batch = prepare(row, np.random.default_rng(seed))
        whole, prefix = causal(row), batch.extra["prefix"]
        assert prefix.dtype == np.int32 and prefix.shape == (9,)
        assert not prefix[row.segment_ids[:-1] == 0].any()
        for segment in range(1, int(row.segment_ids[:-1].max(initial=0)) + 1):
            places = np.flatnonzero(row.segment_ids[:-1] == segment)
            length = int((row.segment_ids == segment).sum())
            size = int(prefix[places].sum())
            assert 1 <= size <= max(1, length - 1) and prefix[places[:size]].all()
            # From the prefix's last token on, everything is scored as in the causal objective.
            scored = places[size - 1 :]
            assert (batch.loss_weights[scored] == whole.loss_weights[scored]).all()
            assert (batch.targets[scored] == whole.targets[scored]).all()
            assert not batch.loss_weights[places[: size - 1]].any()
            assert batch.loss_weights[places].any() == (length > 1)


def test_every_prefix_is_drawn() -> None:
    row = PackedRows(TokenDocuments.from_lists([[5, 6, 7, 8, 9]]), 4)[0]
    prepare = prefix_lm(Config(ModelConfig(100, 8, 1)), stand_in(100))
    sizes = [
        int(prepare(row, np.random.default_rng(seed)).extra["prefix"].sum()) for seed in range(400)
    ]
    counts = np.bincount(sizes, minlength=5)
    assert counts[0] == 0 and (counts[1:] > 70).all()
