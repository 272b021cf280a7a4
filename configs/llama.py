"""llama: trains a preset of the model zoo on text, from its tiny twin to the published size.

Paper:    Touvron et al., 2023, arXiv 2302.13971 (table 2 and section 2.3: optimizer, batch).
Purpose:  how a config starts from a preset; the plan of a real run.
Command:  llmasos train --config=llama --workdir=runs/llama          (the tiny twin, on a laptop)
          llmasos train --config=llama:7b --workdir=runs/llama-7b    (256 chips, your own data)
          Any preset `llama-X` is a variant: llama:13b, llama:3.2-1b.
Run time: the tiny twin 20 seconds on 2 CPU cores. 7B as in the paper: 250,000 steps of 4 million
          tokens (1T).
Expected: tiny: the loss falls from 5.6 to 2.5 nats on the bytes of Python source, held-out
          perplexity 17 (bigram counts: 16.7). 7B was not run here.
"""

from ml_collections import ConfigDict

from llmasos_jax.config.build import default_config
from llmasos_jax.models import zoo


def get_config(variant: str = "") -> ConfigDict:
    """The preset `llama-VARIANT` at full size; without a variant the tiny twin of `llama-7b`."""
    config = default_config()
    config.name = f"llama-{variant}" if variant else "llama"
    return _full(config, variant) if variant else _tiny(config)


def _tiny(config: ConfigDict) -> ConfigDict:
    config.model.update(zoo.values("llama-7b", tiny=True))
    config.tokenizer.kind = "bytes"
    config.data.sequence_length = 64
    config.data.max_documents = 50
    config.train.batch_size = 16
    config.train.steps = 100
    config.train.eval_every_steps = 50
    config.train.eval_batches = 2
    config.optim.learning_rate = 3e-3
    config.optim.warmup_steps = 10
    config.sample.prompt = "def "
    config.sample.max_length = 16
    return config


def _full(config: ConfigDict, variant: str) -> ConfigDict:
    config.model.update(zoo.values(f"llama-{variant}"))
    # A tokenizer of the model's vocabulary is trained on the data; tokenizer.path takes one.
    config.tokenizer.kind = "sentencepiece"
    config.data.sequence_length = min(2048, config.model.context_length)
    config.mesh.fsdp = (16, 16)
    config.train.batch_size = 2048
    config.train.steps = 250_000
    config.precision.dtype = "bfloat16"
    config.train.remat = "full"
    config.train.eval_every_steps = 2000
    config.optim.learning_rate = 3e-4
    config.optim.warmup_steps = 2000
    config.checkpoint.every_steps = 1000
    return config
