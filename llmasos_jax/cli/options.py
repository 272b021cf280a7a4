"""What several verbs share: `--config`, `--json`, and how they print."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from typing import Any

from llmasos_jax.config.schema import Config


def add_config(parser: argparse.ArgumentParser) -> None:
    """Adds `--config`; the overrides beside it are read by `cli.main.parse`."""
    parser.add_argument(
        "--config",
        required=True,
        metavar="X",
        help="a config file, or the name of a packaged one (quickstart); "
        "change fields with --config.train.steps=100",
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """Adds `--json`."""
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object on standard output"
    )


def add_allow_code(parser: argparse.ArgumentParser) -> None:
    """Adds `--allow-code`."""
    parser.add_argument(
        "--allow-code",
        action="store_true",
        help='let the model import parts named "package.module:name"; only if you trust it',
    )


def add_source(parser: argparse.ArgumentParser) -> None:
    """Adds `--revision` and `--ignore`: where a foreign model comes from, and what of it may go."""
    parser.add_argument(
        "--revision", metavar="R", help="a branch, tag or commit of a name on the hub"
    )
    parser.add_argument(
        "--ignore",
        action="append",
        default=[],
        metavar="NAME",
        help="a key or tensor of a foreign model that may get lost; may be repeated",
    )


def config_of(args: argparse.Namespace) -> Config:
    """The config that `--config` and its overrides describe.

    Raises:
      ConfigError: no such config, or a field that is unknown or does not fit.
    """
    from llmasos_jax.config.build import build, read_config
    from llmasos_jax.config.flags import apply_overrides

    config = read_config(args.config)
    apply_overrides(config, args.overrides)
    return build(config)


def print_json(values: dict[str, Any]) -> None:
    """Prints one JSON object on one line of standard output."""
    print(json.dumps(values, ensure_ascii=False, default=str))


def print_fields(result: Any) -> None:
    """Prints a dataclass, one field a line, a dict indented under its name; None is left out."""
    values = {name: value for name, value in asdict(result).items() if value is not None}
    width = max(map(len, values))
    for name, value in values.items():
        title = name.replace("_", " ")
        if isinstance(value, dict):
            print(title)
            inner = max(map(len, value), default=0)
            for key, text in value.items():
                print(f"  {key:<{inner}}  {text}")
        elif isinstance(value, float):
            print(f"{title:<{width}}  {value:.4g}")
        else:
            text = f"{value:,}" if isinstance(value, int) else value
            print(f"{title:<{width}}  {text}")


def note(text: str) -> None:
    """Prints what is not the answer itself on standard error."""
    print(text, file=sys.stderr, flush=True)
