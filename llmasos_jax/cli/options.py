"""What several verbs share: `--config`, `--json`, and how they print."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from typing import Any

from llmasos_jax.config.schema import Config


def add_config(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Adds `--config`; the overrides beside it are read by `cli.main.parse`."""
    parser.add_argument(
        "--config",
        required=required,
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
    add_ignore(parser)


def add_quantize(parser: argparse.ArgumentParser) -> None:
    """Adds `--quantize`: weights in few bits."""
    parser.add_argument(
        "--quantize",
        choices=("int8", "int4"),
        help="keep the matrices of attention and MLPs in so many bits (none: as they are)",
    )


def add_adapter(parser: argparse.ArgumentParser) -> None:
    """Adds `--adapter`: what was trained beside the model."""
    parser.add_argument(
        "--adapter",
        metavar="A",
        help="the folder of a LoRA run on this model (llmasos finetune), or of PEFT; it stands "
        "beside the weights, which are not changed",
    )


def adapters_of(args: argparse.Namespace) -> dict[str, str]:
    """What `--adapter` gives to `load_model`: the one adapter, called as it is given."""
    return {} if args.adapter is None else {args.adapter: args.adapter}


def add_ignore(parser: argparse.ArgumentParser) -> None:
    """Adds `--ignore`."""
    parser.add_argument(
        "--ignore",
        action="append",
        default=[],
        metavar="NAME",
        help="a key or tensor of a foreign model that may get lost; may be repeated",
    )


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `generate_text` and `chat`: how long a text is and how it is drawn."""
    parser.add_argument(
        "--max-length", type=int, default=100, metavar="N", help="new tokens at most (%(default)s)"
    )
    parser.add_argument(
        "--temperature", type=float, default=1.0, metavar="T", help="0 is greedy (%(default)s)"
    )
    parser.add_argument("--top-k", type=int, metavar="K", help="draw from the K likeliest")
    parser.add_argument("--top-p", type=float, metavar="P", help="draw from the likeliest P in sum")
    parser.add_argument(
        "--min-p", type=float, metavar="P", help="drop what is under P times the likeliest"
    )
    parser.add_argument(
        "--repetition-penalty",
        type=float,
        default=1.0,
        metavar="R",
        help="divides the scores of tokens that are there (%(default)s: no)",
    )
    parser.add_argument(
        "--typical-p", type=float, metavar="P", help="draw from the most typical P in sum"
    )
    parser.add_argument(
        "--presence-penalty",
        type=float,
        default=0.0,
        metavar="R",
        help="taken from the scores of tokens that were written, -2 to 2 (%(default)s: no)",
    )
    parser.add_argument(
        "--frequency-penalty",
        type=float,
        default=0.0,
        metavar="R",
        help="the same, as often as they were written (%(default)s: no)",
    )
    parser.add_argument(
        "--logit-bias",
        type=_bias,
        action=_AddBias,
        metavar="ID=B",
        help="added to a token's score, -100 to 100; may be repeated",
    )
    parser.add_argument(
        "--stop", action="append", metavar="TEXT", help="end there; may be repeated"
    )
    parser.add_argument("--seed", type=int, metavar="S", help="the same seed gives the same text")
    parser.add_argument(
        "--deterministic",
        action="store_true",
        help="one compiled shape for all: exact whatever the neighbours, and slower",
    )


def sampling_of(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments that the options of `add_sampling` give."""
    names = (
        *("max_length", "temperature", "top_k", "top_p", "min_p", "repetition_penalty"),
        *("typical_p", "presence_penalty", "frequency_penalty", "logit_bias"),
        *("stop", "seed", "deterministic"),
    )
    return {name: getattr(args, name) for name in names}


def _bias(text: str) -> tuple[int, float]:
    token, is_pair, bias = text.partition("=")
    try:
        if is_pair:
            return int(token), float(bias)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is not possible; give an id and a bias, 42=-100")


class _AddBias(argparse.Action):
    """Puts one bias to those of other tokens."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        token, bias = values
        biases = getattr(namespace, self.dest) or {}
        if token in biases:
            parser.error(f"{option_string} names the id {token} twice; give each token once")
        setattr(namespace, self.dest, {**biases, token: bias})


def config_of(args: argparse.Namespace) -> Config:
    """The config that `--config` and its overrides describe.

    Raises:
      ConfigError: no such config, or a field that is unknown or does not fit.
    """
    from llmasos_jax.config.build import build

    return build(overridden(args))


def overridden(args: argparse.Namespace) -> Any:
    """The same as a ConfigDict, in which required fields may be absent yet.

    Raises:
      ConfigError: no such config, or a field that is unknown or does not fit.
    """
    from llmasos_jax.config.build import read_config
    from llmasos_jax.config.flags import apply_overrides

    config = read_config(args.config)
    apply_overrides(config, args.overrides)
    return config


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
                if isinstance(text, dict):
                    text = ", ".join(f"{name} {number:,}" for name, number in text.items())
                print(f"  {key:<{inner}}  {text}")
        elif isinstance(value, float):
            print(f"{title:<{width}}  {value:.4g}")
        else:
            text = f"{value:,}" if isinstance(value, int) else value
            print(f"{title:<{width}}  {text}")


def note(text: str) -> None:
    """Prints what is not the answer itself on standard error."""
    print(text, file=sys.stderr, flush=True)
