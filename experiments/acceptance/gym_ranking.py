"""Ranks SmolLM2-135M, a tiny model and a uniform one by the next tokens that they know.

    python experiments/acceptance/gym_ranking.py MODEL

MODEL is SmolLM2's folder or file, or its name where it can be had. The texts are the documentation
that every Python carries (pydoc): the tiny model, which has SmolLM2's tokenizer, is trained on four
fifths of its topics here, and all three read pieces of the last fifth. Writes gym_ranking.json
beside itself; the run is repeated, and must be the same.
"""

import functools
import json
import sys
import time
from pathlib import Path
from pydoc_data.topics import topics

import jax
import jax.numpy as jnp
import numpy as np
import optax

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.evals.gym.agents import ChanceAgent, TokenAgent
from llmasos_jax.evals.gym.compare import compare
from llmasos_jax.evals.gym.next_token import NextTokenEnv
from llmasos_jax.format.manifest import Manifest
from llmasos_jax.format.names import flatten
from llmasos_jax.format.tensorfile import stored
from llmasos_jax.generate.load import load_model
from llmasos_jax.generate.model import Model
from llmasos_jax.generate.weights import Placing, place_tensors
from llmasos_jax.models.definition import file_def, init_params
from llmasos_jax.nn.runtime import Runtime

SEEDS, CONTEXT, HORIZON = range(16), 16, 16
STEPS, BATCH, LENGTH = 200, 16, 32


def tiny(teacher: Model, texts: list[str]) -> tuple[Model, float]:
    """One layer of width 48, trained on the texts; and its last loss, nats per token."""
    cfg = ModelConfig(teacher.config.vocab_size, 48, 1, context_length=64, num_heads=2)
    definition, rng = file_def(cfg), np.random.default_rng(0)
    ids = np.concatenate([teacher.encode(text) for text in texts])
    optimizer = optax.adam(3e-3)

    def loss(params: dict, tokens_bt: jax.Array) -> jax.Array:
        model, runtime = definition.bind(params), Runtime()
        x_btd = model.hidden(tokens_bt[:, :-1], runtime=runtime).x_btd
        logits_btv = model.logits(x_btd, runtime)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits_btv, tokens_bt[:, 1:])
        return losses.mean()

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params: dict, state: tuple, tokens_bt: jax.Array) -> tuple:
        value, grads = jax.value_and_grad(loss)(params, tokens_bt)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state, value

    params = init_params(definition, jax.random.key(0))
    state, value = optimizer.init(params), 0.0
    for _ in range(STEPS):
        starts = rng.integers(0, len(ids) - LENGTH - 1, BATCH)
        rows = jnp.array(ids[starts[:, None] + np.arange(LENGTH + 1)])
        params, state, value = step(params, state, rows)
    tensors = {name: stored(np.asarray(array)) for name, array in flatten(params).items()}
    weights = place_tensors(Placing(definition, None), tensors, None)
    return Model(Manifest("tiny", cfg), weights, teacher.tokenizer), float(value)


def main(source: str) -> None:
    """Trains, compares twice, writes."""
    start = time.perf_counter()
    big = load_model(source)
    names = sorted(topics)
    held = names[::5]
    small, loss = tiny(big, [topics[name] for name in names if name not in held])
    make = lambda: NextTokenEnv(
        [topics[name] for name in held], model=big, context=CONTEXT, horizon=HORIZON
    )
    agents = {"uniform": ChanceAgent(), "tiny": TokenAgent(small), "smollm2": TokenAgent(big)}
    found = compare(agents, make, SEEDS)
    again = compare(agents, make, SEEDS)
    same = all((found.returns[name] == again.returns[name]).all() for name in agents)
    answer = {
        "ranking": found.ranking,
        "right": found.ranking == ("smollm2", "tiny", "uniform"),
        "two_runs_are_the_same": same,
        "mean_tokens_right_of": HORIZON,
        "means": {name: str(found.means[name]) for name in found.ranking},
        "ahead_of_the_next": [str(step) for step in found.steps],
        "tiny_last_loss": loss,
        "seeds": len(SEEDS),
        "seconds": round(time.perf_counter() - start, 1),
    }
    text = json.dumps(answer, indent=2) + "\n"
    Path(__file__).with_suffix(".json").write_text(text, encoding="utf-8")
    print(text, end="")
    sys.exit(0 if answer["right"] and same else 1)


if __name__ == "__main__":
    main(sys.argv[1])
