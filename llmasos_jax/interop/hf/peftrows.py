"""Which rows of a family's table PEFT can change, under which names, and how its matrices lie."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.interop.rows import Product
from llmasos_jax.interop.tables import Row

_OLDER = ("{e}", "block_sparse_moe.")  # in names of weights that have no module any more

# What transformers 4 called the products of an expert. A target module of such a name is to PEFT
# the experts of transformers 5, be it a dense layer's or a shared expert's; of Qwen2-MoE alone it
# is not (`peft.utils.transformers_weight_conversion`).
_EXPERTS = ("gate_proj", "up_proj", "down_proj")
_AS_NAMED = "Qwen2MoeForCausalLM"


def is_linear(group: Row) -> bool:
    """Whether theirs is one Linear (or Conv1D) of one or several of our products."""
    how = group.arrangement
    is_product = isinstance(how, Product) and how.num_in > 0 and not how.num_lead
    return is_product and len(group.theirs) == 1 and group.theirs[0].endswith(".weight")


def newest(rows: Iterable[Row]) -> list[Row]:
    """The rows whose names are those of modules in transformers 5."""
    return [row for row in rows if not any(old in row.theirs[0] for old in _OLDER)]


def is_of_experts(group: Row) -> bool:
    """Whether theirs is one parameter with the weights of all experts."""
    how = group.arrangement
    return isinstance(how, Product) and how.num_in > 0 and how.num_lead > 0


def is_parameter(group: Row, cfg: ModelConfig, saved_class: str) -> bool:
    """Whether theirs has to be a parameter to PEFT, since it cannot be named as a module."""
    if is_of_experts(group) or group.ours[0].endswith(".moe.router"):
        return True
    has_taken_name = group.theirs[0].removesuffix(".weight").endswith(_EXPERTS)
    return has_taken_name and cfg.experts.count > 0 and saved_class != _AS_NAMED


def wrappers(names: Iterable[str]) -> dict[str, str]:
    """Where PEFT has the changes of parameters, given in their order in the model.

    It wraps a module once for each of its parameters, for the first one innermost.

    Example:
      >>> wrappers(["experts.gate_up", "experts.down", "gate.weight"])
      {'gate.weight': 'gate', 'experts.down': 'experts', 'experts.gate_up': 'experts.base_layer'}
    """
    found: dict[str, str] = {}
    for name in reversed(list(names)):
        place = name.rpartition(".")[0]
        found[name] = f"{place}.base_layer" if place in found.values() else place
    return found


def columns_of(how: Product) -> Product:
    """How lora_B lies beside our [R, out..]."""
    return dataclasses.replace(how, num_in=1, is_in_first=False)


def vector_of(how: Product) -> Product:
    """How a magnitude lies beside our [out..]."""
    return dataclasses.replace(how, num_in=0, is_in_first=False)
