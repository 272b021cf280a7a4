"""gpt3_175b: GPT-3 175B on a pod; the variant is the topology.

Paper:    Brown et al., 2020, arXiv 2005.14165, table 2.1 and appendix B: Adam (0.9, 0.95, 1e-8),
          6e-5 with 375M tokens of warm-up and cosine to a tenth at 260B tokens, decay 0.1, clipping
          1.0, 2048 tokens a row, 3.2M tokens a step, 300B tokens.
          Not as published: the vocabulary of 50,257 is filled up to 50,304, so that a mesh can cut
          it; the batch does not grow from 32,000 tokens.
Data:     your own documents, a JSON object with a "text" each; tokenizer.path: GPT-2's own.
Plan:     llmasos plan --config=gpt3_175b:v5p:4x4x4 --topology=v5p:4x4x4     (and v5e:16x16)
Planned:  v5e:16x16: 14.6 of 16 GiB, at least 14.1 s a step of 524,288 tokens, MFU at most 78%;
          v5p:4x4x4: 56.0 of 95 GiB, at least 12.1 s a step of 262,144 tokens, MFU at most 78%.
          (jax 0.10.2, libtpu 0.0.42.1; experiments/acceptance/compile_pods.json)
"""

from ml_collections import ConfigDict

from llmasos_jax.config.build import default_config
from llmasos_jax.config.variants import variant_of
from llmasos_jax.models import zoo

VARIANTS = {
    "v5p:4x4x4": dict(fsdp=(4, 4, 4), tensor=1, batch=128, parts=1, moments="float32"),
    "v5e:16x16": dict(fsdp=(16, 4), tensor=4, batch=256, parts=4, moments="int8"),
}


def get_config(variant: str = "") -> ConfigDict:
    """The published model."""
    pod = variant_of(variant, VARIANTS)
    config = default_config()
    config.name = "gpt3_175b"
    config.model.update(zoo.values("gpt3-175b"))
    config.model.vocab_size = 50304
    config.tokenizer.kind = "tokenizers"
    config.data.source = "jsonl"
    config.data.path = "text/*.jsonl"
    config.data.sequence_length = 2048
    config.mesh.fsdp = pod["fsdp"]
    config.mesh.tensor = pod["tensor"]
    config.train.batch_size = pod["batch"]
    config.train.accumulate_steps = pod["parts"]
    config.train.steps = 300_000_000_000 // (2048 * pod["batch"])
    config.train.remat = "full"
    config.train.eval_every_steps = 2000
    config.precision.dtype = "bfloat16"
    config.precision.moments = pod["moments"]
    config.optim.learning_rate = 6e-5
    config.optim.warmup_steps = 375_000_000 // (2048 * pod["batch"])
    config.checkpoint.every_steps = 500
    return config
