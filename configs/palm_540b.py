"""palm_540b: PaLM 540B on a v4 pod; the variant is the topology.

Paper:    Chowdhery et al., 2022, arXiv 2204.02311, sections 2 and 5: Adafactor with parameter
          scaling, 1e-2 then 1/sqrt(step), z-loss 1e-4, batch 512 to 2048 rows of 2048 tokens, 780B
          tokens, on 6144 v4 chips.
          Not as published: cosine schedule, no parameter scaling, one batch size.
Data:     your own documents, a JSON object with a "text" each; tokenizer.path: PaLM's own.
Plan:     llmasos plan --config=palm_540b:v4:8x16x16 --topology=v4:8x16x16
Planned:  v4:8x16x16: 24.2 of 32 GiB, at least 29.6 s a step of 4,194,304 tokens, MFU at most 82%.
          (jax 0.10.2, libtpu 0.0.42.1; experiments/acceptance/compile_pods.json)
"""

from ml_collections import ConfigDict

from llmasos_jax.config.build import default_config
from llmasos_jax.config.variants import variant_of
from llmasos_jax.models import zoo

VARIANTS = {"v4:8x16x16": dict(fsdp=(8, 16, 16), tensor=1, batch=2048)}


def get_config(variant: str = "") -> ConfigDict:
    """The published model."""
    pod = variant_of(variant, VARIANTS)
    config = default_config()
    config.name = "palm_540b"
    config.model.update(zoo.values("palm-540b"))
    config.tokenizer.kind = "sentencepiece"
    config.data.source = "jsonl"
    config.data.path = "text/*.jsonl"
    config.data.sequence_length = 2048
    config.objective.z_loss = 1e-4
    config.mesh.fsdp = pod["fsdp"]
    config.mesh.tensor = pod["tensor"]
    config.train.batch_size = pod["batch"]
    config.train.steps = 780_000_000_000 // (2048 * pod["batch"])
    config.train.remat = "full"
    config.train.eval_every_steps = 2000
    config.precision.dtype = "bfloat16"
    config.optim.name = "adafactor"
    config.optim.learning_rate = 1e-2
    config.optim.warmup_steps = 10_000
    config.checkpoint.every_steps = 500
    return config
