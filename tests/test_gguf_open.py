"""What a GGUF file may say and hold: strictness, types of tensors, parts, the way to our format."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cpu_time import cpu_time_under
from gguf_converter import converted, random_params, write_gguf
from gguf_twins import TWINS
from hypothesis import given, settings
from hypothesis import strategies as st

from llmasos_jax.errors import FormatError
from llmasos_jax.format.convert import convert_files
from llmasos_jax.generate.load import load_model
from llmasos_jax.hub.open import open_model
from llmasos_jax.interop.gguf import open_gguf

gguf = pytest.importorskip("gguf", reason="the package gguf is not installed")

LLAMA = TWINS["llama"]
PARAMS = random_params(LLAMA.cfg)


def write(path: Path, **more: Any) -> Path:
    write_gguf(path, LLAMA, PARAMS, **more)
    return path


def write_tensors(
    path: Path, tensors: dict[str, np.ndarray], kinds: dict[str, str] | None = None
) -> Path:
    """The LLaMA twin's metadata with other tensors, some stored as another type."""
    twin = dataclasses.replace(LLAMA)
    plain = path.with_suffix(".plain")
    write_gguf(plain, twin, PARAMS)
    reader = gguf.GGUFReader(plain)
    writer = gguf.GGUFWriter(path, "llama")
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        writer.add_key_value(
            field.name,
            field.contents(),
            field.types[0],
            sub_type=field.types[-1] if len(field.types) > 1 else None,
        )
    for name, tensor in tensors.items():
        kind = (kinds or {}).get(name)
        if kind is None:
            writer.add_tensor(name, tensor)
            continue
        code = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(name, gguf.quants.quantize(tensor, code), raw_dtype=code)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


REFUSED = {
    "an architecture": (
        {"general__architecture": "mamba"},
        r'architecture = "mamba" is not read; these are: bert, deepseek2, .*qwen3moe',
    ),
    "an unknown key": (
        {"llama__attention__sinks": 3},
        r"1 keys are not known for llama .*llama\.attention\.sinks = 3.*ignore=\(name,\)",
    ),
    "a nearly known key": (
        {"llama__rope__freq_bas": 1.0},
        r'did you mean "llama\.rope\.freq_base"',
    ),
    "a key of another type": ({"llama__block_count": 2.0}, "must be a whole number"),
    "no layers": ({"llama__block_count": 0}, r"block_count = 0 must be .* 1 to 4096"),
    "more layers than tensors": ({"llama__block_count": 4000}, "there are 20 tensors"),
    "absurd layers": ({"llama__block_count": 2**31}, r"must be a whole number, 1 to 4096"),
    "a missing key": ({"llama__block_count": None}, r"the key llama\.block_count is missing"),
    "heads that do not divide": ({"llama__attention__head_count_kv": 3}, "num_kv_heads=3"),
    "widths that are not there": ({"llama__feed_forward_length": 47}, r"the config \[47, 32\]"),
    "layers that differ": ({"llama__attention__head_count": [4, 2]}, "differs between layers"),
    "an infinite number": ({"llama__rope__freq_base": float("inf")}, "must be a finite number"),
    "a negative number": ({"llama__rope__freq_base": -1.0}, "rope_theta"),
    "a kind of scaling": ({"llama__rope__scaling__type": "dynamic"}, '"dynamic" is not read'),
    "a multiplier of yarn": (
        {
            **{"llama__rope__scaling__type": "yarn", "llama__rope__scaling__factor": 4.0},
            "llama__rope__scaling__yarn_attn_factor": 0.7,
        },
        r"yarn_attn_factor = 0\.7 is not read; only .* = 1\.13863",
    ),
    "an adapter": ({"general__type": "adapter"}, '"adapter" is not a model by itself'),
    "experts that are not there": (
        {"llama__expert_count": 4, "llama__expert_used_count": 2},
        "blk.0.ffn_gate_inp.weight: missing",
    ),
    "experts without a choice": ({"llama__expert_count": 4}, "expert_used_count is missing"),
    "experts of nothing": ({"llama__expert_used_count": 2}, "there are no experts"),
    "absurd experts": (
        {"llama__expert_count": 2**31, "llama__expert_used_count": 2},
        "0 to 65536",
    ),
    "a tokenizer": ({"tokenizer__ggml__model": "rwkv"}, 'model = "rwkv" is not known'),
    "a chat template": ({"tokenizer__chat_template": 3}, "must be a text"),
    "two kinds of scaling": ({"llama__rope__scaling__attn_factor": 2.0}, "yarn and longrope only"),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_what_is_refused_is_said(name: str, tmp_path: Path) -> None:
    more, message = REFUSED[name]
    path = write(tmp_path / "m.gguf", **more)
    with pytest.raises(FormatError, match=message):
        open_gguf(path)


def test_a_key_may_be_ignored_by_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "m.gguf", llama__attention__sinks=3)
    with caplog.at_level(logging.WARNING):
        files = open_gguf(path, ignore=("llama.attention.sinks",))
    assert files.manifest.parameters == LLAMA.cfg
    assert "llama.attention.sinks = 3 is left out, as asked" in caplog.text


