"""Fine-tuning runs: what moves, what is saved, the same on any mesh, going on after a kill."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_model import small_model
from small_run import At
from tolerances import SIMPLE

import llmasos_jax
from llmasos_jax.checkpoint.steps import find_step
from llmasos_jax.checkpoint.stored import read_leaves
from llmasos_jax.cli.main import main
from llmasos_jax.config.build import default_config
from llmasos_jax.config.model import ModelConfig
from llmasos_jax.errors import ConfigError, PreemptedError
from llmasos_jax.finetune.resolve import resolve
from llmasos_jax.models.codes import encode
from llmasos_jax.nn.adapters import dequantized
from llmasos_jax.parallel.mesh import make_mesh
from llmasos_jax.train.hooks import read_metrics
from llmasos_jax.train.pretrained import frozen_weights, moved_weights
from llmasos_jax.train.reference import _key
from llmasos_jax.train.step import make_trainer

BASE = ModelConfig(320, 64, 2, context_length=64, num_heads=4, num_kv_heads=2, ffn_dim=128)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, answers and preferences."""
    path = tmp_path_factory.mktemp("finetune")
    small_model(BASE).save(path / "base")
    with open(path / "answers.jsonl", "w") as answers, open(path / "pairs.jsonl", "w") as pairs:
        for i in range(48):
            row = {"prompt": f"Q{i}: ", "completion": f"it is {i}"}
            answers.write(json.dumps(row) + "\n")
            pair = {"prompt": f"Q{i}: ", "chosen": f"yes {i}", "rejected": f"no {i} no"}
            pairs.write(json.dumps(pair) + "\n")
    return path


def config(folder: Path, objective: str = "sft", **finetune: Any) -> Any:
    """A run of six steps."""
    made = default_config()
    made.finetune.base = str(folder / "base")
    made.finetune.rank = 4
    for name, value in finetune.items():
        made.finetune[name] = value
    made.objective.name = objective
    made.data.source = "jsonl"
    made.data.path = str(folder / ("pairs.jsonl" if objective == "dpo" else "answers.jsonl"))
    made.data.sequence_length = 48
    made.data.heldout_fraction = 0.2
    made.train.update(steps=6, batch_size=8, log_every_steps=1, eval_every_steps=None)
    made.optim.update(learning_rate=1e-2, warmup_steps=0, weight_decay=0.0)
    made.checkpoint.every_steps = None
    return made


def losses(workdir: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(workdir / "metrics.jsonl") if "loss" in line]


def leaves_of(workdir: Path) -> dict[str, Any]:
    return dict(read_leaves(find_step(workdir)))


