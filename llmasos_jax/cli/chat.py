"""Answers in a conversation, in a terminal or line by line from a pipe.

In a terminal: /reset begins a new conversation, /exit or Ctrl-D ends it, Ctrl-C stops an answer.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import Any

from llmasos_jax.cli.options import (
    adapters_of,
    add_adapter,
    add_allow_code,
    add_quantize,
    add_sampling,
    add_source,
    note,
    sampling_of,
)
from llmasos_jax.errors import GenerationError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `llmasos chat`: those of `Model.chat`."""
    parser.add_argument(
        "model", metavar="MODEL", help="what `llmasos generate` reads, with a chat template"
    )
    parser.add_argument("--system", metavar="TEXT", help="what the model is told before all else")
    add_sampling(parser)
    add_adapter(parser)
    add_quantize(parser)
    add_source(parser)
    add_allow_code(parser)
    parser.set_defaults(max_length=512)


def run(args: argparse.Namespace) -> None:
    """Loads the model and answers until the input ends."""
    from llmasos_jax.parallel.compile_cache import use_compile_cache

    use_compile_cache()
    from llmasos_jax.generate.load import load_model

    model = load_model(
        args.model,
        allow_code=args.allow_code,
        revision=args.revision,
        ignore=args.ignore,
        adapters=adapters_of(args),
        quantize=args.quantize,
    )
    options = {**sampling_of(args), "adapter": args.adapter}
    if model.chat_template(args.adapter) is None:
        model.chat([{"role": "user", "content": ""}])  # says so, before anything is typed
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        note(f"{model!r}\n/reset begins anew, /exit or Ctrl-D ends, Ctrl-C stops an answer")
    talk(model, args.system, options, is_terminal=is_terminal)


def talk(model: Any, system: str | None, options: dict[str, Any], *, is_terminal: bool) -> None:
    """Reads messages and prints the answers.

    Args:
      model: anything with `chat`.
      system: the first message, if there is one.
      options: of `Model.chat`.
      is_terminal: whether somebody types: then a message that cannot be answered is told and
        forgotten; otherwise it is an error.
    """
    start = [] if system is None else [{"role": "system", "content": system}]
    messages = list(start)
    for line in _lines(is_terminal):
        if line == "/exit":
            return
        if line == "/reset":
            messages = list(start)
            continue
        messages.append({"role": "user", "content": line})
        try:
            answer = _answer(model, messages, options, is_terminal)
        except GenerationError as error:
            if not is_terminal:
                raise
            note(f"llmasos: {error}")
            messages.pop()
            continue
        messages.append({"role": "assistant", "content": answer})


def _answer(
    model: Any, messages: list[dict[str, str]], options: dict[str, Any], is_terminal: bool
) -> str:
    """Prints one answer as it comes; what was there when Ctrl-C was pressed is the answer."""
    pieces: list[str] = []
    try:
        for piece in model.chat(messages, stream=True, **options):
            pieces.append(piece)
            sys.stdout.write(piece)
            sys.stdout.flush()
    except KeyboardInterrupt:
        if not is_terminal:
            raise
    print(flush=True)
    return "".join(pieces)


def _lines(is_terminal: bool) -> Iterator[str]:
    """Messages, one a line, empty ones left out."""
    while True:
        try:
            line = input("> ") if is_terminal else sys.stdin.readline()
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            note("\n/exit or Ctrl-D ends")
            continue
        if not is_terminal and not line:
            return
        if line.strip():
            yield line.strip()
