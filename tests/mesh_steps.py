"""Three models and more than ten meshes: what `test_ten_meshes` and the full product both run."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import on_meshes
import optax
from on_meshes import BERT, ONE, OPTIONS, QUICK, SMALL, B, T, V

from llmasos_jax.config.experts import Experts
from llmasos_jax.config.schema import Config, MeshConfig, ObjectiveConfig, OptimConfig
from llmasos_jax.data.batch import Batch

M, STEPS = 8, 3
MESHES = {
    "data 8": MeshConfig(data=8),
    "fsdp 8": MeshConfig(data=1, fsdp=(8,)),
    "fsdp 2x4": MeshConfig(data=1, fsdp=(2, 4)),
    "tensor 8": MeshConfig(data=1, tensor=8),
    "expert 8": MeshConfig(data=1, expert=8),
    "context 8": MeshConfig(data=1, context=8),
    "context 8, ring": MeshConfig(data=1, context=8, context_exchange="ring"),
    "pipeline 4": MeshConfig(data=1, pipeline=4),
    "data 2, fsdp 2, tensor 2": MeshConfig(data=2, fsdp=(2,), tensor=2),
    "fsdp 2, context 2, tensor 2": MeshConfig(data=1, fsdp=(2,), context=2, tensor=2),
    "pipeline 2, fsdp 2, tensor 2": MeshConfig(data=1, pipeline=2, fsdp=(2,), tensor=2),
    "fsdp 2, expert 2, tensor 2": MeshConfig(data=1, fsdp=(2,), expert=2, tensor=2),
    "data 2, expert 2, context 2": MeshConfig(data=2, expert=2, context=2),
    "pipeline 2, expert 2, context 2": MeshConfig(data=1, pipeline=2, expert=2, context=2),
    "hsdp, 2 slices": MeshConfig(preset="hsdp", slices=2),
}
_WIDE = {"num_layers": 4, "num_heads": 8}
MODELS = {
    "decoder": (
        "causal",
        OPTIONS.replace(
            num_layers=8,
            num_heads=8,
            attention_windows=(5, None),
            norm_placement="sandwich",
            rope_theta_local=100.0,
            tie_embeddings=False,
            embedding_norm=True,
        ),
    ),
    "experts": (
        "causal",
        SMALL.replace(
            experts=Experts(
                *(8, 3, 16, (), "sigmoid", True, 1.8, True, 4, 2, "top2"), shared_ffn_dim=16
            ),
            **_WIDE,
        ),
    ),
    "bert": (
        "mlm_nsp",
        BERT.replace(qkv_bias=True, attention_out_bias=True, mlp_bias=True, **_WIDE),
    ),
}


def config(model: str, mesh: MeshConfig) -> Config:
    objective, parameters = MODELS[model]
    return on_meshes.config(
        parameters,
        mesh,
        objective=ObjectiveConfig(name=objective, z_loss=1e-3, router_balance=0.3, router_z=0.1),
        # An eps of the gradients' size: else Adam makes whole steps of rounding.
        optim=OptimConfig(warmup_steps=0, learning_rate=2e-3, eps=1e-3, schedule="constant"),
    )


@functools.cache
def batch(model: str, step: int) -> Batch:
    """Rows of several texts and padding, with weights that differ; two rows weigh nothing."""
    rng = np.random.default_rng(step)
    draw = lambda *shape: rng.integers(0, V, shape).astype(np.int32)
    segments = np.sort(rng.integers(1, 4, (B, T)), axis=1).astype(np.int32)
    segments[:, -2:] = 0
    positions = np.tile(np.arange(T, dtype=np.int32), (B, 1))
    weights, extra = rng.random((B, T)).astype(np.float32) * (segments > 0), {}
    if model == "bert":
        weights = rng.random((B, M)).astype(np.float32)
        extra = {
            "masked_positions": rng.integers(0, T - 2, (B, M)).astype(np.int32),
            "token_types": (segments == 2).astype(np.int32),
            "next_sentence": rng.integers(0, 2, B).astype(np.int32),
        }
    weights[4:6] = 0
    return Batch(draw(B, T), draw(*weights.shape), weights, segments, positions, extra)


def three_steps(model: str, mesh: MeshConfig) -> list:
    """Sums of the loss and the gradient of each step, on the host."""
    cfg = config(model, mesh)
    trainer = on_meshes.trainer_of(cfg)
    weights = jax.device_put(on_meshes.params(cfg.model), trainer.state_shardings.params)
    moments = jax.jit(trainer.optimizer.init, out_shardings=trainer.state_shardings.opt_state)

    def step(weights, opt_state, rows, key):
        sums, grads = trainer.loss_and_grad(weights, rows, key)
        grads = jax.tree.map(lambda g: g / jnp.maximum(sums.weight_sum, 1.0), grads)
        updates, opt_state = trainer.optimizer.update(grads, opt_state, weights)
        return optax.apply_updates(weights, updates), opt_state, sums, grads

    step = jax.jit(step, compiler_options=QUICK)
    opt_state, found = moments(weights), []
    for number in range(STEPS):
        rows = trainer.put(batch(model, number))
        weights, opt_state, sums, grads = step(weights, opt_state, rows, jax.random.key(number))
        found.append(jax.device_get((sums, grads)))
    return found


@functools.cache
def wanted(model: str) -> list:
    """The same on one device."""
    return three_steps(model, ONE)


def errors(found: list, expected: list) -> dict[str, float]:
    """The error of each step's sums and of each leaf of its gradient, relative to its norm."""
    result = {}
    for step, ((sums, grads), (wanted_sums, wanted)) in enumerate(
        zip(found, expected, strict=True), 1
    ):
        own = on_meshes.errors(sums, wanted_sums)
        own |= on_meshes.errors(grads, wanted, whole=float(optax.tree.norm(wanted)))
        result |= {f"step {step} {name}": error for name, error in own.items()}
    return result
