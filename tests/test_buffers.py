"""Copies for a device: equal to NumPy's whatever is turned, in place for XLA, pages given back."""

import itertools
import mmap

import jax
import numpy as np
import pytest

from llmasos_jax.generate import buffers
from llmasos_jax.generate.buffers import aligned, aligned_copy

SHAPES = [(5,), (6, 6), (3, 17), (17, 3), (4, 4, 4), (8, 2, 4), (2, 3, 5), (3, 4, 4, 2), (0, 3), ()]
CASES = [(s, p) for s in SHAPES for p in itertools.permutations(range(len(s)))]


@pytest.mark.parametrize(("shape", "order"), CASES, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_any_order_of_axes_gives_the_same_numbers(shape, order, dtype):
    array = np.random.default_rng(0).standard_normal(shape).astype(np.float32).transpose(order)
    copy = aligned_copy(array, dtype)
    assert copy.flags.c_contiguous and copy.dtype == dtype and copy.flags.writeable
    np.testing.assert_array_equal(copy, array.astype(dtype))


def test_a_strided_view_is_copied_too():
    array = np.arange(60.0).reshape(3, 4, 5)[:, ::2, 1:4]
    np.testing.assert_array_equal(aligned_copy(array, np.float64), array)


@pytest.mark.parametrize("shape", [(3,), (33, 7)])
def test_the_device_uses_it_in_place(shape):
    array = aligned(shape, np.float32)
    array[...] = 1
    placed = jax.device_put(array, jax.devices()[0])
    assert placed.unsafe_buffer_pointer() == array.ctypes.data


@pytest.mark.parametrize("is_turned", [False, True])
def test_pages_of_a_file_are_given_back_while_it_is_read(tmp_path, monkeypatch, is_turned):
    data = np.random.default_rng(0).standard_normal((512, 512)).astype(np.float32)
    (tmp_path / "data").write_bytes(data.tobytes())
    given_back = []

    class Counted(mmap.mmap):
        def madvise(self, *words):
            given_back.append(words)
            return super().madvise(*words)

    monkeypatch.setattr(buffers, "_PIECE", 2**17)
    with (tmp_path / "data").open("rb") as file:
        mapped = Counted(file.fileno(), 0, access=mmap.ACCESS_READ)
        array = np.frombuffer(mapped, np.float32).reshape(512, 512)
        array = array.T if is_turned else array
        np.testing.assert_array_equal(aligned_copy(array, np.float32), array)
    assert given_back == [(mmap.MADV_DONTNEED,)] * 8
