"""Exports that end early leave a whole folder or none; what cannot be exported is one line."""

import functools
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import commands
import numpy as np
import pytest
import small_export
from small_export import CFG

import llmasos_jax
from llmasos_jax.cli.main import main
from llmasos_jax.config.model import ModelConfig
from llmasos_jax.errors import FormatError, MissingExtraError
from llmasos_jax.evals.export.targets import TABLE
from llmasos_jax.format.manifest import Manifest
from llmasos_jax.format.names import expected
from llmasos_jax.format.tensorfile import stored
from llmasos_jax.format.write import write_model

TARGETS = ("hf", "gguf", "onnx", "stablehlo")
KILLED = ("before_anything", "among_tensors", "before_the_receipt", "before_the_name")


@functools.cache
def ended(folder: Path) -> dict[str, dict[str, Any]]:
    pytest.importorskip("onnx", reason="needs the extra `export`")
    model = small_export.source(folder / "m")
    for to in TARGETS:
        (folder / to / "out").mkdir(parents=True)
    script = Path(__file__).with_name("killed_exports.py")
    commands.run(script, model, folder, *TARGETS, home=folder)
    return json.loads((folder / "found.json").read_bytes())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ended")


@pytest.mark.parametrize("to", TARGETS)
def test_killed_at_any_moment_it_is_whole_or_not_there(to: str, place: Path) -> None:
    found = ended(place)[to]
    for moment in KILLED:
        assert found[moment]["status"] == -signal.SIGKILL
        assert not found[moment]["there"], moment
        # What it was writing is beside, and the next export to that name takes it away.
        mine = [name for name in found[moment]["beside"] if name.startswith(f".{moment}.writing-")]
        assert len(mine) == 1
    late = found["after_the_name"]
    assert late["status"] == -signal.SIGKILL and late["there"] and late["whole"]
    assert found["nothing"]["status"] == 0 and found["nothing"]["whole"]


@pytest.mark.parametrize("to", TARGETS)
def test_a_full_disk_is_one_line(to: str, place: Path) -> None:
    found = ended(place)[to]["disk_full"]
    assert found["status"] == 2 and not found["there"]
    assert (
        found["said"].startswith("llmasos: error: cannot write")
        and os.strerror(27) in (found["said"])
    )
    assert found["said"].count("\n") == 1
    assert not [name for name in found["beside"] if "disk_full" in name]


def test_the_next_export_takes_away_what_was_left(place: Path) -> None:
    ended(place)
    out = place / "gguf" / "out" / "among_tensors"
    llmasos_jax.export(place / "m", "gguf", out, unproven=True)
    assert sorted(p.name for p in out.iterdir()) == ["parity.json", "tiny-F32.gguf"]
    assert not list(out.parent.glob(".among_tensors*"))
    assert list(out.parent.glob(".before_anything*"))  # another name's


UNSAYABLE: dict[str, tuple[ModelConfig, str]] = {
    "hf": (CFG.replace(position="alibi"), "position='alibi'"),
    "gguf": (CFG.replace(block="parallel"), "no architecture of llama.cpp.*block"),
    "onnx": (CFG.replace(prefix_lm=True), "prefix_lm=True"),
}


@pytest.mark.parametrize("to", UNSAYABLE)
def test_what_a_format_cannot_say_is_one_line(
    to: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg, named = UNSAYABLE[to]
    if to == "onnx":
        pytest.importorskip("onnx", reason="needs the extra `export`")
    model = small_export.source(tmp_path / "m", cfg)
    out = tmp_path / "new" / "out"
    assert main(["export", str(model), f"--to={to}", f"--out={out}", "--unproven"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and not out.parent.exists()
    with pytest.raises(FormatError, match=named):
        llmasos_jax.export(model, to, out, unproven=True)


def test_a_dtype_is_looked_at_for_every_format_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = small_export.source(tmp_path / "m"), tmp_path / "out"
    words = ["export", str(model), "--to=gguf,stablehlo", f"--out={out}", "--unproven"]
    assert main([*words, "--dtype=Q8_0"]) == 2
    assert 'stablehlo is not written as "Q8_0"; known: ' in capsys.readouterr().err
    assert main([*words, "--dtype=float61"]) == 2
    assert 'gguf is not written as "float61"; did you mean "float16"' in capsys.readouterr().err
    assert not out.exists()


def test_of_several_formats_none_is_written_where_one_cannot_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = small_export.source(tmp_path / "m", UNSAYABLE["gguf"][0]), tmp_path / "out"
    words = ["export", str(model), f"--out={out}", "--unproven"]
    assert main([*words, "--to=stablehlo,gguf"]) == 2
    assert "no architecture of llama.cpp" in capsys.readouterr().err
    assert main([*words, "--to=stablehlo,stablehlo"]) == 2
    assert "names a format twice; name each once" in capsys.readouterr().err
    assert not out.exists()


def test_numbers_that_are_none_prove_nothing(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    draw = lambda shape: rng.normal(size=shape).astype(np.float32)
    tensors = {name: stored(draw(spec.shape)) for name, spec in expected(CFG).items()}
    tensors["head.w"] = stored(np.full(expected(CFG)["head.w"].shape, np.nan, np.float32))
    model = write_model(tmp_path / "m", Manifest("m", CFG), tensors)
    with pytest.raises(FormatError, match="own head.w has numbers that are none .*--unproven"):
        llmasos_jax.export(model, "stablehlo", tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


MISSING = {
    "hf": ("transformers", "an export to Hugging Face is opened with transformers and torch .*"),
    "gguf": ("xllamacpp", "an export to GGUF is opened with llama.cpp to prove it, .*"),
    "onnx": ("onnxruntime", "an export to ONNX is opened with onnxruntime to prove it .*"),
}


@pytest.mark.parametrize("to", MISSING)
def test_without_its_program_it_has_to_be_said(
    to: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, said = MISSING[to]
    if to != "gguf":
        pytest.importorskip({"hf": "torch", "onnx": "onnx"}[to], reason="needs the extras")
    monkeypatch.setitem(sys.modules, module, None)
    model = small_export.source(tmp_path / "m")
    extra = "parity" if to == "hf" else "export"
    line = rf"{said}pip install 'llmasos-jax\[{extra}\]', or say --unproven \(unproven=True\)$"
    with pytest.raises(MissingExtraError, match=line):
        llmasos_jax.export(model, to, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    result = llmasos_jax.export(model, to, tmp_path / "out", unproven=True)
    receipt = json.loads((result.path / "parity.json").read_bytes())
    assert not result.proven and receipt["proven"] is False and receipt["target"] == to
    assert "not proven" in str(result)


def test_every_target_says_what_it_is() -> None:
    assert tuple(TABLE) == (*TARGETS, "peft")  # which writes adapters, not models
    for name, target in TABLE.items():
        wanted = {"float32", "bfloat16"} if name in TARGETS else {"float32"}
        assert target.name == name and wanted <= set(target.dtypes)
