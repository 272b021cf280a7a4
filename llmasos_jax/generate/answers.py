"""What an encoder answers: small frozen dataclasses that print well."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Candidate:
    """A token that may stand where a mask does.

    Attributes:
      token: its text.
      id: its id.
      probability: that it stands there, 0 to 1.
      text: the whole text with it, and with the best candidate at every other mask.
    """

    token: str
    id: int
    probability: float
    text: str

    def __str__(self) -> str:
        return f"{self.probability:6.1%}  {self.token:<16}  {self.text}"


@dataclass(frozen=True)
class Filled:
    """A text whose masks are filled; `filled[0]` are the candidates of its first mask.

    Attributes:
      text: the text with the best candidate at each mask.
      masks: of each mask in the text, from the left, its candidates, the likeliest first.

    Example:
      >>> best = Candidate("paris", 3000, 0.875, "paris is a city.")
      >>> filled = Filled("paris is a city.", ((best,),))
      >>> filled[0][0].token, len(filled)
      ('paris', 1)
      >>> print(filled)
      paris is a city.
       87.5%  paris             paris is a city.
    """

    text: str
    masks: tuple[tuple[Candidate, ...], ...]

    def __len__(self) -> int:
        return len(self.masks)

    def __getitem__(self, mask: int) -> tuple[Candidate, ...]:
        return self.masks[mask]

    def __iter__(self) -> Iterator[tuple[Candidate, ...]]:
        return iter(self.masks)

    def __str__(self) -> str:
        lines = [self.text]
        for number, candidates in enumerate(self.masks, start=1):
            lines += [f"mask {number}"] if len(self.masks) > 1 else []
            lines += map(str, candidates)
        return "\n".join(lines)


@dataclass(frozen=True)
class Label:
    """A label with its probability.

    Example:
      >>> print(Label("positive", 0.75))
      positive  75.0%
    """

    label: str
    probability: float

    def __str__(self) -> str:
        return f"{self.label}  {self.probability:.1%}"


@dataclass(frozen=True)
class Score:
    """What a classifier of one label gives: a number in the units that it was trained on.

    Example:
      >>> print(Score("stars", 3.5))
      stars  3.5
    """

    label: str
    value: float

    def __str__(self) -> str:
        return f"{self.label}  {self.value:.4g}"


@dataclass(frozen=True)
class LabelledToken:
    """A token with its labels, the likeliest first.

    Example:
      >>> print(LabelledToken("Paris", 3000, (Label("city", 0.75), Label("none", 0.25))))
      Paris  city  75.0%
    """

    token: str
    id: int
    labels: tuple[Label, ...]

    @property
    def label(self) -> str:
        """The likeliest label."""
        return self.labels[0].label

    @property
    def probability(self) -> float:
        """Of the likeliest label."""
        return self.labels[0].probability

    def __str__(self) -> str:
        return f"{self.token}  {self.labels[0]}"
