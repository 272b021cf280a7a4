"""Runs a model's chat template: Jinja text from a stranger.

It sees the messages and nothing else: no file, no module, no attribute of Python's. Its time is
bounded, but one step of Python's in C (a search in a text, say) goes on to its end. Each text or
list that it makes is bounded, most of them before they are made; nested lists that are printed
other than by `tojson` only after. Import it only where it is needed: jinja2 comes with an extra.
"""

from __future__ import annotations

import functools
import json
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator
from jinja2.exceptions import TemplateError
from jinja2.ext import Extension
from jinja2.filters import make_attrgetter
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from jinja2.utils import pass_environment

MAX_TEXT = 2**24  # characters of a prompt, and of any text or list on the way
LIMIT_S = 10.0
_MAX_NUMBER = 10**6  # for the width of a text, or how often it is repeated
_LONG = (str, bytes, list, tuple)
_NO_CLOCK = "it asks for the date (strftime_now); write the date into it"
_OLDEST = (3, 1, 6)  # before it there were ways out of the sandbox

if tuple(int(part) for part in jinja2.__version__.split(".")[:3]) < _OLDEST:
    raise ImportError(f"jinja2 {jinja2.__version__} is too old")


class RefusedError(Exception):
    """The template asks for more than the sandbox gives."""


class _LateError(BaseException):
    """Time is up; no `except Exception` on the way may take it for its own."""


def run(template: str, given: Mapping[str, Any], *, has_clock: bool = True) -> str:
    """Runs a template.

    Args:
      template: Jinja text.
      given: what it may read.
      has_clock: whether it may ask for the time; else `strftime_now` is not defined.

    Raises:
      RefusedError: it goes on for too long or grows too large.
      Exception: whatever else is wrong with it.
    """
    seconds = LIMIT_S
    try:
        with _deadline(seconds):
            clock = _strftime_now if has_clock else jinja2.Undefined(_NO_CLOCK)
            return _joined(_compiled(template).generate({**given, "strftime_now": clock}))
    except _LateError:
        raise RefusedError(f"it ran for more than {seconds:g} s") from None


@contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    """Ends the template, and the Python that it calls, after so long."""
    end = time.monotonic() + seconds

    def watch(frame: Any, event: str, arg: Any) -> Any:
        if time.monotonic() > end:
            raise _LateError
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
    """`{% generation %}` marks what to train on; its text stands as it is.

    Before and after it stands what the template is given as these names: nothing, as a rule.
    """

    tags = {"generation"}

    def parse(self, parser: Any) -> Any:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        begin, end = (
            nodes.Output([nodes.Name(f"generation_{what}", "load")]) for what in ("begins", "ends")
        )
        return nodes.Scope([begin, *body, end]).set_lineno(line)


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
    concat = staticmethod(lambda parts: _joined(parts))  # of what {% set %} and macros write

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        _check_operands(operator, left, right)
        return _bounded(super().call_binop(context, operator, left, right))

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        _check_numbers((*args, *kwargs.values()))
        owner, name = getattr(obj, "__self__", None), getattr(obj, "__name__", "")
        if isinstance(owner, (str, bytes)) and name in _METHODS:
            if name == "join":
                args = tuple(list(arg) for arg in args)  # an iterator can be read only once
            _check_size(_METHODS[name](owner, *args, **kwargs))
        return _bounded(super().call(context, obj, *args, **kwargs))

    def joined(self, parts: Sequence[Any]) -> str:
        return _joined(parts)

    def wrap_str_format(self, value: Any) -> Any:
        if super().wrap_str_format(value) is None:
            return None
        text, takes_mapping = value.__self__, value.__name__ == "format_map"
        if type(text) is not str:
            raise RefusedError("it formats an escaped text; format it before")

        def formatted(*args: Any, **kwargs: Any) -> str:
            formatter = _Formatter(self)
            return (
                formatter.vformat(text, (), *args)
                if takes_mapping
                else (formatter.vformat(text, args, kwargs))
            )

        return formatted


