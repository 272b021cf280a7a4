"""Tokens of a sequence on several devices: the same numbers, on eight fake CPU devices."""

import dataclasses
import re

import jax
import pytest
from jax.sharding import PartitionSpec
from on_meshes import (
    BERT,
    CAUSAL,
    ONE,
    OPTIONS,
    QUICK,
    SMALL,
    B,
    T,
    assert_mesh_is_one_device,
    assert_same,
    assert_training_is_one_devices,
    batch,
    config,
    mesh_of,
    rows_of,
    three_steps,
    trainer_of,
)

from llmasos_jax.config.devices import KernelsConfig
from llmasos_jax.config.experts import Experts
from llmasos_jax.config.heads import Encoder
from llmasos_jax.config.model import ModelConfig
from llmasos_jax.config.precision import PrecisionConfig
from llmasos_jax.config.schema import Config, DataConfig, MeshConfig, TrainConfig
from llmasos_jax.errors import ConfigError
from llmasos_jax.parallel.manual import Manual
from llmasos_jax.parallel.mesh import make_mesh
from llmasos_jax.parallel.rules import training_rules
from llmasos_jax.plan.hlo import read_program
from llmasos_jax.train.batches import batch_specs
from llmasos_jax.train.objective import TOKENS
from llmasos_jax.train.step import make_trainer

EXCHANGES = ("all_to_all", "ring")
MODELS = {
    "options": OPTIONS.replace(num_heads=8, attention_windows=(5, None)),
    "alibi": SMALL.replace(position="alibi", num_kv_heads=2, block="parallel"),
    # The balance of experts is over all tokens, on whatever devices.
    "learned": SMALL.replace(
        position="learned", tie_embeddings=False, experts=Experts(4, 2, dense_layers=(0,))
    ),
    "relative": SMALL.replace(position="relative", prefix_lm=True),
    "bert": BERT,
}
OBJECTIVES = {"bert": "mlm_nsp", "relative": "prefix_lm"}


def run_of(model: str, mesh: MeshConfig, **train: object) -> Config:
    objective = dataclasses.replace(CAUSAL, name=OBJECTIVES.get(model, "causal"))
    return config(MODELS[model], mesh, objective=objective, **train)


def manual(exchange: str, data: int = 1, context: int = 4, tensor: int = 1) -> Manual:
    mesh = mesh_of(MeshConfig(data=data, context=context, tensor=tensor))
    return Manual(mesh, training_rules(mesh), exchange)


CASES = [
    ("options", MeshConfig(data=1, context=4, tensor=2)),
    ("options", MeshConfig(fsdp=(2,), context=2, tensor=2, context_exchange="ring")),
    ("alibi", MeshConfig(fsdp=(2,), context=4, context_exchange="ring")),
    ("learned", MeshConfig(data=2, context=2, context_exchange="ring")),
    ("relative", MeshConfig(data=1, context=2, tensor=2)),
    ("relative", MeshConfig(data=1, context=4, context_exchange="ring")),
    ("bert", MeshConfig(fsdp=(2,), context=4)),
    ("bert", MeshConfig(data=2, context=2, tensor=2, context_exchange="ring")),
]


@pytest.mark.parametrize(("model", "mesh"), CASES)
def test_loss_and_gradients_do_not_depend_on_who_has_the_tokens(model, mesh):
    assert_mesh_is_one_device(run_of(model, mesh))


def test_a_ring_that_is_kept_goes_round_once():
    mesh = MeshConfig(data=1, context=4, context_exchange="ring")

    def moves(**train):
        trainer = trainer_of(run_of("alibi", mesh, **train))
        args = (trainer.abstract_state.params, trainer.abstract_batch, jax.random.key(0))
        return str(jax.make_jaxpr(trainer.loss_and_grad)(*args)).count("ppermute[")

    # Three turns of keys and values; back with their gradients, which then go home.
    kept = moves(remat="tags", remat_save=("q", "k", "v", "attention"))
    assert kept == 3 * 2 + 3 * 4 + 2
    assert moves(remat="full") == kept + 3 * 2