OPTIONS = {
    "dora": {"dora": True, "rank_stabilized": True},
    "int4": {"quantize": "int4", "targets": ("attn.*", "*.down")},
    "full": {"method": "full"},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_a_mesh_learns_what_one_device_learns(folder, tmp_path, name, monkeypatch):
    if "quantize" in OPTIONS[name]:
        pytest.importorskip("qwix", reason="needs the extra `finetune`")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    for mesh in ({"preset": None}, {"data": 2, "fsdp": (2,), "tensor": 2}):
        made = config(folder, **OPTIONS[name])
        if "tensor" in mesh:
            made.mesh.update(mesh)
        made.train.steps = 3
        llmasos_jax.finetune(made, tmp_path / str(len(mesh)))
    one, many = losses(tmp_path / "1"), losses(tmp_path / "3")
    assert len(one) == 3 and one[2] < one[0] - 0.01
    np.testing.assert_allclose(many, one, rtol=SIMPLE)


def test_only_what_moves_is_saved(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    made = config(folder, targets=("attn.q", "mlp.down"))
    llmasos_jax.finetune(made, tmp_path / "run")
    leaves = leaves_of(tmp_path / "run")
    params = {name for name in leaves if name.startswith("params/")}
    stem = "params/periods/0"
    wanted = {f"{stem}/{p}_lora/{x}" for p in ("attn/q", "mlp/down") for x in "ab"}
    assert params == wanted
    moments = {name for name in leaves if "/mu/" in name}
    assert {name.partition("/mu/")[2] for name in moments} == {
        name.removeprefix("params/") for name in wanted
    }
    # D x R and R x N H of q; F x R and R x D of down; two layers.
    moved = 2 * (64 * 4 + 4 * 64 + 128 * 4 + 4 * 64)
    assert sum(np.prod(leaves[name].shape) for name in params) == moved


def test_a_head_alone(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    rows = [{"text": "a b c", "label": "good"}, {"text": "x y z", "label": "bad"}]
    data = tmp_path / "labels.jsonl"
    data.write_text(
        "".join(
            json.dumps(r | {"text": f"{r['text']} {i}"}) + "\n" for i in range(12) for r in rows
        )
    )
    made = config(folder, "classify", method="head")
    made.model.classifier.labels = ("good", "bad")
    made.data.path = str(data)
    llmasos_jax.finetune(made, tmp_path / "run")
    params = {n for n in leaves_of(tmp_path / "run") if n.startswith("params/")}
    assert params == {"params/classifier/w", "params/classifier/bias"}


@pytest.mark.parametrize("objective", ["sft", "dpo"])
def test_stopped_and_going_on_is_never_stopped(folder, tmp_path, objective, monkeypatch):
    """Stopped after step 3; and the process that is killed loses nothing that was saved."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    made = config(folder, objective, dora=objective == "sft")
    made.train.dropout_rate = 0.1
    llmasos_jax.finetune(made, tmp_path / "straight")
    stop = At(3, lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(PreemptedError):
        llmasos_jax.finetune(made, tmp_path / "broken", [stop])
    llmasos_jax.finetune(made, tmp_path / "broken")
    assert losses(tmp_path / "broken") == losses(tmp_path / "straight")
    assert final(made, tmp_path / "broken") == final(made, tmp_path / "straight")


def final(made: Any, workdir: Path) -> list[bytes]:
    from llmasos_jax.checkpoint.orbax import Checkpointer

    resolved, _ = resolve(made)
    keeper = Checkpointer(workdir / "checkpoints")
    restored = keeper.restore(make_trainer(resolved, make_mesh(resolved.mesh)).abstract_state)
    keeper.close()
    return [
        np.asarray(x).tobytes()
        for x in jax.tree.leaves((restored.state.params, restored.state.opt_state))
    ]


def test_codes_are_within_half_a_step_of_the_weights():
    pytest.importorskip("qwix", reason="needs the extra `finetune`")
    rng = np.random.default_rng(0)
    w = rng.normal(0, 1, (2, 128, 3, 5)).astype(np.float32)
    for dtype, levels in ((jnp.int8, 127), (jnp.int4, 7)):
        codes, scales = encode(w, 1, dtype, num_lead=1)
        back = jax.vmap(lambda c, s: dequantized(c, s, 1))(jnp.asarray(codes), jnp.asarray(scales))
        group = 128 if dtype == jnp.int8 else 64
        parts = w.reshape(2, 128 // group, group, 3, 5)
        step = np.abs(parts).max(axis=2, keepdims=True) / levels
        error = np.abs(np.asarray(back).reshape(parts.shape) - parts)
        assert (error <= 0.51 * step).all() and scales.shape == (2, 128 // group, 3, 5)


def test_frozen_weights_are_the_bases(folder):
    made = config(folder)
    made.precision.dtype = "bfloat16"
    resolved, base = resolve(made)
    trainer = make_trainer(resolved, make_mesh(resolved.mesh))
    frozen = frozen_weights(trainer, base)
    held = np.stack([base.files.tensors[f"layers.{i}.attn.o"].read() for i in range(2)])
    found = frozen["periods"]["0"]["attn"]["o"]
    assert found.dtype == jnp.bfloat16
    assert np.array_equal(np.asarray(found), held.astype(jnp.bfloat16))
    assert frozen["final_norm"]["scale"].dtype == jnp.float32


WRONG = [
    ({"finetune.targets": ("attn.x",)}, 'finetune.targets: "attn.x" matches no product'),
    ({"finetune.rank": 0}, "finetune.rank=0 must be above 0"),
    ({"finetune.targets": ()}, "finetune.targets=() names no product"),
    ({"finetune.method": "head", "finetune.quantize": "int8"}, "goes with finetune.method"),
    ({"finetune.base_sha256": "0" * 64}, "has the weights"),
    ({"model.num_layers": 7}, "model.num_layers=7, and the base has 2"),
    ({"finetune.method": "head"}, 'and objective.name="sft" reads neither; set finetune.method'),
    ({"finetune.base": None}, "finetune.base is not set"),
]


@pytest.mark.parametrize(("changes", "words"), WRONG)
def test_wrong_configs(folder, tmp_path, changes, words, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    made = config(folder)
    for path, value in changes.items():
        group, name = path.split(".")
        made[group][name] = value
    with pytest.raises(ConfigError, match=words.replace("(", r"\(").replace(")", r"\)")):
        llmasos_jax.finetune(made, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_base_whose_parameters_changed_is_refused(folder, tmp_path, monkeypatch):
    """The tensors are the same, the model is not."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    shutil.copytree(folder / "base", tmp_path / "base")
    made = config(folder)
    made.finetune.base = str(tmp_path / "base")
    made.train.steps = 1
    llmasos_jax.finetune(made, tmp_path / "run")
    one = resolve(made)[0]
    path = tmp_path / "base" / "model.json"
    said = json.loads(path.read_bytes())
    said["parameters"]["norm_eps"] = 0.5
    path.write_text(json.dumps(said))
    two = resolve(made)[0]
    assert one.finetune.base_sha256 == two.finetune.base_sha256
    wider = dataclasses.replace(one, precision=dataclasses.replace(one.precision, quantize="int8"))
    assert len({_key(cfg, "rows") for cfg in (one, two, wider)}) == 3
    made.train.steps = 2
    with pytest.raises(ConfigError, match="model.norm_eps"):
        llmasos_jax.finetune(made, tmp_path / "run")


def test_a_pooler_that_the_base_has_not_needs_a_method_that_moves_it(tmp_path):
    small_model(BASE.replace(causal=False)).save(tmp_path / "base")
    made = config(tmp_path, "classify")
    made.model.classifier.labels = ("good", "bad")
    made.model.pooler = True
    resolved, base = resolve(made)
    with pytest.raises(ConfigError, match='method="lora" leaves the pooler as it is; set .*"full"'):
        frozen_weights(make_trainer(resolved, make_mesh(resolved.mesh)), base)


def test_columns_of_zeros_have_no_direction(folder):
    resolved, base = resolve(config(folder, dora=True, targets=("attn.o",)))
    trainer = make_trainer(resolved, make_mesh(resolved.mesh))
    frozen = frozen_weights(trainer, base)
    attn = frozen["periods"]["0"]["attn"]
    attn["o"] = attn["o"].at[..., 3].set(0.0)
    with pytest.raises(ConfigError, match="o has columns of zeros in the base"):
        moved_weights(trainer, jax.random.key(0), base, frozen)


def test_a_base_that_changed_is_refused(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    small_model(BASE, seed=1).save(tmp_path / "base")
    made = config(folder)
    made.finetune.base = str(tmp_path / "base")
    made.train.steps = 1
    llmasos_jax.finetune(made, tmp_path / "run")
    shutil.rmtree(tmp_path / "base")
    small_model(BASE, seed=2).save(tmp_path / "base")
    made.train.steps = 2
    with pytest.raises(ConfigError, match="finetune.base_sha256"):
        llmasos_jax.finetune(made, tmp_path / "run")


def test_the_command_line(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    made = config(folder, rank=65)
    made.train.steps = 2
    text = made.to_json_best_effort()
    (tmp_path / "run.py").write_text(
        "import json\nfrom llmasos_jax.config.build import default_config\n"
        "def get_config():\n    config = default_config()\n"
        f"    given = json.loads({text!r})\n"
        "    for group in ('finetune', 'objective', 'data', 'train', 'optim', 'checkpoint'):\n"
        "        for name, value in given[group].items():\n"
        "            if value is not None:\n"
        "                config[group][name] = tuple(value) if isinstance(value, list) else value\n"
        "    return config\n"
    )
    words = [f"--config={tmp_path / 'run.py'}", f"--workdir={tmp_path / 'run'}", "--json"]
    assert main(["finetune", *words]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["step"] == 2
    assert " trained, for 2 steps" in said.err
    assert "note: finetune.rank=65 is above model.embedding_dim=64" in said.err
    assert main(["train", *words]) == 2
    assert "llmasos finetune" in capsys.readouterr().err
    assert main(["finetune", *words, "--config.finetune.rank=8"]) == 2
    assert "finetune.rank: 65 -> 8" in capsys.readouterr().err
