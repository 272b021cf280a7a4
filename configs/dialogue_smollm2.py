"""dialogue_smollm2: small talk between two people, in the base's own chat template.

Paper:    Myers et al., 2020 (the corpus: "Conversational Scaffolding: An Analogy-Based Approach to
          Response Prioritization in Open-Domain Dialogs"); Hu et al., 2021, arXiv 2106.09685
          (low-rank changes of all products).
Data:     the Chit-Chat Challenge's conversations, 2,535 to learn from, in
          data/dialogue/train.jsonl: experiments/dialogue/README.md.
Command:  llmasos finetune --config=dialogue_smollm2 --workdir=runs/dialogue
          with --config.data.path=FILE where train.jsonl is elsewhere.
Run time: 16 steps of 4 x 512 tokens; the minutes are not measured on an idle machine yet.
Expected: perplexity per byte of people's replies to 200 held-out questions 2.63, of the untuned
          model 2.88; which of four replies is the right one is told no better.
"""

from ml_collections import ConfigDict

from llmasos_jax.config.build import default_config


def get_config() -> ConfigDict:
    """Up to eight turns; all of the second speaker are scored."""
    config = default_config()
    config.name = "dialogue_smollm2"

    config.finetune.base = "smollm2-135m-instruct"
    config.finetune.method = "lora"
    config.finetune.too_long = "drop"
    config.objective.name = "sft"

    config.data.source = "jsonl"
    config.data.path = "data/dialogue/train.jsonl"
    config.data.sequence_length = 512
    config.data.heldout_fraction = 0.0

    config.train.steps = 16
    config.train.batch_size = 4
    config.train.eval_every_steps = None
    config.train.log_every_steps = 4
    config.optim.learning_rate = 3e-4
    config.optim.warmup_steps = 4
    config.optim.weight_decay = 0.0
    config.precision.dtype = "bfloat16"
    config.checkpoint.every_steps = None
    return config
