"""Writes YAML: blocks of dicts and lists, every string in quotes so that none changes its type."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any


def to_yaml(value: Any) -> str:
    r"""One YAML document.

    Args:
      value: dicts with string keys, lists, strings, numbers, booleans, None.

    Example:
      >>> print(to_yaml({"a": 1, "b": [{"c": "yes", "d": []}, "x"]}), end="")
      a: 1
      b:
        - c: "yes"
          d: []
        - "x"
    """
    return "".join(f"{line}\n" for line in _lines(value))


def _is_plain(key: str) -> bool:
    """Whether a key is a string without quotes; YAML 1.1 takes `on` for a truth value."""
    words = ("on", "off", "yes", "no", "y", "n", "true", "false", "null")
    return key.isidentifier() and key.isascii() and key.lower() not in words


def _is_text(value: str) -> bool:
    """Whether a string of several lines can stand as it is."""
    return value.isascii() and value.count("\n") > 1 and value.endswith("}\n")


def _lines(value: Any) -> Iterator[str]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            name = key if _is_plain(key) else json.dumps(key)
            if isinstance(inner, dict | list) and inner:
                yield f"{name}:"
                yield from (f"  {line}" for line in _lines(inner))
            elif isinstance(inner, str) and _is_text(inner):
                yield f"{name}: |"
                yield from (f"  {line}" for line in inner.splitlines())
            else:
                yield f"{name}: {json.dumps(inner)}"
    elif isinstance(value, list) and value:
        for inner in value:
            first, *rest = _lines(inner)
            yield f"- {first}"
            yield from (f"  {line}" for line in rest)
    else:
        yield json.dumps(value)
