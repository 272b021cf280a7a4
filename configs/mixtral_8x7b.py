"""mixtral_8x7b: Mixtral 8x7B on a v5p pod, its experts split; the variant is the topology.

Paper:    Jiang et al., 2024, arXiv 2401.04088, table 1. It does not say how the model was trained:
          optimizer and batch are those of LLaMA-2 70B.
Data:     your own documents, a JSON object with a "text" each; tokenizer.path: Mistral's own.
Plan:     llmasos plan --config=mixtral_8x7b:v5p:4x4x4 --topology=v5p:4x4x4
Planned:  v5p:4x4x4: 24.2 of 95 GiB, at least 4.8 s a step of 1,048,576 tokens, MFU at most 60%.
          (jax 0.10.2, libtpu 0.0.42.1; experiments/acceptance/compile_pods.json)
"""

from ml_collections import ConfigDict

from llmasos_jax.config.build import default_config
from llmasos_jax.config.variants import variant_of
from llmasos_jax.models import zoo

VARIANTS = {"v5p:4x4x4": dict(fsdp=(4, 4), expert=4, batch=256)}


def get_config(variant: str = "") -> ConfigDict:
    """The published model; each chip has two of the eight experts of a layer, in parts."""
    pod = variant_of(variant, VARIANTS)
    config = default_config()
    config.name = "mixtral_8x7b"
    config.model.update(zoo.values("mixtral-8x7b"))
    config.tokenizer.kind = "sentencepiece"
    config.data.source = "jsonl"
    config.data.path = "text/*.jsonl"
    config.data.sequence_length = 4096
    config.mesh.fsdp = pod["fsdp"]
    config.mesh.expert = pod["expert"]
    config.train.batch_size = pod["batch"]
    config.train.steps = 1_000_000_000_000 // (4096 * pod["batch"])
    # A quarter more than its even share of a row's tokens; what an expert would get beyond, at the
    # end of the row, is dropped.
    config.train.expert_capacity = 1.25
    config.train.remat = "full"
    config.train.eval_every_steps = 2000
    config.precision.dtype = "bfloat16"
    config.optim.learning_rate = 1.5e-4
    config.optim.warmup_steps = 2000
    config.checkpoint.every_steps = 500
    return config
