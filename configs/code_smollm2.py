"""code_smollm2: a function's body, from its head and its docstring.

Paper:    Chen et al., 2021, arXiv 2107.03374 (HumanEval); Hu et al., 2021, arXiv 2106.09685
          (low-rank changes of all products).
Data:     functions of Python's standard library, 2,857 of Python 3.11's, in
          data/code/train.jsonl: experiments/code/README.md.
Command:  llmasos finetune --config=code_smollm2 --workdir=runs/code
          with --config.data.path=FILE where train.jsonl is elsewhere.
Run time: 30 steps of 4 x 512 tokens; the minutes are not measured on an idle machine yet.
Expected: perplexity of 200 held-out functions 11.9, of the untuned model 13.6;
          of 32 of HumanEval's problems both solve two.
"""

from ml_collections import ConfigDict

from llmasos_jax.config.build import default_config


def get_config() -> ConfigDict:
    """A head and its body as one text; the body alone is scored."""
    config = default_config()
    config.name = "code_smollm2"

    config.finetune.base = "smollm2-135m-instruct"
    config.finetune.method = "lora"
    config.finetune.too_long = "drop"
    config.finetune.chat_template = (
        "{% for m in messages %}{{ m.content }}"
        "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    )
    config.objective.name = "sft"

    config.data.source = "jsonl"
    config.data.path = "data/code/train.jsonl"
    config.data.sequence_length = 512
    config.data.heldout_fraction = 0.0

    config.train.steps = 30
    config.train.batch_size = 4
    config.train.eval_every_steps = None
    config.train.log_every_steps = 5
    config.optim.learning_rate = 3e-4
    config.optim.warmup_steps = 5
    config.optim.weight_decay = 0.0
    config.precision.dtype = "bfloat16"
    config.checkpoint.every_steps = None
    return config
