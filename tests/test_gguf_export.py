"""A model of ours as a GGUF file: every tensor back, the package's bits, and llama.cpp's proof."""

import ctypes
import dataclasses
from pathlib import Path

import numpy as np
import pytest
from gguf_converter import random_params
from gguf_twins import TWINS, model, wide_twins

from llmasos_jax.data.tokenizers.tokenizer import ByteTokenizer
from llmasos_jax.errors import ExportError, FormatError
from llmasos_jax.evals.export.gguf import Gguf, file_in
from llmasos_jax.evals.export.proof import prove
from llmasos_jax.format.manifest import Manifest
from llmasos_jax.format.read import ModelFiles
from llmasos_jax.format.tensorfile import StoredTensor, stored
from llmasos_jax.interop.built import BuiltTokenizer
from llmasos_jax.interop.gguf import names, open_gguf, write_config, write_tokenizer
from llmasos_jax.interop.gguf.container import read_container
from llmasos_jax.interop.gguf.quantize import TYPES, WRITTEN, quantize, written_parts
from llmasos_jax.interop.gguf.quants import dequantize
from llmasos_jax.interop.gguf.write import type_of, write_gguf

FAMILIES: dict[str, str] = {
    **{"qwen2": "Qwen", "qwen2-yarn": "Qwen"},
    **{"phi3": "Phi", "phi3-longrope": "Phi", "phi3-window": "Phi"},
}
SINGLES = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "F16", "BF16")
K_TYPES = ("Q4_K", "Q5_K", "Q6_K")


def files_of(name: str, path: Path = Path("x")) -> ModelFiles:
    """A twin with random weights and a tokenizer of bytes."""
    twin = TWINS[name]
    tensors = {n: stored(array) for n, array in random_params(twin.cfg).items()}
    manifest = Manifest(name, twin.cfg, architecture=FAMILIES.get(name, "Transformer"))
    return ModelFiles(path, manifest, tensors, BuiltTokenizer(ByteTokenizer))


@pytest.mark.parametrize("name", [name for name in TWINS if name != "phi3-window"])
def test_every_tensor_comes_back(name: str, tmp_path: Path) -> None:
    files = files_of(name)
    written = write_gguf(files, tmp_path, dtype="F32")
    back = open_gguf(tmp_path / f"{name}-F32.gguf")
    assert written.saved_class == TWINS[name].arch
    assert not write_config.config_differences(
        write_config.folded(files.manifest.parameters), back.manifest.parameters
    )
    assert list(back.tensors) == list(files.tensors)
    for tensor_name, tensor in files.tensors.items():
        wanted, found = tensor.read(), back.tensors[tensor_name].read()
        np.testing.assert_array_equal(found.view(np.uint32), wanted.view(np.uint32), tensor_name)


