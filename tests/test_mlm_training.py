"""Training with masked tokens and pairs of sentences: the same loss everywhere, never [B, T, V]."""

import dataclasses
import functools
import math

import jax
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params
from tolerances import SIMPLE

from llmasos_jax.config.heads import Encoder
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
from llmasos_jax.errors import ConfigError
from llmasos_jax.nn.runtime import Runtime
from llmasos_jax.parallel.mesh import make_mesh
from llmasos_jax.train.objective import LossSum, Objective, Term, build_objective
from llmasos_jax.train.step import Trainer, make_trainer

B, T, M, V = 16, 32, 6, 97
ONE = MeshConfig(data=1)
MESHES = {
    "one": ONE,
    "data 8": MeshConfig(data=8),
    "fsdp 8": MeshConfig(fsdp=(8,)),
    "data 2, fsdp 2, tensor 2": MeshConfig(data=2, fsdp=(2,), tensor=2),
}
BERT = ModelConfig(
    # A multiple of the ways that a mesh cuts it.
    V + 7,
    32,
    2,
    context_length=T,
    num_heads=4,
    ffn_dim=64,
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
)
GPT = ModelConfig(V, 32, 2, context_length=T)
T5 = GPT.replace(encoder=Encoder(num_layers=2))
# Compiling is most of the time here, and tiny programs need no optimising.
QUICK = {"xla_backend_optimization_level": 0}


def config(model=BERT, name="mlm_nsp", mesh=ONE, **train) -> Config:
    return Config(
        model=model,
        data=DataConfig(sequence_length=T),
        objective=ObjectiveConfig(name=name),
        optim=OptimConfig(warmup_steps=0, learning_rate=1e-2, schedule="constant"),
        train=TrainConfig(**({"batch_size": B, "steps": 10, "dropout_rate": 0.1} | train)),
        mesh=mesh,
    )


def trainer_for(mesh: MeshConfig = ONE, **train) -> Trainer:
    num_devices = (mesh.data or 1) * int(np.prod(mesh.fsdp)) * mesh.tensor
    return make_trainer(config(mesh=mesh, **train), make_mesh(mesh, jax.devices()[:num_devices]))


