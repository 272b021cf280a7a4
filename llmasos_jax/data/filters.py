"""What a document looks like, measured against thresholds.

The measures are those of Rae et al. (2021, Gopher, arXiv 2112.11446, appendix A1), with these
differences, so that they are right where words are not separated, as in Chinese:

- a letter is a letter of any script, ideographs and the marks of letters (vowel signs of Hindi)
  included, and its share is of all characters that are no blanks (Gopher: the share of words with a
  letter in them);
- a mean word length is of words of scripts that separate them; ideographs, kana, Thai, Lao, Khmer
  and Burmese letters are in no word, and a text of them alone has no mean, so it passes;
- an ellipsis is `...`, `…` or `。。。`; a bullet is one of `•‣◦●○■□▪▫◆＊・`, or one of `-*–—·` with
  a blank behind it.

Lines are those with something other than blanks in them.
"""

from __future__ import annotations

import functools
import re

from llmasos_jax.config.filters import FiltersConfig
from llmasos_jax.data.words import marks, word

_BLANK = re.compile(r"\s")
_ELLIPSES = ("...", "…", "。。。")
_BULLET = re.compile(r"\s*(?:[•‣◦●○■□▪▫◆＊・]|[-*–—·]\s)")


def rejected_by(text: str, filters: FiltersConfig) -> str | None:
    r"""The first threshold that a document does not meet; None if it meets all.

    Example:
      >>> rejected_by("12 34 ab", FiltersConfig(min_letters=0.5))
      'min_letters'
      >>> rejected_by("春眠不觉晓，处处闻啼鸟。", FiltersConfig(max_word_length=10.0))
      >>> rejected_by("- a\n- b\nc", FiltersConfig(max_bullet_lines=0.5))
      'max_bullet_lines'
    """
    if filters.min_chars is not None and len(text) < filters.min_chars:
        return "min_chars"
    if filters.max_chars is not None and len(text) > filters.max_chars:
        return "max_chars"
    if filters.min_letters is not None and share_of_letters(text) < filters.min_letters:
        return "min_letters"
    if filters.min_word_length is not None or filters.max_word_length is not None:
        mean = mean_word_length(text)
        if mean is not None:
            if filters.min_word_length is not None and mean < filters.min_word_length:
                return "min_word_length"
            if filters.max_word_length is not None and mean > filters.max_word_length:
                return "max_word_length"
    return _rejected_by_lines(text, filters)


def _rejected_by_lines(text: str, filters: FiltersConfig) -> str | None:
    most = (filters.max_duplicate_lines, filters.max_ellipsis_lines, filters.max_bullet_lines)
    if most == (None, None, None):
        return None
    lines = [line.strip() for line in text.splitlines() if not line.isspace() and line]
    if not lines:
        return None
    duplicate = len(lines) - len(set(lines))
    ellipsis = sum(line.endswith(_ELLIPSES) for line in lines)
    bullet = sum(_BULLET.match(line) is not None for line in lines)
    names = ("max_duplicate_lines", "max_ellipsis_lines", "max_bullet_lines")
    for name, limit, count in zip(names, most, (duplicate, ellipsis, bullet), strict=True):
        if limit is not None and count > limit * len(lines):
            return name
    return None


def share_of_letters(text: str) -> float:
    """Letters of any script as a share of the characters that are no blanks; 0 without any.

    Example:
      >>> share_of_letters("ab 月 1")
      0.75
    """
    filled = len(text) - len(_BLANK.findall(text))
    return sum(map(len, _letters().findall(text))) / filled if filled else 0.0


def mean_word_length(text: str) -> float | None:
    """Mean characters of the words of scripts that separate words; None where there is none.

    Example:
      >>> mean_word_length("Don't 月亮 go"), mean_word_length("月亮")
      (3.5, None)
    """
    words = _words().findall(text)
    return sum(map(len, words)) / len(words) if words else None


@functools.cache
def _letters() -> re.Pattern[str]:
    return re.compile(rf"[^\W\d_][{marks()}]*")


@functools.cache
def _words() -> re.Pattern[str]:
    one = word(underscores=False)
    return re.compile(rf"{one}(?:['’]{one})*")
