"""Filters and duplicates: what is dropped, why, and that nothing else is."""

import dataclasses
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmasos_jax.config import build
from llmasos_jax.config.data import check_data
from llmasos_jax.config.filters import FiltersConfig
from llmasos_jax.config.schema import DataConfig
from llmasos_jax.data.duplicates import Signatures, shingles, similar
from llmasos_jax.data.filters import mean_word_length, rejected_by, share_of_letters
from llmasos_jax.data.sources import Documents
from llmasos_jax.data.split import split_documents
from llmasos_jax.data.tokenizers.sentencepiece import trained
from llmasos_jax.data.tokenizers.tokenizer import fingerprint
from llmasos_jax.errors import ConfigError, DataError

WORDS = ["river", "garden", "window", "paper", "silver", "morning", "harbour", "candle"]
CHINESE = "春眠不觉晓，处处闻啼鸟。\n夜来风雨声，花落知多少。\n"
GOPHER = FiltersConfig(
    min_letters=0.6,
    min_word_length=3.0,
    max_word_length=10.0,
    max_duplicate_lines=0.3,
    max_ellipsis_lines=0.3,
    max_bullet_lines=0.9,
)


@pytest.mark.parametrize(
    ("text", "filters", "reason"),
    [
        (CHINESE, GOPHER, None),
        ("हिन्दी भाषा की किताबें यहाँ मिलती हैं।", GOPHER, None),
        ("தமிழ் மொழியில் எழுதிய புத்தகம்", GOPHER, None),
        ("בְּרֵאשִׁית בָּרָא אֱלֹהִים", GOPHER, None),
        (unicodedata.normalize("NFD", "Él está allí, años después"), GOPHER, None),
        ("春眠不觉晓……\n处处闻啼鸟…\n夜来风雨声。。。\n好。", GOPHER, "max_ellipsis_lines"),
        ("・春眠不\n・处处闻\n•夜来风", GOPHER, "max_bullet_lines"),
        (CHINESE * 3, GOPHER, "max_duplicate_lines"),
        ("12:30 45.6%\n$ 7,8", GOPHER, "min_letters"),
        ("a b c d e f", GOPHER, "min_word_length"),
        ("Donaudampfschifffahrt 月亮", GOPHER, "max_word_length"),
        ("The words are neither short nor long.", GOPHER, None),
        ("a\nb\n\n  a\n", FiltersConfig(max_duplicate_lines=1 / 3), None),
        ("a\nb\n\n  a\n", FiltersConfig(max_duplicate_lines=0.33), "max_duplicate_lines"),
        ("-x\n-y", FiltersConfig(max_bullet_lines=0.0), None),
        ("abcd", FiltersConfig(min_chars=5), "min_chars"),
        ("abcd", FiltersConfig(min_chars=4, max_chars=4), None),
        ("abcde", FiltersConfig(max_chars=4), "max_chars"),
    ],
)
def test_a_document_beside_thresholds(text: str, filters: FiltersConfig, reason: str) -> None:
    assert rejected_by(text, filters) == reason


def test_measures_by_hand() -> None:
    assert share_of_letters("a1 月_é\n") == 3 / 5 and share_of_letters(" \n") == 0.0
    assert mean_word_length("It's 月亮 a2, ok") == (4 + 2 + 2) / 3
    assert mean_word_length("สวัสดี かな 汉字") is None
    assert mean_word_length("नमस्ते की") == (6 + 2) / 2 and share_of_letters("की 12") == 2 / 4
    assert mean_word_length("e\u0301te\u0301") == 5 and share_of_letters("e\u0301!") == 2 / 3


def test_thresholds_that_make_no_sense() -> None:
    for data, message in (
        (DataConfig(filters=FiltersConfig(min_letters=1.5)), "is a share; it must be at most 1"),
        (DataConfig(filters=FiltersConfig(min_chars=5, max_chars=4)), "no document would be left"),
        (DataConfig(filters=FiltersConfig(max_chars=-1)), "must be at least 0"),
        (DataConfig(deduplicate="minhsh"), 'did you mean "minhash"'),
        (DataConfig(minhash_threshold=0.0), "above 0 and at most 1"),
        (DataConfig(minhash_permutations=1), "must be at least 2"),
    ):
        with pytest.raises(ConfigError, match=message):
            check_data(data)


def test_equal_texts_but_for_case_and_blanks() -> None:
    texts = ["The cat", "a dog", "the  CAT\n", "", "Ａ dog", "a cat", "The cat"]
    data = DataConfig(deduplicate="exact", heldout_fraction=0.3)
    split = split_documents(texts, data)
    assert sorted(split.train + split.heldout) == [0, 1, 5]
    duplicates = split.dropped["duplicate"]
    assert duplicates.documents == 3 and duplicates.share == 3 / 7
    assert [(e["document"], e["of"]) for e in duplicates.examples] == [(2, 0), (4, 1), (6, 0)]
    assert duplicates.examples[0]["text"] == "the CAT" and split.dropped["blank"].documents == 1


def test_nothing_left_says_what_took_it() -> None:
    data = DataConfig(filters=FiltersConfig(min_chars=99))
    with pytest.raises(DataError, match=r"\(1 by blank, 2 by filters.min_chars\); loosen"):
        split_documents(["a", "", "b"], data)


