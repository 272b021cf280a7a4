"""`data show` writes what is masked, what a pair is and what a decoder writes."""

import io
import json
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from llmasos_jax.cli.data import summarise
from llmasos_jax.cli.learned import print_parts
from llmasos_jax.cli.rows import describe_row, legend
from llmasos_jax.config.build import default_config
from llmasos_jax.config.model import ModelConfig
from llmasos_jax.config.schema import Config, DataConfig, ObjectiveConfig
from llmasos_jax.data.batch import Batch
from llmasos_jax.data.batches import stack
from llmasos_jax.data.objectives import span_corruption
from llmasos_jax.data.tokenizers.vocabulary import Vocabulary
from llmasos_jax.errors import ConfigError

PIECES = "[PAD] [CLS] [SEP] [MASK] the cat sat on mat walk ##ing dog <0> <1> <2> <3>".split()
IS_INSIDE = np.array([piece.startswith("##") for piece in PIECES])
VOCABULARY = Vocabulary(16, 1, 2, 3, 0, (0, 1, 2, 3, 12, 13, 14, 15), IS_INSIDE, (12, 13, 14, 15))


class Words:
    """Decodes as WordPiece does: special tokens are left out."""

    def decode(self, ids) -> str:
        words = " ".join(PIECES[i] for i in ids if i not in VOCABULARY.special_ids)
        return words.replace(" ##", "")


def _ids(text: str) -> list[int]:
    return [PIECES.index(piece) for piece in text.split()]


def _batch(**extra) -> Batch:
    read = _ids("[CLS] the [MASK] dog on the mat [SEP] walk [MASK] the [SEP] [PAD] [PAD]")
    segments = np.array([[1] * 12 + [0, 0]])
    targets = np.array([_ids("cat sat mat ##ing") + [0]])
    extra = {"masked_positions": np.array([[2, 3, 6, 9, 0]])} | extra
    weights = np.array([[1.0, 1.0, 1.0, 1.0, 0.0]])
    return Batch(np.array([read]), targets, weights, segments, segments, extra)


def _describe(batch: Batch, objective: str) -> dict:
    return describe_row(batch, 0, Words(), VOCABULARY, objective)  # type: ignore[arg-type]


def test_masked_tokens_are_marked() -> None:
    row = _describe(_batch(), "mlm")
    expected = "[CLS] the ⟦cat⟧ ⟦sat→dog⟧ on the ⟦mat=⟧ [SEP] walk⟦##ing⟧ the [SEP]"
    assert row == {"tokens": 12, "segments": 1, "predicted": 4, "text": expected}
    assert "⟦word→other⟧" in (legend(_batch()) or "")


def test_pairs_say_what_they_are() -> None:
    for label, nsp, sop in ((0, "follows", "as in"), (1, "another document", "swapped")):
        batch = _batch(next_sentence=np.array([label]))
        assert nsp in _describe(batch, "mlm_nsp")["pair"]
        assert sop in _describe(batch, "mlm_sop")["pair"]


def test_spans_name_their_sentinels() -> None:
    cfg = Config(
        ModelConfig(16, 8, 1),
        data=DataConfig(sequence_length=8),
        objective=ObjectiveConfig(name="span_corruption", mask_rate=0.3),
    )
    _, prepare = span_corruption(cfg, VOCABULARY)
    text = np.array(_ids("the cat sat on the mat the dog"), dtype=np.int32)
    batch = stack([prepare(text, np.random.default_rng(0))])
    row = _describe(batch, "span_corruption")
    assert row["text"].endswith("[SEP]") and "<0>" in row["text"]
    assert row["decoder"].startswith("<0> ") and row["decoder"].endswith("[SEP]")
    words = sorted((row["text"] + " " + row["decoder"]).split())
    assert sorted([*"the cat sat on the mat the dog <0> <0> [SEP] [SEP]".split()]) == words


def test_prefixes_end_with_a_mark() -> None:
    tokens = np.array([_ids("the cat sat on the mat")])
    ones = np.ones_like(tokens)
    prefix = np.array([[1, 1, 0, 1, 0, 0]])
    batch = Batch(tokens, tokens, ones, ones, ones, {"prefix": prefix})
    assert _describe(batch, "prefix_lm")["text"] == "the cat ‖ sat on ‖ the mat"


