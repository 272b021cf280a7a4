"""llama2_70b: LLaMA-2 70B on a v5p pod; the variant is the topology.

Paper:    Touvron et al., 2023, arXiv 2307.09288, section 2.2: AdamW (0.9, 0.95, 1e-5), cosine to a
          tenth, 2,000 steps of warm-up, decay 0.1, clipping 1.0, 1.5e-4, 4096 tokens a row, 4M
          tokens a step, 2T tokens.
Data:     your own documents, a JSON object with a "text" each; tokenizer.path: LLaMA's own.
Plan:     llmasos plan --config=llama2_70b:v5p:8x8x8 --topology=v5p:8x8x8     (and v5p:4x4x4)
Planned:  v5p:4x4x4: 31.9 of 95 GiB, at least 9.7 s a step of 524,288 tokens, MFU at most 79%.
          v5p:8x8x8: 17.5 of 95 GiB, at least 9.7 s a step of 4,194,304 tokens, MFU at most 79%.
          (jax 0.10.2, libtpu 0.0.42.1; experiments/acceptance/compile_pods.json)
"""

from ml_collections import ConfigDict

from llmasos_jax.config.build import default_config
from llmasos_jax.config.variants import variant_of
from llmasos_jax.models import zoo

VARIANTS = {
    "v5p:8x8x8": dict(fsdp=(8, 8, 8), batch=1024),
    "v5p:4x4x4": dict(fsdp=(4, 4, 4), batch=128),
}


def get_config(variant: str = "") -> ConfigDict:
    """The published model; two rows of 4096 tokens a chip."""
    pod = variant_of(variant, VARIANTS)
    config = default_config()
    config.name = "llama2_70b"
    config.model.update(zoo.values("llama-2-70b"))
    config.tokenizer.kind = "sentencepiece"
    config.data.source = "jsonl"
    config.data.path = "text/*.jsonl"
    config.data.sequence_length = 4096
    config.mesh.fsdp = pod["fsdp"]
    config.train.batch_size = pod["batch"]
    config.train.steps = 2_000_000_000_000 // (4096 * pod["batch"])
    config.train.remat = "full"
    config.train.eval_every_steps = 2000
    config.precision.dtype = "bfloat16"
    config.optim.learning_rate = 1.5e-4
    config.optim.warmup_steps = 2000
    config.optim.eps = 1e-5
    config.checkpoint.every_steps = 500
    return config
