"""What objectives know of a tokenizer: special ids, words, sentinels; and what an encoder reads."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from llmasos_jax.data.tokenizers.huggingface import HuggingFaceTokenizer
from llmasos_jax.data.tokenizers.load import load_tokenizer
from llmasos_jax.data.tokenizers.sentencepiece import SentencePieceTokenizer, train_model
from llmasos_jax.data.tokenizers.tokenizer import ByteTokenizer, encode_input
from llmasos_jax.data.tokenizers.vocabulary import vocabulary_of
from llmasos_jax.errors import TokenizerError

BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "un", "##able", "a", "##b", "##", "月"]


def bert(folder: Path, *, template: bool = True) -> Path:
    tokenizer = Tokenizer(
        models.WordPiece(vocab={p: i for i, p in enumerate(BERT)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # type: ignore
    tokenizer.decoder = decoders.WordPiece()  # type: ignore
    tokenizer.add_special_tokens(BERT[:5])
    if template:
        tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))  # type: ignore
    path = folder / "tokenizer.json"
    tokenizer.save(str(path))
    return path


def byte_level(names: list[str]) -> Tokenizer:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {p: i for i, p in enumerate([*letters, "Ġa"])}
    made = Tokenizer(models.BPE(vocab=vocab, merges=[("Ġ", "a")]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore
    made.add_special_tokens([AddedToken(n) for n in names])
    return made


def test_wordpiece(tmp_path: Path) -> None:
    tokenizer = HuggingFaceTokenizer.from_file(bert(tmp_path))
    found = vocabulary_of(tokenizer, 14)
    assert (found.cls_id, found.sep_id, found.mask_id, found.pad_id) == (2, 3, 4, 0)
    assert found.special_ids == (0, 1, 2, 3, 4, 11, 12, 13)  # rows without a token too
    assert np.flatnonzero(found.is_inside_v).tolist() == [6, 8, 9]
    assert found.is_inside_v.shape == (14,) and found.sentinel_ids == ()


def test_what_an_encoder_reads(tmp_path: Path) -> None:
    tokenizer = HuggingFaceTokenizer.from_file(bert(tmp_path))
    assert tokenizer.encode_input("ab a") == ([2, 7, 8, 7, 3], [0] * 5)
    assert tokenizer.encode_input("ab", "a 月") == ([2, 7, 8, 3, 7, 10, 3], [0, 0, 0, 0, 1, 1, 1])
    assert tokenizer.encode_input("", "") == ([2, 3, 3], [0, 0, 1])
    assert tokenizer.encode("ab a") == [2, 7, 8, 7]  # never the end
    with pytest.raises(TokenizerError, match="half of a"):
        tokenizer.encode_input("a", "\ud800")


def test_without_a_template_an_encoder_reads_the_ids_of_encode_and_the_end(tmp_path: Path) -> None:
    path = bert(tmp_path, template=False)
    tokenizer = HuggingFaceTokenizer.from_file(path, {"adds_bos": True, "bos_id": 2, "eos_id": 3})
    assert tokenizer.encode_input("a", "ab") == ([2, 7, 3, 7, 8, 3], [0, 0, 0, 1, 1, 1])
    bare = HuggingFaceTokenizer.from_file(path, {"adds_bos": False, "bos_id": 2, "eos_id": None})
    assert bare.encode_input("a", "ab") == ([7, 7, 8], [0, 1, 1])
    assert encode_input(ByteTokenizer(), "é") == ([256, 0xC3, 0xA9, 257], [0] * 4)


def test_the_entry_carries_mask_and_padding(tmp_path: Path) -> None:
    tokenizer = HuggingFaceTokenizer.from_file(bert(tmp_path))
    entry = tokenizer.save(tmp_path)
    assert (entry["mask_id"], entry["pad_id"]) == (4, 0)
    again = load_tokenizer(json.loads(json.dumps(entry)), tmp_path)
    assert isinstance(again, HuggingFaceTokenizer)
    assert (again.mask_id, again.pad_id, again.unk_id) == (4, 0, 1)
    older = {k: v for k, v in entry.items() if k not in ("mask_id", "pad_id")}
    assert load_tokenizer(older, tmp_path).mask_id == 4  # type: ignore
    none = load_tokenizer({**entry, "mask_id": None, "pad_id": None}, tmp_path)
    assert (none.mask_id, none.pad_id) == (None, None)  # type: ignore
    assert vocabulary_of(none, 11).pad_id == 0
    with pytest.raises(TokenizerError, match="mask_id=99 is not an id of this tokenizer"):
        load_tokenizer({**entry, "mask_id": 99}, tmp_path)


def test_byte_level_and_roberta(tmp_path: Path) -> None:
    made = byte_level(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    made.post_processor = processors.RobertaProcessing(("</s>", 259), ("<s>", 257))  # type: ignore
    made.save(str(tmp_path / "tokenizer.json"))
    tokenizer = HuggingFaceTokenizer.from_file(tmp_path / "tokenizer.json")
    found = vocabulary_of(tokenizer, 262)
    assert (found.cls_id, found.sep_id, found.mask_id, found.pad_id) == (257, 259, 261, 258)
    assert found.special_ids == (257, 258, 259, 260, 261)
    ids = tokenizer.encode("a b\n c月é ab")[1:]
    begins = "".join(" |"[int(not found.is_inside_v[i])] for i in ids)
    #                 a Ġ b Ċ Ġ c 月x3  é x2 Ġa b
    assert begins == " " + "|" + " " + "|" + "|" + " " + "|  " + "  " + "|" + " "
    ids, types = tokenizer.encode_input("b", "b")
    assert [tokenizer.token(i) for i in ids] == ["<s>", "b", "</s>", "</s>", "b", "</s>"]
    assert set(types) == {0}  # RoBERTa has one token type


def test_within_drops_what_the_model_has_no_rows_for(tmp_path: Path) -> None:
    byte_level(["<s>", "<mask>"]).save(str(tmp_path / "tokenizer.json"))
    tokenizer = HuggingFaceTokenizer.from_file(tmp_path / "tokenizer.json")
    assert tokenizer.special_ids == (257, 258) and tokenizer.is_inside_v.shape == (259,)
    fewer = tokenizer.within(258)
    assert (fewer.mask_id, fewer.special_ids, fewer.is_inside_v.shape) == (None, (257,), (258,))
    assert tokenizer.mask_id == 258


def test_sentencepiece_of_ours() -> None:
    texts = [Path(json.__file__).read_text(encoding="utf-8"), "床前明月光，疑是地上霜。\n" * 40]
    tokenizer = SentencePieceTokenizer(train_model(texts, 480, "unigram"))
    found = vocabulary_of(tokenizer, 480)
    assert (found.cls_id, found.sep_id, found.mask_id, found.pad_id) == (1, 2, None, 0)
    assert found.special_ids == (0, 1, 2)

    def words(text: str) -> list[str]:
        parts: list[str] = []
        for i in tokenizer.encode(text)[1:]:
            if found.is_inside_v[i] and parts:
                parts[-1] += tokenizer.decode([i])
            else:
                parts.append(tokenizer.decode([i]))
        return parts

    assert "".join(words("the others\twere")) == "the others\twere"
    assert words("the others\twere") == ["the", " others", "\twere"]
    assert all(len(w.rstrip("，。")) <= 3 for w in words("床前明月光，疑是地上霜。"))


def test_sentencepiece_with_mask_padding_and_sentinels() -> None:
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the world of words and other things"] * 9),
        model_writer=out,
        vocab_size=40,
        pad_id=3,
        user_defined_symbols=["<extra_id_1>", "<extra_id_0>", "<mask>"],
        hard_vocab_limit=False,
        minloglevel=3,
    )
    found = vocabulary_of(SentencePieceTokenizer(out.getvalue()), 50)
    assert (found.mask_id, found.pad_id, found.sentinel_ids) == (6, 3, (5, 4))
    assert found.special_ids[:7] == (0, 1, 2, 3, 4, 5, 6) and found.special_ids[-1] == 49


def test_bytes() -> None:
    found = vocabulary_of(ByteTokenizer(), 259)
    assert (found.cls_id, found.sep_id, found.mask_id, found.pad_id) == (256, 257, None, 258)
    inside = [bool(found.is_inside_v[b]) for b in " a9,é\n月".encode()]
    assert inside == [False, True, True, True, True, True, False, False, True, True]


class Own(ByteTokenizer):
    """Somebody's own: as little as the Protocol asks for, and what may be said beside it."""

    mask_id = 3
    special_ids = (5,)


