"""Cuts a text into sentences, English or Chinese or both.

Nothing is lost: the pieces joined are the text. A sentence ends

- after 。！？； and after … that follows a Chinese character, closing quotes and brackets included
  (“你好。” is one), unless a comma or the like goes on;
- after . ? ! … that a blank follows, unless the next word is lower-case, or the full stop belongs
  to an abbreviation (Dr., e.g.), an initial (J. Smith) or the number of a list (1. First);
  3.14 and example.com have no blank and stay whole;
- at a blank line, before a line of a list, and at the end of each line that does not look like part
  of a paragraph: a short one (a title, a verse), or one with the signs of a program.

Own rules rather than a library: sentencex, the one that is kept and reads both languages, does as
well on prose, but it is compiled code, wants the language named, and keeps the lines of a program
or a poem together.
"""

from __future__ import annotations

import re

_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_CLOSERS = "”’」』）】》〉〕］｝»"
# The mark or marks, then what closes, then blanks up to the end of the line.
_END = re.compile(
    rf"(?:(?P<wide>[。！？；｡][。！？；｡….!?]*|(?<=[{_CJK}])…+|(?<=[{_CJK}])[!?]+(?=[{_CJK}{_CLOSERS}]))"
    rf"|(?P<narrow>(?<![.!?…])[.!?…]++(?=[\"'{_CLOSERS})\]}}]*+\s)))"
    rf"(?P<closers>[\"'{_CLOSERS})\]}}]*)(?P<blank>[^\S\n]*\n?)"
)
_GOES_ON = re.compile(r"[，、,：:；。！？)\]）】》]")
_LAST_WORD = re.compile(r"[\w.’'-]*\Z")
_NEXT_WORD = re.compile(rf"[\s\"'“‘«(\[（「『*_]*([^\W\d_]?)([^\W\d{_CJK}]*)")
_DOTTED = re.compile(r"(?:[^\W\d_]\.)*[^\W\d_]\Z")  # an initial, or letters each with a full stop
_NUMBER_OF_LIST = re.compile(r"\s*(?:[-*•]\s+)?[(\[]?(?:\d{1,3}|[ivxIVX]{1,4})\Z")
_LIST_LINE = re.compile(
    r"\s*(?:[-*•·+–—]\s|[(\[（]?(?:\d{1,3}|[a-zA-Z]|[ivx]{1,4}|[一二三四五六七八九十]{1,3})[.)\]）、．]\s?"
    r"|第[一二三四五六七八九十百\d]+[章节条])"
)
# A name with an underscore, a call, a bracket, an operator, the colon that opens a block.
_PROGRAM = re.compile(r"[=<>{}\[\]|\\@#$_`~^]|\w\(|[:;{(\[]\s*\Z|^\s*\.\.\s")
_WIDE = re.compile(rf"[{_CJK}\u3000-\u303f\uff00-\uffef]")
_WORD_CHARS = 40  # looked at before a full stop
_PARAGRAPH_WIDTH = 45  # columns; a wrapped line of a paragraph is longer

# What stands before a name or a number, or in the middle of a sentence.
_NEVER_LAST = frozenset(
    "mr mrs ms dr prof rev hon st mt ft gen col maj capt cmdr lt sgt gov sen rep pres messrs mme"
    " mlle e.g i.e cf vs viz al ca approx resp fig figs eq eqs sec sect ch chap vol vols no nos pp"
    " p ed eds trans art nr op cit ibid jan feb mar apr jun jul aug sep sept oct nov dec"
    " mon tue tues wed thu thurs fri".split()
)
# These are also words (no, art, mar, sun): an abbreviation only before a digit.
_BEFORE_DIGITS = frozenset("no nos art p pp ch sec fig figs eq eqs vol op ed mar".split())
# What may well end a sentence, and does when a word follows that begins one.
_MAY_BE_LAST = frozenset("etc inc ltd co corp bros jr sr ph.d a.m p.m u.s u.k u.n e.u".split())
_BEGINNERS = frozenset(
    "the a an he she it we they you i this that these those there his her its our their my your"
    " but and or so if when while as for however then what who why how in on at to from with after"
    " before because although not yes no".split()
)