def test_three_steps_and_an_evaluation_do_not_depend_on_who_has_the_tokens():
    cfg = run_of("alibi", MeshConfig(fsdp=(2,), context=2, tensor=2))
    split, whole = assert_training_is_one_devices(cfg), three_steps(run_of("alibi", ONE))
    sums = []
    for found in (split, whole):
        trainer, params = found.trainer, found.state.params
        evaluate = trainer.evaluate.lower(params, trainer.abstract_batch)
        evaluate = evaluate.compile(compiler_options=QUICK)
        sums.append(jax.device_get(evaluate(params, trainer.put(rows_of(cfg)))))
    assert_same(*sums)
    tokens = split.trainer.put(rows_of(cfg)).tokens
    assert tokens.sharding == split.trainer.abstract_batch.tokens.sharding
    assert tokens.sharding.shard_shape((B, T)) == (B // 2, T // 2)


def test_what_has_no_axis_of_tokens_is_whole():
    specs = batch_specs(
        batch("mlm_nsp"),
        trainer_of(run_of("bert", ONE)).objective.token_fields,
        manual("ring", data=2),
    )
    cut, whole = PartitionSpec(("data", "fsdp"), "context"), PartitionSpec(("data", "fsdp"))
    assert specs.tokens == specs.positions == specs.extra["token_types"] == cut
    assert specs.targets == specs.loss_weights == specs.extra["masked_positions"] == whole


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (TOKENS, "cuts batch.targets (16, 3) along its second axis"),
        (("token",), 'token_fields has "token", which no batch has'),
    ],
)
def test_wrong_token_fields_are_named(fields, words):
    with pytest.raises(ConfigError, match=re.escape(words)):
        batch_specs(batch("mlm_nsp"), fields, manual("ring", data=2))


@pytest.mark.parametrize(
    ("mesh", "changes", "words"),
    [
        ({"context": 8}, {}, "does not divide 4, model.num_heads=4 / mesh.tensor=1"),
        ({"context": 4, "tensor": 2}, {}, "does not divide 2, model.num_heads=4 / mesh.tensor=2"),
        ({"context": 2}, {"data": DataConfig(sequence_length=15)}, "sequence_length=15; make it"),
        (
            {"context": 2},
            {"model": SMALL.replace(encoder=Encoder(2))},
            "model.encoder.num_layers=2 makes two",
        ),
        (
            {"context": 2, "context_exchange": "ring"},
            {"model": SMALL.replace(attention="llmasos_jax.nn.kernels:dot_product")},
            'attention="llmasos_jax.nn.kernels:dot_product" is another one',
        ),
        (
            {"context": 2, "context_exchange": "ring"},
            {"kernels": KernelsConfig("reference")},
            'kernels.attention="reference" names a kernel',
        ),
        (
            {"context": 2, "context_exchange": "ring"},
            {"kernels": KernelsConfig(block_q=256)},
            "has no kernel whose blocks",
        ),
    ],
)
def test_what_is_not_computed_over_split_tokens_is_refused(mesh, changes, words):
    mesh = MeshConfig(data=1, **mesh)
    settings = {
        "model": SMALL,
        "data": DataConfig(sequence_length=T),
        "train": TrainConfig(batch_size=B),
    }
    with pytest.raises(ConfigError, match=re.escape(words)):
        make_trainer(Config(mesh=mesh, **settings | changes), mesh_of(mesh))


@pytest.mark.slow
@pytest.mark.parametrize("exchange", EXCHANGES)
def test_a_tpu_step_with_split_tokens_compiles(exchange, compiler):
    mesh_cfg = MeshConfig(data=1, context=2, tensor=2, context_exchange=exchange)
    cfg = Config(
        model=ModelConfig(
            1024, 256, 2, context_length=512, num_heads=4, num_kv_heads=2, head_dim=128, ffn_dim=512
        ),
        data=DataConfig(sequence_length=512),
        train=TrainConfig(batch_size=4, remat="full"),
        precision=PrecisionConfig("bfloat16"),
        mesh=mesh_cfg,
    )
    trainer = make_trainer(cfg, make_mesh(mesh_cfg, compiler("v5e:2x2")))
    lowered = trainer.step.lower(trainer.abstract_state, trainer.abstract_batch)
    text = lowered.compile().as_text()
    splash = {name: runs for name, runs in read_program(text).kernels.items() if "splash" in name}
    if exchange == "ring":
        assert not splash and "collective-permute" in text
        return
    forward = sum(runs for name, runs in splash.items() if "fwd" in name)
    # Two layers, once more in the backward pass; then queries, and keys and values.
    assert forward == 4 and sum(splash.values()) - forward == 4
    assert "all-to-all" in text
