"""Exports to StableHLO: run by the script beside them, in a process without this package."""

import functools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llmasos_jax
from llmasos_jax.config.experts import Experts
from llmasos_jax.config.heads import Encoder
from llmasos_jax.config.model import ModelConfig
from llmasos_jax.errors import ExportError
from llmasos_jax.evals.export import iree, stablehlo
from llmasos_jax.evals.export.ours import OurModel
from llmasos_jax.evals.export.proof import second_of
from llmasos_jax.evals.export.questions import Questions
from llmasos_jax.evals.export.run import ExportResult
from llmasos_jax.evals.export.weights import Read
from llmasos_jax.evals.parity.probe import Probe
from llmasos_jax.format.manifest import Generation, Manifest
from llmasos_jax.format.names import expected
from llmasos_jax.format.read import ModelFiles, read_model
from llmasos_jax.format.tensorfile import StoredTensor, stored
from llmasos_jax.format.write import write_model

SMALL = ModelConfig(
    vocab_size=40, embedding_dim=32, num_layers=2, num_heads=4, num_kv_heads=2, context_length=24
)
MODELS = {
    "windows": SMALL.replace(attention_windows=(None, 6), logit_soft_cap=3.0),
    "experts": SMALL.replace(experts=Experts(4, 2, 24)),
    "bert": SMALL.replace(
        **{"causal": False, "head": "mlm", "token_types": 2, "position": "learned"},
        **{"pooler": True, "next_sentence": True},
    ),
    "t5": SMALL.replace(position="relative", encoder=Encoder(num_layers=1)),
}


def model(cfg: ModelConfig, out: Path) -> Path:
    rng = np.random.default_rng(3)
    draw = lambda shape: rng.normal(0, 0.3, shape).astype(np.float32)
    tensors = {name: stored(draw(spec.shape)) for name, spec in expected(cfg).items()}
    start = 0 if cfg.encoder.num_layers else None
    return write_model(
        out, Manifest("m", cfg, generation=Generation(decoder_start_id=start)), tensors
    )


@pytest.mark.parametrize("name", MODELS)
def test_it_is_the_model_where_only_jax_is(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    source = model(MODELS[name], tmp_path / "in")
    result = llmasos_jax.export(source, "stablehlo", tmp_path / "out", iree=False)
    assert result.proof is not None and result.proof.difference < 2e-6
    assert not list((tmp_path / "out").rglob("__pycache__"))  # of the script that was run
    assert "for the CPU alone" in result.notes[0]
    receipt = json.loads((tmp_path / "out" / "parity.json").read_bytes())
    assert receipt["second"]["why"] == "it was not asked for" and not receipt["second"]["proven"]
    assert result.proof.greedy == (0 if name == "bert" else 32)
    outputs = {c.output for c in result.proof.compared}
    assert outputs == ({"logits", "next_sentence"} if name == "bert" else {"logits"})
    about = json.loads((tmp_path / "out" / "stablehlo.json").read_bytes())
    assert about["platforms"] == ["cpu", "cuda", "tpu"]
    ids = about["programs"]["forward"]["inputs"]["input_ids"]
    assert ids == {"shape": ["b", "e" if name == "t5" else "t"], "dtype": "int32"}
    # The folder is a model of ours too, bit for bit.
    back, files = read_model(tmp_path / "out"), read_model(source)
    assert back.manifest.parameters == files.manifest.parameters
    for key, tensor in files.tensors.items():
        np.testing.assert_array_equal(back.tensors[key].read(), tensor.read())


def test_the_script_answers_on_a_command_line(tmp_path: Path) -> None:
    source = model(SMALL, tmp_path / "in")
    llmasos_jax.export(source, "stablehlo", tmp_path / "out", dtype="bfloat16", unproven=True)
    words = [sys.executable, str(tmp_path / "out" / "run.py"), "5", "9", "--new=6"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    found = list(map(int, done.stdout.split()))
    held = Read(read_model(tmp_path / "out").tensors)
    ids_bt = np.zeros((1, 8), np.int32)
    scores_nv = OurModel(SMALL, held).scores([5, 9], found, Probe(ids_bt, ids_bt + 1))
    assert found == scores_nv.argmax(-1).tolist()


def test_other_weights_are_kept_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, real = model(SMALL, tmp_path / "in"), stablehlo.write_stablehlo

    def spoilt(files: ModelFiles, out: Path, **options: object) -> object:
        name = "layers.1.attn.q"
        other = StoredTensor(
            files.tensors[name].shape, "float32", lambda: files.tensors[name].read()[:, ::-1]
        )
        tensors = {**files.tensors, name: other}
        changed = ModelFiles(files.path, files.manifest, tensors, files.tokenizer)
        return real(changed, out, **options)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(stablehlo, "write_stablehlo", spoilt)
    with pytest.raises(
        ExportError, match="layers.1.attn.q is .*nothing was kept. .*they part at layer 1"
    ):
        llmasos_jax.export(source, "stablehlo", tmp_path / "out", iree=False)
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


@functools.cache
def compiled(folder: Path) -> tuple[ExportResult, dict[str, Any]]:
    pytest.importorskip("iree.compiler", reason="needs the extra `export`")
    source = model(SMALL.replace(num_layers=1), folder / "in")
    result = llmasos_jax.export(source, "stablehlo", folder / "out", dtype="bfloat16")
    return result, json.loads((folder / "out" / "parity.json").read_bytes())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("iree")


def test_iree_computes_the_same(place: Path) -> None:
    result, receipt = compiled(place)
    second = receipt["second"]
    assert second["program"] == "IREE" and second["proven"], second
    # Another compiler: near to ours, and not the very same sums.
    assert 0 < second["difference"] < 2e-6 and second["greedy"] == 32
    assert [c["output"] for c in second["compared"]] == ["logits"]
    assert receipt["versions"]["iree-base-compiler"]
    assert "proven in IREE too" in str(result)


def questions(folder: Path, cfg: ModelConfig, more: float) -> Questions:
    """One batch, answered by a model whose weights are `more` larger."""
    held = {n: x.astype(np.float32) + more for n, x in Read(read_model(folder).tensors).items()}
    ours, probe = OurModel(cfg, held), Probe(*np.ones((2, 1, 8), np.int32))
    return Questions((probe,), (), 1, ours, tuple(ours.outputs([probe])), 1e-4, False)


def test_what_iree_makes_otherwise_is_said_in_a_line(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled(place)
    cfg, target = SMALL.replace(num_layers=1), stablehlo.StableHLO()
    ask = functools.partial(second_of, target, place / "out", cfg)
    monkeypatch.setattr(iree, "MOST_S", 120)
    found = ask(questions(place / "out", cfg, 0.1))
    assert found is not None and found.difference is None
    assert "IREE gives logits that differ by" in (found.why or "")
    monkeypatch.setattr(iree, "specialised", lambda *_: "func.func @main() { return %nothing }")
    found = ask(questions(place / "out", cfg, 0.0))
    assert found is not None and found.why is not None
    assert found.why.startswith('IREE does not compile "forward": ') and "\n" not in found.why
    monkeypatch.setattr(iree, "is_installed", lambda: False)
    found = ask(questions(place / "out", cfg, 0.0))
    assert found is not None and found.why is not None
    assert found.why.startswith("IREE is not installed, so it was not tried; pip install")