class _Formatter(SandboxedFormatter):
    """Formats with bounded widths."""

    size = 0

    def format_field(self, value: Any, format_spec: str) -> str:
        _check_numbers([int(digits[:9]) for digits in re.findall(r"\d+", format_spec)])
        piece = super().format_field(value, format_spec)
        self.size += len(piece)
        _check_size(self.size)
        return piece


@functools.cache
def _environment() -> _Sandbox:
    """Jinja as transformers sets it up for chat templates, with narrower bounds."""
    environment = _Sandbox(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_GenerationBlock, "jinja2.ext.loopcontrols"],
    )
    environment.globals["raise_exception"] = _raise_exception
    environment.globals.pop("lipsum")  # writes as much as it is asked for
    environment.filters |= {"tojson": _tojson, "join": _join, "format": _format}
    for name, function in environment.filters.items():
        environment.filters[name] = _checked_filter(name, function)
    return environment


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _format(*args: Any, **kwargs: Any) -> str:
    raise RefusedError("it formats with %; write ~ instead")


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    """Without the escapes for HTML that Jinja's own makes."""
    encoder = json.JSONEncoder(
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )
    return _joined(encoder.iterencode(value))


@pass_environment
def _join(environment: Any, value: Any, d: Any = "", attribute: Any = None) -> str:
    parts = value if attribute is None else map(make_attrgetter(environment, attribute), value)
    return _joined(parts, str(d))


def _joined(parts: Iterable[Any], separator: str = "") -> str:
    texts, size = [], 0
    for part in parts:
        texts.append(str(part))
        size += len(texts[-1]) + len(separator)
        _check_size(size)
    return separator.join(texts)


def _checked_filter(name: str, function: Any) -> Any:
    before = 1 if hasattr(function, "jinja_pass_arg") else 0  # what Jinja passes first

    @functools.wraps(function)  # its mark for that stays
    def checked(*args: Any, **kwargs: Any) -> Any:
        _check_numbers((*args[before + 1 :], *kwargs.values()))
        if name in _FILTERS:
            _check_size(_FILTERS[name](*args[before:], **kwargs))
        return _bounded(function(*args, **kwargs))

    return checked


def _replaced(text: Any, old: Any, new: Any, count: int | None = None) -> int:
    if not isinstance(text, bytes):
        text, old, new = str(text), str(old), str(new)
    found = text.count(old)
    times = found if count is None or count < 0 else min(count, found)
    return len(text) + times * max(len(new) - len(old), 0)


def _indented(text: Any, width: Any = 4, first: bool = False, blank: bool = False) -> int:
    lines = str(text).count("\n") + 2
    return len(str(text)) + lines * (len(width) if isinstance(width, str) else abs(width))


def _expanded(text: Any, tabsize: int = 8) -> int:
    return len(text) + abs(tabsize) * text.count("\t" if isinstance(text, str) else b"\t")


def _translated(*_: Any) -> int:
    raise RefusedError("it calls translate; call replace instead")


# How long what they make will be, or somewhat longer: of methods of texts, and of filters.
_METHODS: dict[str, Callable[..., int]] = {
    "replace": _replaced,
    "join": lambda text, parts: sum(len(part) + len(text) for part in parts),
    "expandtabs": _expanded,
    "translate": _translated,
}
_FILTERS: dict[str, Callable[..., int]] = {
    "replace": _replaced,
    "indent": _indented,
    "wordwrap": lambda text, width=79, break_long_words=True, wrapstring=None, **_: (
        len(str(text)) * (1 + len(wrapstring or "\n"))
    ),
}


def _check_operands(operator: str, left: Any, right: Any) -> None:
    sizes = [len(x) if isinstance(x, _LONG) else None for x in (left, right)]
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


def _check_size(size: int) -> None:
    if size > MAX_TEXT:
        raise RefusedError(f"it makes a text or list of more than {MAX_TEXT} entries")


def _bounded(value: Any) -> Any:
    if isinstance(value, _LONG):
        _check_size(len(value))
    return value
