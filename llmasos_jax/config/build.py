"""ConfigDict <-> frozen dataclasses <-> JSON, strict in every direction.

A file in `configs/` has a function `get_config()`, or `get_config(variant="")`, that starts from
`default_config()` (or from another file, with `read_config`) and changes what differs.
`load_config` turns it into a `Config` once; nothing below the command line sees a ConfigDict again.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import numbers
import os
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import config_dict

from llmasos_jax.config.data import MixturePart
from llmasos_jax.config.devices import HostsConfig
from llmasos_jax.config.files import find_config, run_config
from llmasos_jax.config.finetune import FinetuneConfig
from llmasos_jax.config.kinds import hints, parts_of, type_name
from llmasos_jax.config.model import ModelConfig
from llmasos_jax.config.schema import Config
from llmasos_jax.errors import ConfigError, did_you_mean

Source = str | os.PathLike[str] | config_dict.ConfigDict | Config


# Where the resolved configs of earlier versions have a field.
_MOVED = {("train", "dtype"): ("precision", "dtype")}


def default_config() -> config_dict.ConfigDict:
    """A locked, type-safe ConfigDict with every field of `Config`, each at its default.

    `model.vocab_size`, `model.embedding_dim` and `model.num_layers` have none and must be set.

    Example:
      >>> config = default_config()
      >>> config.train.steps = 20
      >>> config.optim.learning_rate
      0.001
    """
    config: Any = _defaults(Config).lock()
    config.data.mixture.unlock()  # its names are the config's own
    return config


def build(config: Mapping[str, Any] | config_dict.ConfigDict) -> Config:
    """Turns a ConfigDict (or nested dict) into a `Config`.

    Raises:
      ConfigError: a key is unknown (with the nearest name), a value has the wrong type, a value is
        missing, or a value breaks a rule.

    Example:
      >>> config = default_config()
      >>> config.model.update(vocab_size=259, embedding_dim=64, num_layers=2)
      >>> build(config).model.query_heads
      1
    """
    _require_model(config)
    return _construct(Config, config, "")


def load_config(source: Source) -> Config:
    """Loads a config from wherever it is.

    Args:
      source: a path of a `.py` file (`configs/x.py`, or `configs/x.py:variant`), of a resolved
        `config.json`, the name of a packaged config (`quickstart`), a ConfigDict or a `Config`.

    Raises:
      ConfigError: it cannot be found, or does not make a `Config`.

    Example:
      >>> load_config("quickstart").name
      'quickstart'
    """
    return source if isinstance(source, Config) else build(read_config(source))


def read_config(source: Source) -> config_dict.ConfigDict:
    """Like `load_config`, but gives a locked ConfigDict with every field, for changing further.

    Example:
      >>> config = read_config("quickstart")
      >>> config.train.steps = 20
    """
    if isinstance(source, config_dict.ConfigDict):
        return _with_whole_parts(source)
    if isinstance(source, Config):
        return _filled(to_dict(source))
    path, variant = find_config(source)
    if path.suffix == ".json":
        return _filled(to_dict(from_dict(_read_json(path))))
    config = run_config(path, variant, hint=nearest_path)
    if not isinstance(config, config_dict.ConfigDict):
        raise ConfigError(
            f"{path}: get_config() returned a {type(config).__name__}; return a ConfigDict made by "
            "llmasos_jax.config.build.default_config()"
        )
    return _with_whole_parts(config.lock())


def with_model(source: Source, parameters: ModelConfig) -> config_dict.ConfigDict:
    """The config on a model that is there: what it sets in `model` itself stays.

    Args:
      source: as `read_config` takes it; the required fields of `model` may be absent.
      parameters: of the model.

    Raises:
      ConfigError: it sets a field to something that the model is not, and that gives it no head.
    """
    given = read_config(source).to_dict()
    plain = _defaults(ModelConfig).to_dict()
    own = _changed(given["model"], plain)
    there = _jsonable(dataclasses.asdict(parameters))
    for path, value in _leaves(own):
        is_head = path[0] in ("classifier", "pooler", "pooling")
        if not is_head and _at(there, path) != value:
            name = ".".join(path)
            raise ConfigError(
                f"model.{name}={value!r}, and the base has {_at(there, path)!r}; leave "
                "config.model to the base, but for classifier, pooler and pooling"
            )
        _put(there, path, value)
    return _filled({**given, "model": there})


def hosts_of(source: Source) -> HostsConfig:
    """The hosts of a config whose other fields need not be right yet."""
    return _construct(HostsConfig, read_config(source)["hosts"], "hosts")


def finetune_of(source: Source) -> FinetuneConfig:
    """What a config, whose other fields need not be right yet, says of fine-tuning."""
    return _construct(FinetuneConfig, read_config(source)["finetune"], "finetune")


def to_dict(config: Config) -> dict[str, Any]:
    """A nested dict that `json.dump` takes; tuples become lists. Inverse: `from_dict`."""
    return _jsonable(dataclasses.asdict(config))


def from_dict(values: Mapping[str, Any]) -> Config:
    """The `Config` that `to_dict` came from. A field that is absent takes its default.

    A field that stood elsewhere in an earlier version is read from there.

    Raises:
      ConfigError: as `build`.
    """
    values = {name: _copied(group) for name, group in values.items()}
    for (group, old), (new_group, new) in _MOVED.items():
        there = values.setdefault(new_group, {})
        is_earlier = isinstance(there, dict) and new not in there
        # One that has the field in both places was written by nobody: an unknown key, like others.
        if is_earlier and isinstance(values.get(group), dict) and old in values[group]:
            there[new] = values[group].pop(old)
    return build(values)


def _copied(group: Any) -> Any:
    return dict(group) if isinstance(group, Mapping) else group


def differences(a: Config, b: Config) -> list[str]:
    """Every field in which two configs differ, as `"train.steps: 100 -> 200"`, in schema order."""
    left, right = dict(fields_of(a)), dict(fields_of(b))
    # A part of a mixture may be in one alone.
    shown = lambda fields, path: repr(fields[path]) if path in fields else "not there"
    return [
        f"{path}: {shown(left, path)} -> {shown(right, path)}"
        for path in dict.fromkeys([*left, *right])
        if path not in left or path not in right or left[path] != right[path]
    ]


def fields_of(config: object, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (`"train.steps"`, value) for every field of a config dataclass, in schema order."""
    for field in dataclasses.fields(config):  # pyright: ignore[reportArgumentType]
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from fields_of(value, f"{path}{field.name}.")
        elif isinstance(value, dict):
            for name, part in value.items():
                yield from fields_of(part, f"{path}{field.name}.{name}.")
        else:
            yield path + field.name, value


