"""JSON that means one thing: bounded when read, and checked against the published schema."""

from __future__ import annotations

import functools
import json
import math
import re
from importlib import resources
from typing import Any

from llmasos_jax.data.text import shown as shown
from llmasos_jax.errors import FormatError, did_you_mean

MAX_DEPTH = 64
POINTER = b"version https://git-lfs"


def parse_json(raw: bytes, where: str) -> Any:
    """Parses strict JSON (RFC 8259): no duplicate keys, no NaN, no infinite or endless numbers.

    Args:
      raw: the text, UTF-8.
      where: the file, for messages.

    Raises:
      FormatError: it is not such JSON.

    Example:
      >>> parse_json(b'{"a": 1, "a": 2}', "model.json")
      Traceback (most recent call last):
      ...
      llmasos_jax.errors.FormatError: model.json: the key "a" stands twice; each key may stand once
    """
    try:
        value = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=functools.partial(_unique, where),
            parse_constant=functools.partial(_refuse_constant, where),
            parse_float=functools.partial(_finite, where),
        )
    except FormatError:
        raise
    except RecursionError as error:
        raise FormatError(f"{where}: nested deeper than {MAX_DEPTH} levels") from error
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        refuse_pointer(raw, where)
        raise FormatError(f"{where} is not JSON: {_one_line(error)}") from error
    _check_depth(value, where)
    # An escape such as \ud800 alone is JSON but not text: it could never be printed or written.
    if b"\\u" in raw:
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except ValueError as error:
            raise FormatError(f"{where}: a string holds half a surrogate pair") from error
    return value


def refuse_pointer(raw: bytes, where: str) -> None:
    """Refuses what git-lfs leaves in place of a large file that has not been downloaded.

    Args:
      raw: the first bytes of the file, or all.
      where: the file, for messages.

    Raises:
      FormatError: they are those of such a pointer.

    Example:
      >>> refuse_pointer(b"version https://git-lfs.github.com/spec/v1", "w")
      Traceback (most recent call last):
      ...
      llmasos_jax.errors.FormatError: w is a git-lfs pointer; run `git lfs pull` in its folder
    """
    if raw.startswith(POINTER):
        raise FormatError(f"{where} is a git-lfs pointer; run `git lfs pull` in its folder")


def _unique(where: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise FormatError(
            f'{where}: the key "{shown(twice)}" stands twice; each key may stand once'
        )
    return found


def _refuse_constant(where: str, text: str) -> Any:
    raise FormatError(f"{where}: {text} is not a JSON number")


def _finite(where: str, text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise FormatError(f"{where}: the number {shown(text)} is too large")
    return number


def _check_depth(value: Any, where: str) -> None:
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise FormatError(f"{where}: nested deeper than {MAX_DEPTH} levels")
        below: list[Any] = []
        for node in level:
            if isinstance(node, (dict, list)):
                below += node.values() if isinstance(node, dict) else node
        level = below


def _one_line(error: Exception) -> str:
    return shown((str(error).splitlines() or [""])[0][:200])


@functools.cache
def schema() -> dict[str, Any]:
    """The published JSON Schema of `model.json`. Do not change the result."""
    path = resources.files("llmasos_jax.format") / "schema-1.json"
    return json.loads(path.read_text(encoding="utf-8"))


def check(value: Any, rule: dict[str, Any], path: str, where: str) -> None:
    """Checks a JSON value against the part of JSON Schema that `schema-1.json` uses.

    One thing is stricter than JSON Schema: an integer is written without a fraction.

    Args:
      value: what was read.
      rule: the schema that it must follow.
      path: where in the file it stands, for messages ("parameters.vocab_size").
      where: the file, for messages.

    Raises:
      FormatError: for the first thing that does not follow the schema.
    """
    kinds = rule["type"] if isinstance(rule["type"], list) else [rule["type"]]
    kind = next((k for k in kinds if _is_kind(value, k)), None)
    if kind is None:
        expected = " or ".join(kinds)
        raise FormatError(f"{where}: {path or 'the file'} = {shown(value)} must be {expected}")
    if kind == "object":
        _check_object(value, rule, path, where)
    elif kind == "array":
        _check_array(value, rule, path, where)
    elif kind == "string":
        _check_string(value, rule, path, where)
    elif kind in ("integer", "number"):
        _check_number(value, rule, path, where)


_KINDS = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}


def _is_kind(value: Any, kind: str) -> bool:
    if kind in ("integer", "number"):
        kinds = (int,) if kind == "integer" else (int, float)
        return isinstance(value, kinds) and not isinstance(value, bool)
    return isinstance(value, _KINDS[kind])


def _check_object(value: dict[str, Any], rule: dict[str, Any], path: str, where: str) -> None:
    known = rule.get("properties", {})
    prefix = f"{path}." if path else ""
    if rule.get("additionalProperties", True) is False:
        for key in value:
            if key not in known:
                hint = did_you_mean(shown(key), known)
                raise FormatError(f'{where}: "{prefix}{shown(key)}" is not a key of format 1{hint}')
    for key in rule.get("required", ()):
        if key not in value:
            raise FormatError(
                f'{where}: "{prefix}{key}" is missing; add it: {known[key]["description"]}'
            )
    for key, item in value.items():
        if key in known:
            check(item, known[key], prefix + key, where)


def _check_array(value: list[Any], rule: dict[str, Any], path: str, where: str) -> None:
    least, most = rule.get("minItems", 0), rule["maxItems"]
    if not least <= len(value) <= most:
        raise FormatError(f"{where}: {path} has {len(value)} entries, must have {least} to {most}")
    for index, item in enumerate(value):
        check(item, rule["items"], f"{path}[{index}]", where)


def _check_string(value: str, rule: dict[str, Any], path: str, where: str) -> None:
    least, most = rule.get("minLength", 0), rule.get("maxLength", 1000)
    if not least <= len(value) <= most:
        raise FormatError(
            f"{where}: {path} has {len(value)} characters, must have {least} to {most}"
        )
    named = [str(n) for n in rule.get("enum", rule.get("examples", ())) if n is not None]
    ok = value in named if "enum" in rule else True
    if "pattern" in rule:
        ok = re.fullmatch(rule["pattern"], value) is not None
    if not ok and named:
        hint = did_you_mean(shown(value), named)
        raise FormatError(f'{where}: {path} = "{shown(value)}" is not known{hint}')
    if not ok:
        what = rule.get("description", "").rstrip(".")
        raise FormatError(
            f'{where}: {path} = "{shown(value)}" must match {rule["pattern"]} ({what})'
        )


def _check_number(value: float, rule: dict[str, Any], path: str, where: str) -> None:
    open_end = "exclusiveMinimum" in rule
    least, most = rule["exclusiveMinimum" if open_end else "minimum"], rule["maximum"]
    if value > most or value < least or (open_end and value == least):
        bound = f"above {least}" if open_end else f"at least {least}"
        raise FormatError(f"{where}: {path} = {shown(value)} must be {bound} and at most {most}")
