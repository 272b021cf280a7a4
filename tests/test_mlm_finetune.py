"""Pre-training that goes on from an encoder: its first loss is transformers' on the same batch."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_bert import SPECIAL, WORDS, word_pieces
from tolerances import SIMPLE

import llmasos_jax
from llmasos_jax.cli.main import main
from llmasos_jax.config.build import default_config
from llmasos_jax.data.batch import Batch
from llmasos_jax.data.pipeline import open_data
from llmasos_jax.data.tokenizers.vocabulary import vocabulary_of
from llmasos_jax.finetune.resolve import resolve
from llmasos_jax.train.hooks import read_metrics
from llmasos_jax.train.objective import build_objective

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore:::(torch|transformers)")]
LENGTH = 24
WIDTHS = dict(
    **dict(vocab_size=len(SPECIAL) + len(WORDS), hidden_size=32, num_hidden_layers=2),
    **dict(num_attention_heads=4, intermediate_size=48, max_position_embeddings=LENGTH),
    **dict(pad_token_id=0, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0),
)


def written(folder: Path, kind: str) -> Any:
    """A folder of transformers with a BERT of random numbers and its tokenizer; the model."""
    pytest.importorskip("torch", reason="needs the extra `parity`")
    pytest.importorskip("transformers", reason="needs the extra `parity`")
    import transformers
    from encoder_twins import build

    model = build(kind, "BertConfig", WIDTHS)
    model.save_pretrained(folder)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=word_pieces()._tokenizer,
        **{"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"},
        **{"mask_token": "[MASK]", "pad_token": "[PAD]"},
    ).save_pretrained(folder)
    return model


def config(base: Path, text: Path, **finetune: Any) -> Any:
    made = default_config()
    made.finetune.update(base=str(base), rank=4, **finetune)
    made.objective.name = "mlm"
    made.data.update(source="text", path=str(text), sequence_length=LENGTH, heldout_fraction=0.2)
    made.train.update(steps=6, batch_size=8, log_every_steps=1, eval_every_steps=6)
    made.optim.update(learning_rate=1e-2, warmup_steps=0, weight_decay=0.0)
    return made


def texts(folder: Path) -> Path:
    rng = random.Random(0)
    folder.mkdir()
    for number in range(12):
        words = [rng.choice(("the cat sat .", "a dog ran .", "rain fell .")) for _ in range(30)]
        (folder / f"{number:02d}.txt").write_text(" ".join(words))
    return folder


def first_batch(made: Any, cache: Path) -> Batch:
    resolved, base = resolve(made)
    vocabulary = vocabulary_of(base.tokenizer, resolved.model.vocab_size)
    objective = build_objective(resolved, vocabulary)
    return open_data(
        resolved, base.tokenizer, cache, prepare=objective.prepare, rows=objective.rows
    ).train[0]


def theirs_on(model: Any, batch: Batch) -> float:
    """What transformers calls the loss, of each document of a row by itself."""
    import torch

    total, count = 0.0, 0
    for row in range(len(batch.tokens)):
        own = batch.extra["masked_positions"][row][batch.loss_weights[row] > 0]
        labels = np.full(batch.tokens.shape[1], -100)
        labels[own] = batch.targets[row][batch.loss_weights[row] > 0]
        for segment in sorted({*batch.segment_ids[row]} - {0}):
            is_own = batch.segment_ids[row] == segment
            number = int((labels[is_own] >= 0).sum())
            if not number:
                continue
            fields = {
                "input_ids": batch.tokens[row][is_own],
                "position_ids": batch.positions[row][is_own],
                "labels": labels[is_own],
            }
            with torch.no_grad():
                tensors = {n: torch.from_numpy(x[None].astype(np.int64)) for n, x in fields.items()}
                total += float(model(**tensors).loss) * number
            count += number
    assert count == int(batch.loss_weights.sum()) > 10
    return total / count


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_first_loss_is_the_bases_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model = written(tmp_path / "base", "BertForMaskedLM")
    made = config(tmp_path / "base", texts(tmp_path / "text"), method=method)
    llmasos_jax.finetune(made, tmp_path / "run")
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    wanted = theirs_on(model, first_batch(made, tmp_path / "cache"))
    assert lines[0]["nll"] == pytest.approx(wanted, rel=SIMPLE)
    assert lines[5]["loss"] < lines[0]["loss"] - 0.3


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main(["finetune", *words]) == 2
    lines = capsys.readouterr().err.splitlines()
    return next(line for line in lines if line.startswith("llmasos: error"))


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (
            "BertModel",
            'objective.name="mlm" needs an output layer, and the base has none; take a base with '
            "one (transformers' ...ForMaskedLM), or learn from labelled texts or pairs "
            '(objective.name="classify", "similarity")',
        ),
        (
            "BertForPreTraining",
            'objective.name="mlm" does not train the scores of sentence pairs, and the base has '
            'them; set objective.name="mlm_nsp", which trains both',
        ),
    ],
)
def test_a_base_without_the_head_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, kind: str, said: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    written(tmp_path / "base", kind)
    path = tmp_path / "run.py"
    given = json.dumps({"base": str(tmp_path / "base"), "text": str(texts(tmp_path / "text"))})
    path.write_text(
        "from llmasos_jax.config.build import default_config\n"
        f"given = {given}\n"
        "def get_config():\n    c = default_config()\n"
        "    c.finetune.base, c.objective.name = given['base'], 'mlm'\n"
        "    c.data.source, c.data.path = 'text', given['text']\n"
        f"    c.data.sequence_length = {LENGTH}\n    return c\n"
    )
    words = [f"--config={path}", f"--workdir={tmp_path / 'run'}"]
    assert refused(words, capsys) == f"llmasos: error: {said}"
    assert not (tmp_path / "run").exists()