def numbers() -> np.ndarray:
    """Rows of ordinary and of extreme size, halves, blocks of zeros and of one number."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((96, 512)) * rng.lognormal(0, 2, (96, 1))
    x[0], x[1], x[2], x[3], x[4] = 0, 2.5, -2.5, 1e-30, np.abs(x[4])
    x[5] = np.round(4 * x[5]) / 2
    x[6, ::2], x[6, 1::2] = 3, -3  # as large on both sides: the first one counts
    x[7] = np.tile(np.r_[-127, np.arange(31) * 0.5 + 0.5], 16)  # halves after division
    x[8] = rng.standard_normal(512) * 1e-39  # whose scale has no finite inverse
    x[9] = np.linspace(-7e-5, 7e-5, 512)  # around float16's least normal number
    return x.astype(np.float32)


def test_float16_of_every_exponent() -> None:
    """Ties, what rounds up to the next exponent, below the least number, both zeros."""
    x = np.arange(0, 2**32, 1009, dtype=np.uint64).astype(np.uint32).view(np.float32)
    ties = (np.arange(2**16, dtype=np.uint32) << 16 | 0x1000).view(np.float32)
    for part in (x, ties, np.array([0.0, -0.0, 65519.0, -65519.0], np.float32)):
        rows = part[np.abs(part) < 65520]
        found = np.concatenate(list(written_parts("F16", rows[:, None])))
        np.testing.assert_array_equal(found.view(np.uint16), rows.astype(np.float16).view("u2"))


@pytest.mark.parity
@pytest.mark.parametrize("kind", SINGLES)
def test_bits_of_the_package(kind: str) -> None:
    gguf = pytest.importorskip("gguf")
    x = numbers()
    with np.errstate(all="ignore"):  # of blocks whose scale has no finite inverse
        theirs = gguf.quants.quantize(x, gguf.GGMLQuantizationType[kind])
    theirs = theirs.reshape(-1).view(np.uint8)
    parts = list(written_parts(kind, x.T.copy().T))  # a view in another order
    np.testing.assert_array_equal(np.concatenate(parts), theirs)


@pytest.mark.parity
@pytest.mark.parametrize("kind", K_TYPES)
def test_k_types_beside_llama_cpp(kind: str) -> None:
    """Its own quantiser's blocks, all but a few, and never a larger error."""
    gguf, llama = pytest.importorskip("gguf"), pytest.importorskip("xllamacpp")
    function = getattr(
        ctypes.CDLL(llama.xllamacpp.__file__), f"quantize_row_q{kind[1]}_K_ref", None
    )
    if function is None:
        pytest.skip("this build of llama.cpp does not show its quantisers")
    x = numbers()
    ours = quantize(kind, x)
    theirs = np.zeros_like(ours)
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    function(x.ctypes.data, theirs.ctypes.data, x.size)
    blocks = [raw.reshape(-1, TYPES[kind].nbytes) for raw in (ours, theirs)]
    assert (blocks[0] == blocks[1]).all(1).mean() > 0.95
    package = gguf.quants.dequantize(blocks[0], gguf.GGMLQuantizationType[kind])
    back = [dequantize(kind, raw).reshape(x.shape) for raw in (ours, theirs)]
    np.testing.assert_array_equal(back[0], package.reshape(x.shape))
    errors = [np.square(y - x, dtype=np.float64).sum(1) for y in back]
    assert (errors[0] <= 1.02 * errors[1] + 1e-30).all()


def test_what_a_tensor_gets() -> None:
    assert [type_of("blk.0.ffn_up.weight", (8, n), "Q4_K") for n in (512, 576, 8)] == [
        *("Q4_K", "Q5_0", "F16")
    ]
    assert type_of("blk.0.ffn_up.weight", (8, 96), "Q6_K") == "Q8_0"
    assert type_of("blk.0.ffn_up.weight", (8, 96), "Q5_K") == "Q5_1"
    for name in ("blk.0.attn_norm.weight", "blk.0.ffn_gate_inp.weight", "position_embd.weight"):
        assert type_of(name, (8, 256), "Q8_0") == "F32"
    assert type_of("output.weight", (8, 256), "Q8_0") == "Q8_0"


def test_fallbacks_are_said(tmp_path: Path) -> None:
    written = write_gguf(files_of("llama"), tmp_path, dtype="Q4_K")
    kinds = {t.type.name for t in read_container(tmp_path / "llama-Q4_K.gguf").tensors.values()}
    assert kinds == {"F32", "Q5_0", "F16"}  # rows of 32 and of 48
    assert any("are Q5_0, not Q4_K" in note for note in written.notes), written.notes
    assert any("are F16, not Q4_K" in note for note in written.notes), written.notes


