"""Tokenizers trained from text: the size asked for, the same file each time, no text lost."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hard_strings import hard_strings

from llmasos_jax.config.heads import Encoder
from llmasos_jax.config.model import ModelConfig
from llmasos_jax.config.schema import Config, DataConfig, ObjectiveConfig, TokenizerConfig
from llmasos_jax.data.sources import Documents
from llmasos_jax.data.tokenizers.huggingface import HuggingFaceTokenizer
from llmasos_jax.data.tokenizers.load import build_tokenizer, load_tokenizer
from llmasos_jax.data.tokenizers.tokenizer import fingerprint
from llmasos_jax.data.tokenizers.trained import Use, train, use_of
from llmasos_jax.data.tokenizers.vocabulary import vocabulary_of
from llmasos_jax.errors import TokenizerError

SOURCE = Path(json.__file__).read_text(encoding="utf-8")
CHINESE = "床前明月光，疑是地上霜。\n举头望明月，低头思故乡。\n" * 30
TEXTS = [text for _, text in hard_strings(400, seed=5)]
KINDS = ("wordpiece", "unigram", "bpe")


def opened(folder: Path, text: str) -> HuggingFaceTokenizer:
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    return HuggingFaceTokenizer.from_file(folder / "tokenizer.json")


@pytest.mark.parametrize("model_type", KINDS)
def test_as_many_ids_as_asked_for(model_type: str, tmp_path: Path) -> None:
    for size in (400, 473):
        made = opened(tmp_path, train([SOURCE, CHINESE], size, model_type))
        assert made.vocab_size == size
        assert len({made.token(i) for i in range(size)} - {None}) == size


def test_wordpiece_is_berts(tmp_path: Path) -> None:
    made = opened(tmp_path, train([SOURCE, CHINESE], 480, "wordpiece"))
    assert [made.token(i) for i in range(5)] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert (made.bos_id, made.eos_id, made.adds_bos) == (2, 3, True)
    found = vocabulary_of(made, 480)
    assert (found.cls_id, found.sep_id, found.mask_id, found.pad_id) == (2, 3, 4, 0)
    assert found.special_ids == (0, 1, 2, 3, 4)

    def pieces(text: str) -> list[str]:
        return [str(made.token(i)) for i in made.encode(text)[1:]]

    assert pieces("The object and THE key") == ["the", "object", "and", "the", "key"]
    assert pieces("thé明月") == ["the", "明", "月"]
    inside = [p for i in range(480) if found.is_inside_v[i] and (p := made.token(i))]
    assert inside and all(p.startswith("##") for p in inside)
    word = pieces("encodings")
    assert len(word) > 1 and "".join(p.removeprefix("##") for p in word) == "encodings"
    assert pieces("\U00010348") == ["[UNK]"]


def test_cased_wordpiece_keeps_case_and_accents(tmp_path: Path) -> None:
    texts = ["Das Äußere und das Innere\n" * 20]
    made = opened(tmp_path, train(texts, 31, "wordpiece", lowercase=False))
    assert [made.token(i) for i in made.encode("Das das Äußere")] == [
        *("[CLS]", "Das", "das", "Äußere")
    ]
    lower = opened(tmp_path, train(texts, 29, "wordpiece", lowercase=True))
    assert [lower.token(i) for i in lower.encode("Das das Äußere")] == [
        *("[CLS]", "das", "das", "außere")
    ]


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_no_text_is_lost(model_type: str, tmp_path: Path) -> None:
    made = opened(tmp_path, train([SOURCE, CHINESE], 480, model_type))
    assert [made.token(i) for i in range(5)] == ["<pad>", "</s>", "<unk>", "<s>", "<mask>"]
    assert (made.bos_id, made.eos_id, made.mask_id, made.pad_id) == (3, 1, 4, 0)
    for text in TEXTS:
        ids = made.encode(text)
        assert ids[0] == 3 and 2 not in ids
        # U+2581 is what a space is written as, and comes back as one.
        wanted = text.replace("\u2581", " ") if model_type == "unigram" else text
        assert made.decode(ids) == wanted, repr(text)
    assert len(made.encode(SOURCE)) < 0.6 * len(SOURCE)


@pytest.mark.parametrize("model_type", KINDS)
def test_sentinels_are_last_and_the_first_is_the_very_last(model_type: str, tmp_path: Path) -> None:
    made = opened(tmp_path, train([SOURCE], 480, model_type, use=Use("encoder-decoder", 100)))
    found = vocabulary_of(made, 480)
    assert found.sentinel_ids == tuple(range(479, 379, -1))
    assert set(found.sentinel_ids) < set(found.special_ids)
    assert made.encode("<extra_id_0> a<extra_id_99>")[0 if model_type != "wordpiece" else 1] == 479
    if model_type != "wordpiece":
        assert (made.bos_id, made.eos_id, made.pad_id, made.adds_bos) == (3, 1, 0, False)
        ids, types = made.encode_input("if", "else")
        assert ids == [*made.encode("if"), 1, *made.encode("else"), 1]
        assert types == [0] * (len(made.encode("if")) + 1) + [1] * (len(made.encode("else")) + 1)
        assert (found.cls_id, found.sep_id) in ((None, 1), (3, 1))


def test_templates(tmp_path: Path) -> None:
    for template, begin, end in (("encoder", [3], [1]), ("decoder", [3], [])):
        made = opened(tmp_path, train([SOURCE], 400, "bpe", use=Use(template)))
        a, b = made.encode("if")[1:], made.encode("else")[1:]
        assert made.encode_input("if", "else")[0] == [*begin, *a, *end, *b, *end]
        assert made.adds_bos


CODE = """
import sys, hashlib
from llmasos_jax.data.tokenizers.trained import Use, train
texts = sys.stdin.read().split("|||")
for kind in ("wordpiece", "unigram", "bpe"):
    file = train(texts, 420, kind, use=Use("encoder", 20))
    print(hashlib.sha256(file.encode()).hexdigest())
