"""Added tokens whose ids are beyond the rows of the model."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from small_hf import written
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from llmasos_jax.api import convert
from llmasos_jax.errors import FormatError, TokenizerError
from llmasos_jax.generate.load import load_model

LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
NUM_ROWS = len(LETTERS) + 2
CONFIG = {
    **{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": NUM_ROWS},
    **{"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1},
    **{"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 32},
}
CONVERSATION = "{{ messages[0].content }}"


def tokenizer(added: tuple[str, ...], whole: int = NUM_ROWS) -> Tokenizer:
    """A byte-level one of `whole` ids, and tokens added behind them."""
    names = [*LETTERS, "<s>", "</s>", "he"][:whole]
    vocabulary = {token: i for i, token in enumerate(names)}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[("h", "e")] if "he" in names else []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore
    made.decoder = decoders.ByteLevel()  # type: ignore
    made.add_special_tokens(["<s>", "</s>"])
    made.add_special_tokens([AddedToken(token) for token in added])
    return made


def folder(path: Path, *args: Any) -> Path:
    made = tokenizer(*args)
    written(path, CONFIG)
    made.save(str(path / "tokenizer.json"))
    named = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": CONVERSATION}
    (path / "tokenizer_config.json").write_text(json.dumps(named))
    return path


def check(model: Any) -> None:
    ids = model.encode("hello")
    assert ids == [LETTERS.index(c) for c in "hello"]
    text = model.generate_text("hello", max_length=6, seed=0)
    assert isinstance(text, str) and "<image>" not in text
    said = f"'<image>', id {NUM_ROWS}, and the model's ids are 0 to {NUM_ROWS - 1}"
    for call in (
        lambda: model.encode("a<image>b"),
        lambda: model.generate_text(["a", "a<image>b"], max_length=2),
        lambda: model.chat([{"role": "user", "content": "a<image>b"}], max_length=2),
    ):
        with pytest.raises(TokenizerError, match=said):
            call()


def test_tokens_added_without_rows(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = folder(tmp_path / "theirs", ("<image>", "<pad>"))
    with caplog.at_level(logging.INFO, logger="llmasos_jax.generate.load"):
        model = load_model(source)
    (line,) = [r.getMessage() for r in caplog.records if r.name == "llmasos_jax.generate.load"]
    assert f"<image> ({NUM_ROWS}), <pad> ({NUM_ROWS + 1})" in line
    check(model)
    check(load_model(model.save(tmp_path / "saved")))
    convert(source, tmp_path / "converted")
    check(load_model(tmp_path / "converted"))


def test_other_tokens_without_rows_are_refused(tmp_path: Path) -> None:
    source = folder(tmp_path / "theirs", ("<image>",), NUM_ROWS + 1)
    with pytest.raises(FormatError, match=f"has {NUM_ROWS + 2} ids, the model only {NUM_ROWS}"):
        load_model(source)
