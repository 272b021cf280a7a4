"""Streaming: pieces add up to `decode`, no broken character, no part of a stop string, O(n)."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmasos_jax.generate.stream import BROKEN, Decoder, TextStream

OPTIMIZED = True  # conftest.py: programs as users have them

TEXTS = [
    "你好，世界！",
    "👩‍👩‍👧 family, naïve café 🎉🎉",
    "  two spaces\n\n\tdef f(x):\n        return x  ",
    "x",
    " ",
    "",
]


class Bytes:
    """Bytes as ids: what the package's own bytes tokenizer does, in two lines."""

    def encode(self, text):
        return list(text.encode())

    def decode(self, ids):
        return bytes(i for i in ids if i < 256).decode(errors="replace")


@pytest.fixture(scope="module")
def sentencepiece_bpe(tmp_path_factory):
    import sentencepiece as spm

    folder = tmp_path_factory.mktemp("spm")
    (folder / "t.txt").write_text(
        "the quick brown fox jumps over the lazy dog\nhello world again and again\n" * 20
    )
    spm.SentencePieceTrainer.train(
        input=str(folder / "t.txt"),
        model_prefix=str(folder / "m"),
        vocab_size=320,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )

    class SentencePiece:
        model = spm.SentencePieceProcessor(model_file=str(folder / "m.model"))

        def encode(self, text):
            return self.model.encode(text)

        def decode(self, ids):
            return self.model.decode(list(ids))

    return SentencePiece()


def hf(pre, decoder, vocab_extra=(), byte_fallback=False):
    from tokenizers import Tokenizer

    if byte_fallback:
        vocab = [f"<0x{i:02X}>" for i in range(256)] + [
            "▁",
            "a",
            "b",
            "c",
            "▁a",
            "▁b",
            *vocab_extra,
        ]
    else:
        from tokenizers.pre_tokenizers import ByteLevel

        vocab = sorted(ByteLevel.alphabet()) + list(vocab_extra)
    data = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [],
        "normalizer": None, "pre_tokenizer": pre, "post_processor": None, "decoder": decoder,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": byte_fallback,
            "vocab": {t: i for i, t in enumerate(vocab)}, "merges": [],
        },
    }  # fmt: skip
    inner = Tokenizer.from_str(json.dumps(data))

    class HF:
        def encode(self, text):
            return inner.encode(text).ids

        def decode(self, ids):
            return inner.decode(list(ids))

    return HF()


@pytest.fixture(scope="module")
def byte_level():
    level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }
    return hf(level, level, ("Ġa", "ä½", "łå", "¥½"))


@pytest.fixture(scope="module")
def byte_fallback():
    decoder = {
        "type": "Sequence",
        "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ],
    }
    pre = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    return hf(pre, decoder, byte_fallback=True)


KINDS = ["bytes", "sentencepiece_bpe", "byte_level", "byte_fallback"]


@pytest.fixture
def tokenizer(request):
    return Bytes() if request.param == "bytes" else request.getfixturevalue(request.param)


each_kind = pytest.mark.parametrize("tokenizer", KINDS, indirect=True)


def pieces(tokenizer, ids, *, prompt=(), stop=(), step=1):
    stream = TextStream(Decoder(tokenizer), prompt, stop)
    out = [stream.push(ids[i : i + step]) for i in range(0, len(ids), step)]
    return [*out, stream.finish()]


@each_kind
@pytest.mark.parametrize("text", TEXTS)
def test_pieces_add_up_and_are_never_broken(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids).strip() == text.strip()
    for step in (1, 2, 5, 1000):
        got = pieces(tokenizer, ids, step=step)
        assert "".join(got) == tokenizer.decode(ids)
        assert not any(BROKEN in piece for piece in got)


@pytest.mark.parametrize("tokenizer", ["bytes", "byte_level", "sentencepiece_bpe"], indirect=True)
def test_a_character_comes_as_soon_as_it_is_whole(tokenizer):
    got = pieces(tokenizer, tokenizer.encode("a你好!"))
    whole = [piece for piece in got if piece]
    assert "".join(whole) == "a你好!"
    assert "你" in whole and "好" in whole


@settings(deadline=None, derandomize=True, max_examples=150)
@given(data=st.data(), kind=st.sampled_from(KINDS), step=st.integers(1, 7))
def test_any_ids_add_up_to_decode(request, data, kind, step):
    # Ids that a model without training gives: stray bytes, halves of characters, blanks.
    tokenizer = Bytes() if kind == "bytes" else request.getfixturevalue(kind)
    good = tokenizer.encode("你 a🎉 ")
    one = st.integers(0, 255) | st.sampled_from(good)
    ids = data.draw(st.lists(one, max_size=40))
    assert "".join(pieces(tokenizer, ids, step=step)) == tokenizer.decode(ids)


@each_kind
def test_behind_a_prompt_spaces_stay(tokenizer):
    prompt, both = tokenizer.encode("a b"), tokenizer.encode("a b a b")
    assert both[: len(prompt)] == prompt
    got = "".join(pieces(tokenizer, both[len(prompt) :], prompt=prompt))
    assert got == " a b"


@each_kind
@pytest.mark.parametrize("step", [1, 3, 100])
@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        (["\n\n"], "one. two. 你好"),
        (["two"], "one. "),
        (["o. 你", "wo. 你好"], "one. tw"),  # the one that is complete first
        (["好\n\n你", "不"], "one. two. 你"),
        (["two. 你好\n\nthree"], "one. two. 你好\n\n你 two. on"),  # only begins
        (["onX", " on"], "one. two. 你好\n\n你 two."),
    ],
)
def test_stop_strings_across_tokens(tokenizer, step, stop, expected):
    ids = tokenizer.encode("one. two. 你好\n\n你 two. on")
    stream = TextStream(Decoder(tokenizer), stop=stop)
    text = ""
    for i in range(0, len(ids), step):
        text += stream.push(ids[i : i + step])
        # Nothing is ever given that would have to be taken back.
        assert expected.startswith(text)
    text += stream.finish()
    assert text == expected
    assert stream.push(ids) == "" or not stream.is_stopped


def test_text_that_only_begins_a_stop_string_is_held_back_and_then_given():
    stream = TextStream(Decoder(Bytes()), stop=["END"])
    assert [stream.push([c]) for c in b"xENx"] == ["x", "", "", "ENx"]
    assert stream.push(b"EN") == "" and stream.finish() == "EN"


@each_kind
@pytest.mark.parametrize("kind_of_text", ["text", "stray bytes", "blanks"])
def test_the_work_is_linear(tokenizer, kind_of_text):
    if kind_of_text == "text":
        ids = tokenizer.encode("hello 你好 ") * 60
    elif kind_of_text == "blanks":
        ids = tokenizer.encode("a") + tokenizer.encode("b   ")[-1:] * 600
    else:
        ids = [i for i in range(256) if BROKEN in tokenizer.decode([i])][
            :1
        ] * 600 + tokenizer.encode("a")

    class Counting:
        decoded = 0
        encode = staticmethod(tokenizer.encode)

        def decode(self, ids):
            Counting.decoded += len(ids)
            return tokenizer.decode(ids)

    pieces(Counting(), ids)
    assert Counting.decoded < 100 * len(ids)