def split_sentences(text: str) -> list[str]:
    r"""Cuts a text into sentences; blanks after a sentence belong to it.

    Returns:
      Pieces whose concatenation is `text`, each with something other than blanks in it (unless
      `text` is blank, which is one piece); `[]` for an empty text.

    Example:
      >>> split_sentences("Dr. Who paid $3.14. “Why?” asked J. Smith.\nNobody knew…")
      ['Dr. Who paid $3.14. ', '“Why?” asked J. Smith.\n', 'Nobody knew…']
      >>> split_sentences("他说：“你好！”我走了。下雨了")
      ['他说：“你好！”', '我走了。', '下雨了']
    """
    return [sentence for block in _blocks(text) for sentence in _cut(block)]


def _blocks(text: str) -> list[str]:
    """Cuts at the ends of lines that are borders, whatever stands in them."""
    blocks: list[str] = []
    current: list[str] = []
    is_open = is_filled = False  # whether the last line may go on; whether there is any text yet
    start = 0
    while start < len(text):
        end = text.find("\n", start) + 1 or len(text)
        line, start = text[start:end], end
        if line.isspace():
            current.append(line)
            is_open = is_open and not is_filled
            continue
        is_prose = _PROGRAM.search(line) is None
        if is_filled and not (is_open and is_prose and _LIST_LINE.match(line) is None):
            blocks.append("".join(current))
            current = []
        current.append(line)
        is_filled = True
        is_open = is_prose and _is_wide(line)
    if current:
        blocks.append("".join(current))
    return blocks


def _is_wide(line: str) -> bool:
    length = len(line)
    if length >= _PARAGRAPH_WIDTH or line.isascii():
        return length >= _PARAGRAPH_WIDTH
    return length + len(_WIDE.findall(line)) >= _PARAGRAPH_WIDTH


def _cut(block: str) -> list[str]:
    """Cuts a paragraph, or a line, after the marks that end a sentence."""
    pieces: list[str] = []
    start, stop = 0, len(block.rstrip())
    for match in _END.finditer(block):
        end = match.end()
        if end >= stop:
            break
        if match["wide"]:
            end = _after_quote(block, start, match)
            is_border = _GOES_ON.match(block, end) is None
        else:
            is_border = _is_narrow_border(block, start, match)
        if is_border and not block[start:end].isspace():
            pieces.append(block[start:end])
            start = end
    pieces.append(block[start:])
    return pieces


def _after_quote(block: str, start: int, match: re.Match[str]) -> int:
    """Where a sentence with a wide mark ends: a straight quote after it may open the next one."""
    at = block.find('"', match.start("closers"), match.end("closers"))
    if at < 0 or block.count('"', start, at) % 2:
        return match.end()
    return at


def _is_narrow_border(block: str, start: int, match: re.Match[str]) -> bool:
    found = _NEXT_WORD.match(block, match.end())
    first, rest = (found[1], found[2]) if found else ("", "")
    if first.islower():
        return False
    if match["narrow"] != ".":
        return True
    before = block[max(start, match.start() - _WORD_CHARS) : match.start()]
    if match.start() - start < _WORD_CHARS and _NUMBER_OF_LIST.match(before):
        return False
    word = _last_word(before)
    if not word:
        return True
    lower = word.lower()
    has_digit_next = block[match.end() : match.end() + 1].isdigit()
    if lower in _BEFORE_DIGITS:
        return not has_digit_next
    if lower in _NEVER_LAST:
        return False
    if lower in _MAY_BE_LAST or _DOTTED.match(word):
        return (first + rest).lower() in _BEGINNERS
    return True


def _last_word(before: str) -> str:
    found = _LAST_WORD.search(before)
    return found[0].strip("'’-_") if found else ""
