"""Models with experts from end to end: initial weights, files, optimizers, generation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_model import SMALL, greedy_by_forward, small_model
from tolerances import SIMPLE, WHOLE_MODEL

from llmasos_jax.config.experts import Experts
from llmasos_jax.config.model import ModelConfig
from llmasos_jax.config.schema import MeshConfig, OptimConfig
from llmasos_jax.format.convert import convert_files
from llmasos_jax.format.names import expected, flatten
from llmasos_jax.generate.load import load_model
from llmasos_jax.hub.open import open_model
from llmasos_jax.models.definition import ModelDef, init_params, relayout
from llmasos_jax.models.layout import Layout, scan_layout, unrolled_layout
from llmasos_jax.parallel.mesh import make_mesh
from llmasos_jax.train.optim import build_optimizer

EXPERTS = Experts(6, 2, 20, (0,), normalize=False, shared_ffn_dim=16, shared_gate=True)
MODEL = dataclasses.replace(SMALL, num_layers=4, experts=EXPERTS)


@pytest.mark.parametrize(
    ("dense", "windows", "layout"),
    [
        ((0,), (None,), Layout(1, 1, 3, 0)),
        ((0, 2), (None,), Layout(0, 2, 2, 0)),
        ((), (None, 4), Layout(0, 2, 2, 0)),
        ((3,), (None,), Layout(0, 1, 3, 1)),
        ((0, 1, 2, 3), (None,), Layout(0, 1, 4, 0)),
    ],
)
def test_layout_initial_weights_and_names(dense, windows, layout) -> None:
    experts = dataclasses.replace(EXPERTS, dense_layers=dense)
    cfg = dataclasses.replace(MODEL, experts=experts, attention_windows=windows)
    scanned, unrolled = ModelDef(cfg, scan_layout(cfg)), ModelDef(cfg, unrolled_layout(cfg))
    assert scanned.layout == layout
    draw = lambda definition: init_params(definition, jax.random.key(0))
    ours, theirs = draw(scanned), draw(unrolled)
    again = relayout(ours, scanned.layout, unrolled.layout)
    jax.tree.map(np.testing.assert_array_equal, again, theirs)
    named = flatten(theirs)
    assert {n: s.shape for n, s in expected(cfg).items()} == {n: w.shape for n, w in named.items()}
    for i in range(4):
        kinds = {name.split(".")[2] for name in named if name.startswith(f"layers.{i}.")}
        assert kinds & {"mlp", "moe"} == {"mlp" if i in dense else "moe"}
    if dense == (0,):  # no two experts, and no two layers, start alike
        up = np.asarray(ours["periods"]["0"]["moe"]["up"])
        assert len(np.unique(up[:, :, 0, 0])) == 18
        assert np.std(up) == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize("name", ["adafactor", "muon", "adamw"])
def test_each_expert_is_a_matrix_of_its_own(name: str) -> None:
    """Experts in one array are moved as the same weights in arrays of their own are."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    size = jnp.arange(1.0, 4)[None, :, None, None]
    weights, grads = draw(2, 3, 8, 5) * size, draw(2, 3, 8, 5) * size[:, ::-1]
    optimizer = build_optimizer(
        OptimConfig(name=name, warmup_steps=0, schedule="constant", clip_norm=None), 10
    )

    def moved(params, grads):
        state = optimizer.init(params)
        updates, _ = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates)

    stacked = lambda w: {"periods": {"0": {"moe": {"up": w}}}, "head": {"w": jnp.ones((2, 2))}}
    each = lambda w: {
        "prefix": {str(i): {"mlp": {"up": m}} for i, m in enumerate(w.reshape(6, 8, 5))},
        "head": {"w": jnp.ones((2, 2))},
    }
    found = moved(stacked(weights), stacked(grads))["periods"]["0"]["moe"]["up"].reshape(6, 8, 5)
    wanted = moved(each(weights), each(grads))["prefix"]
    assert jnp.abs(found - weights.reshape(6, 8, 5)).mean() > 1e-4
    for i in range(6):
        np.testing.assert_allclose(found[i], wanted[str(i)]["mlp"]["up"], rtol=SIMPLE, atol=1e-7)


def test_generates_what_the_forward_pass_says() -> None:
    model = small_model(MODEL)
    ids = [256, 72, 101, 108, 108, 111]
    wanted, margins = greedy_by_forward(model, ids, 8)
    assert min(margins) > 1e-3
    text = model.generate_text("Hello", max_length=8, temperature=0)
    assert text == model.tokenizer.decode(wanted)


def test_weights_survive_a_file_and_a_mesh(tmp_path) -> None:
    model = small_model(MODEL)
    model.save(tmp_path / "m")
    ids = np.random.default_rng(0).integers(0, 256, (2, 20))
    wanted = np.asarray(model.logits(ids.tolist()))
    again = load_model(tmp_path / "m")
    np.testing.assert_array_equal(again.logits(ids.tolist()), wanted)
    mesh = make_mesh(MeshConfig(data=1, tensor=2), jax.devices()[:2])
    split = load_model(tmp_path / "m", mesh=mesh)
    up = split._weights.params["prefix"]["1"]["moe"]["up"]
    assert up.sharding.shard_shape(up.shape) == (6, 48, 10)
    scale = np.abs(wanted).max()
    np.testing.assert_allclose(split.logits(ids.tolist()), wanted, atol=WHOLE_MODEL * scale)
    convert_files(open_model(tmp_path / "m"), tmp_path / "n")
    held, copied = (open_model(tmp_path / name).tensors for name in "mn")
    for name, tensor in held.items():
        np.testing.assert_array_equal(tensor.read(), copied[name].read())


def test_a_model_of_dense_layers_only_has_no_router() -> None:
    cfg = ModelConfig(16, 8, 2, num_heads=1, experts=Experts(4, 1, dense_layers=(0, 1)))
    assert not [name for name in expected(cfg) if "moe" in name]
