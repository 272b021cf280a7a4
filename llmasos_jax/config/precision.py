"""In which numbers a run computes and remembers: one policy, nothing of it implied."""

from __future__ import annotations

from dataclasses import dataclass

from llmasos_jax.config.require import require_one_of, require_positive
from llmasos_jax.errors import ConfigError

DTYPES = ("float32", "bfloat16", "float16")
QUANTIZED = ("int8", "fp8")
WEIGHTS = ("float32", "bfloat16")
MOMENTS = ("float32", "bfloat16", "int8")


@dataclass(frozen=True)
class PrecisionConfig:
    """The numbers of a training run.

    Norms, softmax and loss are float32 whatever is set here.

    Attributes:
      dtype: of products, and of activations where the device has them: "float32", "bfloat16", or
        "float16", whose gradients need `loss_scale` (Micikevicius et al., 2017, arXiv 1710.03740).
      quantize: "int8" or "fp8" rounds both factors of the blocks' products to it, with a scale for
        each row, forward and backward; embeddings, routers, chosen experts and the output layer
        stay in `dtype`. None for neither.
      weights: what the step keeps, gathers and differentiates: "float32", or "bfloat16" but for
        scales, biases and routers.
      master: with "bfloat16" weights, whether the optimizer keeps them in float32 too, so that they
        are those, rounded; without, each update is rounded at random, right on average.
      moments: of the optimizer, for weights of products: "float32", "bfloat16", or "int8", in eight
        bits on a logarithmic scale with a largest number for each row; rounded at random.
      loss_scale: with "float16", what the mean loss is multiplied by at first. It halves at an
        overflow, whose step is left out, and doubles after `loss_scale_steps` steps without one;
        below 1 the run has failed.
      loss_scale_steps: see `loss_scale`.
    """

    dtype: str = "float32"
    quantize: str | None = None
    weights: str = "float32"
    master: bool = True
    moments: str = "float32"
    loss_scale: float = 32768.0
    loss_scale_steps: int = 2000

    def __post_init__(self) -> None:
        require_one_of("precision.dtype", self.dtype, DTYPES)
        require_one_of("precision.weights", self.weights, WEIGHTS)
        require_one_of("precision.moments", self.moments, MOMENTS)
        if self.quantize is not None:
            require_one_of("precision.quantize", self.quantize, QUANTIZED)
        require_positive("precision.loss_scale", self.loss_scale)
        require_positive("precision.loss_scale_steps", self.loss_scale_steps)
        if self.loss_scale < 1:
            raise ConfigError(
                f"precision.loss_scale={self.loss_scale} must be at least 1; it is to lift small "
                "gradients into float16's range"
            )
        if not self.master and self.weights == "float32":
            raise ConfigError(
                'precision.master=False is of bfloat16 weights, and precision.weights="float32"; '
                'leave it True, or set precision.weights="bfloat16"'
            )
        if self.dtype == "float16" and self.weights == "bfloat16":
            raise ConfigError(
                'precision.weights="bfloat16" with precision.dtype="float16" rounds twice; set '
                'precision.weights="float32"'
            )