def type_of(path: str) -> Any:
    """The type of a dotted path in the schema: a plain type, a union, or a dataclass for a group.

    Raises:
      ConfigError: no such field, with the nearest name.
    """
    kind: Any = Config
    parts = path.split(".")
    for depth, part in enumerate(parts):
        where = ".".join(parts[:depth])
        if parts_of(kind):
            kind = parts_of(kind)
            continue
        if not dataclasses.is_dataclass(kind):
            raise ConfigError(f'config.{path}: "{where}" is one value; it has no field "{part}"')
        if part not in hints(kind):
            raise _unknown_key(typing.cast(type, kind), part, where)
        kind = hints(kind)[part]
    return kind


@functools.cache
def _all_paths(cls: Any = Config, path: str = "") -> tuple[str, ...]:
    paths: list[str] = []
    for name, kind in hints(cls).items():
        paths += (
            _all_paths(kind, f"{path}{name}.") if dataclasses.is_dataclass(kind) else [path + name]
        )
    return tuple(paths)


def _defaults(cls: Any) -> config_dict.ConfigDict:
    config = config_dict.ConfigDict()
    for field in dataclasses.fields(cls):
        kind = hints(cls)[field.name]
        if dataclasses.is_dataclass(kind):
            config[field.name] = _defaults(kind)
        elif parts_of(kind):
            config[field.name] = config_dict.ConfigDict()
        elif field.default is dataclasses.MISSING:
            config[field.name] = config_dict.placeholder(kind)  # `build` asks for a value
        elif field.default is None:
            (plain,) = (k for k in typing.get_args(kind) if k is not type(None))
            config[field.name] = config_dict.placeholder(plain)
        else:
            config[field.name] = field.default
    return config


def _with_whole_parts(config: config_dict.ConfigDict) -> config_dict.ConfigDict:
    """Gives each part of the mixture all its fields, so that an override finds them."""
    data = config.get("data")
    mixture = data.get("mixture") if isinstance(data, config_dict.ConfigDict) else None
    if isinstance(mixture, config_dict.ConfigDict):
        for name, part in mixture.items():
            if isinstance(part, config_dict.ConfigDict):
                whole = _defaults(MixturePart)
                whole.update(part.to_dict())
                mixture[name] = whole
    return config


def _filled(values: Mapping[str, Any]) -> config_dict.ConfigDict:
    config = default_config()
    config.update(values)
    return config


