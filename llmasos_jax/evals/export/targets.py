"""The formats that a model is written in, by the names of `--to`."""

from __future__ import annotations

from llmasos_jax.errors import FormatError, did_you_mean
from llmasos_jax.evals.export.gguf import Gguf
from llmasos_jax.evals.export.huggingface import HuggingFace
from llmasos_jax.evals.export.onnx import Onnx
from llmasos_jax.evals.export.peft import Peft
from llmasos_jax.evals.export.stablehlo import StableHLO
from llmasos_jax.evals.export.target import Target

TABLE: dict[str, Target] = {
    target.name: target for target in (HuggingFace(), Gguf(), Onnx(), StableHLO(), Peft())
}


def target_of(name: str, dtype: str | None) -> Target:
    """The target of that name.

    Raises:
      FormatError: there is none, or it does not write that dtype.
    """
    if name not in TABLE:
        raise FormatError(f'there is no target "{name}"{did_you_mean(name, TABLE)}')
    target = TABLE[name]
    if dtype is not None and dtype not in target.dtypes:
        raise FormatError(f'{name} is not written as "{dtype}"{did_you_mean(dtype, target.dtypes)}')
    return target
