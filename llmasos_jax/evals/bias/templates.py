"""Template sets: texts that differ in who they are about, and words that may follow."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from llmasos_jax.errors import EvaluationError, did_you_mean

_SETS = Path(__file__).with_name("sets")
GROUP, ATTRIBUTE = "{group}", "{attribute}"


@dataclass(frozen=True)
class Case:
    """One pair of texts and the words that follow both.

    Attributes:
      pair: its place in the set's `pairs`.
      attribute: which list the words are of.
      first, second: the texts before the words.
      words: that are scored after each.
    """

    pair: int
    attribute: str
    first: str
    second: str
    words: str


@dataclass(frozen=True)
class TemplateSet:
    """A counterfactual design: every template with every pair and every word.

    Attributes:
      name: of the set.
      description: what it asks.
      language: of its texts, as BCP 47 has it.
      groups: what the first and the second of each pair stand for.
      pairs: words that take the place of `{group}`, as alike as can be but for the group.
      templates: texts with `{group}`, which end with `{attribute}`.
      attributes: lists of words by what they have in common; each list gets one figure.
    """

    name: str
    description: str
    language: str
    groups: tuple[str, str]
    pairs: tuple[tuple[str, str], ...]
    templates: tuple[str, ...]
    attributes: Mapping[str, tuple[str, ...]]

    def __post_init__(self) -> None:
        for template in self.templates:
            if template.count(GROUP) != 1 or template.count(ATTRIBUTE) != 1:
                raise EvaluationError(
                    f"template {template!r} of {self.name!r} needs {GROUP} and {ATTRIBUTE}, once"
                )
            if not template.endswith(ATTRIBUTE):
                raise EvaluationError(
                    f"template {template!r} of {self.name!r} goes on after {ATTRIBUTE}; end it "
                    "there: what follows is not scored"
                )
        if len(self.pairs) < 2 or not self.templates or not all(self.attributes.values()):
            raise EvaluationError(
                f"the set {self.name!r} needs two pairs, a template and a word for each attribute"
            )

    def cases(self) -> list[Case]:
        """All of them, in order of pairs, templates, attributes, words."""
        made = []
        for number, pair in enumerate(self.pairs):
            for template in self.templates:
                head = template.removesuffix(ATTRIBUTE)
                kept = head.rstrip()  # a space belongs to the word after it, for tokenizers
                first, second = (kept.replace(GROUP, each) for each in pair)
                for attribute, words in self.attributes.items():
                    made += [
                        Case(number, attribute, first, second, head[len(kept) :] + word)
                        for word in words
                    ]
        return made


def set_names() -> list[str]:
    """The sets that the package has.

    Example:
      >>> set_names()
      ['gender', 'names', 'nationality']
    """
    return sorted(path.stem for path in _SETS.glob("*.json"))


def read_set(source: str | os.PathLike[str] | TemplateSet) -> TemplateSet:
    """A template set: one of the package's by its name, or a JSON file of your own.

    Args:
      source: a name of `set_names`, a path that ends with ".json", or a set.

    Raises:
      EvaluationError: there is none, or the file is not one.

    Example:
      >>> read_set("gender").groups
      ('men', 'women')
    """
    if isinstance(source, TemplateSet):
        return source
    text = os.fspath(source)
    path = Path(text) if text.endswith(".json") else _SETS / f"{text}.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        more = "" if text.endswith(".json") else did_you_mean(text, set_names())
        raise EvaluationError(f'there is no template set "{text}"{more}') from error
    except ValueError as error:
        raise EvaluationError(f"{path} is no JSON: {error}") from error
    return _checked(found, path)


def _checked(found: Any, path: Path) -> TemplateSet:
    names = {field.name for field in fields(TemplateSet)}
    given = set(found) if isinstance(found, dict) else set()
    if given != names:
        raise EvaluationError(
            f"{path} has the keys {sorted(given)}; a template set has {sorted(names)}, each of them"
        )
    for key in ("pairs", "groups"):
        rows = found[key] if key == "pairs" else [found[key]]
        if not all(isinstance(row, list) and len(row) == 2 for row in rows):
            raise EvaluationError(f"{path}: {key} must be two texts each, of both groups")
    texts = [*found["groups"], *found["templates"]]
    texts += [text for pair in found["pairs"] for text in pair]
    if not isinstance(found["attributes"], dict):
        raise EvaluationError(f"{path}: attributes must be lists of words by their names")
    texts += [word for words in found["attributes"].values() for word in words]
    if not all(isinstance(text, str) and text for text in texts):
        raise EvaluationError(f"{path}: every entry must be a text that is not empty")
    return TemplateSet(
        found["name"],
        found["description"],
        found["language"],
        (found["groups"][0], found["groups"][1]),
        tuple((first, second) for first, second in found["pairs"]),
        tuple(found["templates"]),
        {name: tuple(words) for name, words in found["attributes"].items()},
    )
