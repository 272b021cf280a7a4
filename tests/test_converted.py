"""A trained checkpoint and the model converted from it, compared in a process of its own."""

import json

import pytest
from commands import llmasos, run
from tolerances import SIMPLE

pytestmark = pytest.mark.slow

# Restores the checkpoint as training would, opens the model as a user would, and compares.
COMPARE = """
import json
from pathlib import Path
import jax, numpy as np
import llmasos
from llmasos_jax.checkpoint.orbax import Checkpointer
from llmasos_jax.config.build import load_config
from llmasos_jax.format.names import flatten
from llmasos_jax.format.read import read_model
from llmasos_jax.models.definition import file_def, relayout
from llmasos_jax.nn.runtime import Runtime
from llmasos_jax.parallel.mesh import make_mesh
from llmasos_jax.train.step import make_trainer

config = load_config("run/config.json")
trainer = make_trainer(config, make_mesh(config.mesh))
trained = Checkpointer(Path("run/checkpoints")).restore(trainer.abstract_state).state.params
definition, runtime = file_def(config.model), Runtime()
unrolled = relayout(trained, trainer.definition.layout, definition.layout)
files = read_model("model")
tensors = flatten(unrolled)
bits = lambda array: np.asarray(array).tobytes()
different = [n for n, t in files.tensors.items() if bits(t.read()) != bits(tensors[n])]

tokens = np.random.default_rng(0).integers(0, 256, (3, 48)).astype(np.int32)

def forward(definition):
    def logits(params, tokens):
        model = definition.bind(params)
        return model.logits(model.hidden(tokens, runtime=runtime).x_btd, runtime)
    return jax.jit(logits)

one = forward(definition)
of_checkpoint = np.asarray(one(unrolled, tokens))
of_model = np.asarray(one(files.params(), tokens))
training_driver = np.asarray(forward(trainer.definition)(trained, tokens))
decoding_driver = llmasos.load_model("model").logits(tokens)
print(json.dumps({
    "tensors": len(files.tensors),
    "different": different + sorted(set(tensors) ^ set(files.tensors)),
    "same_bits": of_checkpoint.tobytes() == of_model.tobytes(),
    "drivers": float(np.abs(training_driver - decoding_driver).max()),
    "deviation": float(of_model.std()),
}))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    home = tmp_path_factory.mktemp("converted")
    llmasos("train", "--config=tiny", "--workdir=run", "--config.model.num_layers=3", home=home)
    llmasos("convert", "run", "model", home=home)
    return json.loads(run("-c", COMPARE, home=home).stdout)


def test_every_tensor_has_the_bits_that_were_trained(found):
    assert found["tensors"] == 2 + 3 * 9
    assert found["different"] == []


def test_logits_through_one_compiled_forward_have_the_same_bits(found):
    assert found["same_bits"]
    assert found["deviation"] > 0.5, "logits that are all alike would prove nothing"


def test_the_training_and_the_decoding_driver_agree(found):
    assert found["drivers"] <= SIMPLE
