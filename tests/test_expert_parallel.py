"""Experts on several devices: tokens go to them and come back, and the numbers stay the same."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from on_meshes import SMALL, assert_mesh_is_one_device, config, rows_of, trainer_of

from llmasos_jax.config.experts import Experts
from llmasos_jax.config.schema import MeshConfig
from llmasos_jax.errors import ConfigError
from llmasos_jax.nn.experts import assign, dot_experts

MESHES = {
    "expert 4": MeshConfig(data=1, expert=4),
    "expert 8": MeshConfig(data=1, expert=8),
    "fsdp 2, expert 4": MeshConfig(data=1, fsdp=(2,), expert=4),
    "data 2, expert 2, tensor 2": MeshConfig(data=2, expert=2, tensor=2),
    "fsdp 2, expert 2, tensor 2": MeshConfig(data=1, fsdp=(2,), expert=2, tensor=2),
    "expert 2, context 2": MeshConfig(data=1, expert=2, context=2),
}
MODELS = {
    "mixtral": SMALL.replace(experts=Experts(8, 2, 16, router="softmax_chosen")),
    "six": SMALL.replace(experts=Experts(6, 2, 16)),
    # A dense layer first, then experts in groups beside a shared one (DeepSeek-V3).
    "deepseek": SMALL.replace(
        num_layers=3,
        experts=Experts(
            *(8, 3, 16, (0,), "sigmoid", True, 1.8, True, 4, 2, "top2"), shared_ffn_dim=16
        ),
    ),
}


CASES = [
    ("mixtral", "expert 8", 0.8),
    ("mixtral", "fsdp 2, expert 4", None),
    ("mixtral", "expert 2, context 2", 0.8),
    ("mixtral", "data 2, expert 2, tensor 2", None),
    ("deepseek", "fsdp 2, expert 2, tensor 2", 0.5),
]


@pytest.mark.parametrize(("model", "mesh", "capacity"), CASES)
def test_loss_and_gradients_are_one_devices(model, mesh, capacity):
    train = {} if capacity is None else {"expert_capacity": capacity}
    sums = assert_mesh_is_one_device(config(MODELS[model], MESHES[mesh], **train))
    drops = sums.extra["expert_drops"] / sums.weight_sum
    assert drops == 0 if capacity is None else 0.02 < drops < 0.7


def traced(mesh: MeshConfig, **train: object) -> str:
    cfg = config(MODELS["mixtral"], mesh, **train)
    trainer = trainer_of(cfg)
    args = (trainer.abstract_state.params, rows_of(cfg), jax.random.key(0))
    return str(jax.make_jaxpr(trainer.loss_and_grad)(*args))


def test_experts_stay_and_tokens_go():
    whole, limited = (traced(MESHES["expert 8"], **train) for train in ({}, {"expert_capacity": 1}))
    # Two rows on a device, one expert: all 32 tokens may go there, or 2 x 16 x 2 / 8 of them.
    sent = lambda text: set(re.findall(r"f32\[8,(\d+),32\] = all_to_all", text))
    assert sent(whole) == {"32"} and sent(limited) == {"8"}
    # An expert is never gathered: weights [8, 32, 16] are nowhere but cut up outside.
    gathered = re.findall(r"f32\[([\d,]+)\] = all_gather", whole)
    assert gathered and all(len(shape.split(",")) < 3 or shape[:2] != "8," for shape in gathered)


def test_experts_that_are_not_cut_into_equal_parts_are_named():
    words = "axis \"experts\" has size 6, which mesh axis 'expert' does not cut into 4 equal parts"
    with pytest.raises(ConfigError, match=re.escape(words)):
        trainer_of(config(MODELS["six"], MESHES["expert 4"]))


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_choices_of_none_are_no_rows(platform):
    rng = np.random.default_rng(3)
    chosen = rng.integers(0, 7, (90, 2)).astype(np.int32)
    chosen = np.where(chosen >= 4, 4, chosen)  # 4 is none of the four
    num = int((chosen < 4).sum())
    made = assign(jnp.asarray(chosen), 4, platform, most=num)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    x, w = draw(90, 5), draw(4, 5, 3)

    def product(x, w):
        rows = made.rows_of(x)
        y = dot_experts(rows, w, made, out_dtype=jnp.float32, platform=platform)
        return made.choices_of(y)

    found, pull = jax.vjp(product, x, w)
    one_hot = (chosen[..., None] == np.arange(4)).astype(np.float32)
    np.testing.assert_allclose(found, np.einsum("ai,eio,ake->ako", x, w, one_hot), atol=1e-5)
    cotangent = draw(*found.shape)
    grad_x, grad_w = pull(cotangent)
    np.testing.assert_allclose(
        grad_x, np.einsum("ako,eio,ake->ai", cotangent, w, one_hot), atol=1e-4
    )
    np.testing.assert_allclose(
        grad_w, np.einsum("ako,ai,ake->eio", cotangent, x, one_hot), atol=1e-4
    )
    assert int((np.asarray(made.expert_g) == 4).sum()) > 0, "some blocks are empty"
