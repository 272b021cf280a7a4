"""bert_large: the published pre-training of BERT-large, its first phase, on eight chips.

Paper:    Devlin et al., 2018, arXiv 1810.04805, appendix A.2: batch 256, Adam 1e-4 (0.9, 0.999),
          decay 0.01, 10,000 steps of warm-up, linear to 0, dropout 0.1; 128 tokens for 90% of one
          million steps. The paper took 64 TPU chips.
Data:     your own documents, as Wikipedia's articles: one JSON object with a "text" each.
Plan:     llmasos plan --config=bert_large:v5e:2x4 --topology=v5e:2x4
Planned:  v5e:2x4: 7.7 of 16 GiB, at least 41 ms a step of 32,768 tokens, MFU at most 95%. (jax
          0.10.2, libtpu 0.0.42.1; experiments/acceptance/compile_pods.json)
"""

from ml_collections import ConfigDict

from llmasos_jax.config.build import default_config
from llmasos_jax.config.variants import variant_of
from llmasos_jax.models import zoo

VARIANTS = {"v5e:2x4": (2, 4)}


def get_config(variant: str = "") -> ConfigDict:
    """24 layers of width 1024 over a WordPiece vocabulary of 30,522: 336 million weights."""
    config = default_config()
    config.name = "bert_large"
    config.model.update(zoo.values("bert-large-uncased"))
    # Trained on the data; tokenizer.path takes a vocab.txt.
    config.tokenizer.kind = "tokenizers"
    config.tokenizer.model_type = "wordpiece"
    config.tokenizer.train_chars = 1_000_000_000
    config.data.source = "jsonl"
    config.data.path = "wiki/*.jsonl"
    config.data.sequence_length = 128
    config.data.heldout_fraction = 0.001
    config.objective.name = "mlm_nsp"
    config.mesh.fsdp = variant_of(variant, VARIANTS)
    config.train.batch_size = 256
    config.train.steps = 900_000
    config.train.dropout_rate = 0.1
    config.train.eval_every_steps = 10_000
    config.precision.dtype = "bfloat16"
    config.optim.learning_rate = 1e-4
    config.optim.schedule = "linear"
    config.optim.warmup_steps = 10_000
    config.optim.final_fraction = 100_000 / 990_000
    config.optim.weight_decay = 0.01
    config.optim.beta2 = 0.999
    config.optim.eps = 1e-6
    config.checkpoint.every_steps = 10_000
    return config
