"""The `adapter_config.json` of a PEFT folder: what of it is read, and what is refused."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from llmasos_jax.errors import FormatError
from llmasos_jax.format.strict import shown
from llmasos_jax.interop.hf.files import read_object
from llmasos_jax.interop.lowrank import PEFT_CONFIG

# Only these say nothing of what is computed with the adapter as it is saved.
_INERT = (
    *("auto_mapping", "peft_version", "inference_mode", "lora_dropout", "fan_in_fan_out"),
    *("megatron_config", "megatron_core", "eva_config", "runtime_config", "loftq_config"),
    *("qalora_group_size", "ensure_weight_tying"),
)
_READ = (
    *("peft_type", "task_type", "base_model_name_or_path", "revision", "bias", "r", "lora_alpha"),
    *("target_modules", "target_parameters", "modules_to_save", "use_rslora", "use_dora"),
    *("rank_pattern", "alpha_pattern", "init_lora_weights"),
)
_CLASSIFY = {"SEQ_CLS": "sequence", "TOKEN_CLS": "token"}
_TASKS = (None, "CAUSAL_LM", "SEQ_2_SEQ_LM", "FEATURE_EXTRACTION", "QUESTION_ANS", *_CLASSIFY)
# The others change the weights of the base as well.
_INIT = (None, True, False, "gaussian", "orthogonal", "eva")
_NAME = re.compile(r"[\w.]+")
# In front of a name in the patterns that PEFT makes itself, of experts that transformers 4 had as
# Linears ("all-linear", "w1"); the dots of the name are escaped.
_ANY_MODULE = r".*\."
_Number = TypeVar("_Number", int, float)


@dataclass(frozen=True)
class PeftConfig:
    """An adapter's config.

    Attributes:
      base: the model that it changes, a path or a name.
      revision: of a name; None is the newest.
      rank: of each change.
      alpha: the change is multiplied by alpha / rank.
      use_rslora: by alpha / sqrt(rank) instead.
      use_dora: whether each change has a magnitude.
      targets: ends of names of modules that are changed, or None where a pattern says which.
      parameters: ends of names of parameters that are changed: of experts, of routers.
      saved: names of modules that are saved whole.
      classifies: "sequence", "token" or None.
      ranks: other ranks, by ends of names of modules.
      alphas: other alphas.
    """

    base: str
    revision: str | None
    rank: int
    alpha: float
    use_rslora: bool = False
    use_dora: bool = False
    targets: tuple[str, ...] | None = None
    parameters: tuple[str, ...] = ()
    saved: tuple[str, ...] = ()
    classifies: str | None = None
    ranks: Mapping[str, int] = field(default_factory=dict)
    alphas: Mapping[str, float] = field(default_factory=dict)

    def rank_of(self, module: str) -> int:
        """R of a module's change."""
        return _pattern(self.ranks, module, self.rank)

    def scale_of(self, module: str) -> float:
        """What its A B is multiplied by.

        Example:
          >>> PeftConfig("base", None, 4, 8, alphas={"q_proj": 2}).scale_of("layers.0.q_proj")
          0.5
        """
        rank = self.rank_of(module)
        return _pattern(self.alphas, module, self.alpha) / (rank**0.5 if self.use_rslora else rank)

    def targets_all_of(self, module: str) -> bool:
        """Whether a module is named as changed; where a pattern says it, nobody knows."""
        return _is_named(module, self.targets or ())

    def targets_parameter(self, name: str) -> bool:
        """Whether a parameter is named as changed."""
        return _is_named(name, self.parameters)

    def saves(self, name: str) -> bool:
        """Whether a tensor is of a module that is saved whole."""
        return any(f".{module}." in f".{name}" for module in self.saved)