class Bare:
    vocab_size: int = 4
    bos_id: int | None = None
    eos_id: int | None = 1
    adds_bos: bool = False

    def encode(self, text: str) -> list[int]:
        return [2] * len(text)

    def decode(self, ids: Any) -> str:
        return "x" * len(ids)

    def save(self, folder: Path) -> dict[str, Any]:
        return {"kind": "my:own"}


def test_anybodys_own() -> None:
    found = vocabulary_of(Own(), 259)
    assert (found.mask_id, found.special_ids) == (3, (3, 5, 256, 257, 258))
    bare = vocabulary_of(Bare(), 4)
    assert (bare.cls_id, bare.sep_id, bare.mask_id, bare.special_ids) == (None, 1, None, (1,))
    assert not bare.is_inside_v.any()
    assert encode_input(Bare(), "ab", "c") == ([2, 2, 1, 2, 1], [0, 0, 0, 1, 1])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"vocab_size": 9}, "has 9 ids, the model only 4; set model.vocab_size=9"),
        ({"special_ids": (7,)}, "says that 7 is a special id"),
        ({"is_inside_v": [True]}, r"has the shape \(1,\); expected \(4,\)"),
    ],
)
def test_what_contradicts_itself_is_refused(change: dict[str, Any], said: str) -> None:
    tokenizer = Bare()
    vars(tokenizer).update(change)
    with pytest.raises(TokenizerError, match=said):
        vocabulary_of(tokenizer, 4)
