"""Numbers out of GGUF's blocks, bit for bit as the package gguf has them."""

import math
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from llmasos_jax.errors import FormatError
from llmasos_jax.interop.gguf.container import TensorInfo, read_container
from llmasos_jax.interop.gguf.quants import PLAIN, dequantize, read_tensor, readable_types
from llmasos_jax.interop.gguf.types import BLOCK_TYPES

gguf = pytest.importorskip("gguf", reason="the package gguf is not installed")

TYPES = {kind.name: kind for kind in BLOCK_TYPES.values()}
QUANTISED = [name for name in readable_types() if name not in PLAIN]
# Where each layout has its float16 scales, as numbers of two bytes from the block's start.
SCALES = {
    **{"Q8_0": (0,), "Q4_0": (0,), "Q4_1": (0, 1), "Q5_0": (0,), "Q5_1": (0, 1), "Q2_K": (40, 41)},
    **{"Q3_K": (54,), "Q4_K": (0, 1), "Q5_K": (0, 1), "Q6_K": (104,)},
}


def random_blocks(name: str, count: int, seed: int = 0) -> np.ndarray:
    """Any bytes, but scales that are finite numbers of ordinary and of extreme size."""
    rng = np.random.default_rng(seed)
    raw = rng.integers(0, 256, (count, TYPES[name].nbytes), dtype=np.uint8)
    for place in SCALES[name]:
        scales = rng.standard_normal(count).astype(np.float16)
        scales[:8] = [0.0, -0.0, 6e-8, 65504, -65504, 1, -1, 6.1e-5]
        raw[:, 2 * place : 2 * place + 2] = scales.view(np.uint8).reshape(-1, 2)
    return raw


def bits(numbers: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(numbers).reshape(-1).view(np.uint32)


def test_every_type_of_the_package_is_known_with_its_size() -> None:
    theirs = {int(kind): (kind.name, *sizes) for kind, sizes in gguf.GGML_QUANT_SIZES.items()}
    ours = {code: (k.name, k.numbers, k.nbytes) for code, k in BLOCK_TYPES.items()}
    assert theirs.items() <= ours.items()


def test_the_types_of_the_issue_are_read() -> None:
    wanted = "F32 F16 BF16 Q8_0 Q4_0 Q4_1 Q5_0 Q5_1 Q2_K Q3_K Q4_K Q5_K Q6_K"
    assert set(readable_types()) == set(wanted.split())


@pytest.mark.parametrize("name", QUANTISED)
def test_bit_for_bit(name: str) -> None:
    raw = random_blocks(name, 4096)
    theirs = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[name])
    ours = dequantize(name, raw.reshape(-1))
    assert ours.dtype == np.float32 and ours.shape == (4096, TYPES[name].numbers)
    np.testing.assert_array_equal(bits(ours), bits(theirs))
    assert len(np.unique(ours)) > 1000


@pytest.mark.parametrize("name", list(PLAIN))
def test_plain_types(name: str) -> None:
    raw = np.arange(2048, dtype=np.uint16).view(np.uint8)
    theirs = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[name])
    np.testing.assert_array_equal(bits(dequantize(name, raw)), bits(theirs))


@pytest.mark.parametrize("name", readable_types())
def test_a_tensor_of_a_file_in_several_chunks(name: str, tmp_path: Path) -> None:
    """Rows that end within a chunk, and more of them than are worked on at a time."""
    shape = (3, 179, 512)
    kind = TYPES[name]
    count = math.prod(shape) // kind.numbers
    if name in PLAIN:
        raw = np.random.default_rng(1).integers(0, 120, count * kind.nbytes, dtype=np.uint8)
    else:
        raw = random_blocks(name, count).reshape(-1)
    path = tmp_path / "m.gguf"
    path.write_bytes(b"some bytes before" + raw.tobytes() + b"and after")
    tensor = read_tensor(path, TensorInfo("t", shape, kind, 17, raw.nbytes))
    assert tensor.shape == shape
    whole = dequantize(name, raw)
    np.testing.assert_array_equal(bits(tensor.astype(np.float32)), bits(whole))
    assert tensor.dtype == PLAIN.get(name, np.dtype(np.float32))


def test_a_quantised_number_is_the_one_that_was_written(tmp_path: Path) -> None:
    """The whole way: the package's quantiser and writer, our reader."""
    numbers = np.random.default_rng(2).standard_normal((64, 256)).astype(np.float32)
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    steps = {"Q8_0": 0.02, "Q5_0": 0.2, "Q5_1": 0.15, "Q4_0": 0.4, "Q4_1": 0.3}
    for name in steps:
        quantised = gguf.quants.quantize(numbers, gguf.GGMLQuantizationType[name])
        writer.add_tensor(name, quantised, raw_dtype=gguf.GGMLQuantizationType[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    container = read_container(tmp_path / "m.gguf")
    for name, step in steps.items():
        found = read_tensor(container.path, container.tensors[name])
        error = np.abs(found - numbers).max()
        assert step / 8 < error < step, (name, error)


def test_a_type_that_is_not_read_is_named(tmp_path: Path) -> None:
    info = TensorInfo("blk.0.ffn_up.weight", (1, 256), TYPES["IQ2_XXS"], 0, 66)
    with pytest.raises(FormatError, match=r'"blk.0.ffn_up.weight" is stored as IQ2_XXS.*Q6_K'):
        read_tensor(tmp_path / "m.gguf", info)
    with pytest.raises(FormatError, match="IQ2_XXS is not read"):
        dequantize("IQ2_XXS", np.zeros(66, np.uint8))


def test_a_file_that_shrinks_after_it_was_opened(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(bytes(34 * 8))
    info = TensorInfo("t", (16, 32), TYPES["Q8_0"], 0, 34 * 16)
    with pytest.raises(FormatError, match='ends within the tensor "t"'):
        read_tensor(path, info)
    path.unlink()
    with pytest.raises(FormatError, match=r"cannot read m\.gguf: No such file"):
        read_tensor(path, info)


@pytest.mark.parametrize("name", ["F16", "Q4_1", "Q5_K"])
def test_reading_takes_the_tensor_and_little_more(name: str, tmp_path: Path) -> None:
    shape, kind = (2048, 4096), TYPES[name]
    nbytes = math.prod(shape) // kind.numbers * kind.nbytes
    path = tmp_path / "m.gguf"
    path.write_bytes(bytes(nbytes))
    tracemalloc.start()
    tensor = read_tensor(path, TensorInfo("t", shape, kind, 0, nbytes))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert tensor.nbytes <= peak < tensor.nbytes + 3e6
