"""Three models and more than ten meshes: what `test_ten_meshes` and the full product both run."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax

from llmasos_jax.config.experts import Experts
from llmasos_jax.config.model import ModelConfig
from llmasos_jax.config.schema import (
    Config,
    DataConfig,
    MeshConfig,
    ObjectiveConfig,
    OptimConfig,
    TrainConfig,
)
from llmasos_jax.data.batch import Batch
from llmasos_jax.parallel.mesh import make_mesh
from llmasos_jax.train.step import Trainer, make_trainer

B, T, M, V, STEPS = 16, 16, 8, 64, 3
ONE = MeshConfig(data=1)
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
_SMALL = ModelConfig(V, 32, 4, context_length=T, num_heads=8, ffn_dim=32)
MODELS = {
    "decoder": (
        "causal",
        _SMALL.replace(
            num_layers=8,
            num_kv_heads=2,
            attention_windows=(5, None),
            attention_soft_cap=20.0,
            qk_norm="head",
            qkv_bias=True,
            attention_out_bias=True,
            mlp_bias=True,
            norm="layernorm",
            norm_placement="sandwich",
            logit_soft_cap=30.0,
            rope_theta_local=100.0,
            tie_embeddings=False,
            embedding_norm=True,
        ),
    ),
    "experts": (
        "causal",
        _SMALL.replace(
            experts=Experts(
                *(8, 3, 16, (), "sigmoid", True, 1.8, True, 4, 2, "top2"), shared_ffn_dim=16
            )
        ),
    ),
    "bert": (
        "mlm_nsp",
        _SMALL.replace(
            causal=False,
            norm="layernorm",
            norm_placement="post",
            final_norm=False,
            embedding_norm=True,
            token_types=2,
            position="learned",
            qkv_bias=True,
            attention_out_bias=True,
            mlp="gelu",
            mlp_bias=True,
            head="mlm",
            pooler=True,
            next_sentence=True,
        ),
    ),
}


def trainer_for(model: str, mesh: MeshConfig) -> Trainer:
    objective, parameters = MODELS[model]
    cfg = Config(
        model=parameters,
        data=DataConfig(sequence_length=T),
        objective=ObjectiveConfig(name=objective, z_loss=1e-3, router_balance=0.3, router_z=0.1),
        # An eps of the gradients' size: else Adam makes whole steps of rounding.
        optim=OptimConfig(warmup_steps=0, learning_rate=2e-3, eps=1e-3, schedule="constant"),
        train=TrainConfig(batch_size=B, steps=10, dropout_rate=0.1),
        mesh=mesh,
    )
    sizes = (mesh.data or 1, *mesh.fsdp, mesh.tensor, mesh.expert, mesh.context, mesh.pipeline)
    count = math.prod(sizes) if mesh.preset is None else 8
    trainer = make_trainer(cfg, make_mesh(mesh, jax.devices()[:count]))
    # Scanned layers compile faster than written out ones.
    runtime = dataclasses.replace(trainer.runtime, max_unrolled=1)
    return dataclasses.replace(trainer, runtime=runtime)


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


@functools.cache
def params(model: str):
    """Weights with no two alike and none zero, biases and scales included."""
    rng = np.random.default_rng(1)
    draw = lambda leaf: rng.normal(size=leaf.shape).astype(np.float32) * 0.3
    return jax.tree.map(draw, trainer_for(model, ONE).definition.shapes)


def three_steps(model: str, mesh: MeshConfig) -> list:
    """Sums of the loss and the gradient of each step, on the host."""
    trainer = trainer_for(model, mesh)
    weights = jax.device_put(params(model), trainer.state_shardings.params)
    moments = jax.jit(trainer.optimizer.init, out_shardings=trainer.state_shardings.opt_state)

    def step(weights, opt_state, rows, key):
        sums, grads = trainer.loss_and_grad(weights, rows, key)
        grads = jax.tree.map(lambda g: g / jnp.maximum(sums.weight_sum, 1.0), grads)
        updates, opt_state = trainer.optimizer.update(grads, opt_state, weights)
        return optax.apply_updates(weights, updates), opt_state, sums, grads

    quick = {"xla_backend_optimization_level": 0}
    step = jax.jit(step, compiler_options=quick)
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
    """The error of each sum and each gradient's leaf, relative to its norm.

    A leaf that is zero but for rounding (the bias of keys, to which a softmax is blind) is compared
    with the norm of the whole gradient.
    """
    errors = {}
    for step, (one, other) in enumerate(zip(found, expected, strict=True)):
        whole = float(optax.tree.norm(other[1]))
        for (path, a), b in zip(
            jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(other), strict=True
        ):
            norm = np.linalg.norm(b)
            scale = norm if norm > 1e-5 * whole or path[0].idx == 0 else whole
            name = f"step {step + 1} {jax.tree_util.keystr(path)}"
            errors[name] = float(np.linalg.norm(a - b) / max(scale, 1e-30))
    return errors
