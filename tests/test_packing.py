"""Packing keeps every token once and never joins two documents."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmasos_jax.data.packing import PackedRows, TokenDocuments, empty_row

DOCUMENTS = st.lists(st.lists(st.integers(1, 999), max_size=30), min_size=1, max_size=12)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(DOCUMENTS, st.integers(1, 9))
def test_each_token_is_read_once_and_each_pair_scored_once(
    documents: list[list[int]], length: int
) -> None:
    rows = PackedRows(TokenDocuments.from_lists(documents), length)
    read, pairs = [], []
    for row in rows:
        assert row.tokens.shape == row.segment_ids.shape == row.positions.shape == (length + 1,)
        is_token = row.segment_ids > 0
        read += row.tokens[:-1][is_token[:-1]].tolist()
        joined = (row.segment_ids[1:] == row.segment_ids[:-1]) & is_token[1:]
        pairs += zip(row.tokens[:-1][joined].tolist(), row.tokens[1:][joined].tolist(), strict=True)
    assert read == [token for document in documents for token in document]
    assert pairs == [p for d in documents for p in zip(d[:-1], d[1:], strict=True)]


@settings(max_examples=25, deadline=None, derandomize=True)
@given(DOCUMENTS, st.integers(1, 9))
def test_segments_count_from_one_and_positions_from_zero(
    documents: list[list[int]], length: int
) -> None:
    rows = PackedRows(TokenDocuments.from_lists(documents), length)
    for row in rows:
        n = int((row.segment_ids > 0).sum())
        assert not row.segment_ids[n:].any() and not row.tokens[n:].any()
        assert not row.positions[n:].any()
        segments = row.segment_ids[:n]
        assert segments[0] == 1 and set(np.diff(segments)) <= {0, 1}
        for s in range(1, segments[-1] + 1):
            assert row.positions[:n][segments == s].tolist() == list(range((segments == s).sum()))


def test_a_row_by_hand() -> None:
    documents = TokenDocuments.from_lists([[1, 2, 3, 4], [5, 6], [], [7, 8, 9, 10]])
    rows = PackedRows(documents, 4)
    assert len(rows) == 3
    assert [r.tokens.tolist() for r in rows] == [
        [1, 2, 3, 4, 5],
        [5, 6, 7, 8, 9],
        [9, 10, 0, 0, 0],
    ]
    assert [r.segment_ids.tolist() for r in rows] == [
        [1, 1, 1, 1, 2],
        [1, 1, 2, 2, 2],
        [1, 1, 0, 0, 0],
    ]
    assert rows[1].positions.tolist() == [0, 1, 0, 1, 2]
    assert rows[0].tokens.dtype == rows[0].segment_ids.dtype == rows[0].positions.dtype == np.int32


def test_row_i_is_a_function_of_i_alone() -> None:
    rows = PackedRows(TokenDocuments.from_lists([list(range(1, 50)), list(range(50, 90))]), 8)
    forwards = [r.tokens.tolist() for r in rows]
    assert [rows[i].tokens.tolist() for i in reversed(range(len(rows)))] == forwards[::-1]
    with pytest.raises(IndexError, match="row 12 of 12"):
        rows[12]


def test_an_empty_row_is_padding() -> None:
    row = empty_row(3)
    assert not row.tokens.any() and not row.segment_ids.any() and row.tokens.shape == (4,)
