"""Rows of many questions, each a context with its continuations as branches.

Here with a context of three tokens and the continuations `ab` and `cde`, whose last tokens predict
nothing that is asked for, and the next question after them::

    tokens      x x x a c d | y y y
    segments    1 1 1 1 1 1 | 2 2 2
    branches    0 0 0 1 2 2 | 0 0 0
    positions   0 1 2 3 3 4 | 0 1 2

The state of the last x predicts a and c, that of a predicts b, those of c and d predict d and e.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from llmasos_jax.generate.session import power_of_two

NARROWEST = 64  # tokens: fewer make no program of their own
# A context that is read again for more continuations is at most this part of what a row holds.
_REPEATED = 4


@dataclass(frozen=True)
class Part:
    """What is read in one piece: a question, or of a long one some of the continuations.

    Attributes:
      question: its place in the list.
      context: ids.
      continuations: by their place in the question, ids of each.
    """

    question: int
    context: Sequence[int]
    continuations: dict[int, Sequence[int]]

    @property
    def size(self) -> int:
        """The tokens of a row that it takes, or if they are more, what is asked for."""
        asked = sum(map(len, self.continuations.values()))
        return max(len(self.context) + asked - len(self.continuations), asked)

    @property
    def branches(self) -> int:
        """How many continuations have a token that is read."""
        return sum(len(ids) > 1 for ids in self.continuations.values())


@dataclass
class Row:
    """Parts side by side in a row of `width` tokens."""

    width: int
    parts: list[Part] = field(default_factory=list)
    used: int = 0

    def add(self, part: Part) -> None:
        """Puts it behind the others."""
        self.parts.append(part)
        self.used += part.size


@dataclass(frozen=True)
class Layout:
    """Rows as arrays; S = P = B T is the most that there can be of states and of pairs.

    Attributes:
      tokens, segments, positions, branches: int32 [B, T]; segment 0 is padding.
      num_states: int32 scalar, how many states predict something.
      states_s: int32 [S], the places of these states in B T.
      slots_p, targets_p: int32 [P], pairs of one of these states and a token.
      owners: of the pairs in their order: the part, the continuation's place, how many pairs.
    """

    tokens: np.ndarray
    segments: np.ndarray
    positions: np.ndarray
    branches: np.ndarray
    num_states: np.ndarray
    states_s: np.ndarray
    slots_p: np.ndarray
    targets_p: np.ndarray
    owners: list[tuple[Part, int, int]]


def parts_of(
    question: int,
    context: Sequence[int],
    continuations: Sequence[Sequence[int]],
    width: int,
    group_of: Callable[[int], int],
) -> Iterator[Part]:
    """A question in one part, or if it is far longer than a row, in several.

    Args:
      question: its place.
      context: ids.
      continuations: ids of each.
      width: tokens of an ordinary row.
      group_of: of a continuation; those of one group may be in one part.
    """
    groups: dict[int, list[int]] = {}
    for place in range(len(continuations)):
        groups.setdefault(group_of(place), []).append(place)
    longest = max(map(len, continuations))
    most = max(width, wide(_REPEATED * (len(context) + longest - 1)))
    for places in groups.values():
        kept: dict[int, Sequence[int]] = {}
        read, asked = len(context), 0
        for place in places:
            ids = continuations[place]
            if kept and max(read + len(ids) - 1, asked + len(ids)) > most:
                yield Part(question, context, kept)
                kept, read, asked = {}, len(context), 0
            kept[place] = ids
            read, asked = read + len(ids) - 1, asked + len(ids)
        yield Part(question, context, kept)


def wide(num: int) -> int:
    """The next of 256, 384, 512, 768, 1024, 1536, ...

    Example:
      >>> [wide(n) for n in (10, 300, 500, 513, 769, 1025)]
      [256, 384, 512, 768, 1024, 1536]
    """
    whole = power_of_two(max(num, 256))
    return whole * 3 // 4 if 256 < num <= whole * 3 // 4 else whole


def packed(parts: Sequence[Part], width: int) -> list[Row]:
    """Rows of all parts, long ones first, each in the fullest row that has room.

    Args:
      parts: in any order.
      width: of a row; a longer part gets a wider one.

    Example:
      >>> parts = [Part(i, [0] * size, {0: [1]}) for i, size in enumerate([30, 50, 40, 20])]
      >>> [[part.question for part in row.parts] for row in packed(parts, 80)]
      [[1, 0], [2, 3]]
    """
    rows: list[Row] = []
    room: list[tuple[int, int]] = []  # sorted: what is left, and of which row
    for part in sorted(parts, key=lambda part: -part.size):
        size = part.size
        index = bisect.bisect_left(room, (size, -1))
        if index == len(room):
            rows.append(Row(width if size <= width else wide(size)))
            left, number = rows[-1].width, len(rows) - 1
        else:
            left, number = room.pop(index)
        rows[number].add(part)
        bisect.insort(room, (left - size, number))
    return rows


def batches(rows: Sequence[Row], width: int, tokens: int) -> Iterator[tuple[list[Row], int, int]]:
    """Rows that run together, how many there are of them with empty ones, and their width.

    Args:
      rows: what `packed` gives.
      width: of an ordinary row.
      tokens: of a batch.
    """
    left = list(rows)
    while left:
        wanted = left[0].width
        same = [row for row in left if row.width == wanted]
        left = [row for row in left if row.width != wanted]
        most = max(1, tokens // wanted)
        num = min(most, power_of_two(len(same)))
        if len(same) == 1 and wanted == width:  # a handful of questions
            wanted = min(width, power_of_two(max(same[0].used, NARROWEST)))
        for first in range(0, len(same), num):
            yield same[first : first + num], num, wanted


def laid_out(rows: Sequence[Row], num_rows: int, width: int) -> Layout:
    """The arrays of some rows, and of empty ones up to `num_rows`."""
    tokens, segments, positions, branches = np.zeros((4, num_rows, width), np.int32)
    states_s, slots_p, targets_p = np.zeros((3, num_rows * width), np.int32)
    owners, num_states, num_pairs = [], 0, 0
    for r, row in enumerate(rows):
        end = 0
        for number, part in enumerate(row.parts, 1):
            start, n = end, len(part.context)
            end = start + n
            tokens[r, start:end], positions[r, start:end] = part.context, np.arange(n)
            first, num_states = num_states, num_states + 1
            states_s[first] = r * width + end - 1
            for branch, (place, ids) in enumerate(part.continuations.items(), 1):
                m = len(ids) - 1
                run, end = slice(end, end + m), end + m
                tokens[r, run], positions[r, run] = ids[:-1], np.arange(n, n + m)
                branches[r, run] = branch
                states_s[num_states : num_states + m] = r * width + np.arange(run.start, run.stop)
                pairs = slice(num_pairs, num_pairs + m + 1)
                slots_p[pairs] = [first, *range(num_states, num_states + m)]
                targets_p[pairs] = ids
                owners.append((part, place, m + 1))
                num_states, num_pairs = num_states + m, pairs.stop
            segments[r, start:end] = number
    states = np.asarray(num_states, np.int32)
    grids = (tokens, segments, positions, branches)
    return Layout(*grids, states, states_s, slots_p, targets_p, owners)
