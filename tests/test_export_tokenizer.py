"""Tokenizers of exports: what transformers makes of texts is what the model makes of them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_export import CFG
from small_export import source as source_of
from small_hf import written
from small_model import SMALL
from small_model import written as small_written
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, pre_tokenizers, processors

import llmasos_jax
from llmasos_jax.data.tokenizers.sentencepiece import SentencePieceTokenizer, train_model
from llmasos_jax.data.tokenizers.tokenizer import ByteTokenizer, encode_input
from llmasos_jax.data.tokenizers.wordpiece import bert_tokenizer, vocabulary_file
from llmasos_jax.errors import ExportError
from llmasos_jax.evals.export import huggingface as export_hf
from llmasos_jax.interop.hf import open_hf
from llmasos_jax.interop.hf.rebuilt import _WORDS as WORDS
from llmasos_jax.interop.hf.write import write_huggingface

WIDTHS = {
    **{"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
    **{"intermediate_size": 24, "max_position_embeddings": 66},
}
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,!世"
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{c}" for c in LETTERS)]
LINES = "".join(f"{piece}\n" for piece in PIECES)
BERT_TOKENS = {
    f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")
}
ROBERTA_TOKENS = {
    **{"bos_token": "<s>", "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>"},
    **{"unk_token": "<unk>", "pad_token": "<pad>", "mask_token": "<mask>"},
}
INPUTS = ["input_ids", "token_type_ids", "attention_mask"]


def bert(folder: Path, **keys: Any) -> Path:
    written(
        folder,
        {
            **{"architectures": ["BertForPreTraining"], "model_type": "bert", **WIDTHS},
            **{"vocab_size": len(PIECES), "pad_token_id": 0, **keys},
        },
    )
    (folder / "vocab.txt").write_text(LINES, encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True}))
    return folder


def modern(folder: Path) -> Path:
    config = {"architectures": ["ModernBertForMaskedLM"], "model_type": "modernbert", **WIDTHS}
    ids = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    written(folder, {**config, **ids, "vocab_size": len(PIECES), "local_attention": 6})
    made = bert_tokenizer(vocabulary_file(LINES.encode(), folder), folder)
    (folder / "tokenizer.json").write_text(made.to_str(), encoding="utf-8")
    said = {"tokenizer_class": "PreTrainedTokenizerFast", **BERT_TOKENS}
    (folder / "tokenizer_config.json").write_text(json.dumps(said))
    return folder


def roberta(folder: Path) -> Path:
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    bytes_ = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*special, *bytes_])}
    config = {"architectures": ["RobertaForMaskedLM"], "model_type": "roberta", **WIDTHS}
    ids = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "type_vocab_size": 1}
    written(folder, {**config, **ids, "vocab_size": len(vocab)})
    made = Library(models.BPE(vocab, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    made.add_special_tokens(special)
    (folder / "tokenizer.json").write_text(made.to_str(), encoding="utf-8")
    said = {"tokenizer_class": "RobertaTokenizer", **ROBERTA_TOKENS}
    (folder / "tokenizer_config.json").write_text(json.dumps(said))
    return folder


FOLDERS: dict[str, tuple[Callable[[Path], Path], dict[str, str]]] = {
    "bert": (bert, BERT_TOKENS),
    "modernbert": (modern, BERT_TOKENS),
    "roberta": (roberta, ROBERTA_TOKENS),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_special_tokens_are_those_of_the_source(name: str, tmp_path: Path) -> None:
    make, tokens = FOLDERS[name]
    files = open_hf(make(tmp_path / "in"))
    out = tmp_path / "out"
    out.mkdir()
    assert write_huggingface(files, out).notes == ()
    said = json.loads((out / "tokenizer_config.json").read_bytes())
    assert {key: v for key, v in said.items() if key.endswith("_token")} == tokens
    assert said.get("model_input_names") == (INPUTS if name == "bert" else None)
    assert (
        files.manifest.generation.eos_ids == {"bert": (), "modernbert": (3,), "roberta": (2,)}[name]
    )
    back = open_hf(out)
    assert back.manifest.generation == files.manifest.generation
    assert files.tokenizer is not None and back.tokenizer is not None
    ours, again = files.tokenizer.load(), back.tokenizer.load()
    for field in ("bos_id", "eos_id", "mask_id", "pad_id", "cls_id", "sep_id", "adds_bos"):
        assert getattr(again, field) == getattr(ours, field), field


def test_a_tokenizer_whose_file_says_no_ends_is_left_out(tmp_path: Path) -> None:
    folder = roberta(tmp_path / "in")
    path = folder / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_bytes()), "post_processor": None}))
    files = open_hf(folder)
    assert files.tokenizer is not None
    assert encode_input(files.tokenizer.load(), "a")[0][-1] == 2  # the end, added by us alone
    out = tmp_path / "out"
    out.mkdir()
    (note,) = write_huggingface(files, out).notes
    assert "the tokenizer is left out: it begins or ends texts" in note
    assert not list(out.glob("tokenizer*"))


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore:::(torch|transformers)")
class TestParity:
    @pytest.fixture(autouse=True)
    def needs(self) -> None:
        pytest.importorskip("torch", reason="needs the extra `parity`")
        pytest.importorskip("transformers", reason="needs the extra `parity`")

    @pytest.mark.parametrize("name", FOLDERS)
    def test_transformers_makes_the_same_of_texts(self, name: str, tmp_path: Path) -> None:
        from transformers import AutoTokenizer

        make, tokens = FOLDERS[name]
        source = make(tmp_path / "in")
        llmasos_jax.export(source, "hf", tmp_path / "out")
        receipt = json.loads((tmp_path / "out" / "parity.json").read_bytes())
        assert receipt["texts"] == 7
        theirs = AutoTokenizer.from_pretrained(tmp_path / "out")
        assert {key: str(v) for key, v in theirs.special_tokens_map.items()} == tokens
        both = theirs("it is", "a 世")
        assert list(both) == (INPUTS if name == "bert" else ["input_ids", "attention_mask"])
        if name == "bert":
            first, kinds = AutoTokenizer.from_pretrained(source)("it is", "a 世"), [0] * 6 + [1] * 3
            assert (both["input_ids"], both["token_type_ids"]) == (first["input_ids"], kinds)

    @pytest.mark.parametrize(
        ("file", "key", "value", "message"),
        [
            ("tokenizer_config.json", "model_input_names", INPUTS[:1], "token_type_ids = None of"),
            ("tokenizer_config.json", "mask_token", "[PAD]", "mask_token_id = 0 of"),
            (
                "tokenizer.json",
                "post_processor",
                None,
                "input_ids = .* of 'Hello, world!",
            ),
            ("tokenizer.json", "model", {}, "does not open the tokenizer"),
        ],
    )
    def test_another_tokenizer_is_kept_nowhere(
        self, file: str, key: str, value: Any, message: str, tmp_path: Path, monkeypatch: Any
    ) -> None:
        source = bert(tmp_path / "in")

        def spoilt(files: Any, out: Path, **options: Any) -> Any:
            result = write_huggingface(files, out, **options)
            found = json.loads((out / file).read_bytes())
            (out / file).write_text(json.dumps({**found, key: value}))
            return result

        monkeypatch.setattr(export_hf, "write_huggingface", spoilt)
        with pytest.raises(ExportError, match=message) as caught:
            llmasos_jax.export(source, "hf", tmp_path / "out")
        assert "\n" not in str(caught.value)
        assert [p.name for p in tmp_path.iterdir()] == ["in"]

    def test_a_tokenizer_that_has_no_words_there_is_left_out(self, tmp_path: Path) -> None:
        cfg = SMALL.replace(num_layers=1, context_length=24)
        source = small_written(tmp_path / "in", cfg, tokenizer=ByteTokenizer())
        result = llmasos_jax.export(source, "hf", tmp_path / "out")
        assert result.proof is not None and result.proof.texts == 0
        (note,) = result.notes
        assert note.startswith("the tokenizer is left out: Hugging Face folders hold no tokenizer")
        assert not list((tmp_path / "out").glob("tokenizer*"))

    @pytest.mark.parametrize("kind", ["bpe", "unigram"])
    def test_a_sentencepiece_model_becomes_a_tokenizer_json(
        self, kind: str, tmp_path: Path
    ) -> None:
        learned = train_model([Path(__file__).read_text()], 320, kind)
        tokenizer = SentencePieceTokenizer(learned)
        cfg = SMALL.replace(vocab_size=320, num_layers=1, context_length=24)
        source = small_written(tmp_path / "in", cfg, tokenizer=tokenizer)
        result = llmasos_jax.export(source, "hf", tmp_path / "out")
        assert result.proof is not None and result.proof.texts == 5 and result.notes == ()
        back = open_hf(tmp_path / "out").tokenizer
        assert back is not None
        text = "def f(x):\n\treturn  x + 1  # 世界 🙂"
        assert back.load().encode(text) == tokenizer.encode(text)
        assert back.load().decode(tokenizer.encode(text)) == text

    @pytest.mark.parametrize("is_alike", [True, False])
    def test_a_class_that_builds_its_tokenizer_anew_has_no_padding_of_its_own(
        self, is_alike: bool, tmp_path: Path
    ) -> None:
        """Qwen2Tokenizer's default is <|endoftext|>, which this tokenizer does not have."""
        from transformers import AutoTokenizer

        cfg = CFG.replace(attention_out_bias=False, num_layers=1, context_length=24)
        source = source_of(tmp_path / "in", cfg)
        if is_alike:
            path = source / "tokenizer.json"
            words = {"type": "Split", "pattern": {"Regex": WORDS}, "behavior": "Isolated"}
            letters = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
            parts = [{**words, "invert": False}, {**letters, "use_regex": False}]
            changes = {
                "normalizer": {"type": "NFC"},
                "pre_tokenizer": {"type": "Sequence", "pretokenizers": parts},
            }
            path.write_text(json.dumps({**json.loads(path.read_bytes()), **changes}))
        result = llmasos_jax.export(source, "hf", tmp_path / "out")
        assert result.saved_class == "Qwen2ForCausalLM"
        assert result.proof is not None and result.proof.texts == 5
        said = json.loads((tmp_path / "out" / "tokenizer_config.json").read_bytes())
        assert said["pad_token"] is None and said["bos_token"] == "<s>"
        theirs = AutoTokenizer.from_pretrained(tmp_path / "out")
        assert theirs.pad_token_id is None and len(theirs) == len(json.loads(
            (tmp_path / "out" / "tokenizer.json").read_bytes())["model"]["vocab"])  # fmt: skip
        assert ("PreTrainedTokenizerFast" in " ".join(result.notes)) == (not is_alike)
