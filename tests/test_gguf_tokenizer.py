"""Tokenizers made again from GGUF metadata: three kinds, and what damaged metadata gives."""

import importlib.util
import io
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
from hard_strings import hard_strings

from llmasos_jax.data.tokenizers.sentencepiece import train_model
from llmasos_jax.errors import LLMasOSError, TokenizerError
from llmasos_jax.interop.gguf.pretokenizers import TABLE
from llmasos_jax.interop.gguf.tokenizer import end_ids, rebuild
from llmasos_jax.interop.tokenizerjson import byte_characters, scored_merges

G = "tokenizer.ggml."
BYTES = byte_characters()


def byte_level(**changes: Any) -> dict[str, Any]:
    """All bytes, a few merges and two special tokens."""
    tokens = [*BYTES, "he", "ll", "hell", "Ġw", "12", "<|begin|>", "<|im_end|>", "  "]
    return {
        f"{G}model": "gpt2",
        f"{G}pre": "gpt-2",
        f"{G}tokens": tokens,
        f"{G}token_type": np.array([1] * 261 + [3, 3, 4], np.int32),
        f"{G}merges": ["h e", "l l", "he ll", "Ġ w", "1 2"],
        f"{G}bos_token_id": 261,
        f"{G}eos_token_id": 262,
        **{G + key: value for key, value in changes.items()},
    }


def from_sentencepiece(model: bytes, **changes: Any) -> dict[str, Any]:
    """The metadata that a converter writes for a sentencepiece model."""
    theirs = sentencepiece.SentencePieceProcessor(model_proto=model)
    ids = range(theirs.get_piece_size())
    kinds = [
        2 if theirs.is_unknown(i) else 3 if theirs.is_control(i) else 6 if theirs.is_byte(i) else 1
        for i in ids
    ]
    return {
        f"{G}model": "llama",
        f"{G}tokens": [theirs.id_to_piece(i) for i in ids],
        f"{G}scores": np.array([theirs.get_score(i) for i in ids], np.float32),
        f"{G}token_type": np.array(kinds, np.int32),
        **{G + key: value for key, value in changes.items()},
    }


def test_bytes_merge_by_rank_and_pieces_by_the_pre_tokenizer() -> None:
    tokenizer = rebuild(byte_level()).load()
    h, space = BYTES.index("h"), BYTES.index("Ġ")
    assert tokenizer.encode("hell") == [258]
    assert tokenizer.encode(" whe")[0] == 259
    assert tokenizer.encode("h ell") == [h, space, BYTES.index("e"), 257]
    assert tokenizer.encode("12") == [260]
    # A user-defined token is found first, and it is text; a control token is not.
    assert tokenizer.encode("h  h<|im_end|>") == [h, 263, h, 262]
    assert tokenizer.decode([h, 263, h, 262]) == "h  h"
    digits = rebuild(byte_level(pre="smollm")).load()
    assert digits.encode("12") == [BYTES.index("1"), BYTES.index("2")]


def test_what_adds_a_bos() -> None:
    assert rebuild(byte_level()).load().adds_bos is False
    assert rebuild(byte_level(add_bos_token=True)).load().encode("h")[0] == 261
    assert rebuild(byte_level(pre="llama-bpe")).load().encode("h")[0] == 261
    assert rebuild(byte_level(pre="llama-bpe", add_bos_token=False)).load().adds_bos is False


def test_every_pre_tokenizer_keeps_every_byte() -> None:
    for name in TABLE:
        tokenizer = rebuild(byte_level(pre=name, add_bos_token=False)).load()
        for _, text in hard_strings(13, seed=4):
            assert tokenizer.decode(tokenizer.encode(text)) == text.replace("<|im_end|>", ""), name


def test_phi3_tokens_take_the_space_behind_them_along() -> None:
    plain = rebuild(byte_level()).load()
    phi3 = rebuild({**byte_level(), "general.name": "Phi-3 Mini"}).load()
    h, space = BYTES.index("h"), BYTES.index("Ġ")
    assert plain.encode("<|im_end|> h") == [262, space, h]
    assert phi3.encode("<|im_end|> h") == [262, h]


def test_end_ids() -> None:
    assert end_ids(byte_level()) == (262,)
    assert end_ids(byte_level(eos_token_id=261, eot_token_id=3)) == (3, 261, 262)
    assert end_ids({}) == ()


def test_scores_merge_as_sentencepiece_does() -> None:
    spec = importlib.util.find_spec("mistral_common")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("needs a real vocabulary: pip install --no-deps mistral-common")
    path = Path(spec.submodule_search_locations[0]) / "data" / "tokenizer.model.v1"
    check_scores(path.read_bytes(), 2600, prefix=True)


