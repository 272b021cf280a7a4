"""Sentences of English, Chinese, both and programs; nothing is ever lost."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmasos_jax.data.sentences import split_sentences

# A text in its sentences.
CASES = {
    "titles and initials": ["Dr. Smith met Mr. J. R. Jones at 5 p.m. ", "He left."],
    "latin": ["See e.g. Fig. 3, i.e. the third, and No. 5. ", "No. ", "Smith et al. (2020) did."],
    "acronyms": ["The U.S. Government is in the U.S. ", "The end."],
    "and so on": ["Apples, pears, etc. ", "The next day came."],
    "months": ["On Dec. 24 we left. ", "In Jan. 2021 we came back."],
    "numbers": ["Pi is 3.14 or 3.1416. ", "It was 1990. ", "20 men came to example.com."],
    "quotes": ['He asked, "Why?" ', 'She said "No." ', "(It was late.) ", "They left."],
    "asked": ["“Why?” asked he. ", "“Run!” cried she. ", "Nobody did."],
    "ellipses": ["They left... and came back. ", "Well… ", "So be it."],
    "together": ["What?! ", "Really!!! ", "Yes."],
    "list": ["1. First thing. ", "More.\n", "2. Second\n", "- bullet one\n", "- bullet two"],
    "title": ["A Title\n\n", "The text begins. ", "And ends."],
    "wrapped": [
        "This paragraph has been wrapped at some column and\ngoes on. ",
        "The second sentence ends it.\n\n",
        "Another paragraph.",
    ],
    "program": ["import os\n\n\n", "def f(x):\n", "    return x.y + 1\n\n", "f(1)\n"],
    "docstring": [
        '"""Reads the file and returns all that is found in it.\n\n',
        "The second paragraph of the docstring is wrapped over\ntwo lines. ",
        "It ends here.\n",
        '"""\n',
    ],
    "chinese": ["他来了。", "你呢？", "真的？！", "是的；", "走！"],
    "chinese quotes": ["他说：“你好。”", "“走吧！”", "她说。", "（完。）", "「好。」", "再见。"],
    "chinese goes on": ["“走！”，他说。", "《你好吗？》、《再见》都好。", "完。"],
    "chinese ellipses": ["然后……", "他走了……", "没有了"],
    "straight quotes": ['他说"你好。"', "她走了。", '"再见。"', "完"],
    "verse": ["床前明月光\n", "疑是地上霜\n", "举头望明月\n", "低头思故乡\n"],
    "both": ["Hello世界！", "This is a test. ", "价格是3.14元。", "你好!", "我是A.B.先生。"],
    "wide blanks": ["第一句。　", "第二句。 \n", "第三句。"],
}


@pytest.mark.parametrize("name", CASES)
def test_hard_cases(name: str) -> None:
    assert split_sentences("".join(CASES[name])) == CASES[name]


def test_nothing_and_blanks() -> None:
    assert split_sentences("") == []
    assert split_sentences(" \n\n ") == [" \n\n "]
    assert split_sentences("\n\n  Hello. ") == ["\n\n  Hello. "]


def test_windows_line_ends() -> None:
    assert split_sentences("One.\r\nTwo.\r\n\r\nThree.") == ["One.\r\n", "Two.\r\n\r\n", "Three."]


ALPHABET = st.sampled_from(
    list("abA1 .!?…\n\t\"'()-。！？；，“”）「」中文的　\r:=#") + ["Dr.", "\u2028"]
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(ALPHABET, max_size=80).map("".join) | st.text(max_size=80))
def test_nothing_is_lost(text: str) -> None:
    pieces = split_sentences(text)
    assert "".join(pieces) == text
    assert all(pieces) and (not text.strip() or all(p.strip() for p in pieces))


def test_long_texts_take_little_time() -> None:
    """Patterns that go back and forth would take hours."""
    long = ("." * 30_000, "a" * 30_000, "“" * 30_000 + "。", "! " * 15_000, '。"' * 9_000)
    for text in (*long, "e.g. " * 9_000, "Well. " * 9_000):
        assert "".join(split_sentences(text)) == text
