"""Counts what masking does to a million tokens of real text.

Text: the Python standard library's source, in the WordPiece of the config `bert_tiny` and in rows
of 128 tokens, as `bert_base` has. For each unit and rate: the share of maskable tokens that is
predicted, what is read in their place, words masked in part, special tokens masked; for pairs the
share that does not follow, and whether 1, 2 and 8 processes, and a run that goes on, make the same
batches. Where whole words are masked none is masked in part, but for the longer ones, of more
pieces than `masking.MAX_WORD_PIECES`, which count as several words and are given apart. About a
minute on one core; figures go to `masking_statistics.json` beside this file:

    python experiments/acceptance/masking_statistics.py
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np

from llmasos_jax.config.build import load_config
from llmasos_jax.config.files import cache_folder
from llmasos_jax.config.schema import Config
from llmasos_jax.data.batch import Batch
from llmasos_jax.data.masking import MAX_WORD_PIECES
from llmasos_jax.data.pipeline import Data, open_data
from llmasos_jax.data.sources import documents
from llmasos_jax.data.tokenizers.load import build_tokenizer
from llmasos_jax.data.tokenizers.tokenizer import Tokenizer
from llmasos_jax.data.tokenizers.vocabulary import Vocabulary, vocabulary_of
from llmasos_jax.train.objective import build_objective

OUT = Path(__file__).with_suffix(".json")
TOKENS = 1_000_000
LENGTH = 128
CACHE = cache_folder() / "data"


def main() -> None:
    """Counts, prints a table and writes it."""
    base = load_config("bert_tiny")
    base = replace(base, data=replace(base.data, sequence_length=LENGTH))
    tokenizer = build_tokenizer(base, documents(base.data, CACHE), CACHE)
    vocabulary = vocabulary_of(tokenizer, base.model.vocab_size)
    rows = []
    for name, unit, rate in (
        ("mlm", "token", 0.15),
        ("mlm", "word", 0.15),
        ("mlm", "span", 0.15),
        ("mlm", "word", 0.4),
        ("mlm_nsp", "token", 0.15),
        ("mlm_sop", "token", 0.15),
    ):
        objective = replace(base.objective, name=name, mask_unit=unit, mask_rate=rate)
        has_pairs = name != "mlm"
        model = base.model.replace(pooler=has_pairs, next_sentence=has_pairs)
        row = count(replace(base, model=model, objective=objective), tokenizer, vocabulary)
        rows.append({"objective": name, "unit": unit, "rate": rate, **row})
        print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    OUT.write_text(json.dumps({"numpy": np.__version__, "rows": rows}, indent=1) + "\n")


def count(cfg: Config, tokenizer: Tokenizer, vocabulary: Vocabulary) -> dict[str, Any]:
    """Counts batches of one objective until they have read `TOKENS` tokens."""
    objective = build_objective(cfg, vocabulary)

    def part(process: int, processes: int) -> Data:
        return open_data(
            cfg,
            tokenizer,
            CACHE,
            process_index=process,
            process_count=processes,
            prepare=objective.prepare,
            rows=objective.rows,
            by_sentence=objective.by_sentence,
        )

    data, sums, step, spent_s = part(0, 1), np.zeros(12, dtype=np.int64), 0, 0.0
    while sums[0] < TOKENS:
        start_s = time.process_time()
        batch = data.train[step]
        spent_s += time.process_time() - start_s
        sums += _sums(batch, vocabulary)
        step += 1
    read, maskable, chosen, masks, same, special, pairs, others = sums[:8].tolist()
    words, parted, longer, longer_parted = sums[8:].tolist()
    return {
        "tokens": read,
        "predicted": round(chosen / maskable, 4),
        "mask": round(masks / chosen, 4),
        "itself": round(same / chosen, 4),
        "random": round((chosen - masks - same) / chosen, 4),
        "special masked": special,
        "words": words,
        "words in part": parted,
        "longer words": longer,
        "longer words in part": longer_parted,
        "label 1": round(others / pairs, 4) if pairs else None,
        "same on 1, 2, 8": all(_is_same(data, part, n) for n in (2, 8)),
        "same after seek": _is_same_after_seek(data, part(0, 1)),
        "rows per s": round(step * data.batch_size / spent_s),
    }


def _sums(batch: Batch, vocabulary: Vocabulary) -> np.ndarray:
    is_special_v = vocabulary.is_special_v()
    used = batch.loss_weights > 0
    rows = np.nonzero(used)[0]
    places, targets = batch.extra["masked_positions"][used], batch.targets[used]
    read = batch.tokens[rows, places]
    text = batch.tokens.copy()
    text[rows, places] = targets
    is_maskable = (batch.segment_ids > 0) & ~is_special_v[text]
    is_chosen = np.zeros_like(is_maskable)
    is_chosen[rows, places] = True
    labels = batch.extra.get("next_sentence", np.zeros(0, dtype=np.int32))
    return np.array(
        [
            (batch.segment_ids > 0).sum(),
            is_maskable.sum(),
            used.sum(),
            (read == vocabulary.mask_id).sum(),
            (read == targets).sum(),
            is_special_v[targets].sum(),
            labels.size,
            labels.sum(),
            *_words_in_part(text, is_maskable, is_chosen, vocabulary),
        ],
        dtype=np.int64,
    )


def _words_in_part(
    text: np.ndarray, is_maskable: np.ndarray, is_chosen: np.ndarray, vocabulary: Vocabulary
) -> list[int]:
    """Words, and how many are chosen in part: of MAX_WORD_PIECES pieces or fewer, then longer."""
    goes_on = np.zeros_like(is_maskable)
    goes_on[:, 1:] = is_maskable[:, 1:] & is_maskable[:, :-1] & vocabulary.is_inside_v[text[:, 1:]]
    word = np.cumsum(is_maskable & ~goes_on).reshape(text.shape)
    length_w = np.bincount(word[is_maskable])[1:]
    chosen_w = np.bincount(word[is_chosen], minlength=length_w.size + 1)[1:]
    is_parted_w = (chosen_w > 0) & (chosen_w < length_w)
    found = []
    for is_counted_w in (length_w <= MAX_WORD_PIECES, length_w > MAX_WORD_PIECES):
        found += [int(is_counted_w.sum()), int(is_parted_w[is_counted_w].sum())]
    return found


def _is_same(data: Data, part: Any, processes: int) -> bool:
    parts = [part(process, processes) for process in range(processes)]
    for step in (0, 1, 333):
        batches = [p.train[step] for p in parts]
        joined = jax.tree.map(lambda *arrays: np.concatenate(arrays), *batches)
        if not _equal(joined, data.train[step]):
            return False
    return True


def _is_same_after_seek(data: Data, other: Data) -> bool:
    other.train.seek(77)
    found = next(other.train)
    other.close()
    return _equal(found, data.train[77])


def _equal(a: Batch, b: Batch) -> bool:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(x.tobytes() == y.tobytes() for x, y in pairs)


if __name__ == "__main__":
    main()