class Marked(Words):
    """Knows its special tokens' names, too."""

    def token(self, number: int) -> str:
        return PIECES[number]


def _conversations(**extra) -> Batch:
    tokens = np.array([_ids("[CLS] the cat [SEP] sat on [SEP] [CLS] the dog [PAD]")])
    segments = np.array([[1] * 7 + [2] * 3 + [0]])
    weights = np.array([[0, 0, 0, 1, 1, 1, 0, 0, 1, 0, 0.0]])
    return Batch(tokens, np.roll(tokens, -1), weights, segments, segments, extra)


def test_what_is_learned_of_conversations_stands_between_marks() -> None:
    row = describe_row(_conversations(), 0, Marked(), VOCABULARY, "sft")  # type: ignore[arg-type]
    assert [part.text for part in row["parts"]] == [
        "[CLS]the cat[SEP]⟦sat on[SEP]⟧",
        "[CLS]the⟦ dog⟧",
    ]
    assert [(p.name, p.tokens, p.learned) for p in row["parts"]] == [
        ("example 1", 7, 3),
        ("example 2", 3, 1),
    ]
    assert (row["tokens"], row["segments"], row["predicted"]) == (10, 2, 4)
    assert "⟦ and ⟧" in (legend(_conversations(), "sft") or "")
    row = describe_row(_conversations(), 0, Marked(), VOCABULARY, "dpo")  # type: ignore[arg-type]
    assert [part.name for part in row["parts"]] == ["chosen", "rejected"]


def test_in_a_terminal_it_is_green_and_what_is_rejected_red() -> None:
    console = Console(record=True, force_terminal=True, color_system="standard", file=io.StringIO())
    row = describe_row(_conversations(), 0, Marked(), VOCABULARY, "dpo")  # type: ignore[arg-type]
    print_parts(0, row["parts"], console)
    text = console.export_text(styles=True)
    assert "\x1b[1;32msat on" in text and "\x1b[1;31m dog" in text and "32mthe" not in text


def test_the_command_shows_records_and_what_was_left_out(tmp_path) -> None:
    rows = [{"prompt": f"{i}? ", "completion": "long " * (i * 20) or "no"} for i in range(3)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config: Any = default_config()
    config.model.update(vocab_size=259, embedding_dim=8, num_layers=1)
    config.objective.name, config.tokenizer.kind, config.train.batch_size = "sft", "bytes", 1
    config.finetune.too_long = "drop"
    config.data.update(source="jsonl", path=str(tmp_path), sequence_length=64, heldout_fraction=0.0)
    summary, rows, _ = summarise(config, 1)
    assert summary.counts == {"dropped, too long": 2} and summary.train_documents == 1
    assert rows[0]["text"] == "<bos>0? ⟦no<eos>⟧"
    config.tokenizer.kind = "sentencepiece"
    with pytest.raises(ConfigError, match="learns from records, of which no tokenizer is trained"):
        summarise(config, 1)


def test_labelled_texts_say_their_labels() -> None:
    tokens = np.array([_ids("[CLS] the cat walk ##ing [SEP]")])
    ones = np.ones_like(tokens)
    labels = ("animal", "rest")

    def described(objective: str, targets: list, weights: list, segments=ones, **extra) -> dict:
        batch = Batch(tokens, np.array([targets]), np.array([weights]), segments, ones, extra)
        return describe_row(batch, 0, Words(), VOCABULARY, objective, labels)  # type: ignore[arg-type]

    assert described("classify", [1], [1.0])["answer"] == "rest"
    assert described("regress", [0], [1.0], score=np.array([2.5]))["answer"] == "2.5"
    by_word = described("classify_tokens", [0, 1, 0, 1, 0, 0], [0.0, 1.0, 1.0, 1.0, 0.0, 0.0])
    assert by_word["text"] == "the/rest cat/animal walking/rest"
    pair = described("similarity", [0], [1.0], np.array([[1, 1, 1, 2, 2, 2]]))
    assert pair["text"] == "the cat\nwalking"