def read_peft_config(folder: Path) -> PeftConfig:
    """The config of an adapter's folder.

    Raises:
      FormatError: it asks for what is not computed here; the message names the key.
    """
    found = read_object(folder / PEFT_CONFIG)
    _only(found, "peft_type", ("LORA",), "LoRA (with rsLoRA, DoRA) alone is read")
    for key, value in found.items():
        if key not in (*_INERT, *_READ) and value not in (None, False, [], {}, ""):
            raise _error(key, value, "is not computed here; train without it, or merge with PEFT")
    _only(found, "bias", (None, "none"), "an adapter of linear layers has no biases here")
    _only(found, "task_type", _TASKS, "another task")
    _only(found, "init_lora_weights", _INIT, "it changes the weights of the base too")
    base = found.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise _error("base_model_name_or_path", base, "must name the model that it changes")
    revision = found.get("revision")
    if not isinstance(revision, str | None):
        raise _error("revision", revision, "must be a branch, a tag or a commit")
    targets = found.get("target_modules")
    saved = found.get("modules_to_save") or ()
    parameters = found.get("target_parameters") or ()
    for key, value in (("target_modules", targets), ("modules_to_save", saved)):
        if not isinstance(value, str) and not _is_names(value):
            raise _error(key, value, "must be a list of names")
    if not _is_names(parameters):
        raise _error("target_parameters", parameters, "must be a list of names")
    return PeftConfig(
        base=base,
        revision=revision,
        rank=_rank(found, "r", 8),
        alpha=_number(found, "lora_alpha", 8),
        use_rslora=_flag(found, "use_rslora"),
        use_dora=_flag(found, "use_dora"),
        targets=None if targets is None or isinstance(targets, str) else tuple(targets),
        parameters=tuple(parameters),
        saved=(saved,) if isinstance(saved, str) else tuple(saved),
        classifies=_CLASSIFY.get(str(found.get("task_type"))),
        ranks=_patterns(found, "rank_pattern", _rank),
        alphas=_patterns(found, "alpha_pattern", _number),
    )


def _is_named(name: str, ends: Iterable[str]) -> bool:
    return any(name == end or name.endswith(f".{end}") for end in ends)


def _pattern(values: Mapping[str, _Number], module: str, default: _Number) -> _Number:
    """The first that fits, as PEFT looks for it."""
    for key, value in values.items():
        if _is_named(module, (key,)):
            return value
    return default


def _patterns(
    found: Mapping[str, Any], key: str, read: Callable[..., _Number]
) -> dict[str, _Number]:
    values = found.get(key) or {}
    if not isinstance(values, dict):
        raise _error(key, values, "must be an object")
    by_name: dict[str, _Number] = {}
    for pattern in values:
        name = pattern.removeprefix(_ANY_MODULE).replace(r"\.", ".")
        if not _NAME.fullmatch(name):
            raise _error(key, pattern, "has a pattern; names of modules alone are read")
        by_name.setdefault(name, read(values, pattern, 0, key))
    return by_name


def _rank(found: Mapping[str, Any], key: str, default: int, where: str = "") -> int:
    value = _number(found, key, default, where)
    if value != int(value):
        raise _error(where or key, value, "must be a whole number")
    return int(value)


def _number(found: Mapping[str, Any], key: str, default: float, where: str = "") -> float:
    value = found.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 2**31:
        raise _error(where or key, value, "must be a number above 0")
    return value


def _flag(found: Mapping[str, Any], key: str) -> bool:
    value = found.get(key)
    if value not in (None, True, False):
        raise _error(key, value, "must be true or false")
    return bool(value)


def _is_names(value: Any) -> bool:
    return value is None or (
        isinstance(value, list | tuple) and all(isinstance(name, str) for name in value)
    )


def _only(found: Mapping[str, Any], key: str, allowed: tuple[Any, ...], why: str) -> None:
    value = found.get(key)
    if not any(value is one or (isinstance(one, str) and value == one) for one in allowed):
        raise _error(key, value, f"is not read: {why}")


def _error(key: str, value: Any, why: str) -> FormatError:
    return FormatError(f'{PEFT_CONFIG}: "{shown(key)}" = {shown(str(value))} {why}')
