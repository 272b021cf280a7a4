"""BERT's vocab.txt: the ids of transformers, errors in one line."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hard_strings import hard_strings
from hypothesis import given, settings
from hypothesis import strategies as st
from mutations import bounded, mutated
from tokenizers import Tokenizer as Library

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.config.schema import Config, TokenizerConfig
from llmasos_jax.data.tokenizers.huggingface import HuggingFaceTokenizer
from llmasos_jax.data.tokenizers.load import build_tokenizer, load_tokenizer
from llmasos_jax.data.tokenizers.trained import train
from llmasos_jax.data.tokenizers.wordpiece import vocabulary_file
from llmasos_jax.errors import LLMasOSError, TokenizerError
from llmasos_jax.interop.hf.tokenizer import folder_tokenizer_files

CORPUS = Path(json.__file__).read_text(encoding="utf-8") + "床前明月光，疑是地上霜。" * 9
HARD = [t.replace("<|im_end|>", "[MASK]") for _, t in hard_strings(2000, seed=21)]
LONG = [
    "a" * 99,
    "a" * 100,
    "a" * 101,
    "é" * 120,
    "x\u00a0y\u3000z\u2028w",
    "\u4e00\uf900\U0002f800",
]
SMALL = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nun\n##able\na\n月\n"


@pytest.fixture(scope="module", params=[True, False], ids=["uncased", "cased"])
def pieces(request: pytest.FixtureRequest) -> str:
    """A vocab.txt."""
    text = train([CORPUS, *HARD[::3]], 900, "wordpiece", lowercase=request.param)
    made = Library.from_str(text)
    return "".join(f"{made.id_to_token(i)}\n" for i in range(900))


def load(folder: Path) -> HuggingFaceTokenizer:
    files = folder_tokenizer_files(folder)
    assert files is not None
    found = files.load()
    assert isinstance(found, HuggingFaceTokenizer)
    return found


def config(path: Path, *, lowercase: bool = True) -> Config:
    return Config(
        model=ModelConfig(vocab_size=900, embedding_dim=8, num_layers=1),
        tokenizer=TokenizerConfig(kind="tokenizers", path=str(path), lowercase=lowercase),
    )


def test_a_list_of_pieces(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text(SMALL, encoding="utf-8")
    found = load(tmp_path)
    assert found.encode_input("Únable 月a") == ([2, 5, 6, 8, 7, 3], [0] * 6)
    assert found.encode_input("a", "[MASK]!") == ([2, 7, 3, 4, 1, 3], [0, 0, 0, 1, 1, 1])
    assert (found.mask_id, found.pad_id, found.unk_id, found.eos_id) == (4, 0, 1, 3)
    assert found.decode([2, 5, 6, 4, 7, 3, 0]) == "unable a"
    entry = found.save(tmp_path)
    again = load_tokenizer(entry, tmp_path)
    assert again.encode("unable") == [2, 5, 6] and again.mask_id == 4  # type: ignore


@pytest.mark.parametrize("lowercase", [True, False])
def test_a_config_names_it(tmp_path: Path, lowercase: bool) -> None:
    (tmp_path / "vocab.txt").write_text(SMALL.replace("\n", "\r\n"), encoding="utf-8")
    for path in (tmp_path, tmp_path / "vocab.txt"):
        found = build_tokenizer(config(path, lowercase=lowercase), [], tmp_path)
        assert found.encode("Unable á") == ([2, 5, 6, 7] if lowercase else [2, 1, 1])
        assert (found.bos_id, found.eos_id, found.adds_bos) == (2, 3, True)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": not lowercase}))
    with pytest.raises(
        TokenizerError, match=f"set tokenizer.lowercase={str(not lowercase).lower()}"
    ):
        build_tokenizer(config(tmp_path, lowercase=lowercase), [], tmp_path)


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (SMALL.encode() + b"un\n", "the piece 'un' twice, in lines 6 and 10"),
        (b"[PAD]\na\n", r'has no "\[UNK\]"; expected BERT\'s pieces'),
        (b"[UNK]\n\xff\xfe\n", "is not UTF-8 text"),
        (b"", "has no lines"),
    ],
)
def test_wrong_lists(tmp_path: Path, raw: bytes, said: str) -> None:
    (tmp_path / "vocab.txt").write_bytes(raw)
    for call in (lambda: load(tmp_path), lambda: build_tokenizer(config(tmp_path), [], tmp_path)):
        with pytest.raises(TokenizerError, match=said) as error:
            call()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"do_lower_case": 1}, "do_lower_case = 1 must be true or false"),
        ({"do_lower_case": None}, "do_lower_case = None must be true or false"),
        ({"tokenize_chinese_chars": "no"}, "tokenize_chinese_chars = no must be true or false"),
        ({"strip_accents": 0}, "strip_accents = 0 must be true, false or null"),
    ],
)
def test_flags_that_are_none(tmp_path: Path, said: dict[str, Any], message: str) -> None:
    (tmp_path / "vocab.txt").write_text(SMALL, encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(said))
    with pytest.raises(TokenizerError, match=message):
        load(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"strip_accents": None}))
    assert load(tmp_path).encode("á") == [2, 7]


@pytest.mark.parametrize("missing", ["[CLS]", "[SEP]"])
def test_a_folder_of_an_encoder_needs_what_stands_around_a_text(
    missing: str, tmp_path: Path
) -> None:
    pieces = SMALL.replace(missing, "other")
    (tmp_path / "vocab.txt").write_text(pieces, encoding="utf-8")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(TokenizerError, match=f'has no "{re.escape(missing)}", which stands'):
        load(tmp_path)
    named = {f"{missing[1:4].lower()}_token": "other"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(named))
    assert load(tmp_path).encode_input("a")[0] == [2, 7, 3]


def test_without_a_mask_there_is_none(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("[UNK]\na\n", encoding="utf-8")
    found = load(tmp_path)
    assert (found.mask_id, found.pad_id, found.bos_id, found.encode("a b")) == (None,) * 3 + (
        [1, 0],
    )


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(st.data())
def test_damaged_lists_open_or_give_our_errors(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.getbasetemp() / "damaged"
    folder.mkdir(exist_ok=True)
    raw = SMALL.encode()
    (folder / "vocab.txt").write_bytes(data.draw(mutated(raw, len(raw))))
    with bounded():
        try:
            load(folder).encode_input("unable 月 [MASK]", "a")
        except LLMasOSError as error:
            assert "\n" not in str(error)


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore:::(torch|transformers)")
class TestParity:
    @pytest.fixture(autouse=True)
    def needs(self) -> None:
        pytest.importorskip("torch", reason="needs the extra `parity`")
        pytest.importorskip("transformers", reason="needs the extra `parity`")

    @pytest.mark.parametrize(
        "said",
        [
            {},
            {"do_lower_case": False},
            {"do_lower_case": True, "strip_accents": False},
            {"do_lower_case": False, "strip_accents": True, "tokenize_chinese_chars": False},
        ],
    )
    def test_ids_of_transformers(self, tmp_path: Path, pieces: str, said: dict[str, Any]) -> None:
        from transformers import BertTokenizer
        from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy

        (tmp_path / "vocab.txt").write_text(pieces, encoding="utf-8")
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(said))
        ours = load(tmp_path)
        fast = BertTokenizer.from_pretrained(tmp_path)
        slow = BertTokenizerLegacy.from_pretrained(tmp_path)
        assert vocabulary_file(pieces.encode(), tmp_path) == fast.get_vocab()
        texts = [*HARD, *LONG]
        for text, pair in zip(texts, [*texts[7:], *texts[:7]], strict=True):
            ids = ours.encode_input(text)[0]
            assert ids == fast(text)["input_ids"], repr(text)
            both = fast(text, pair)
            assert ours.encode_input(text, pair) == (both["input_ids"], both["token_type_ids"])
        # The slow one goes by Python's tables of Unicode, the library by its own: of strings drawn
        # from any plane up to 1 in 20 differ, and then from transformers' fast one as well.
        differ = [t for t in texts if ours.encode_input(t)[0] != slow(t)["input_ids"]]
        assert len(differ) <= 0.05 * len(texts)
        assert not any(t.isascii() for t in differ)