@functools.cache
def batch(seed: int = 0) -> Batch:
    """Pairs with padding; rows have from 0 to M targets, and two rows are padding alone."""
    rng = np.random.default_rng(seed)
    length = rng.integers(T // 2, T + 1, B)
    length[[3, 12]] = 0
    index = np.arange(T, dtype=np.int32)
    segments = (index < length[:, None]).astype(np.int32)
    weights = (np.arange(M) < rng.integers(0, M + 1, (B, 1))) & (length[:, None] > 0)
    weights[0] = 0  # a device, or a part, may have nothing to predict
    places = rng.integers(0, np.maximum(length, 1)[:, None], (B, M)).astype(np.int32)
    return Batch(
        tokens=rng.integers(5, V, (B, T)).astype(np.int32) * segments,
        targets=rng.integers(5, V, (B, M)).astype(np.int32) * weights,
        loss_weights=weights.astype(np.float32),
        segment_ids=segments,
        positions=np.tile(index, (B, 1)),
        extra={
            "masked_positions": places * weights,
            "token_types": (index >= length[:, None] // 2).astype(np.int32) * segments,
            "next_sentence": rng.integers(0, 2, B).astype(np.int32),
        },
    )


def losses(mesh: MeshConfig, steps: int = 3, **train) -> list[dict[str, float]]:
    """What the first steps report."""
    trainer = trainer_for(mesh, **train)
    state, found = trainer.init(jax.random.key(0)), []
    step = jax.jit(trainer.next_state, donate_argnums=0, compiler_options=QUICK)
    for number in range(steps):
        state, metrics = step(state, trainer.put(batch(number)))
        metrics = jax.device_get(metrics)
        found.append({"loss": metrics.loss, "grad_norm": metrics.grad_norm} | metrics.extra)
    return [{name: float(value) for name, value in one.items()} for one in found]


@functools.cache
def expected():
    return losses(ONE)


@pytest.mark.parametrize(
    ("mesh", "parts"), [("data 8", 1), ("fsdp 8", 1), ("data 2, fsdp 2, tensor 2", 1), ("one", 2)]
)
def test_any_mesh_and_any_parts_have_the_same_losses(mesh, parts):
    found, wanted = losses(MESHES[mesh], accumulate_steps=parts), expected()
    for step, (one, other) in enumerate(zip(found, wanted, strict=True), 1):
        assert one == pytest.approx(other, rel=SIMPLE, abs=1e-7), f"step {step}"
    assert wanted[0]["loss"] != pytest.approx(wanted[2]["loss"], rel=1e-2)


def test_the_loss_is_the_mean_over_tokens_plus_the_mean_over_rows():
    trainer, rows = trainer_for(dropout_rate=0.0), batch()
    params = trainer.init(jax.random.key(0)).params
    model = trainer.definition.bind(params)
    hidden = model.hidden(
        rows.tokens,
        positions_bt=rows.positions,
        segment_ids_bt=rows.segment_ids,
        token_types_bt=rows.extra["token_types"],
        runtime=Runtime(),
    )
    # By a plain loop over all places, as one would write it down.
    scores = np.asarray(model.logits(hidden.x_btd, Runtime()), np.float64)
    pooled = model.pooled(hidden.x_btd, Runtime())
    pairs = np.asarray(model.next_sentence(pooled, Runtime()), np.float64)
    log_softmax = lambda x: x - np.log(np.exp(x).sum(-1, keepdims=True))
    token_losses, row_losses = [], []
    for b in range(B):
        for m in range(M):
            if rows.loss_weights[b, m]:
                at = log_softmax(scores[b, rows.extra["masked_positions"][b, m]])
                token_losses.append(-at[rows.targets[b, m]])
        if rows.segment_ids[b].any():
            row_losses.append(-log_softmax(pairs[b])[rows.extra["next_sentence"][b]])
    assert len(row_losses) == B - 2 and len(token_losses) == rows.loss_weights.sum()
    total = jax.device_get(trainer.evaluate(params, trainer.put(rows)))
    means = total.means()
    assert float(means["nll"]) == pytest.approx(np.mean(token_losses), rel=SIMPLE)
    assert float(means["nsp_loss"]) == pytest.approx(np.mean(row_losses), rel=SIMPLE)
    wanted = np.mean(token_losses) + np.mean(row_losses)
    assert float(means["loss"]) == pytest.approx(wanted, rel=SIMPLE)
    _, metrics = trainer.step(trainer.init(jax.random.key(0)), trainer.put(rows))
    assert float(metrics.loss) == pytest.approx(wanted, rel=SIMPLE)


def test_the_gradient_is_that_of_the_reported_loss():
    trainer, rows = trainer_for(accumulate_steps=2, dropout_rate=0.0), batch()
    params = trainer.init(jax.random.key(0)).params
    sums, grads = jax.jit(trainer.loss_and_grad, compiler_options=QUICK)(
        params, trainer.put(rows), jax.random.key(1)
    )
    loss = lambda p: trainer.objective.loss(
        trainer.definition.bind(p), rows, Runtime(), None
    ).means()["loss"]
    wanted = jax.jit(jax.grad(loss), compiler_options=QUICK)(params)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(wanted), strict=True
    ):
        error = np.linalg.norm(a / sums.weight_sum - b) / max(np.linalg.norm(b), 1e-6)
        assert error < SIMPLE, f"{jax.tree_util.keystr(path)}: {error:.2e}"


def test_no_array_of_scores_for_all_places():
    trainer = trainer_for()
    state, rows = trainer.abstract_state, jax.eval_shape(lambda: batch())
    program = jax.make_jaxpr(trainer.next_state)(state, rows)
    shapes = {tuple(aval.shape) for aval in _avals(program.jaxpr)}
    vocab = trainer.cfg.model.vocab_size
    assert (B, M, vocab) in shapes, "the walk sees the scores of the masked places"
    scores = [shape for shape in shapes if vocab in shape]
    assert max(math.prod(shape) for shape in scores) == B * M * vocab < B * T * vocab
    assert not [
        shape
        for shape in shapes
        if math.prod(shape) >= T * vocab and T in shape[1:-1] and shape[-1] >= vocab
    ]


def _avals(jaxpr):
    """Every array of a program, those inside loops, conditions and calls included."""
    for equation in jaxpr.eqns:
        yield from (v.aval for v in (*equation.invars, *equation.outvars) if hasattr(v, "aval"))
        for inner in jaxprs_in_params(equation.params):
            yield from _avals(inner)


@pytest.mark.parametrize(
    ("name", "model", "message"),
    [
        ("causal", BERT, "model.causal=False it would see"),
        ("causal", T5, "has no text for an encoder"),
        ("mlm", GPT, 'model.causal=True sees one; set model.causal=False, or .*"causal"'),
        ("causal", GPT.replace(prefix_lm=True), 'as model.prefix_lm=True .*"prefix_lm", or'),
        ("mlm", BERT, 'model.next_sentence=True; set .*"mlm_nsp", or model.next_sentence=False'),
        ("mlm", BERT.replace(head=None, next_sentence=False, pooler=False), "model.head=None"),
        ("mlm_nsp", BERT.replace(next_sentence=False), "model.next_sentence=False; set"),
        ("mlm_sop", BERT.replace(token_types=1), "model.token_types=1; set it to 2"),
        ("prefix_lm", GPT, "model.prefix_lm=False; set"),
        ("span_corruption", GPT, "needs an encoder, and model.encoder.num_layers=0"),
    ],
)
def test_a_model_that_does_not_go_with_the_objective(name, model, message):
    with pytest.raises(ConfigError, match=f'objective.name="{name}".*{message}'):
        build_objective(config(model, name))


def test_terms_and_their_weights_have_the_same_names():
    def loss(model, batch, runtime, dropout):
        one = batch.loss_weights.sum()
        return LossSum(one, one, one, terms={"nsp": Term(one, one)})

    trainer = trainer_for()
    wrong = Objective(prepare=trainer.objective.prepare, loss=loss)
    with pytest.raises(ConfigError, match=r"has the terms \['nsp'\], its term_weights \[\]"):
        jax.eval_shape(
            dataclasses.replace(trainer, objective=wrong).next_state,
            trainer.abstract_state,
            batch(),
        )
