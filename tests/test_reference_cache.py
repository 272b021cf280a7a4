"""What the base says of preferences, kept in a file: one that is damaged is made again."""

from pathlib import Path

import numpy as np
import pytest

from llmasos_jax.data.examples import ExampleRows, Examples
from llmasos_jax.train.reference import _kept

ROWS = [object()] * 3


@pytest.mark.parametrize("left", [None, 0, 3, 100, 400])
def test_a_damaged_file_is_not_read(tmp_path: Path, left: int | None) -> None:
    path = tmp_path / "reference.npz"
    said = np.arange(6, dtype=np.float32).reshape(3, 2)
    np.savez(path, train=said, heldout=said[:0])
    whole = path.read_bytes()
    assert len(whole) > 401
    path.write_bytes(whole[:left])
    found = _kept(path, Examples(ExampleRows(ROWS, 9, 3), ExampleRows([], 0, 0), "digest"))
    if left is not None:
        assert found is None
    else:
        assert found is not None and np.array_equal(found[0], said) and len(found[1]) == 0
    assert _kept(path, Examples(ExampleRows(ROWS, 9, 3), ExampleRows(ROWS, 9, 3), "d")) is None
