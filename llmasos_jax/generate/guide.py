"""What a text has to be: JSON of a schema, a regular expression, a choice.

The grammars are those of the llguidance library (M. Moskal and others,
https://github.com/guidance-ai/llguidance). Nothing here knows a model; `guides.py` follows a
grammar with a model's tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from llmasos_jax.errors import GenerationError, MissingExtraError

# How JSON is written. They go before what a schema says of them under "x-guidance". White space is
# bounded, for a model that has begun with it may not come to an end.
_JSON = {
    "item_separator": ",",
    "key_separator": ":",
    "whitespace_flexible": True,
    "whitespace_pattern": r"[ ]|\n[ ]{0,40}|\n\t{0,10}",
    "coerce_one_of": False,
    "lenient": False,
}


@dataclass(frozen=True)
class Guide:
    """What a text has to be. Checked when made; it knows nothing of a model.

    Attributes:
      grammar: for the library.
      what: in words, for messages.

    Example:
      >>> Guide.choice(["yes", "no"]).what
      'a choice'
    """

    grammar: str
    what: str

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any] | str) -> Guide:
        """JSON that is valid under a schema (draft 2020-12, as far as the library goes).

        Keywords that cannot be held to (`not`, `oneOf`, `if`, `uniqueItems`, unknown formats) are
        refused, and so are numbers of more than 15 digits. Of white space there is one space, or a
        line end with at most 40 spaces or 10 tabs.

        Raises:
          GenerationError: it is no schema, or says what cannot be held to; with the reason.
          MissingExtraError: llguidance is not installed.

        Example:
          >>> Guide.json_schema({"type": "object", "properties": {"n": {"type": "integer"}}}).what
          'JSON of a schema'
        """
        matcher = library().LLMatcher
        try:
            value = json.loads(schema) if isinstance(schema, str) else schema
            text = json.dumps(value, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise GenerationError(
                f"the JSON schema is not JSON ({line(error)}); give an object, or its text"
            ) from error
        if not isinstance(value, Mapping):
            raise GenerationError(
                f"the JSON schema is {line(text)[:40]}; expected an object such as "
                '{"type": "object"}'
            )
        _require_exact(value)
        try:
            grammar = matcher.grammar_from_json_schema(text, overrides=_JSON)
        except ValueError as error:
            raise refused("the JSON schema", error) from error
        return cls(_checked(grammar, "the JSON schema"), "JSON of a schema")

    @classmethod
    def json_object(cls) -> Guide:
        """Any JSON object."""
        return cls(cls.json_schema({"type": "object"}).grammar, "a JSON object")

    @classmethod
    def regex(cls, pattern: str) -> Guide:
        r"""A text that matches a regular expression as a whole.

        The expressions are those of Rust's crate `regex`: Python's without look-around and
        backreferences. `\d`, `\w` and `\s` are Unicode's.

        Raises:
          GenerationError: it is none; with the reason.
          MissingExtraError: llguidance is not installed.
        """
        if not isinstance(pattern, str):
            raise GenerationError(f"the regular expression is {pattern!r}; give a text")
        _require_utf8(pattern, "the regular expression")
        grammar = library().LLMatcher.grammar_from_regex(pattern)
        return cls(_checked(grammar, "the regular expression"), "a regular expression")

    @classmethod
    def choice(cls, texts: Sequence[str]) -> Guide:
        """One of these texts.

        Raises:
          GenerationError: there are none, or one is no text.
          MissingExtraError: llguidance is not installed.
        """
        if isinstance(texts, str) or not texts or not all(isinstance(t, str) for t in texts):
            raise GenerationError(
                f"a choice needs texts, at least one, and was given {str(texts)[:60]}"
            )
        for text in texts:
            _require_utf8(text, "the choice")
        spelt = ("".join(f"\\x{{{ord(c):x}}}" for c in text) for text in texts)
        grammar = library().LLMatcher.grammar_from_regex("|".join(spelt))
        return cls(_checked(grammar, "the choice"), "a choice")


def library() -> Any:
    """The llguidance package.

    Raises:
      MissingExtraError: it is not installed.
    """
    try:
        import llguidance
    except ImportError as error:
        raise MissingExtraError(
            f"constrained output is made by the llguidance package ({error}); "
            "pip install 'llmasos-jax[guide]'"
        ) from error
    return llguidance


def _checked(grammar: str, what: str) -> str:
    is_error, said = library().LLMatcher.validate_grammar_with_warnings(grammar)
    if is_error or said:
        raise refused(what, "; ".join(said))
    return grammar


def refused(what: str, reason: object) -> GenerationError:
    """The error for a grammar that the library does not take."""
    return GenerationError(f"{what} cannot be followed ({line(reason)}); correct it")


def line(reason: object) -> str:
    """The library's reason in one line: what it calls the error, without where in its own terms."""
    lines = str(reason).strip().splitlines() or ["no reason given"]
    said = next((line[7:] for line in lines if line.startswith("error: ")), lines[0])
    return re.sub(r"^at \d+\(\d+\): ", "", said).strip()[:300]


def _require_exact(value: Any) -> None:
    """The library reads decimals by one product in float64, exact up to these sizes alone."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        _, digits, exponent = Decimal(repr(value)).as_tuple()
        most = max(abs(value), int("".join(map(str, digits))))
        if most > 2**53 or abs(int(exponent)) > 22:
            raise GenerationError(
                f"the JSON schema has the number {str(value)[:40]}, which cannot be held to; "
                "expected at most 15 digits"
            )
    if isinstance(value, (list, tuple, Mapping)):
        for part in value.values() if isinstance(value, Mapping) else value:
            _require_exact(part)


def _require_utf8(text: str, what: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise GenerationError(
            f"{what} has half of a surrogate pair, which is no text; take it out"
        ) from error