def test_memory_is_the_largest_tensor(tmp_path: Path) -> None:
    """Each tensor is read when its turn comes, and once."""
    files, order = files_of("llama"), []

    def watched(name: str, tensor: StoredTensor) -> StoredTensor:
        def read() -> np.ndarray:
            order.append(name)
            return tensor.read()

        return StoredTensor(tensor.shape, tensor.dtype, read)

    tensors = {name: watched(name, tensor) for name, tensor in files.tensors.items()}
    told: list[int] = []
    write_gguf(
        dataclasses.replace(files, tensors=tensors),
        tmp_path,
        dtype="Q8_0",
        on_tensor=lambda name, size: told.append(len(order)),
    )
    assert told == list(range(1, len(tensors) + 1))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"position": "alibi"}, "position"),
        ({"embedding_scale": 3.0}, "embedding_scale"),
        ({"mlp": "reglu"}, "mlp"),
        ({"block": "parallel"}, "block"),
    ],
)
def test_what_llama_cpp_cannot_say(changes: dict, named: str, tmp_path: Path) -> None:
    manifest = Manifest("m", model(**changes))
    with pytest.raises(FormatError, match=f"no architecture of llama.cpp.*{named}"):
        write_config.express(manifest)


def test_heads_of_an_encoder() -> None:
    masked = model(causal=False, head="mlm", pooler=True)
    with pytest.raises(FormatError, match="has parameters.head='mlm', parameters.pooler=True; exp"):
        write_config.express(Manifest("m", masked, architecture="BERT"))


def test_a_window_that_llama_cpp_leaves_out() -> None:
    with pytest.raises(FormatError, match="attention_windows"):
        write_config.express(files_of("phi3-window").manifest)


def test_an_unknown_type(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match='dtype="Q4_KM" is not written as GGUF.*Q4_K'):
        write_gguf(files_of("llama"), tmp_path, dtype="Q4_KM")
    large = {n: stored(t.read() * np.float32(1e6)) for n, t in files_of("llama").tensors.items()}
    with pytest.raises(FormatError, match=r"token_embd\.weight: .*F16 cannot hold"):
        write_gguf(dataclasses.replace(files_of("llama"), tensors=large), tmp_path, dtype="F16")
    assert set(WRITTEN) == {"F32", *SINGLES, *K_TYPES}


