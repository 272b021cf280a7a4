"""What a word is, in any script."""

from __future__ import annotations

import functools
import sys
import unicodedata

# Thai, Lao, Burmese, Khmer; kana; ideographs with their extensions and compatibility forms.
UNSEPARATED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\U00020000-\U000323af"
)


@functools.cache
def marks() -> str:
    r"""Ranges, for a class of `re`, of what stands on or beside a letter and is a part of it.

    Combining marks (vowel signs of Hindi and Tamil, vowels of Hebrew, accents that are characters
    of their own) and the two joiners, none of which Python's `\w` matches.
    """
    ranges: list[list[int]] = []
    for code in range(0x300, sys.maxunicode + 1):
        if unicodedata.category(chr(code))[0] == "M" or code in (0x200C, 0x200D):
            if ranges and ranges[-1][1] == code - 1:
                ranges[-1][1] = code
            else:
                ranges.append([code, code])
    return "".join(f"{chr(first)}-{chr(last)}" for first, last in ranges)


@functools.cache
def word(*, underscores: bool) -> str:
    r"""A pattern of a word of a script that separates words: letters and digits with their marks.

    Example:
      >>> import re
      >>> re.findall(word(underscores=False), "The नमस्ते दुनिया, 月 x_1")
      ['The', 'नमस्ते', 'दुनिया', 'x', '1']
    """
    letters = rf"[^\W{UNSEPARATED}{'' if underscores else '_'}]"
    return rf"{letters}+(?:[{marks()}]+{letters}*)*"
