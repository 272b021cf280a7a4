"""A `config.json` read strictly: every key is used, is known to change nothing, or is an error."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from llmasos_jax.errors import FormatError, did_you_mean
from llmasos_jax.format.strict import schema, shown

_LOG = logging.getLogger(__name__)
REQUIRED: Any = object()

_TRAINING = "it matters in training alone"
_OUTPUT = "it says what a call returns, not what is computed"
_TEXT = "it is about tokens or text, not about the network"
_HOW = "it says how a program computes, not what"
_TASK = "it is of another task's head"
_ORIGIN = "it says where the file comes from"

# What changes no logit, whatever its value, in every family; with the reason.
INERT: Mapping[str, str] = {
    **dict.fromkeys(
        (
            *("_name_or_path", "_commit_hash", "architectures", "auto_map", "model_type"),
            *("transformers_version", "unsloth_fixed", "unsloth_version", "original_model"),
            "transformers.js_config",
        ),
        _ORIGIN,
    ),
    **dict.fromkeys(
        (
            *("attention_dropout", "attention_probs_dropout_prob", "attn_dropout", "attn_pdrop"),
            *("activation_dropout", "classifier_dropout", "dropout", "embd_pdrop", "resid_pdrop"),
            *("emb_pdrop", "hidden_dropout", "hidden_dropout_prob", "layerdrop", "initializer_std"),
            *("initializer_range", "initializer_factor", "output_router_logits", "aux_loss_alpha"),
            *("router_aux_loss_coef", "router_z_loss_coef", "router_jitter_noise", "seq_aux"),
            *("gradient_checkpointing", "is_training", "init_device", "init_config"),
        ),
        _TRAINING,
    ),
    **dict.fromkeys(
        (
            *("dtype", "torch_dtype", "use_cache", "cache_implementation", "pretraining_tp"),
            *("_attn_implementation", "attn_implementation", "_attn_implementation_autoset"),
            *("_flash_attn_2_enabled", "use_flash_attention", "chunk_size_feed_forward"),
            *("torchscript", "use_bfloat16", "_experts_implementation", "ep_size"),
        ),
        _HOW,
    ),
    **dict.fromkeys(
        (
            *("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "cls_token_id"),
            *("decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id"),
            *("mask_token_id", "unk_token_id", "tokenizer_class", "prefix", "bad_words_ids"),
            *("begin_suppress_tokens", "suppress_tokens", "max_length", "min_length", "top_k"),
            *("top_p", "typical_p", "temperature", "do_sample", "early_stopping", "num_beams"),
            *("num_beam_groups", "num_return_sequences", "diversity_penalty", "length_penalty"),
            *("repetition_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size"),
            *("remove_invalid_values", "exponential_decay_length_penalty"),
        ),
        _TEXT,
    ),
    **dict.fromkeys(
        (
            *("return_dict", "return_dict_in_generate", "output_attentions", "output_scores"),
            *("output_hidden_states", "keys_to_ignore_at_inference"),
        ),
        _OUTPUT,
    ),
    **dict.fromkeys(
        (
            *("id2label", "label2id", "num_labels", "problem_type", "finetuning_task"),
            *("task_specific_params", "summary_activation", "summary_first_dropout"),
            *("summary_proj_to_labels", "summary_type", "summary_use_proj"),
        ),
        _TASK,
    ),
}
# What has to have one of these values if it is there: another one is another model.
_FIXED: Mapping[str, tuple[Any, ...]] = {
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "cross_attention_hidden_size": (None,),
    "pruned_heads": ({}, None),
    "tie_encoder_decoder": (False,),
    "is_decoder": (False, True),
}


# Fields of ours by the keys that say them: the bounds of our format are checked before anything is
# computed from a number.
_FIELDS: Mapping[str, str] = {
    key: field
    for field, keys in {
        "vocab_size": ("vocab_size",),
        "embedding_dim": ("hidden_size", "n_embd", "d_model", "dim"),
        "num_layers": (
            *("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers"),
        ),
        "num_heads": ("num_attention_heads", "n_head", "n_heads", "num_heads"),
        "num_kv_heads": ("num_key_value_heads",),
        "head_dim": ("head_dim", "v_head_dim", "qk_nope_head_dim", "qk_rope_head_dim", "d_kv"),
        "ffn_dim": (
            "intermediate_size",
            "moe_intermediate_size",
            "n_inner",
            "ffn_dim",
            "hidden_dim",
            "d_ff",
        ),
    }.items()
    for key in keys
}
_MOST = 2**30


class Keys:
    """The keys of a `config.json`, each of which has to be asked for.

    Example:
      >>> keys = Keys({"hidden_size": 8, "use_cache": True}, "config.json")
      >>> keys.integer("hidden_size"), keys.number("rms_norm_eps", 1e-6)
      (8, 1e-06)
      >>> keys.finish()
    """

    def __init__(
        self,
        found: Mapping[str, Any],
        where: str,
        ignore: Iterable[str] = (),
        path: str = "",
        *,
        is_config: bool = True,
        tensors: Callable[[], Collection[str]] = tuple,
    ) -> None:
        """Keeps what was found.

        Args:
          found: parsed JSON object.
          where: the file, for messages.
          ignore: keys that are taken as absent.
          path: of a nested object, with its dot ("rope_scaling.").
          is_config: whether keys that change nothing anywhere may stand in it.
          tensors: gives the names of the tensors beside it, as the family's table has them.
        """
        ignored = set(ignore)
        self.where, self.path, self.ignore = where, path, ignored
        self.is_config = is_config
        self.found = {key: value for key, value in found.items() if path + key not in ignored}
        self._asked: set[str] = set()
        self._tensors = tensors
        for key in found.keys() - self.found.keys():
            _LOG.warning(
                '%s: "%s" = %s is left out, as asked', where, path + key, shown(found[key])
            )

    def __contains__(self, key: str) -> bool:
        """Whether the key is there, null or not."""
        return key in self.found

    def has_tensors(self, start: str) -> bool:
        """Whether a tensor's name begins so."""
        return any(name.startswith(start) for name in self._tensors())

    def integer(self, key: str, default: Any = REQUIRED, *, null: bool = False) -> Any:
        """A whole number, or `default` where the key is absent.

        Args:
          key: its name.
          default: REQUIRED makes an absent key an error; None allows null too.
          null: whether null is allowed; it gives None.

        Raises:
          FormatError: it is something else, or missing.
        """
        value = self._value(key, default, null)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if value is None:
            return None
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.error(key, "must be a whole number")
        limits = schema()["properties"]["parameters"]["properties"].get(_FIELDS.get(key), {})
        least, most = limits.get("minimum", 0), limits.get("maximum", _MOST)
        if not least <= value <= most:
            raise self.error(key, f"must be {least} to {most}")
        return value

    def number(self, key: str, default: Any = REQUIRED, *, null: bool = False) -> Any:
        """A float; see `integer`."""
        value = self._value(key, default, null)
        if value is None:
            return None
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            if abs(value) < 1e38:
                return float(value)
        raise self.error(key, "must be a number")

    def flag(self, key: str, default: Any = REQUIRED, *, null: bool = False) -> Any:
        """True or False; see `integer`."""
        value = self._value(key, default, null)
        if value is None or isinstance(value, bool):
            return value
        raise self.error(key, "must be true or false")

    def text(self, key: str, default: Any = REQUIRED, *, null: bool = False) -> Any:
        """A string; see `integer`."""
        value = self._value(key, default, null)
        if value is None or isinstance(value, str):
            return value
        raise self.error(key, "must be a string")

    def listed(self, key: str, kind: type | tuple[type, ...], default: Any = None) -> Any:
        """A tuple of values of one kind, or `default` where the key is absent or null."""
        value = self._value(key, default, True)
        if value is None or value is default:
            return default
        if isinstance(value, list) and all(
            isinstance(v, kind) and not isinstance(v, bool) for v in value
        ):
            return tuple(value)
        raise self.error(key, "must be a list of such values")

    def group(self, key: str, *, is_config: bool = False) -> Keys | None:
        """A nested object; None where it is absent, null or empty. Finish it too."""
        value = self._value(key, None, True)
        if value is None or value == {}:
            return None
        if not isinstance(value, dict):
            raise self.error(key, "must be an object")
        path = f"{self.path}{key}."
        return Keys(value, self.where, self.ignore, path, is_config=is_config)

    def choice(self, key: str, table: Mapping[str, Any], default: Any = REQUIRED) -> Any:
        """What a table has for the key's string."""
        name = self.text(key, default)
        if name not in table:
            raise self.error(key, f"is not computed here; known: {', '.join(sorted(table))}")
        return table[name]

    def only(self, key: str, *values: Any, why: str) -> None:
        """Raises FormatError unless the key is absent or has one of these values."""
        self._asked.add(key)
        found = self.found.get(key)
        if key in self.found and not any(
            found == value and isinstance(found, bool) == isinstance(value, bool)
            for value in values
        ):
            known = " or ".join(shown(_json(value)) for value in values)
            raise self.error(key, f"is not computed here ({why}); it must be {known}")

    def inert(self, *keys: str, why: str) -> None:
        """Names keys that change nothing in this family; `why` is for the reader of the code."""
        self._asked.update(keys)

    def finish(self) -> None:
        """Raises FormatError for keys that nobody asked for."""
        for key, values in _FIXED.items():
            if key in self.found and key not in self._asked and self.is_config:
                self.only(key, *values, why="it makes another model of it")
        left = [
            k for k in self.found if k not in self._asked and not (self.is_config and k in INERT)
        ]
        if not left:
            return
        names = ", ".join(
            f'"{self.path}{shown(k)}" = {shown(_json(self.found[k]))}' for k in left[:8]
        )
        more = f" and {len(left) - 8} more" if len(left) > 8 else ""
        near = did_you_mean(shown(left[0]), self._asked)
        raise FormatError(
            f"{self.where}: {names}{more}: not known here, so they may change what is computed; "
            f"ignore=({self.path + shown(left[0])!r},), on the command line "
            f"--ignore={self.path}{shown(left[0])}, reads the model without"
            + (near if "did you mean" in near else "")
        )

    def error(self, key: str, problem: str) -> FormatError:
        """An error that names the key and its value, and what accepts to lose it."""
        name = f"{self.path}{key}"
        value = shown(_json(self.found.get(key)))
        return FormatError(
            f'{self.where}: "{name}" = {value} {problem}; ignore=("{name}",), on the command line '
            f"--ignore={name}, reads the model as if it were not there"
        )

    def _value(self, key: str, default: Any, null: bool) -> Any:
        self._asked.add(key)
        if key not in self.found:
            if default is REQUIRED:
                raise FormatError(f'{self.where}: "{self.path}{key}" is missing; add it')
            return default
        value = self.found[key]
        if value is None and not null and default is not None:
            raise self.error(key, "must not be null")
        return value


def _json(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f'"{value}"' if isinstance(value, str) else repr(value)