def test_scores_of_a_trained_model_merge_as_sentencepiece_does() -> None:
    """Ours has no space in front; in theirs it is the usual one."""
    text = [text for _, text in hard_strings(600, seed=5) if "\0" not in text]
    check_scores(train_model(text, 1500), 1300, prefix=False)
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text),
        model_writer=out,
        vocab_size=1200,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=3,
    )
    check_scores(out.getvalue(), 1300, prefix=True)


def check_scores(model: bytes, count: int, *, prefix: bool) -> None:
    """Ids and text on hard strings, on its own pieces in any order, and on runs."""
    theirs = sentencepiece.SentencePieceProcessor(model_proto=model)
    ours = rebuild(from_sentencepiece(model, add_space_prefix=prefix)).load()
    assert (ours.bos_id, ours.eos_id, ours.adds_bos) == (1, 2, True)
    draw = random.Random(6)
    pieces = [theirs.id_to_piece(i).replace("▁", " ") for i in range(259, theirs.get_piece_size())]
    texts = [text for _, text in hard_strings(count, seed=7)]
    texts += ["".join(draw.choices(pieces, k=draw.randint(1, 12))) for _ in range(1000)]
    texts += [c * n for c in " \n-=#.a0" for n in range(1, 70)]
    for text in texts:
        if "▁" in text and not prefix:
            continue  # sentencepiece reads it as a space here
        ids = theirs.encode(text)
        assert ours.encode(text) == [1, *ids], repr(text)
        assert ours.decode(ids) == theirs.decode(ids), repr(text)


def test_merges_of_scores() -> None:
    """All ways to cut a piece, the piece with the best score first."""
    scores = {"a": -9.0, "b": -8.0, "ab": -1.0, "aab": -2.0, "aa": -3.0}
    expected = [("a", "b"), ("aa", "b"), ("a", "ab"), ("a", "a")]
    assert scored_merges(scores) == expected


WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "▁hello", "▁wor", "ld", "▁,", "▁é", "▁H", "▁é")


def words(**changes: Any) -> dict[str, Any]:
    """WordPiece as GGUF writes it."""
    return {
        f"{G}model": "bert",
        f"{G}tokens": list(WORDS[:10]),
        f"{G}token_type": [3, 2, 3, 3] + [1] * 6,
        f"{G}unknown_token_id": 1,
        f"{G}cls_token_id": 2,
        f"{G}seperator_token_id": 3,
        **{G + key: value for key, value in changes.items()},
    }


def test_word_pieces() -> None:
    tokenizer = rebuild(words()).load()
    assert tokenizer.encode("Hello, world H") == [2, 4, 7, 5, 6, 1]
    assert tokenizer.decode([2, 4, 7, 5, 6, 3]) == "hello, world"
    assert rebuild(words(**{"normalizer.lowercase": False})).load().encode("H é") == [2, 9, 8]
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.adds_bos) == (2, 3, True)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"pre": None}, "pre is missing"),
        ({"pre": "llama-bp"}, 'did you mean "llama-bpe"'),
        ({"model": "rwkv"}, 'model = "rwkv" is not known'),
        ({"model": 3}, 'model = "3" is not known'),
        ({"tokens": None}, "tokens is missing"),
        ({"tokens": []}, "tokens is empty|261 tokens|numbers for 0"),
        ({"tokens": ["a", "a"], "token_type": [1, 1]}, "expected each token once"),
        ({"tokens": [1, 2]}, "not a list of strings"),
        ({"token_type": [1]}, "token_type has 1 numbers"),
        ({"token_type": ["x"] * 264}, "not numbers"),
        ({"merges": ["nospace"]}, "two tokens and a space"),
        ({"merges": ["xx yy"]}, "makes no tokenizer"),
        ({"bos_token_id": 9999}, "none of the 264 tokens"),
        ({"bos_token_id": "a"}, "not a whole number"),
        ({"bos_token_id": None, "add_bos_token": True}, "there is no bos_token_id"),
        ({"add_bos_token": 1}, "not true or false"),
        ({"model": "llama"}, "scores has 0 numbers"),
        ({"model": "llama", "scores": [float("nan")] * 264}, "not finite"),
        ({"model": "llama", "scores": ["a"] * 264}, "not numbers"),
    ],
)
def test_damaged_metadata_gives_one_clear_line(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(TokenizerError, match=said) as error:
        rebuild({k: v for k, v in byte_level(**changes).items() if v is not None}).load()
    assert "\n" not in str(error.value)


def test_any_damage_gives_our_error_or_a_tokenizer() -> None:
    draw = random.Random(8)
    junk = (None, 3, -1, 2**40, 1.5, True, "", "x", [], ["a"], [""] * 9, np.zeros(4), b"x", {})
    for base in (byte_level(), words()):
        for _ in range(150):
            metadata = {**base, draw.choice(list(base)): draw.choice(junk)}
            try:
                files = rebuild({k: v for k, v in metadata.items() if v is not None})
                end_ids(metadata)
                if files is not None:
                    files.load()
            except LLMasOSError:
                pass
