"""llama2_7b: LLaMA-2 7B on a pod; the variant is the topology.

Paper:    Touvron et al., 2023, arXiv 2307.09288, section 2.2: AdamW (0.9, 0.95, 1e-5), cosine to a
          tenth, 2,000 steps of warm-up, decay 0.1, clipping 1.0, 3e-4, 4M tokens a step, 2T tokens.
          Rows of 2048 tokens here, half of the paper's; on 256 chips half of its batch.
Data:     your own documents, a JSON object with a "text" each; tokenizer.path: LLaMA's own.
Plan:     llmasos plan --config=llama2_7b:v5e:16x16 --topology=v5e:16x16     (and v5e:2x4)
Planned:  v5e:16x16: 10.0 of 16 GiB, at least 2.1 s a step of 2,097,152 tokens, MFU at most 83%.
          v5e:2x4: 14.3 of 15.75 GiB, at least 550 ms a step of 16,384 tokens, MFU at most 78%; one
          FSDP axis, since gathers in two stages write to memory twice.
          (jax 0.10.2, libtpu 0.0.42.1; experiments/acceptance/compile_pods.json)
"""

from ml_collections import ConfigDict

from llmasos_jax.config.build import default_config
from llmasos_jax.config.variants import variant_of
from llmasos_jax.models import zoo

VARIANTS = {
    "v5e:16x16": dict(fsdp=(16, 16), batch=1024, save=("q", "k", "v")),
    "v5e:2x4": dict(fsdp=(8,), batch=8, save=()),
}


def get_config(variant: str = "") -> ConfigDict:
    """The published model; what is kept for the backward pass follows the memory of the chip."""
    pod = variant_of(variant, VARIANTS)
    config = default_config()
    config.name = "llama2_7b"
    config.model.update(zoo.values("llama-2-7b"))
    config.tokenizer.kind = "sentencepiece"
    config.data.source = "jsonl"
    config.data.path = "text/*.jsonl"
    config.data.sequence_length = 2048
    config.mesh.fsdp = pod["fsdp"]
    config.train.batch_size = pod["batch"]
    config.train.steps = 2_000_000_000_000 // (2048 * pod["batch"])
    config.train.remat = "tags" if pod["save"] else "full"
    config.train.remat_save = pod["save"]
    config.train.eval_every_steps = 2000
    config.precision.dtype = "bfloat16"
    config.optim.learning_rate = 3e-4
    config.optim.warmup_steps = 2000
    config.optim.eps = 1e-5
    config.checkpoint.every_steps = 1000
    return config
