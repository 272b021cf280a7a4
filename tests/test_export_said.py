"""What no output of a network shows: single numbers, where a text ends, what a chat looks like."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_export

import llmasos_jax
from llmasos_jax.errors import ExportError
from llmasos_jax.evals.export import huggingface as export_hf
from llmasos_jax.evals.export.ends import compare_generation
from llmasos_jax.evals.export.gguf import Gguf
from llmasos_jax.evals.export.ours import OurModel, compare
from llmasos_jax.evals.export.questions import ask
from llmasos_jax.evals.export.weights import MismatchError, Read, compare_stored
from llmasos_jax.evals.parity.probe import Probe
from llmasos_jax.format.cast import cast
from llmasos_jax.format.manifest import Generation
from llmasos_jax.format.read import ModelFiles, read_model
from llmasos_jax.format.tensorfile import stored
from llmasos_jax.format.write import write_model
from llmasos_jax.interop.gguf.container import read_container
from llmasos_jax.interop.gguf.write import write_gguf
from llmasos_jax.interop.hf import open_hf
from llmasos_jax.interop.hf.write import write_huggingface

TEMPLATE = "{{ messages }}"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_export.source(tmp_path_factory.mktemp("models") / "m")


@pytest.fixture(scope="module")
def files(source: Path) -> ModelFiles:
    return read_model(source)


def saying(files: ModelFiles, **generation: Any) -> ModelFiles:
    manifest = files.manifest.replace(generation=Generation(**generation))
    return dataclasses.replace(files, manifest=manifest)


@pytest.mark.parametrize(("dtype", "said"), [("Q8_0", "ids [7]"), ("bfloat16", "has 4 numbers")])
def test_one_wrong_row_of_a_table_is_seen(dtype: str, said: str, files: ModelFiles) -> None:
    table = np.random.default_rng(0).normal(size=(40_000, 4)).astype(np.float32)
    model = dataclasses.replace(files, tensors={"embed.table": stored(table)})
    held = np.asarray(cast(model, "bfloat16").tensors["embed.table"].read()).astype(np.float32)
    assert compare_stored(model, {"embed.table": held}, dtype, "it").tensors == 1
    held[7] = -table[8]
    # Of the whole table it is next to nothing.
    assert np.sqrt(np.mean((held - table) ** 2) / np.mean(table**2)) < 0.01
    with pytest.raises(MismatchError, match=re.escape(said)):
        compare_stored(model, {"embed.table": held}, dtype, "it")


def test_numbers_too_small_for_a_type_are_rounded_and_no_fault(files: ModelFiles) -> None:
    model = dataclasses.replace(files, tensors={"b": stored(np.full(3, 1e-9, np.float32))})
    found = compare_stored(model, {"b": np.zeros(3, np.float16)}, "float16", "it")
    assert (found.tensors, found.worst, found.where) == (1, 1.0, "b")


def test_an_output_that_is_infinite_here_is_no_match() -> None:
    probe = Probe(np.zeros((1, 2), np.int32), np.ones((1, 2), np.int32))
    x = np.ones((1, 2, 3), np.float32)
    ours = {"logits": x, "hidden": np.where(x > 0, np.float32(np.inf), x)}
    with np.errstate(invalid="ignore"):
        found = compare([ours], [ours], [probe])
    assert [c.difference for c in found] == [0.0, float("inf")]


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"eos_ids": (3,), "chat_template": TEMPLATE}, r"eos_ids = \[3\], not \[1\]"),
        ({"eos_ids": (1,), "chat_template": "{{ m }}"}, "chat_template = "),
        ({"eos_ids": (1,), "chat_template": TEMPLATE, "stop": ("END",)}, "stop = "),
    ],
)
def test_where_a_text_ends_is_compared(other: Any, said: str, files: ModelFiles) -> None:
    tokenizer = files.tokenizer
    assert tokenizer is not None and tokenizer.load().eos_id == 1
    model = saying(files, chat_template=TEMPLATE)  # </s> ends its texts, as the tokenizer says
    same = saying(files, eos_ids=(1,), chat_template=TEMPLATE)
    compare_generation(model, same, tokenizer.load())
    with pytest.raises(ExportError, match=said):
        compare_generation(model, saying(files, **other), tokenizer.load())


def test_texts_that_end_an_answer_do_not_hide_the_token_that_does(
    files: ModelFiles, tmp_path: Path
) -> None:
    write_huggingface(saying(files, stop=("END",)), tmp_path)
    said = json.loads((tmp_path / "generation_config.json").read_bytes())
    assert said == {"eos_token_id": [1], "stop_strings": ["END"]}
    assert open_hf(tmp_path).manifest.generation == Generation((1,), ("END",))


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore:::(torch|transformers)")
def test_an_end_that_transformers_does_not_know_is_refused(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers", reason="needs the extra `parity`")
    pytest.importorskip("torch", reason="needs the extra `parity`")

    def spoilt(files: ModelFiles, out: Path, **options: Any) -> Any:
        found = write_huggingface(files, out, **options)
        (out / "generation_config.json").write_text('{"use_cache": true}')  # hides the config's
        return found

    monkeypatch.setattr(export_hf, "write_huggingface", spoilt)
    with pytest.raises(ExportError, match=r"in transformers the ids \[\] end a text, not \[1\]"):
        llmasos_jax.export(source, "hf", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_what_gguf_ends_otherwise_is_said(files: ModelFiles, tmp_path: Path) -> None:
    notes = write_gguf(saying(files, eos_ids=(5,), stop=("END",)), tmp_path, dtype="F32").notes
    assert "the ids [1] end an answer there by what they are, and not here" in notes
    assert "GGUF has no words for texts that end an answer: ['END']" in notes


def test_weights_of_two_types_keep_them(files: ModelFiles, tmp_path: Path) -> None:
    narrow = cast(files, "bfloat16").tensors
    mixed = {n: narrow[n] if "mlp" in n else t for n, t in files.tensors.items()}
    written = write_gguf(dataclasses.replace(files, tensors=mixed), tmp_path)
    (path,) = tmp_path.iterdir()
    types = {n: t.type.name for n, t in read_container(path).tensors.items()}
    assert types["blk.0.ffn_up.weight"] == "BF16" and types["blk.0.attn_q.weight"] == "F32"
    assert "weights keep their own types: bfloat16, float32" in written.notes


def test_a_short_context_is_asked_with_tokens_in_each_row(tmp_path: Path) -> None:
    """It has less room than llama.cpp is to go on for."""
    cfg = small_export.CFG.replace(context_length=12, num_layers=1)
    files = read_model(small_export.source(tmp_path / "m", cfg))
    assert files.tokenizer is not None
    asked = ask(
        *(Gguf(), files, OurModel(cfg, Read(files.tensors)), None, files.tokenizer.load()),
        **{"bound": 1e-4, "seed": 0},
    )
    assert [p.mask_bt.sum(1).min() for p in asked.probes] == [1, 2]


def test_without_a_tokenizer_gguf_says_why(files: ModelFiles, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp", reason="needs the extra `export`")
    source = write_model(tmp_path / "m", files.manifest.replace(tokenizer=None), files.tensors)
    with pytest.raises(ExportError, match="none \\(the model has no tokenizer.*say --unproven"):
        llmasos_jax.export(source, "gguf", tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["m"]
