"""questions_smollm2: multiple-choice questions, answered by letter.

Paper:    Hendrycks et al., 2021, arXiv 2009.03300 (MMLU); Hu et al., 2021, arXiv 2106.09685
          (low-rank changes of all products).
Data:     MMLU's 282 development questions, in two halves of subjects:
          experiments/questions/README.md.
Command:  llmasos finetune --config=questions_smollm2:0 --workdir=runs/questions0
          and the same with 1; the variant is the half that is held out.
Run time: 14 steps of 4 x 576 tokens for each half; the minutes are not
          measured on an idle machine yet.
Expected: accuracy as before, 23.8% of 282 (one in four is chance); the right letter costs 1.44 nats
          in the place of 2.74, since the untuned model always says A.
"""

from ml_collections import ConfigDict

from llmasos_jax.config.build import default_config


def get_config(variant: str = "0") -> ConfigDict:
    """The run that never sees the subjects of half `variant`; twice over the others."""
    config = default_config()
    config.name = "questions_smollm2"

    config.finetune.base = "smollm2-135m-instruct"
    config.finetune.method = "lora"
    # A question and its letter as one text, without the roles of a conversation.
    config.finetune.chat_template = (
        "{% for m in messages %}{{ m.content }}"
        "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    )
    config.objective.name = "sft"

    config.data.source = "jsonl"
    config.data.path = f"data/questions/train{variant}.jsonl"
    config.data.sequence_length = 576
    config.data.heldout_fraction = 0.0

    config.train.steps = 14
    config.train.batch_size = 4
    config.train.eval_every_steps = None
    config.train.log_every_steps = 1
    config.optim.learning_rate = 3e-4
    config.optim.warmup_steps = 3
    config.optim.weight_decay = 0.0
    config.precision.dtype = "bfloat16"
    config.checkpoint.every_steps = None
    return config
