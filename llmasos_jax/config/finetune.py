"""What a fine-tuning run starts from, and which weights it moves."""

from __future__ import annotations

from dataclasses import dataclass

from llmasos_jax.config.require import require_finite, require_one_of, require_positive
from llmasos_jax.errors import ConfigError

METHODS = ("full", "lora", "head")
QUANTIZED = ("int8", "int4")
TOO_LONG = ("error", "drop", "truncate")


@dataclass(frozen=True)
class FinetuneConfig:
    """A run on the weights of a pretrained model.

    Attributes:
      base: the model, whatever `load_model` reads: a name in the library, a folder, a file. Its
        parameters and its tokenizer become the run's. None: not a fine-tuning run.
      base_sha256: of the base's weights. None takes them as they are, and writes down what they
        were: a run goes on with no others.
      method: "full" moves every weight; "lora" low-rank changes of the products that `targets`
        names (Hu et al., 2021, arXiv 2106.09685), and the classifier where there is one; "head"
        what stands on the trunk alone (pooler, classifier).
      targets: patterns of the names of products, as files call them without "layers.0.": "attn.q",
        "mlp.*", "*.down", "moe.up" (of each expert its own change), "*" for all products of the
        blocks. Used by "lora".
      rank: R of each change x A B.
      alpha: the change is multiplied by alpha / rank.
      rank_stabilized: multiplies by alpha / sqrt(rank) instead (Kalajdzievski, 2023, arXiv
        2312.03732).
      dora: lets length and direction of each column of a weight move apart (Liu et al., 2024, arXiv
        2402.09353).
      quantize: "int8" or "int4" keeps the weights of the base's products so, one scale for each
        output (and, with "int4", for each 64 inputs); with "lora" alone (Dettmers et al., 2023,
        arXiv 2305.14314). None keeps them as they are.
      chat_template: Jinja text that makes one text of a conversation; None takes the base's.
      too_long: what is done with an example that is longer than `data.sequence_length`: "error"
        names its line, "drop" leaves it out, "truncate" cuts its beginning (the end of labelled
        texts, as `Model.classify` does); both are counted.
      packing: whether several short examples share a row, apart by segments, where the objective
        reads texts of which each token is predicted.
      beta: of "dpo": how dear it is to leave the base (Rafailov et al., 2023, arXiv 2305.18290).
      temperature: of "similarity", what cosines are divided by.
      teacher: of "distill", the model that is imitated, whatever `load_model` reads; its tokenizer
        has to have the ids of the base's. It is in no checkpoint.
      teacher_sha256: of its weights and parameters; as `base_sha256`.
      teacher_weight: share of the divergence from the teacher in the loss of "distill"; the rest is
        the cross-entropy of the data.
      teacher_temperature: of "distill", what the scores of both models are divided by (Hinton et
        al., 2015, arXiv 1503.02531). At 1 they are compared as they write, which is what is usual
        for language models (Kim & Rush, 2016, arXiv 1606.07947; Agarwal et al., 2023, arXiv
        2306.13649); above it, unlikely tokens count for more (2 in Sanh et al., 2019, arXiv
        1910.01108).
    """

    base: str | None = None
    base_sha256: str | None = None
    method: str = "lora"
    targets: tuple[str, ...] = ("attn.*", "mlp.*")
    rank: int = 16
    alpha: float = 32.0
    rank_stabilized: bool = False
    dora: bool = False
    quantize: str | None = None
    chat_template: str | None = None
    too_long: str = "error"
    packing: bool = True
    beta: float = 0.1
    temperature: float = 0.05
    teacher: str | None = None
    teacher_sha256: str | None = None
    teacher_weight: float = 0.5
    teacher_temperature: float = 1.0

    def __post_init__(self) -> None:
        require_finite("finetune", self)
        require_one_of("finetune.method", self.method, METHODS)
        require_one_of("finetune.too_long", self.too_long, TOO_LONG)
        for name in ("rank", "alpha", "beta", "temperature", "teacher_temperature"):
            require_positive(f"finetune.{name}", getattr(self, name))
        if not 0.0 <= self.teacher_weight <= 1.0:
            raise ConfigError(
                f"finetune.teacher_weight={self.teacher_weight} must be between 0 (the data alone) "
                "and 1 (the teacher alone)"
            )
        if self.method == "lora" and not self.targets:
            raise ConfigError(
                'finetune.targets=() names no product; name some ("attn.*"), or set '
                'finetune.method="full"'
            )
        if self.quantize is not None:
            require_one_of("finetune.quantize", self.quantize, QUANTIZED)
            if self.method != "lora":
                raise ConfigError(
                    f'finetune.quantize="{self.quantize}" goes with finetune.method="lora", not '
                    f'"{self.method}", which moves the weights themselves; leave it out'
                )

    @property
    def scale(self) -> float:
        """What the product of A and B is multiplied by."""
        return self.alpha / (self.rank**0.5 if self.rank_stabilized else self.rank)
