"""Runs a model's chat template: Jinja text from a stranger.

It sees the messages and nothing else: no file, no module, no attribute of Python's. Its time is
bounded, and so is the length of each text or list that it puts together. Import it only where it is
needed: jinja2 comes with an extra.
"""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator
from jinja2.exceptions import TemplateError
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_TEXT = 2**24  # characters of a prompt, and of any text or list on the way
LIMIT_S = 10.0
_MAX_NUMBER = 10**6  # for the width of a text, or how often it is repeated
_FILE = "<template>"  # what Jinja calls the compiled code
_OLDEST = (3, 1, 6)  # before it there were ways out of the sandbox

if tuple(int(part) for part in jinja2.__version__.split(".")[:3]) < _OLDEST:
    raise ImportError(f"jinja2 {jinja2.__version__} is too old")


class RefusedError(Exception):
    """The template asks for more than the sandbox gives."""


def run(template: str, given: Mapping[str, Any]) -> str:
    """Runs a template.

    Args:
      template: Jinja text.
      given: what it may read.

    Raises:
      RefusedError: it goes on for too long or grows too large.
      Exception: whatever else is wrong with it.
    """
    pieces, size = [], 0
    with _deadline(LIMIT_S):
        for piece in _compiled(template).generate(given):
            size += len(piece)
            if size > MAX_TEXT:
                raise RefusedError(f"it writes more than {MAX_TEXT} characters")
            pieces.append(piece)
    return "".join(pieces)


@contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    """Ends the template's own code after so long: loops in it cannot be told from endless ones."""
    end = time.monotonic() + seconds

    def watch(frame: Any, event: str, arg: Any) -> Any:
        if frame.f_code.co_filename != _FILE:
            return None
        if time.monotonic() > end:
            raise RefusedError(f"it ran for more than {seconds:g} s")
        return watch

    before = sys.gettrace()
    sys.settrace(watch)
    try:
        yield
    finally:
        sys.settrace(before)


@functools.lru_cache(maxsize=8)
def _compiled(template: str) -> Any:
    return _environment().from_string(template)


class _GenerationBlock(Extension):
    """`{% generation %}` marks what to train on; here its text stands as it is."""

    tags = {"generation"}

    def parse(self, parser: Any) -> Any:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


class _Generator(CodeGenerator):
    """Compiles `a ~ b` to a call that can be bounded."""

    def visit_Concat(self, node: Any, frame: Any) -> None:  # noqa: N802, as Jinja calls it
        self.write("environment.joined((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


class _Sandbox(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"+", "*", "**", "%"})
    code_generator_class = _Generator

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        _check_operands(operator, left, right)
        return _bounded(super().call_binop(context, operator, left, right))

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        _check_numbers((*args, *kwargs.values()))
        return _bounded(super().call(context, obj, *args, **kwargs))

    def joined(self, parts: Sequence[Any]) -> str:
        return _bounded("".join(map(str, parts)))


@functools.cache
def _environment() -> _Sandbox:
    """Jinja as transformers sets it up for chat templates, with narrower bounds."""
    environment = _Sandbox(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_GenerationBlock, "jinja2.ext.loopcontrols"],
    )
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    environment.filters["tojson"] = _tojson
    for name in ("center", "indent", "replace", "join", "batch", "slice"):
        environment.filters[name] = _checked_filter(environment.filters[name])
    return environment


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    """Without the escapes for HTML that Jinja's own makes."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _checked_filter(function: Any) -> Any:
    @functools.wraps(function)  # Jinja's marks for what it passes first stay
    def checked(*args: Any, **kwargs: Any) -> Any:
        _check_numbers((*args, *kwargs.values()))
        return _bounded(function(*args, **kwargs))

    return checked


def _check_operands(operator: str, left: Any, right: Any) -> None:
    sizes = [len(x) if isinstance(x, (str, list, tuple)) else None for x in (left, right)]
    numbers = [x for x in (left, right) if isinstance(x, int)]
    if operator == "*" and numbers and any(sizes):
        if max(numbers) * max(s or 0 for s in sizes) > _MAX_NUMBER:
            raise RefusedError("it repeats a text too often")
    elif operator == "**" and len(numbers) == 2 and abs(left).bit_length() * abs(right) > 4096:
        raise RefusedError("it makes a number too large")
    elif operator == "*" and len(numbers) == 2 and left.bit_length() + right.bit_length() > 4096:
        raise RefusedError("it makes a number too large")
    elif operator == "%" and isinstance(left, (str, bytes)):
        raise RefusedError("it formats with %; write ~ instead")


def _check_numbers(values: Sequence[Any]) -> None:
    if any(isinstance(value, int) and abs(value) > _MAX_NUMBER for value in values):
        raise RefusedError(f"it asks for a number above {_MAX_NUMBER}")


def _bounded(value: Any) -> Any:
    if isinstance(value, (str, list, tuple)) and len(value) > MAX_TEXT:
        raise RefusedError(f"it makes a text of more than {MAX_TEXT} characters")
    return value