@settings(deadline=None, derandomize=True, max_examples=25)
@given(st.lists(st.sampled_from(["", " ", "a", "A", "ab", "abc", "- x", "1 2"]), min_size=3))
def test_every_document_is_kept_or_counted(texts: list[str]) -> None:
    filters = FiltersConfig(min_letters=0.4, max_bullet_lines=0.5)
    data = DataConfig(deduplicate="exact", filters=filters, heldout_fraction=0.0)
    try:
        split = split_documents([*texts, "kept"], data)
    except DataError as error:  # "kept" is always kept
        raise AssertionError from error
    dropped = sum(group.documents for group in split.dropped.values())
    assert len(split.train) + dropped == len(texts) + 1
    assert len({" ".join(texts[i].lower().split()) for i in split.train if i < len(texts)}) == len(
        [i for i in split.train if i < len(texts)]
    )


def _jaccard(a: str, b: str) -> float:
    one, other = shingles(a), shingles(b)
    return len(one & other) / len(one | other)


def test_similar_texts_are_found_as_by_comparing_all() -> None:
    pytest.importorskip("datasketch")
    rng = np.random.default_rng(0)
    words = [f"w{i}" for i in range(500)]
    texts = [" ".join(rng.choice(words, 200)) for _ in range(12)]
    texts += [
        "".join(rng.choice(list("春眠不觉晓处闻啼鸟夜来风雨声花落知多少"), 200)) for _ in range(4)
    ]
    for i in range(16):  # one word of 200 changed, which is five of about 196 shingles
        near = texts[i].split(" ") if i < 12 else list(texts[i])
        near[50] = "新"
        texts.append((" " if i < 12 else "").join(near))
        far = [rng.choice(words) if rng.random() < 0.3 else w for w in texts[i].split(" ")]
        texts.append(" ".join(far) if i < 12 else texts[i][::-1])
    data = DataConfig(deduplicate="minhash", heldout_fraction=0.0)
    split = split_documents(texts, data)
    expected: list[int] = []
    for i, text in enumerate(texts):
        likeness = [_jaccard(text, texts[k]) for k in expected]
        assert all(not 0.6 < share < 0.9 for share in likeness)  # far from the threshold
        if max(likeness, default=0.0) < 0.8:
            expected.append(i)
    assert split.train == expected and split.dropped["duplicate"].documents == 16


def test_the_estimate_is_the_similarity() -> None:
    pytest.importorskip("datasketch")
    a = " ".join(f"w{i}" for i in range(1000))
    b = " ".join(f"w{i}" for i in range(300, 1300))
    signatures = Signatures(1024)
    found = np.stack([signatures.of(a), signatures.of(b)])
    # 0.5 / sqrt(1024) is a standard error; four of them.
    assert (found[0] == found[1]).mean() == pytest.approx(_jaccard(a, b), abs=4 * 0.5 / 32)
    assert similar(found, np.arange(2), 0.3) == {1: 0} and similar(found, np.arange(2), 0.9) == {}


@pytest.mark.parametrize("threshold", [0.05, 0.5, 0.8, 0.95, 0.985, 1.0])
@pytest.mark.parametrize("permutations", [2, 8, 128])
def test_similar_signatures_are_compared_at_any_threshold(
    threshold: float, permutations: int
) -> None:
    pytest.importorskip("datasketch")
    rng = np.random.default_rng(0)
    pairs = 300
    one = rng.integers(0, 2**32, (pairs, permutations), np.uint32)
    other = rng.integers(0, 2**32, (pairs, permutations), np.uint32)
    agree = int(np.ceil(threshold * permutations))
    for row, (a, b) in enumerate(zip(one, other, strict=True)):
        at = np.random.default_rng(row).permutation(permutations)[:agree]
        b[at] = a[at]
    both = np.stack([one, other], axis=1).reshape(2 * pairs, permutations)
    found = similar(both, np.arange(2 * pairs), threshold)
    assert set(found) <= {2 * k + 1 for k in range(pairs)}
    assert all(found[i] == i - 1 for i in found)
    # Few numbers cannot be cut so that all are found; those at 128 are, but for one in a hundred.
    assert len(found) > (0.97 if permutations == 128 else 0.3) * pairs


def test_signs_alone_are_like_nothing_but_themselves() -> None:
    pytest.importorskip("datasketch")
    texts = ["🎉🎉", "🙂", "∑ ∫ ≠", "!!! ???", "🙂", "की", "का"]
    split = split_documents(texts, DataConfig(deduplicate="minhash", heldout_fraction=0.0))
    assert split.train == [0, 1, 2, 3, 5, 6]


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasketch", None)
    with pytest.raises(ConfigError, match=r"pip install 'llmasos-jax\[data\]'"):
        split_documents(["a", "b"], DataConfig(deduplicate="minhash"))


def test_a_tokenizer_is_of_the_texts_that_are_kept_whatever_the_cache_has(tmp_path: Path) -> None:
    texts = [f"{word} and {word} once more, number {i}" for i in range(30) for word in WORDS]
    texts += ["zyx " * 40] * 20
    source = Documents(texts.__getitem__, len(texts), "these")
    cfg = build.load_config("quickstart")
    cfg = dataclasses.replace(cfg, model=dataclasses.replace(cfg.model, vocab_size=300))
    few = dataclasses.replace(cfg, data=DataConfig(filters=FiltersConfig(max_chars=60)))
    alone = trained(few, source, tmp_path / "empty")
    trained(dataclasses.replace(cfg, data=DataConfig()), source, tmp_path / "used")
    after = trained(few, source, tmp_path / "used")
    assert fingerprint(after) == fingerprint(alone)
    assert len([*(tmp_path / "used").iterdir()]) == 2