def test_layers_that_say_the_same_are_one_number(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", llama__attention__head_count=[4, 4])
    assert open_gguf(path).manifest.parameters == LLAMA.cfg


def test_what_changes_nothing_is_known(tmp_path: Path) -> None:
    inert = {
        **{"general__file_type": 7, "general__quantization_version": 2, "general__tags": ["a"]},
        **{
            "llama__vocab_size": 288,
            "quantize__imatrix__file": "x",
            "general__sampling__temp": 0.7,
        },
        **{"llama__rope__scaling__finetuned": True, "llama__tensor_data_layout": "Meta AI"},
    }
    files = open_gguf(write(tmp_path / "m.gguf", **inert))
    assert files.manifest.parameters == LLAMA.cfg
    assert files.manifest.name == "A twin" and files.manifest.architecture == "LLaMA"
    assert files.manifest.metadata["source_format"] == "gguf"
    assert files.manifest.metadata["license"] == "apache-2.0"
    assert files.manifest.metadata["tags"] == ["a"]
    assert files.manifest.generation.eos_ids == (2,)
    assert files.manifest.generation.chat_template == "{{ messages }}"


TENSORS = converted(LLAMA, PARAMS)


def test_a_tensor_too_few_and_one_too_many(tmp_path: Path) -> None:
    tensors = {n: t for n, t in TENSORS.items() if n != "blk.1.ffn_up.weight"}
    tensors["blk.1.ffn_upp.weight"] = TENSORS["blk.1.ffn_up.weight"]
    path = write_tensors(tmp_path / "m.gguf", tensors)
    with pytest.raises(FormatError, match=r"blk\.1\.ffn_up\.weight: missing") as caught:
        open_gguf(path)
    assert "blk.1.ffn_upp.weight: float32[48,32] has no place in the model" in str(caught.value)
    path = write_tensors(tmp_path / "n.gguf", TENSORS | {"rope.inv_freq": np.ones(4, np.float32)})
    with pytest.raises(FormatError, match=r"rope\.inv_freq: .* has no place"):
        open_gguf(path)
    assert open_gguf(path, ignore=("rope.*",)).manifest.parameters == LLAMA.cfg


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan")])
def test_rotary_factors_are_numbers_above_0(tmp_path: Path, factor: float) -> None:
    factors = np.array([1, 1, factor, 8], np.float32)
    path = write_tensors(tmp_path / "m.gguf", TENSORS | {"rope_freqs.weight": factors})
    with pytest.raises(FormatError, match="rope_freqs.weight must hold numbers above 0"):
        open_gguf(path)
    wrong = TENSORS | {"rope_freqs.weight": np.ones(3, np.float32)}
    with pytest.raises(FormatError, match=r"is float32\[3\], must be float32\[4\]"):
        open_gguf(write_tensors(tmp_path / "n.gguf", wrong))


def test_each_type_keeps_what_it_holds(tmp_path: Path) -> None:
    """Quantised and F32 tensors are float32, F16 and BF16 stay; the numbers are the file's."""
    kinds = {
        **{
            "token_embd.weight": "Q8_0",
            "blk.0.attn_q.weight": "Q4_1",
            "blk.0.ffn_up.weight": "F16",
        },
        **{"blk.0.ffn_gate.weight": "BF16", "blk.1.attn_q.weight": "Q5_0"},
    }
    files = open_gguf(write_tensors(tmp_path / "m.gguf", TENSORS, kinds))
    dtypes = {n: t.dtype for n, t in files.tensors.items() if t.dtype != "float32"}
    assert dtypes == {"layers.0.mlp.up": "float16", "layers.0.mlp.gate": "bfloat16"}
    up = files.tensors["layers.0.mlp.up"].read()
    np.testing.assert_array_equal(up, PARAMS["layers.0.mlp.up"].astype(np.float16))
    for name, steps in (("layers.0.attn.q", 0.3), ("layers.1.attn.q", 0.3), ("embed.table", 0.02)):
        error = np.abs(files.tensors[name].read() - PARAMS[name]).max()
        assert 0 < error < steps, name


def test_a_type_that_is_not_read_is_named_with_its_tensor(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    code = gguf.GGMLQuantizationType.IQ2_XXS
    writer.add_tensor("blk.0.ffn_up.weight", np.zeros((1, 66), np.uint8), raw_dtype=code)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(FormatError, match=r'"blk.0.ffn_up.weight" is stored as IQ2_XXS.*: F32,'):
        open_gguf(path)


def split(folder: Path, **change: Any) -> list[Path]:
    """The LLaMA twin in three parts, as llama-gguf-split writes them."""
    write(folder / "whole.gguf")
    names = list(TENSORS)
    keys = {"split.count": 3, "split.tensors.count": len(names)} | change
    paths = []
    for part in range(3):
        path = folder / f"m-{part + 1:05}-of-00003.gguf"
        mine = {n: TENSORS[n] for n in names[part::3]}
        if part == 0:
            write_gguf(
                path,
                dataclasses.replace(LLAMA, tensors={}),
                PARAMS,
                **{k.replace(".", "__"): v for k, v in keys.items()},
                split__no=0,
            )
            # The same header with fewer tensors: written again below.
            reader = gguf.GGUFReader(path)
            metadata = [f for f in reader.fields.values() if not f.name.startswith("GGUF.")]
        writer = gguf.GGUFWriter(path, "llama")
        for field in metadata if part == 0 else []:
            if field.name == "general.architecture":
                continue
            kinds = field.types
            sub = kinds[-1] if len(kinds) > 1 else None
            writer.add_key_value(field.name, field.contents(), kinds[0], sub_type=sub)
        if part:
            writer.add_uint16("split.no", part)
            writer.add_uint16("split.count", 3)
        for name, tensor in mine.items():
            writer.add_tensor(name, tensor)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        paths.append(path)
    return paths


def test_a_model_in_parts(tmp_path: Path) -> None:
    paths = split(tmp_path)
    files, whole = open_gguf(paths[0]), open_gguf(tmp_path / "whole.gguf")
    assert files.manifest.parameters == whole.manifest.parameters
    for name, tensor in whole.tensors.items():
        np.testing.assert_array_equal(files.tensors[name].read(), tensor.read())
    with pytest.raises(
        FormatError, match='is not the first of its 3 parts; name "m-00001-of-00003'
    ):
        open_gguf(paths[1])
    paths[1].rename(tmp_path / "away")
    with pytest.raises(FormatError, match=r"cannot read m-00002-of-00003\.gguf: No such file"):
        open_gguf(paths[0])
    paths[2].rename(paths[1])
    with pytest.raises(FormatError, match="says that it is part 2, counted from 0, not 1"):
        open_gguf(paths[0])
    alone = paths[0].rename(tmp_path / "alone.gguf")
    with pytest.raises(FormatError, match="is one of 3 parts, which are found by their names"):
        open_gguf(alone)


def test_parts_that_are_not_all(tmp_path: Path) -> None:
    path = split(tmp_path, **{"split.tensors.count": 21})[0]
    with pytest.raises(FormatError, match="have 20 tensors, split.tensors.count says 21"):
        open_gguf(path)


def test_a_gguf_becomes_an_llmasos_model(tmp_path: Path) -> None:
    kinds = {"blk.0.ffn_down.weight": "F16", "blk.1.attn_q.weight": "Q4_1"}
    path = write_tensors(tmp_path / "m.gguf", TENSORS, kinds)
    convert_files(open_model(path), tmp_path / "out")
    ours, theirs = load_model(tmp_path / "out"), load_model(path)
    assert ours.config == theirs.config == LLAMA.cfg
    assert ours.manifest.metadata == theirs.manifest.metadata
    assert ours.manifest.generation == theirs.manifest.generation
    assert ours.encode("a b") == theirs.encode("a b")
    files = open_model(tmp_path / "out")
    for name, tensor in open_gguf(path).tensors.items():
        assert files.tensors[name].dtype == tensor.dtype
        np.testing.assert_array_equal(files.tensors[name].read(), tensor.read())


VALUES = st.one_of(
    st.integers(0, 2**32 - 1),
    st.sampled_from([0, 1, 2, 3, 7, 64, 4096, 65536]),
    st.floats(width=32),
    st.booleans(),
    st.text(max_size=3),
    st.lists(st.integers(0, 300), min_size=1, max_size=4),
)
KEYS = [
    *("block_count", "context_length", "embedding_length", "feed_forward_length", "expert_count"),
    *("attention.head_count", "attention.head_count_kv", "attention.key_length", "vocab_size"),
    *("attention.layer_norm_rms_epsilon", "rope.freq_base", "rope.dimension_count"),
    *("rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length"),
    *("expert_used_count", "attention.value_length", "attention.scale"),
]


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.dictionaries(st.sampled_from(KEYS), VALUES, min_size=1, max_size=2))
def test_any_value_of_any_key(
    tmp_path_factory: pytest.TempPathFactory, changes: dict[str, Any]
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.gguf"
    write(path, **{f"llama__{k.replace('.', '__')}": v for k, v in changes.items()})
    with cpu_time_under(2):
        try:
            assert open_gguf(path).tensors
        except FormatError as error:
            assert str(error)


def test_heads_without_measure_are_refused_at_once(tmp_path: Path) -> None:
    heads = {"llama__attention__head_count": 2**31 - 1, "llama__attention__head_count_kv": 2}
    width = {"llama__attention__key_length": 16, "llama__attention__value_length": 16}
    path = write(tmp_path / "m.gguf", **heads, **width)
    with cpu_time_under(1), pytest.raises(FormatError, match="2147483647 is not divisible by"):
        open_gguf(path)
