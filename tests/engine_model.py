"""A tiny model and its engine, compiled once for all tests of a process."""

import functools
import random

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.engine.engine import Engine
from llmasos_jax.engine.options import EngineOptions
from llmasos_jax.engine.request import Ask
from llmasos_jax.format.manifest import Manifest
from llmasos_jax.generate.load import init_model
from llmasos_jax.generate.sampling import Sampling

CFG = ModelConfig(264, 64, 2, num_heads=4, num_kv_heads=2, context_length=192)
MANIFEST = Manifest("tiny", CFG, tokenizer={"kind": "bytes"})
OPTIONS = EngineOptions(batch_sizes=(1, 4), num_pages=60, page_size=16)


@functools.cache
def model():
    return init_model(MANIFEST, seed=3)


@functools.cache
def engine():
    started = Engine(model(), OPTIONS)
    started.warm_up()
    return started


def random_ask(seed, **more):
    """Any prompt, any options; the same for one seed."""
    rng = random.Random(seed)
    length = rng.choice([1, 2, 15, 16, 17, 31, 33, 64, 100])
    sampling = Sampling(
        temperature=rng.choice([0.0, 0.7, 1.3]),
        top_k=rng.choice([None, None, 5]),
        top_p=rng.choice([None, None, 0.8]),
        repetition_penalty=rng.choice([1.0, 1.0, 1.3]),
        typical_p=rng.choice([None, None, 0.9]),
        presence_penalty=rng.choice([0.0, 0.0, 0.5]),
        frequency_penalty=rng.choice([0.0, 0.0, -0.5]),
        logit_bias=rng.choice([(), (), ((101, 3.0), (32, -100.0))]),
        seed=rng.randrange(2**32),
        index=rng.choice([0, 3]),
    )
    ids = tuple(rng.randrange(97, 123) for _ in range(length))
    return Ask(ids, rng.randrange(1, 50), sampling, **more)
