"""A text by weights that are being trained."""

from __future__ import annotations

from typing import Any

import jax

from llmasos_jax.config.schema import Config
from llmasos_jax.data.tokenizers.tokenizer import Tokenizer
from llmasos_jax.errors import ConfigError
from llmasos_jax.format.manifest import Generation, Manifest
from llmasos_jax.format.names import flatten
from llmasos_jax.format.tensorfile import stored
from llmasos_jax.format.training import decoder_start_id
from llmasos_jax.generate.model import Model
from llmasos_jax.generate.weights import Placing, place_tensors
from llmasos_jax.models.definition import file_def, relayout
from llmasos_jax.models.layout import scan_layout


def write_sample(config: Config, tokenizer: Tokenizer, params: Any) -> str:
    """Continues `config.sample.prompt` with weights that are being trained.

    Args:
      config: `model`, `sample` and `train.seed` are read.
      tokenizer: the run's.
      params: its weights in the scanned layout, on any mesh.

    Returns:
      The prompt and what follows.

    Raises:
      ConfigError: `config.sample.prompt` is not set.
    """
    sample = config.sample
    if sample.prompt is None:
        raise ConfigError("sample.prompt is None; set it to the text that is to be continued")

    definition = file_def(config.model)
    # To the host first: cutting the stacked layers apart there compiles nothing.
    tree = relayout(jax.device_get(params), scan_layout(config.model), definition.layout)
    tensors = {name: stored(array) for name, array in flatten(tree).items()}
    weights = place_tensors(Placing(definition, None), tensors, None)
    start_id = decoder_start_id(config.model, tokenizer)
    generation = Generation(decoder_start_id=start_id)
    model = Model(Manifest(config.name, config.model, generation=generation), weights, tokenizer)
    return model.generate_text(
        sample.prompt,
        sample.max_length,
        sample.temperature,
        seed=config.train.seed,
        echo=start_id is None,  # what an encoder-decoder writes does not go on with its prompt
    )