"""


def test_the_same_file_in_any_process_on_any_number_of_threads() -> None:
    said = {
        subprocess.run(
            [sys.executable, "-c", CODE],
            input=SOURCE + "|||" + CHINESE,
            env={**os.environ, "RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": threads},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for threads in ("1", "3")
    }
    assert len(said) == 1 and len(said.pop().split()) == 3
    here = train([SOURCE, CHINESE], 420, "wordpiece", use=Use("encoder", 20))
    assert (
        hashlib.sha256(here.encode()).hexdigest()
        == hashlib.sha256(
            train([SOURCE, CHINESE], 420, "wordpiece", use=Use("encoder", 20)).encode()
        ).hexdigest()
    )


def config(vocab_size: int = 300, objective: str = "causal", **tokenizer: Any) -> Config:
    causal = objective in ("causal", "span_corruption")
    return Config(
        model=ModelConfig(
            vocab_size=vocab_size,
            embedding_dim=8,
            num_layers=1,
            causal=causal,
            encoder=Encoder(num_layers=1 if objective == "span_corruption" else 0),
        ),
        objective=ObjectiveConfig(name=objective),
        tokenizer=TokenizerConfig(kind="tokenizers", **tokenizer),
        data=DataConfig(heldout_fraction=0.3),
    )


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        ("causal", Use("decoder", 0)),
        ("mlm", Use("encoder", 0)),
        ("span_corruption", Use("encoder-decoder", 100)),
    ],
)
def test_what_a_config_needs(objective: str, expected: Use) -> None:
    assert use_of(config(objective=objective)) == expected


def test_build_trains_once_on_what_is_not_held_out(tmp_path: Path) -> None:
    documents = [SOURCE, SOURCE[:5000], CHINESE]
    cfg = config(model_type="wordpiece")
    made = build_tokenizer(cfg, documents, tmp_path)
    files = list(tmp_path.iterdir())
    assert len(files) == 1 and made.vocab_size == 300
    unread = Documents(lambda i: pytest.fail("read again"), 3, "key")
    again = build_tokenizer(cfg, documents[::-1], tmp_path)
    assert list(tmp_path.iterdir()) == files and fingerprint(again) == fingerprint(made)
    build_tokenizer(cfg, Documents(documents.__getitem__, 3, "key"), tmp_path)
    assert fingerprint(build_tokenizer(cfg, unread, tmp_path)) == fingerprint(made)
    cased = build_tokenizer(config(model_type="wordpiece", lowercase=False), documents, tmp_path)
    assert fingerprint(cased) != fingerprint(made)
    other = build_tokenizer(config(280, "mlm", model_type="wordpiece"), documents, tmp_path)
    assert other.vocab_size == 280
    folder = tmp_path / "saved"
    folder.mkdir()
    assert load_tokenizer(made.save(folder), folder).encode("a key") == made.encode("a key")


def test_train_chars_says_how_much_is_read(tmp_path: Path) -> None:
    documents = ["the cat sat on the mat " * 40, "zqj " * 1000, "xyw " * 1000]
    few = config(40, model_type="wordpiece", train_chars=10)
    with pytest.raises(TokenizerError, match="^10 characters of text are too little"):
        build_tokenizer(few, documents, tmp_path)


@pytest.mark.parametrize(
    ("model_type", "size", "said"),
    [
        ("wordpiece", 9000, 'pieces of "wordpiece"; at most [0-9]+ are possible'),
        ("bpe", 9000, 'pieces of "bpe"; at most [0-9]+ are possible'),
        ("unigram", 9000, "at most [0-9]+ are possible"),
        ("wordpiece", 6, "leaves no pieces beside the special tokens"),
        ("unigram", 261, "leaves no pieces beside the 261 for bytes and specials and 0 sentinels"),
        ("bpe", 200, "at least 262"),
    ],
)
def test_too_little_text_or_room(model_type: str, size: int, said: str) -> None:
    with pytest.raises(TokenizerError, match=said) as error:
        train(["the cat sat on the other mat\n" * 3], size, model_type)
    assert "\n" not in str(error.value)
    with pytest.raises(TokenizerError, match="no text|too little"):
        train([], 400, model_type)


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore:::(torch|transformers)")
@pytest.mark.parametrize("model_type", KINDS)
def test_transformers_gives_the_same_ids(model_type: str, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="needs the extra `parity`")
    transformers = pytest.importorskip("transformers", reason="needs the extra `parity`")
    ours = opened(tmp_path, train([SOURCE, CHINESE], 480, model_type, use=Use("encoder")))
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    for text in TEXTS:
        assert ours.encode_input(text)[0] == theirs(text)["input_ids"], repr(text)
    ids, types = ours.encode_input("if", "else")
    both = theirs("if", "else", return_token_type_ids=True)
    assert (ids, types) == (both["input_ids"], both["token_type_ids"])