def _require_model(values: Any) -> None:
    """Refuses a model that is left to the base, which only a fine-tuning run opens."""
    finetune, model = values.get("finetune"), values.get("model")
    base = finetune.get("base") if hasattr(finetune, "get") else None
    if base is not None and hasattr(model, "get") and model.get("vocab_size") is None:
        raise ConfigError(
            f'config.model is left to finetune.base="{base}", which `llmasos finetune` opens; for '
            "other verbs give the config.json that it writes into its workdir"
        )


def _construct(cls: Any, values: Any, path: str) -> Any:
    if not isinstance(values, Mapping | config_dict.ConfigDict):
        raise ConfigError(f"{path or 'config'}={values!r} must be a group of fields, not a value")
    kinds, arguments = hints(cls), {}
    for key in values.keys():
        if key not in kinds:
            raise _unknown_key(cls, str(key), path)
    for field in dataclasses.fields(cls):
        where = f"{path}.{field.name}" if path else field.name
        required = field.default is field.default_factory is dataclasses.MISSING
        if required and (field.name not in values or values[field.name] is None):
            raise ConfigError(f"{where} has no value; set it ({type_name(kinds[field.name])})")
        if field.name in values:
            arguments[field.name] = _checked(kinds[field.name], values[field.name], where)
    return cls(**arguments)


def _checked(kind: Any, value: Any, path: str) -> Any:
    """Returns `value` as `kind`; an int may stand for a float and a list for a tuple, no more."""
    if dataclasses.is_dataclass(kind):
        return _construct(kind, value, path)
    if isinstance(kind, types.UnionType):
        if value is None:
            return None
        kinds = [k for k in typing.get_args(kind) if k is not type(None)]
        if len(kinds) == 1 and _fits(kinds[0], value):
            return _checked(kinds[0], value, path)
    elif parts_of(kind):
        if isinstance(value, Mapping | config_dict.ConfigDict):
            part, items = parts_of(kind), value.items()
            return {str(name): _construct(part, v, f"{path}.{name}") for name, v in items}
    elif typing.get_origin(kind) is tuple:
        if isinstance(value, tuple | list):
            inner = typing.get_args(kind)[0]
            return tuple(_checked(inner, v, f"{path}[{i}]") for i, v in enumerate(value))
    elif _fits(kind, value):
        return kind(value)
    got = "" if value is None else f" is a {type(value).__name__}"
    raise ConfigError(f"{path}={value!r}{got}; expected {type_name(kind)}")


def _fits(kind: Any, value: Any) -> bool:
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    if kind is int:
        return isinstance(value, numbers.Integral)
    if kind is float:
        return isinstance(value, numbers.Real)
    return isinstance(value, kind)


def _unknown_key(cls: Any, key: str, path: str) -> ConfigError:
    prefix = f"{path}." if path else ""
    names = [prefix + name for name in hints(cls)]
    if (path, key) in _MOVED:
        now = ".".join(_MOVED[path, key])
        return ConfigError(f'config has no field "{prefix}{key}"; it is "{now}" now')
    if difflib.get_close_matches(key, hints(cls), n=1):
        hint = did_you_mean(prefix + key, names)
    else:
        hint = nearest_path(key) or did_you_mean("", names)
    return ConfigError(f'config has no field "{prefix}{key}"{hint}')


def nearest_path(key: str) -> str:
    """Looks for a field of nearly this name in all groups: `steps` stands under `train`."""
    leaves: dict[str, str] = {}
    for path in _all_paths():
        leaves.setdefault(path.rpartition(".")[2], path)
    near = difflib.get_close_matches(key, leaves, n=1, cutoff=0.7)
    return f'; did you mean "{leaves[near[0]]}"?' if near else ""


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path} is not readable as JSON ({error}); expected a resolved config"
        ) from error


def _changed(values: Mapping[str, Any], plain: Mapping[str, Any]) -> dict[str, Any]:
    """What differs from the defaults, in the same groups."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            below = _changed(value, plain.get(key, {}))
            found |= {key: below} if below else {}
        elif value is not None and (key not in plain or value != plain[key]):
            found[key] = value
    return found


def _leaves(values: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[Any, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*path, key))
        else:
            yield (*path, key), list(value) if isinstance(value, tuple) else value


def _at(values: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    for key in path:
        values = values[key]
    return values


def _put(values: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    _at(values, path[:-1])[path[-1]] = value


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _jsonable(v) for k, v in value.items()}
    return [_jsonable(v) for v in value] if isinstance(value, tuple) else value
