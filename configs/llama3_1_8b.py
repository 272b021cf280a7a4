"""llama3_1_8b: Llama-3.1 8B on a v6e pod; the variant is the topology, and rows a chip.

Paper:    Llama Team, 2024, arXiv 2407.21783, section 3.4: AdamW, 3e-4, cosine, 8,000 steps of
          warm-up, 8192 tokens a row, 15T tokens. Its batch grows from 4M to 16M tokens; here it is
          8M (v6e:16x16) or 16M (v6e:16x16-b8) from the start.
Data:     your own documents, a JSON object with a "text" each; tokenizer.path: Llama 3's own.
Plan:     llmasos plan --config=llama3_1_8b:v6e:16x16 --topology=v6e:16x16
Planned:  v6e:16x16: 16.4 of 31.25 GiB, at least 2.4 s a step of 8,388,608 tokens, MFU at most 77%;
          v6e:16x16-b8: 29.4 GiB, at least 4.8 s a step of 16,777,216 tokens, MFU at most 76%.
          (jax 0.10.2, libtpu 0.0.42.1; experiments/acceptance/compile_pods.json)
          Set LIBTPU_INIT_ARGS=--xla_tpu_scoped_vmem_limit_kib=98304, for plan and on the pod: by
          the compiler's own estimate the step takes 1.37 times the cycles without it.
          (jax 0.12.0.1, libtpu 0.0.52; experiments/benchmarks/tpu_vs_maxtext.json)
"""

from ml_collections import ConfigDict

from llmasos_jax.config.build import default_config
from llmasos_jax.config.variants import variant_of
from llmasos_jax.models import zoo

VARIANTS = {"v6e:16x16": 1024, "v6e:16x16-b8": 2048}


def get_config(variant: str = "") -> ConfigDict:
    """The published model, at the sequence length of most of its training."""
    batch = variant_of(variant, VARIANTS)
    config = default_config()
    config.name = "llama3_1_8b"
    config.model.update(zoo.values("llama-3.1-8b"))
    config.tokenizer.kind = "tokenizers"
    config.data.source = "jsonl"
    config.data.path = "text/*.jsonl"
    config.data.sequence_length = 8192
    config.mesh.fsdp = (16, 16)
    config.train.batch_size = batch
    config.train.steps = 15_000_000_000_000 // (8192 * batch)
    config.train.remat = "full"
    config.train.loss_chunk = 1024
    config.train.eval_every_steps = 2000
    config.precision.dtype = "bfloat16"
    config.optim.learning_rate = 3e-4
    config.optim.warmup_steps = 8000
    config.optim.final_fraction = 0.01
    config.checkpoint.every_steps = 1000
    return config
