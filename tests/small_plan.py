"""A small training step for four chips, for tests of `plan`."""

import functools

import jax

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.config.precision import PrecisionConfig
from llmasos_jax.config.schema import Config, DataConfig, MeshConfig, TrainConfig
from llmasos_jax.plan.chips import parse_topology

TOPOLOGY = parse_topology("v5e:2x2")


def small(**train) -> Config:
    return Config(
        model=ModelConfig(
            512, 1024, 2, num_heads=8, ffn_dim=4096, context_length=256, tie_embeddings=False
        ),
        data=DataConfig(sequence_length=256),
        train=TrainConfig(**{"batch_size": 8, "remat": "none", **train}),
        precision=PrecisionConfig("bfloat16"),
        mesh=MeshConfig(fsdp=(2, 2)),
    )


@functools.cache
def compiled():
    """The small step compiled for four chips, once for all tests."""
    from llmasos_jax.parallel.mesh import make_mesh
    from llmasos_jax.plan.compile import known_before, read_compiled
    from llmasos_jax.plan.pod import pod_devices
    from llmasos_jax.train.step import make_trainer

    cfg = small()
    trainer = make_trainer(cfg, make_mesh(cfg.mesh, pod_devices(TOPOLOGY)))
    lowered = trainer.step.lower(trainer.abstract_state, trainer.abstract_batch)
    seconds = jax.config.jax_persistent_cache_min_compile_time_secs
    # What is compiled for devices that are not here cannot be read back from the cache.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1e9)
    program = lowered.compile()
    jax.config.update("jax_persistent_cache_min_compile_time_secs", seconds)
    return cfg, program, read_compiled(known_before(trainer, {}), trainer, program, 0.0)