@pytest.mark.parity
@pytest.mark.parametrize(
    ("name", "dtype"),
    [("llama-untied-biases", "float32"), ("qwen3moe", "float32"), ("llama", "Q8_0")],
)
def test_llama_cpp_agrees(name: str, dtype: str, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    files, target = files_of(name), Gguf()
    written = target.write(files, tmp_path, dtype, lambda name, size: None)
    proof = prove(target, files, tmp_path, written, dtype, 0, new_tokens=3)
    assert proof.greedy == 6 and proof.texts == len(write_tokenizer.PROBES)
    assert (proof.difference < 2e-6) == (dtype == "float32")
    assert (proof.rounded.tensors > 0) == (dtype == "Q8_0")


@pytest.mark.parity
@pytest.mark.parametrize("kind", ["F16", "Q5_1", "Q4_K", "Q5_K", "Q6_K"])
def test_whole_files_of_a_type_in_llama_cpp(kind: str, tmp_path: Path) -> None:
    """All types and experts: `experiments/acceptance/export_gguf_types.py`."""
    pytest.importorskip("xllamacpp")
    twin, target = wide_twins()["llama-wide"], Gguf()
    tensors = {n: stored(array) for n, array in random_params(twin.cfg).items()}
    manifest = Manifest("wide", twin.cfg, architecture="LLaMA")
    files = ModelFiles(Path("x"), manifest, tensors, BuiltTokenizer(ByteTokenizer))
    written = target.write(files, tmp_path, kind, lambda name, size: None)
    found = read_container(file_in(tmp_path)).tensors.values()
    assert {t.type.name for t in found if len(t.shape) > 1} == {kind}
    proof = prove(target, files, tmp_path, written, kind, 0, new_tokens=2)
    # Products of 16 bits are rounded to 16 there, quantised ones to 8.
    assert 1e-5 < proof.difference < (1e-3 if kind == "F16" else 0.03)
    assert proof.greedy == 4 and proof.rounded.tensors == 9


def without_head(write: pytest.MonkeyPatch) -> None:
    """An output layer of its own is left out, so the embedding table takes its place."""
    table = names.gguf_table

    def headless(*args: object) -> object:
        found = table(*args)  # pyright: ignore[reportArgumentType]
        return dataclasses.replace(found, rows=[r for r in found.rows if "head.w" not in r.ours])

    write.setattr("llmasos_jax.interop.gguf.write.gguf_table", headless)


def other_key(name: str, value: object) -> object:
    """One key of the metadata is another."""

    def plant(write: pytest.MonkeyPatch) -> None:
        from llmasos_jax.interop.gguf import write as module

        real = module.write_file

        def wrong(path: Path, metadata: dict, *rest: object) -> None:
            real(path, {**metadata, name: value}, *rest)  # pyright: ignore[reportArgumentType]

        write.setattr(module, "write_file", wrong)

    return plant


def swapped(one: str, other: str) -> object:
    """Two tensors of the first layer stand in each other's place."""

    def plant(write: pytest.MonkeyPatch) -> None:
        from llmasos_jax.interop.gguf import write as module

        real = module.write_file

        def wrong(path: Path, metadata: dict, tensors: list, *rest: object) -> None:
            pair = {f"blk.0.{one}": f"blk.0.{other}", f"blk.0.{other}": f"blk.0.{one}"}
            renamed = [dataclasses.replace(t, name=pair.get(t.name, t.name)) for t in tensors]
            real(path, metadata, renamed, *rest)  # pyright: ignore[reportArgumentType]

        write.setattr(module, "write_file", wrong)

    return plant


def plain_rows(write: pytest.MonkeyPatch) -> None:
    """Rotary pairs as halves of a head, written and read back: only llama.cpp can tell."""
    write.setattr(names, "PAIRED", ())


def turned_heads(write: pytest.MonkeyPatch) -> None:
    """Query heads in another order, written and read back so."""
    take, give = names.Product.arrange, names.Product.give

    def other(self: names.Product, array: np.ndarray, index: int, ours: list) -> np.ndarray:
        found = take(self, array, index, ours)
        return found[:, ::-1] if found.ndim == 3 and found.shape[1] == 4 else found

    def back(self: names.Product, index: int, ours: list) -> np.ndarray:
        if len(ours) == 1 and len(ours[0].shape) == 3 and ours[0].shape[1] == 4:
            ours = [stored(ours[0].read()[:, ::-1])]
        return give(self, index, ours)

    write.setattr(names.Product, "arrange", other)
    write.setattr(names.Product, "give", back)


FAULTS = {
    "rope layout": (plain_rows, "log_probabilities"),
    "permuted heads": (turned_heads, "log_probabilities"),
    "gate and up": (swapped("ffn_gate.weight", "ffn_up.weight"), "mlp"),
    "eps": (other_key("llama.attention.layer_norm_rms_epsilon", 1e-3), "norm_eps"),
    "bos": (other_key("tokenizer.ggml.bos_token_id", 257), "tokenizer"),
    "untied head": (without_head, "head"),
}


@pytest.mark.parity
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_refused(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("xllamacpp")
    plant, told = FAULTS[fault]
    files, target = files_of("llama-untied-biases"), Gguf()
    plant(monkeypatch)
    written = target.write(files, tmp_path, "float32", lambda name, size: None)
    with pytest.raises(ExportError, match=told):
        prove(target, files, tmp_path, written, "float32", 0, new_tokens=1)


@pytest.mark.parity
def test_a_file_that_llama_cpp_does_not_take(tmp_path: Path) -> None:
    """It ends its own process, not this one."""
    pytest.importorskip("xllamacpp")
    files, target = files_of("llama"), Gguf()
    written = target.write(files, tmp_path, "float32", lambda name, size: None)
    path = file_in(tmp_path)
    path.write_bytes(path.read_bytes().replace(b"blk.1.attn_k.weight", b"blk.1.attn_x.weight"))
    with pytest.raises(ExportError, match=r"llama\.cpp does not open"):
        target.run(path, files.manifest.parameters)
    assert written.num_tensors == len(read_container(path).tensors)
