"""Tokenizers: text comes back exactly, ids stay in range, bad files say what is wrong."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from llmasos_jax.config.model import ModelConfig
from llmasos_jax.config.schema import Config, DataConfig, TokenizerConfig
from llmasos_jax.data.sources import Documents
from llmasos_jax.data.tokenizers.huggingface import HuggingFaceTokenizer
from llmasos_jax.data.tokenizers.load import build_tokenizer, load_tokenizer
from llmasos_jax.data.tokenizers.sentencepiece import SentencePieceTokenizer, train_model
from llmasos_jax.data.tokenizers.tokenizer import ByteTokenizer, Tokenizer, fingerprint
from llmasos_jax.errors import TokenizerError

SOURCE = Path(json.__file__).read_text(encoding="utf-8")
CHINESE = "床前明月光，疑是地上霜。\n举头望明月，低头思故乡。\n" * 30
TEXTS = [
    SOURCE,
    CHINESE,
    "你好，世界！",
    "🎉 👩\u200d👩\u200d👧 e\u0301",
    "\tif x:\r\n\t\treturn\r\n",
    "   leading and trailing   ",
    "a  b   c    d\n\n\n    indented\n",
    "\x00\x01\x1b[0m\x7f\ufeff\u00a0\u3000\u200b\u2028",
    "\u2581 one \u2581\u2581 two\u2581",  # what SentencePiece writes for a space
    "\u2585 \u2047 \ufffd",
    "<s></s><unk><0x41>",
    "ﬁ ① Ａ ｶﾞ",  # normalisation would change these
    " ",
    "\n",
    "",
]


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def trained(request: pytest.FixtureRequest) -> SentencePieceTokenizer:
    return SentencePieceTokenizer(train_model([SOURCE, CHINESE], 480, request.param))


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def chinese(request: pytest.FixtureRequest) -> SentencePieceTokenizer:
    rng = np.random.default_rng(0)
    text = "".join(rng.choice(list("床前明月光疑是地上霜举头望明月低头思故乡"), size=5000))
    return SentencePieceTokenizer(train_model([text], 330, request.param))


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_without_spaces_teaches_them_too(chinese: SentencePieceTokenizer, text: str) -> None:
    assert chinese.decode(chinese.encode(text)) == text


@pytest.mark.parametrize("text", TEXTS)
def test_sentencepiece_gives_the_text_back(trained: SentencePieceTokenizer, text: str) -> None:
    ids = trained.encode(text)
    assert ids[0] == trained.bos_id == 1
    assert trained.decode(ids) == text


def test_sentencepiece_encodes_a_list_as_one_by_one(trained: SentencePieceTokenizer) -> None:
    assert trained.encode_batch(TEXTS) == [trained.encode(text) for text in TEXTS]


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_bytes_and_sentencepiece_are_the_identity_on_any_text(text: str) -> None:
    assert ByteTokenizer().decode(ByteTokenizer().encode(text)) == text
    assert SMALL.decode(SMALL.encode(text)) == text


SMALL = SentencePieceTokenizer(train_model([SOURCE], 300))


def test_training_is_deterministic_and_of_the_size_asked_for() -> None:
    for kind in ("bpe", "unigram"):
        model = train_model([SOURCE, CHINESE], 400, kind)
        assert model == train_model([SOURCE, CHINESE], 400, kind)
        assert SentencePieceTokenizer(model).vocab_size == 400


def test_training_learns_indentation_line_ends_and_characters() -> None:
    tokenizer = SentencePieceTokenizer(train_model([SOURCE, CHINESE], 480))
    assert len(tokenizer.encode("        ")) == 2  # bos and one piece for eight spaces
    assert len(tokenizer.encode(":\n")) == 2
    assert len(tokenizer.encode("明月")) == 2
    assert len(tokenizer.encode(SOURCE)) < 0.6 * len(SOURCE)


def test_many_characters_leave_room_for_longer_pieces() -> None:
    text = "".join(chr(0x4E00 + i) for i in range(2000)) + "明月光" * 50
    tokenizer = SentencePieceTokenizer(train_model([text], 270))
    assert len(tokenizer.encode("明月光")) == 2
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_decode_leaves_specials_out_and_marks_what_is_no_text() -> None:
    hello = SMALL.encode("hi")
    assert SMALL.decode([*hello, 2, 0, *hello]) == "hihi"
    assert SMALL.decode([*hello, 300]) == SMALL.decode([*hello, -1]) == "hi\ufffd"
    broken = SMALL.encode("你")[1:-1]
    assert set(SMALL.decode(broken)) == {"\ufffd"}
    assert ByteTokenizer().decode([256, 0xE4, 0xBD, 257, 999]) == "\ufffd\ufffd"
    assert SMALL.decode(np.array(hello)) == "hi"  # pyright: ignore[reportArgumentType]


def test_bytes_ids_are_the_bytes() -> None:
    tokenizer = ByteTokenizer()
    assert tokenizer.encode("é\n") == [256, 0xC3, 0xA9, 10]
    assert [a.tolist() for a in tokenizer.encode_batch(["é", ""])] == [[256, 0xC3, 0xA9], [256]]


def _word_level(folder: Path, *, template: bool = True) -> Path:
    vocabulary = {"<s>": 0, "</s>": 1, "a": 2, "b": 3, "c": 9}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="</s>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.enable_truncation(2)
    if template:
        tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
        )
    path = folder / "tokenizer.json"
    tokenizer.save(str(path))
    return path


def test_hugging_face_adds_bos_never_eos_and_cuts_nothing(tmp_path: Path) -> None:
    tokenizer = HuggingFaceTokenizer.from_file(_word_level(tmp_path))
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.adds_bos) == (0, 1, True)
    assert tokenizer.encode("a b c a") == [0, 2, 3, 9, 2]
    assert tokenizer.vocab_size == 10  # the ids have a gap; the largest one counts
    assert tokenizer.decode([0, 2, 3, 1]) == "a b"
    assert tokenizer.decode([2, 5]) == "a\ufffd"


def test_byte_level_gives_the_text_back(tmp_path: Path) -> None:
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        show_progress=False,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator([SOURCE, CHINESE], trainer)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    loaded = HuggingFaceTokenizer.from_file(tmp_path / "tokenizer.json")
    assert (loaded.bos_id, loaded.eos_id, loaded.adds_bos) == (None, 0, False)
    for text, ids in zip(TEXTS, loaded.encode_batch(TEXTS), strict=True):
        assert loaded.decode(ids) == text
    assert loaded.decode(loaded.encode("🎉")[:-1]).strip("\ufffd") == ""


def test_hugging_face_without_template_adds_nothing(tmp_path: Path) -> None:
    path = _word_level(tmp_path, template=False)
    assert HuggingFaceTokenizer.from_file(path).encode("a") == [2]
    config = {"bos_token": {"content": "</s>"}, "eos_token": "<s>", "add_bos_token": True}
    path.with_name("tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = HuggingFaceTokenizer.from_file(path)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.encode("a")) == (1, 0, [1, 2])


def test_saved_tokenizers_load_as_they_were(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    huggingface = HuggingFaceTokenizer.from_file(_word_level(source))
    for i, tokenizer in enumerate((ByteTokenizer(), SMALL, huggingface)):
        assert isinstance(tokenizer, Tokenizer)
        folder = tmp_path / str(i)
        folder.mkdir()
        entry = json.loads(json.dumps(tokenizer.save(folder)))
        again = load_tokenizer(entry, folder)
        assert again.encode("a b\n") == tokenizer.encode("a b\n")
        assert (again.bos_id, again.eos_id) == (tokenizer.bos_id, tokenizer.eos_id)
        assert fingerprint(again) == fingerprint(tokenizer)
    assert fingerprint(SMALL) != fingerprint(ByteTokenizer())


def test_a_model_says_its_ids_and_nothing_is_guessed(tmp_path: Path) -> None:
    path = _word_level(tmp_path)
    path.with_name("tokenizer_config.json").write_text('{"bos_token": "<s>"}')
    entry = {"kind": "tokenizers", "file": path.name}
    bare = load_tokenizer(entry, tmp_path)
    assert (bare.bos_id, bare.eos_id, bare.encode("a")) == (None, None, [2])
    said = load_tokenizer({**entry, "bos_id": 1, "adds_bos": True}, tmp_path)
    assert (said.bos_id, said.eos_id, said.encode("a")) == (1, None, [1, 2])


def _config(vocab_size: int, **tokenizer: object) -> Config:
    return Config(
        model=ModelConfig(vocab_size=vocab_size, embedding_dim=8, num_layers=1),
        tokenizer=TokenizerConfig(**tokenizer),  # pyright: ignore[reportArgumentType]
        data=DataConfig(heldout_fraction=0.3),
    )


def test_build_trains_once_and_not_on_what_is_held_out(tmp_path: Path) -> None:
    documents = [SOURCE, SOURCE[:5000], CHINESE]
    cfg = _config(400, kind="sentencepiece")
    tokenizer = build_tokenizer(cfg, documents, tmp_path)
    files = list(tmp_path.iterdir())
    again = build_tokenizer(cfg, documents[::-1], tmp_path)
    assert list(tmp_path.iterdir()) == files and len(files) == 1
    assert fingerprint(again) == fingerprint(tokenizer)
    found = Documents(documents.__getitem__, 3, "key")
    assert fingerprint(build_tokenizer(cfg, found, tmp_path)) == fingerprint(tokenizer)
    unread = Documents(lambda i: pytest.fail("read again"), 3, "key")
    assert fingerprint(build_tokenizer(cfg, unread, tmp_path)) == fingerprint(tokenizer)
    other = build_tokenizer(_config(401, kind="sentencepiece"), documents, tmp_path)
    assert other.vocab_size == 401


def test_build_loads_a_file_or_its_folder(tmp_path: Path) -> None:
    SMALL.save(tmp_path)
    for path in (tmp_path, tmp_path / "tokenizer.model"):
        cfg = _config(300, kind="sentencepiece", path=str(path))
        assert fingerprint(build_tokenizer(cfg, [], tmp_path)) == fingerprint(SMALL)


def test_own_tokenizer_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_tokenizer.py").write_text(
        "from llmasos_jax.data.tokenizers.tokenizer import ByteTokenizer\n"
        "def make(entry, folder):\n    return ByteTokenizer()\n"
        "def wrong(entry, folder):\n    return 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    cfg = _config(300, kind="my_tokenizer:make")
    assert build_tokenizer(cfg, [], tmp_path).encode("a") == [256, 97]
    with pytest.raises(TokenizerError, match="gave a int; expected vocab_size"):
        build_tokenizer(_config(300, kind="my_tokenizer:wrong"), [], tmp_path)
    with pytest.raises(TokenizerError, match="names code, and opening a model runs none"):
        load_tokenizer({"kind": "my_tokenizer:make"}, tmp_path)


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"kind": "sentencpiece"}, 'did you mean "sentencepiece"'),
        ({"kind": "sentencepiece", "path": "nowhere.model"}, "nowhere.model is not there"),
        ({"kind": "sentencepiece", "path": "bad"}, "bad is not a SentencePiece model"),
        ({"kind": "sentencepiece", "path": "empty"}, "empty is not a SentencePiece model"),
        ({"kind": "tokenizers", "path": "bad"}, "bad is not a tokenizer.json"),
        ({"kind": "tokenizers"}, "leaves no pieces beside the 261"),
        ({"kind": "sentencepiece", "model_type": "wordpiece"}, 'set tokenizer.kind="tokenizers"'),
        ({"kind": "bytes"}, "set model.vocab_size=259 or more"),
        ({"kind": "sentencepiece"}, "leaves no pieces beside the 259"),
    ],
)
def test_wrong_tokenizers_say_what_to_do(
    settings_: dict[str, str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad").write_bytes(b"\x0a\xff not a tokenizer")
    Path("empty").write_bytes(b"")
    with pytest.raises(TokenizerError, match=message):
        build_tokenizer(_config(100, **settings_), ["a text", "b text"], tmp_path)


def test_too_little_text_says_how_many_pieces_there_can_be() -> None:
    with pytest.raises(TokenizerError, match="at most 2[0-9][0-9] are possible"):
        train_model(["tiny text, tiny text"], 2000)
    with pytest.raises(TokenizerError, match="give more text"):
        train_model([], 300)


@pytest.mark.parametrize("name", ["../out.model", "/etc/passwd", "", None, 3])
def test_a_tokenizer_file_stays_in_its_folder(name: object, tmp_path: Path) -> None:
    (tmp_path / "out.model").write_bytes(b"")
    folder = tmp_path / "model"
    folder.mkdir()
    with pytest.raises(TokenizerError, match="leaves the folder|expected the name of its file"):
        load_tokenizer({"kind": "sentencepiece", "file": name}, folder)


def test_half_a_surrogate_pair_is_refused(trained: SentencePieceTokenizer) -> None:
    for tokenizer in (ByteTokenizer(), trained):
        with pytest.raises(TokenizerError, match=r"character 2 of the text is U\+D83C"):
            tokenizer.encode("ab\ud83c")


@pytest.mark.parametrize(
    "settings_", [{}, {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}]
)
def test_a_model_that_changes_spaces_is_left_as_it_is(settings_: dict[str, Any]) -> None:
    """The usual settings put a space in front; ids have to equal the library's own."""
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SOURCE.splitlines()),
        model_writer=out,
        vocab_size=400,
        model_type="bpe",
        byte_fallback=True,
        minloglevel=3,
        **settings_,
    )
    library = sentencepiece.SentencePieceProcessor(model_proto=out.getvalue())
    tokenizer = SentencePieceTokenizer(out.getvalue())
    for text in TEXTS:
        assert tokenizer.encode(text)[1:] == library.encode(text)
        assert tokenizer.decode(tokenizer.encode(text)) == library.decode(library.encode(text))


@pytest.mark.parametrize("key", ["bos_id", "eos_id"])
def test_a_sentencepiece_entry_may_not_contradict_its_file(
    trained: SentencePieceTokenizer, tmp_path: Path, key: str
) -> None:
    entry = trained.save(tmp_path)
    own = getattr(trained, key)
    assert getattr(load_tokenizer({**entry, key: own}, tmp_path), key) == own
    with pytest.raises(TokenizerError, match=f"{key}=7, but the sentencepiece file has {own}"):
        load_tokenizer({**entry, key: 7}, tmp_path)
